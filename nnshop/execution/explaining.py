"""Which way the parts of a model take, and why not a better one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_NOTES: ContextVar[list[tuple[str, str]] | None] = ContextVar("notes", default=None)


def note(way: str, reason: str) -> None:
    """Notes why a way was not taken, for who asks."""
    notes = _NOTES.get()
    if notes is not None:
        notes.append((way, reason))


@contextmanager
def noting() -> Iterator[list[tuple[str, str]]]:
    """Collects what is noted in this block, by this thread."""
    token = _NOTES.set([])
    notes = _NOTES.get()
    assert notes is not None
    try:
        yield notes
    finally:
        _NOTES.reset(token)


__all__ = ["Callable", "note", "noting"]
