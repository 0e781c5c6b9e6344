"""Walks through a graph, from its outputs back. Nothing here calls itself, so a graph may be as deep as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import nnabla as nn


def functions_of(outputs: Iterable[nn.Variable], enters: Callable[[nn.Variable], bool] = lambda v: True) -> list[Any]:
    """Lists the functions that these Variables are computed by, in the order of computation.

    NNabla's own `visit` gives the same order, but ends the process at some 100,000 functions in a row.

    Args:
        outputs: Where the walk begins.
        enters: Whether to go on to the function that computes this Variable; by default always.

    Example:
        >>> from nnshop.graphs import functions_of
        >>> y = F.tanh(nn.Variable((2, 3)) * 2)
        >>> [function.name for function in functions_of([y])]
        ['MulScalar', 'Tanh']
    """
    found, seen = [], {None}
    todo = _before(outputs, enters)
    while todo:
        function, is_ready = todo.pop()
        if is_ready:
            found.append(function)
        elif function not in seen:
            seen.add(function)
            todo.append((function, True))
            todo += _before(function.inputs, enters)
    return found


def _before(variables: Iterable[nn.Variable], enters: Callable[[nn.Variable], bool]) -> list[tuple[Any, bool]]:
    """The functions that compute these, the first one last."""
    return [(v.parent, False) for v in variables if v.parent is not None and enters(v)][::-1]


def in_place_of(v: nn.Variable) -> set[nn.Variable]:
    """Finds the Variables in whose array this one lies: itself, and what functions in place made it of."""
    found, todo = set(), [v]
    while todo:
        v = todo.pop()
        found.add(v)
        if v.parent is not None:
            todo += [given for i, given in enumerate(v.parent.inputs) if v.parent.inplace_data(i) and given not in found]
    return found
