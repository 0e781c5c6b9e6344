"""The cells that a layer is made of, with the scopes of their weights."""

from __future__ import annotations

from collections.abc import Iterator

from ..combinators import Stack, Sync, Wrapper, child_scopes
from ..core import AbstractCell
from ..parameters import join
from .engine import Layer, Owned


def nodes(cell: AbstractCell, path: str) -> Iterator[tuple[AbstractCell, str]]:
    """Yields a cell and all cells in it, each with the scope in which it looks for its weights."""
    yield cell, path
    if isinstance(cell, (Stack, Sync)):
        for scope, child in zip(child_scopes(cell.cells), cell.cells):
            yield from nodes(child, join(path, cell.name, scope))
    elif isinstance(cell, Owned):
        yield from nodes(cell.cell, cell.layer.path)
    elif isinstance(cell, Wrapper):
        yield from nodes(cell.cell, path)


def layer_nodes(rnn: Layer) -> Iterator[tuple[AbstractCell, str]]:
    """Yields all cells of a layer, or of a model; ValueError before its first call, when they have no weights yet."""
    for cell, path in rnn.parts():
        yield from nodes(cell, path)
