"""The unrolled way: the step is repeated in the graph, once for each step of time."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F

from ..context import in_float32
from ..core import Tree, shapes, tree_map
from ..functions import unstack
from . import explaining
from .recurrence import Recurrence


def iterate(run: Recurrence) -> tuple[Tree, Tree]:
    """Splits, loops and stacks; see `nnshop.running.iterate`."""
    explaining.take("unrolled")
    columns = tree_map(unstack, run.xs)  # lists of T Variables are leaves
    state, ys = run.state, []
    before = shapes(state)
    for t in reversed(range(run.length)) if run.reverse else range(run.length):
        y, state = run.step(tree_map(lambda column, t=t: column[t], columns), state)
        check_state_kept(before, shapes(state))
        ys.append(y)
        if shapes(y) != shapes(ys[0]):
            raise ValueError(f"a step must return an output of the same shapes each time; {shapes(ys[0])}, then {shapes(y)}.")
        if run.running is not None and nn.get_auto_forward() and not run.running(state).data.get_data("r").any():
            ys += [y] * (run.length - len(ys))
            break
    if run.reverse:
        ys.reverse()
    return tree_map(_stack, *ys), state


def _stack(*steps: nn.Variable) -> nn.Variable:
    with in_float32(steps[0].ndim < 2):  # one number for each row may be an id
        return F.stack(*steps, axis=0)


def check_state_kept(before: Tree, after: Tree) -> None:
    """Raises ValueError unless the state that a step returned has the structure and the shapes of the one it was given."""
    if after != before:
        raise ValueError(f"a step must return a state of the shapes that it was given, {before}; it returned {after}.")
