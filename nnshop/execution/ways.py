"""The choice among the ways to run a step over time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Callable

import nnabla as nn

from ..core import Tree, shapes, tree_leaves
from . import unrolled

WAYS: dict[str, Callable] = {"unrolled": unrolled.iterate}


def iterate(
    step: Callable, xs: Tree, state: Tree, length: int | None = None, reverse: bool = False, way: str = "auto"
) -> tuple[Tree, Tree]:
    """Runs a plain function over time; nothing is assumed about a batch axis.

    It is this loop, in the graph::

        ys = []
        for x in xs:                    # reversed(xs) with reverse
            y, state = step(x, state)
            ys.append(y)
        return F.stack(*ys, axis=0), state

    Args:
        step: `(x, state) -> (y, state)` on trees of Variables; x is None where xs is.
        xs: A tree of Variables `(T, ...)`, or None.
        state: A tree of Variables.
        length: T; needed where xs is None, else it must agree.
        reverse: From the last step to the first. ys[t] is still the output of step t.
        way: "unrolled", or "auto" for the fastest that fits.

    Returns:
        `(ys, state)`: a tree of Variables `(T, ...)`, and the last state.

    Raises:
        ValueError: No length, a length below 1 or another than that of xs, an unknown way, or a step whose state changes shape.

    Example:
        >>> add = lambda x, total: (total + x, total + x)
        >>> xs, zero = map(nn.Variable.from_numpy_array, ([1., 2., 3.], 0.))
        >>> ys, total = iterate(add, xs, zero)
        >>> ys.forward(); ys.d
        array([1., 3., 6.], dtype=float32)
    """
    check_way(way)
    length = sequence_length(xs, length, axis=0)
    return WAYS["unrolled" if way == "auto" else way](step, xs, state, length, reverse)


def check_way(way: str, known: Iterable[str] = WAYS) -> None:
    """Raises ValueError unless the way to run is known."""
    if way not in ("auto", *known):
        raise ValueError(f"way must be one of {', '.join(['auto', *known])}; got {way!r}.")


def check_variables(xs: Tree) -> None:
    """Raises TypeError unless all leaves are Variables."""
    for leaf in tree_leaves(xs):
        if not isinstance(leaf, nn.Variable):
            raise TypeError(
                f"sequences are Variables, or tuples of them; got {type(leaf).__name__}. "
                "Wrap an array in nn.Variable.from_numpy_array."
            )


def sequence_length(xs: Tree, length: int | None, axis: int) -> int:
    """Finds the number of steps in xs, along this axis, and in `length`; raises ValueError where they give none, or several."""
    check_variables(xs)
    if any(len(leaf.shape) <= axis for leaf in tree_leaves(xs)):
        raise ValueError(f"a sequence needs its time on axis {axis}; got shapes {shapes(xs)}.")
    found = {leaf.shape[axis] for leaf in tree_leaves(xs)} | ({length} if length is not None else set())
    if not found:
        raise ValueError("without inputs the number of steps must be given: length=T.")
    if len(found) > 1:
        raise ValueError(
            f"all inputs, and length, must have one number of steps; inputs have shapes {shapes(xs)}, length is {length}."
        )
    (steps,) = found
    if steps < 1:
        raise ValueError(f"a sequence needs at least one step; got {steps}. Leave empty sequences out, or mask them.")
    return steps
