"""Calls a step, to take the graph that it makes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

import nnabla as nn
import numpy as np
from nnabla.function import PythonFunction

from ..blocks import Blocks
from ..core import Tree, tree_leaves, tree_map
from ..functions import functions_of
from .step_graph import NotRepeatable, StepGraph


def trace(step: Callable, x: Tree, state: Tree, hoist: bool | None = None) -> tuple[StepGraph, Tree, Tree]:
    """Calls a step, and returns its graph and the trees y and state that it returned.

    It is called twice. What the graphs of both calls hold was there before, and stays outside; in all else they must agree.
    In auto-forward mode nothing that the step made stays outside, since nobody would compute it there.

    Args:
        step: `(x, state) -> (y, state)`.
        x, state: Trees of Variables, of which only the shapes are used.
        hoist: Whether what does not depend on them stays outside; by default where that is not computed at once.

    Raises:
        NotRepeatable: The step is not the same at each time, or holds what cannot be computed twice with the same result.
    """
    eager = nn.get_auto_forward()
    with nn.auto_forward(False):
        first, second = _Call(step, x, state), _Call(step, x, state)
        _check_same(first, second)
        before = set(first.functions)
        made = [function for function in second.functions if function not in before]
        graph = StepGraph(second.inputs, second.outputs, made, second.python, not eager if hoist is None else hoist)
    if eager:
        for function, given, made in graph.outside:
            function.forward(given, made)
        _compute(graph.closures)
    return graph, second.y, second.state


class _Call:
    """What one call of a step made."""

    def __init__(self, step: Callable, x: Tree, state: Tree) -> None:
        stand_ins = tree_map(lambda v: nn.Variable(v.shape, need_grad=True), (x, state))
        self.python: dict[Any, PythonFunction] = {}
        with noting_python_functions(self.python):
            self.y, self.state = step(*stand_ins)
        self.inputs, self.outputs = tree_leaves(stand_ins), tree_leaves((self.y, self.state))
        for v in self.outputs:
            if not isinstance(v, nn.Variable):
                raise TypeError(f"a step returns Variables, or tuples of them; this one returned {type(v).__name__}.")
        self.functions = functions_of(self.outputs)


_NOTES: Blocks[dict[Any, PythonFunction]] = Blocks("notes of Python functions")


def noting_python_functions(found: dict[Any, PythonFunction]) -> AbstractContextManager:
    """Notes which Python object computes which function that this thread makes in the block; NNabla itself does not tell."""
    return _NOTES.open(found)


def _noted(call: Callable) -> Callable:
    @wraps(call)
    def noting(self: PythonFunction, *inputs: nn.Variable, **options: Any) -> Any:
        made = call(self, *inputs, **options)
        for found in _NOTES.values():
            found[(made[0] if isinstance(made, (list, tuple)) else made).parent] = self
        return made

    return noting


# Once and for all: exchanged for the time of a block it would be exchanged for other threads, and may be put back too early.
PythonFunction.__call__ = _noted(PythonFunction.__call__)


def _check_same(first: _Call, second: _Call) -> None:
    """Raises NotRepeatable unless both calls made the same functions, of the same Variables."""
    partner = dict(zip(first.inputs, second.inputs))

    def match(a: nn.Variable, b: nn.Variable) -> bool:
        return partner[a] == b if a in partner else _same_value(a, b)

    same = len(first.functions) == len(second.functions) and len(first.outputs) == len(second.outputs)
    for f, g in zip(first.functions, second.functions):
        same = same and f.info.type_name == g.info.type_name and f.info.args == g.info.args
        same = same and all(map(match, f.inputs, g.inputs))
        partner.update(zip(f.outputs, g.outputs))
    if not (same and all(map(match, first.outputs, second.outputs))):
        raise NotRepeatable(
            "way='loop' needs a step that does the same at each time; called twice, this one made two different graphs. "
            "Pass what changes as an input or a state, or use way='unrolled'."
        )


def _same_value(a: nn.Variable, b: nn.Variable) -> bool:
    """Whether two Variables from outside are one, as two references to a weight are, or constants of the same value."""
    if a == b or a.data == b.data:
        return True
    if a.parent is not None or b.parent is not None or a.shape != b.shape:
        return False
    return np.array_equal(a.data.get_data("r"), b.data.get_data("r"), equal_nan=True)


def _compute(closures: list[nn.Variable]) -> None:
    """Computes what was made outside of auto-forward mode; in it nobody else would."""
    for v in closures:
        if v.data.modification_count or v.data.clear_called:
            continue
        if v.parent is None:
            raise NotRepeatable(
                f"way='loop' found a Variable of shape {v.shape} without a value in the step, such as an unlinked one, which "
                "nothing computes. To stop a gradient set need_grad=False on the Variable itself, or use way='unrolled'."
            )
        v.forward()
