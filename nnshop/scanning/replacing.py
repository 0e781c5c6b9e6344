"""What a function builds, computed of other Variables than those that it read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import nnabla as nn

from ..graphs import Rule, Traced, again, rewrite, trace


def computed_of(
    build: Callable[[], list[nn.Variable]], instead: Sequence[tuple[nn.Variable, nn.Variable]]
) -> list[nn.Variable]:
    """Calls a function, and applies what depends on some Variables again, to others.

    Args:
        build: Makes a graph, and returns its outputs.
        instead: Pairs of a Variable that the graph reads, or another one on the same array, and what is read in its place.

    Returns:
        The outputs, computed of the others; the graph that was built, and what it read, remain as they are.

    Raises:
        ValueError: A function in Python from outside of `build` reads what is to be replaced.
    """
    eager = nn.get_auto_forward()
    with nn.auto_forward(False):
        before = trace(build) if eager else None  # what two calls both read was there before, and is computed
        traced = trace(build)
    anew = traced.without(before).functions if before else []
    replacements = dict(instead)
    for v in traced.variables():
        if v.parent is None:
            replacements.update((v, new) for old, new in instead if v not in replacements and v.data == old.data)
    return rewrite(traced, replacements, _Replacing(traced, set(anew)))


class _Replacing(Rule):
    """Applies again what depends on what is replaced, and some functions besides."""

    def __init__(self, traced: Traced, anew: set[Any]) -> None:
        self.python, self.anew = traced.python, anew

    def wants(self, function: Any, depends: bool) -> bool:
        return depends or function in self.anew

    def apply(self, function: Any, given: list[nn.Variable]) -> list[nn.Variable]:
        python = self.python.get(function)
        if python is None and function.name == "Callback":  # NNabla's name for all functions in Python
            kind = function.info.type_name
            raise ValueError(f"{kind}, computed outside of the step, reads what the step updates; pass its result to the step.")
        return again(function, given, python)
