"""Graphs of NNabla's own functions only, which an `.nnp` file can hold and NNabla's C runtime can run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .blocks import Blocks

_PORTABLE: Blocks[bool] = Blocks("portable")


@contextmanager
def portable() -> Iterator[None]:
    """Builds ordinary NNabla functions only, in this block: slower, but they can be saved and differentiated again.

    Values and gradients are the same. What the block decides is decided where functions are called; the graph may be run
    anywhere. A mask is arithmetic in here, `m * a + (1 - m) * b`, so padding must be finite: 0 * NaN is NaN. The block counts
    for its own thread.

    Example:
        >>> with portable():
        ...     y = nnshop.gru(nn.Variable((4, 7, 3)), 8)
        >>> kinds = set()
        >>> y.visit(lambda function: kinds.add(function.name))
        >>> "Callback" in kinds  # NNabla's name for a function that is computed in Python
        False
    """
    with _PORTABLE.open(True):
        yield


def is_portable() -> bool:
    """Whether only ordinary NNabla functions may be built here."""
    return bool(_PORTABLE.values())
