"""Graphs of NNabla's own functions only, which an `.nnp` file can hold and NNabla's C runtime can run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace

# The blocks themselves, not how many: those of generators end in any order, and in another thread than they began in.
_BLOCKS: ContextVar[tuple[SimpleNamespace, ...]] = ContextVar("portable", default=())


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
    block = SimpleNamespace(open=True)
    _BLOCKS.set((*(other for other in _BLOCKS.get() if other.open), block))
    try:
        yield
    finally:
        block.open = False


def is_portable() -> bool:
    """Whether only ordinary NNabla functions may be built here."""
    return any(block.open for block in _BLOCKS.get())
