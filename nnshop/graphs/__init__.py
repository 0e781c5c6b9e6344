"""What NNabla lacks for graphs: to list their functions, to take what a call builds, and to build it again by a rule."""

from __future__ import annotations

from .replaying import Drawing
from .rewriting import Rule, again, as_list, rewrite
from .tracing import Traced, trace
from .visiting import functions_of, in_place_of

__all__ = ["Drawing", "Rule", "Traced", "again", "as_list", "functions_of", "in_place_of", "rewrite", "trace"]
