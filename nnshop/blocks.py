"""The `with` blocks that are open in this thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class _Block(Generic[T]):
    value: T | None  # None once the block has ended: what it held is free


class Blocks(Generic[T]):
    """A kind of blocks, each with a value: `with blocks.open(value)`.

    Each thread has its own. The blocks themselves are kept, not how many: those of generators end in any order, and in another
    thread than they began in.

    Example:
        >>> blocks = Blocks("colours")
        >>> with blocks.open("red"), blocks.open("blue"):
        ...     blocks.values()
        ['red', 'blue']
        >>> blocks.values()
        []
    """

    def __init__(self, name: str) -> None:
        self._open: ContextVar[tuple[_Block[T], ...]] = ContextVar(name, default=())

    @contextmanager
    def open(self, value: T) -> Iterator[T]:
        """Opens a block, and gives its value."""
        block = _Block[T](value)
        self._open.set((*(other for other in self._open.get() if other.value is not None), block))
        try:
            yield value
        finally:
            block.value = None

    def values(self) -> list[T]:
        """The values of the blocks that are open here, the innermost last."""
        return [block.value for block in self._open.get() if block.value is not None]
