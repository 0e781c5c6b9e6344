"""Graphs of NNabla's own functions only, which an `.nnp` file can hold and NNabla's C runtime can run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_PORTABLE = ContextVar("portable", default=False)


@contextmanager
def portable() -> Iterator[None]:
    """Builds ordinary NNabla functions only, in this block: slower, but they can be saved and differentiated again."""
    token = _PORTABLE.set(True)
    try:
        yield
    finally:
        _PORTABLE.reset(token)


def is_portable() -> bool:
    """Whether only ordinary NNabla functions may be built here."""
    return _PORTABLE.get()
