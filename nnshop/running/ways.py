"""The choice among the ways to run a step over time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ..building import building
from ..checks import check_count, check_flag
from ..compiling.nodes import Unsupported
from ..core import Tree, check_variables, shapes, tree_leaves, tree_map
from ..functions import swap_time
from ..kernels import why_not_compiled as why_not_llvm
from ..portable import is_portable
from ..sharing import sharing_is_meant
from . import explaining, loop, unrolled
from .step_graph import NotRepeatable


def _compiled(*arguments: Any, **options: Any) -> tuple[Tree, Tree]:
    from . import compiled  # imported here: LLVM takes time to import, and may not be there

    return compiled.iterate(*arguments, **options)


WAYS: dict[str, Callable] = {"unrolled": unrolled.iterate, "loop": loop.iterate, "compiled": _compiled}

# A single step on a state of fewer numbers is not even traced, to see whether compiling it pays.
LARGE = 500
# How long a sequence "auto" gives to the loop. On one core, forward and backward, the loop took of the unrolled graph's time
# 1.3 to 2.1 at T=100, 0.9 to 1.3 at T=500, 0.8 to 1.2 at T=1000 and 0.5 to 1.2 at T=2000: less than 1 for small cells (Elman
# and LSTM of 32 units, batch 8), most for an LSTM of 128 units, batch 32. The unrolled graph also took 0.2 to 0.9 s to build
# for each 1000 steps, as long as three runs of it or less, and twice the memory or
# more. The loop is built in 20 ms, whatever the length.
LOOP_FROM = 500


@building()
def iterate(
    step: Callable,
    xs: Tree,
    state: Tree,
    length: int | None = None,
    reverse: bool = False,
    way: str = "auto",
    running: Callable | None = None,
    checkpoint_every: int | None = None,
    time_axis: int = 0,
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
        way: "unrolled" repeats the step in the graph. "loop" makes one graph of the step, and runs it T times within one
            function: building takes no time, memory holds the states only, and the backward pass computes each step again,
            with the random numbers that it drew. It needs a step that does the same at each time, which it calls twice, not
            T times. "compiled" makes machine code of such a step, for the CPU, if all its functions are translated. "auto"
            compiles where it can, takes the loop for long sequences, and unrolls others; `explain` tells why.
        running: Tells the leaf of the state that is 0 (all of it) after the last step that matters, such as
            `lambda state: state[1]`. Where that is known while it runs, in the loop and in auto-forward mode, later steps are
            not computed. Elsewhere they are: they must leave alone what is used of the state. Their outputs mean nothing.
        checkpoint_every: For "loop" and "compiled": keeps each k-th state only, and computes those between once more in the
            backward pass; about sqrt(T) needs least memory. By default it keeps all.
        time_axis: 0, or 1 for xs and ys of shape `(B, T, ...)`, which the compiled way reads and writes as they are.

    Returns:
        `(ys, state)`: a tree of Variables `(T, ...)`, and the last state.

    Raises:
        ValueError: No length, a length below 1 or another than that of xs, an unknown way, a step whose state changes shape,
            or with "loop" one that is not the same each time, or that cannot be computed twice with one result.

    Example:
        >>> add = lambda x, total: (total + x, total + x)
        >>> xs, zero = map(nn.Variable.from_numpy_array, ([1., 2., 3.], 0.))
        >>> ys, total = iterate(add, xs, zero)
        >>> ys.forward(); ys.d
        array([1., 3., 6.], dtype=float32)
    """
    check_way(way)
    check_time_axis(time_axis)
    length = sequence_length(xs, length, axis=time_axis)
    check_variables(state, "a state")
    check_flag("reverse", reverse)
    check_checkpoints(checkpoint_every, way)
    explaining.begin(step, length)
    options: dict[str, Any] = {} if checkpoint_every is None else {"checkpoint_every": checkpoint_every}
    with sharing_is_meant():  # among steps
        if way == "compiled":
            check_compiled()
            return _compiled(step, xs, state, length, reverse, running, **options, batch_major=time_axis == 1)
        run: Callable = WAYS.get(way, iterate_plainly)
        if way == "auto":
            made, repeatable = try_compiled(step, xs, state, length, reverse, running, batch_major=time_axis == 1)
            if made is not None:
                return made
            run = partial(run, repeatable=repeatable)
        ys, state = run(step, _time_first(xs, time_axis), state, length, reverse, running, **options)
        return _time_first(ys, time_axis), state


def _time_first(xs: Tree, time_axis: int) -> Tree:
    """Exchanges the first two axes of sequences, whose time is on this one, or should be."""
    return tree_map(swap_time, xs) if time_axis else xs


def try_compiled(
    step: Callable, xs: Tree, state: Tree, length: int, *options: Any, **more: Any
) -> tuple[tuple[Tree, Tree] | None, bool]:
    """Compiles a step, where that is possible and pays.

    Returns:
        What it gives, or None; and whether, as far as is known, the step is the same at each time.
    """
    reason, repeatable = why_not_llvm(), True
    if length == 1 and sum(v.size for v in tree_leaves(state)) < LARGE:
        reason = reason or "1 step of this size is too few to pay for the call"
    if not reason:
        try:
            return _compiled(step, xs, state, length, *options, **more, must_pay=True), True
        except (NotRepeatable, Unsupported) as error:
            reason, repeatable = str(error), not isinstance(error, NotRepeatable)
    explaining.refuse("compiled", reason)
    return None, repeatable


def iterate_plainly(
    step: Callable,
    xs: Tree,
    state: Tree,
    length: int,
    reverse: bool,
    running: Callable | None = None,
    repeatable: bool = True,
) -> tuple[Tree, Tree]:
    """Runs a step by NNabla's functions: in a loop where the sequence is long, else unrolled."""
    reason = "" if repeatable else "the step is not the same at each time"
    if length < LOOP_FROM:
        reason = f"a sequence of {length} steps is unrolled; from {LOOP_FROM} on it is run in a loop"
    if is_portable():
        reason = "portable() allows NNabla's own functions only"
    if not reason:
        try:
            return loop.iterate(step, xs, state, length, reverse, running)
        except NotRepeatable as error:  # it can be unrolled
            reason = str(error)
    explaining.refuse("loop", reason)
    return unrolled.iterate(step, xs, state, length, reverse, running)


def check_compiled() -> None:
    """Raises ValueError where nothing can be compiled."""
    reason = why_not_llvm()
    if reason:
        raise ValueError(f"way='compiled' cannot be used here: {reason}. Use way='auto', or 'unrolled'.")


def check_way(way: str, known: Iterable[str] = WAYS) -> None:
    """Raises ValueError unless the way to run is known."""
    if way not in ("auto", *known):
        raise ValueError(f"way must be one of {', '.join(['auto', *known])}; got {way!r}.")


def check_time_axis(time_axis: Any) -> None:
    """Raises ValueError unless the axis is one of those that time may have."""
    if time_axis not in (0, 1):
        raise ValueError(f"time_axis is 0 for (T, B, ...), or 1 for (B, T, ...); got {time_axis!r}.")


def check_checkpoints(checkpoint_every: int | None, way: str) -> None:
    """Raises ValueError where the number of steps between kept states is given for another way than the loop."""
    if checkpoint_every is not None and way not in ("loop", "compiled"):
        raise ValueError(f"checkpoint_every is an option of way='loop'; got way={way!r}. way='compiled' takes it too.")


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
    check_count("length", steps)
    return int(steps)
