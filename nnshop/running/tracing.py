"""Calls a step, to take the graph that it makes."""

from __future__ import annotations

from collections.abc import Callable

import nnabla as nn

from ..core import Tree, tree_leaves, tree_map
from ..graphs import tracing
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
        if not tracing.is_same(first.traced, second.traced):
            raise NotRepeatable(
                "way='loop' needs a step that does the same at each time; called twice, this one made two different graphs. "
                "Pass what changes as an input or a state, or use way='unrolled'."
            )
        graph = StepGraph(second.traced.without(first.traced), not eager if hoist is None else hoist)
    if eager:
        for function, given, made in graph.outside:
            function.forward(given, made)
        _compute(graph.closures)
    return graph, second.y, second.state


class _Call:
    """What one call of a step made."""

    def __init__(self, step: Callable, x: Tree, state: Tree) -> None:
        stand_ins = tree_map(lambda v: nn.Variable(v.shape, need_grad=True), (x, state))

        def build(*_: nn.Variable) -> list[nn.Variable]:
            self.y, self.state = step(*stand_ins)
            outputs = tree_leaves((self.y, self.state))
            for v in outputs:
                if not isinstance(v, nn.Variable):
                    raise TypeError(f"a step returns Variables, or tuples of them; this one returned {type(v).__name__}.")
            return outputs

        self.traced = tracing.trace(build, tree_leaves(stand_ins))


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
