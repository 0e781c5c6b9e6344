"""What NNabla's functions compute, as nodes; importing this fills the table of `translate`."""

from __future__ import annotations

from . import elementwise, losses, moving, normalizing, products, reducing
