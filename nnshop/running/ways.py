"""The ways to run a step over time: each is a value, with its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from ..building import building
from ..checks import check_count, check_flag
from ..compiling.nodes import Unsupported
from ..core import Tree, check_variables, is_whole, shapes, tree_leaves
from ..kernels import why_not_compiled as why_not_llvm
from ..portable import is_portable
from ..sharing import sharing_is_meant
from . import explaining, loop, unrolled
from .fused import is_on_cudnn, why_not_cudnn
from .recurrence import Recurrence
from .step_graph import NotRepeatable

# A single step on a state of fewer numbers is not even traced, to see whether compiling it pays.
LARGE = 500
# How long a sequence "auto" gives to the loop. On one core, forward and backward, the loop took of the unrolled graph's time
# 1.3 to 2.1 at T=100, 0.9 to 1.3 at T=500, 0.8 to 1.2 at T=1000 and 0.5 to 1.2 at T=2000: less than 1 for small cells (Elman
# and LSTM of 32 units, batch 8), most for an LSTM of 128 units, batch 32. The unrolled graph also took 0.2 to 0.9 s to build
# for each 1000 steps, as long as three runs of it or less, and twice the memory or
# more. The loop is built in 20 ms, whatever the length.
LOOP_FROM = 500


class Way(ABC):
    """How a step is run over time; a frozen dataclass of its options.

    Attributes:
        name: Stands for the way without options, as in `way="loop"`.
    """

    name: ClassVar[str]

    def obstacle(self) -> str:
        """Tells what keeps this way from being taken here; empty where nothing does."""
        return ""

    @abstractmethod
    def __call__(self, run: Recurrence) -> tuple[Tree, Tree]:
        """Runs it."""


@dataclass(frozen=True)
class Unrolled(Way):
    """Repeats the step in the graph, T times, by NNabla's own functions."""

    name = "unrolled"

    def __call__(self, run: Recurrence) -> tuple[Tree, Tree]:
        return run.time_first(unrolled.iterate)


@dataclass(frozen=True)
class Loop(Way):
    """Makes one graph of the step, and runs it T times within one function; the backward pass computes each step again.

    Building takes no time, and memory holds the states only. It needs a step that does the same at each time.

    Args:
        checkpoint_every: Keep each k-th state only, and compute those between once more in the backward pass; about sqrt(T)
            needs least memory.

    Raises:
        ValueError: It is no number of steps.
    """

    checkpoint_every: int = 1
    name = "loop"

    def __post_init__(self) -> None:
        _check_every(self.checkpoint_every)

    def obstacle(self) -> str:
        return "portable() allows NNabla's own functions only" if is_portable() else ""

    def __call__(self, run: Recurrence) -> tuple[Tree, Tree]:
        return run.time_first(partial(loop.iterate, every=int(self.checkpoint_every)))


@dataclass(frozen=True)
class Compiled(Way):
    """Makes machine code of the step for the whole sequence, on the CPU, if all its functions are translated.

    Args:
        checkpoint_every: Run the sequence in parts of so many steps, keep the state before each, and compute a part once more
            in the backward pass. By default all that fits into 1 GiB is one part.

    Raises:
        ValueError: It is no number of steps.
    """

    checkpoint_every: int | None = None
    name = "compiled"

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None:
            _check_every(self.checkpoint_every)

    def obstacle(self) -> str:
        return why_not_llvm()

    def __call__(self, run: Recurrence, must_pay: bool = False) -> tuple[Tree, Tree]:
        from . import compiled  # imported here: LLVM takes time to import, and may not be there

        return compiled.iterate(run.masked(), self.checkpoint_every, must_pay)


@dataclass(frozen=True)
class Fused(Way):
    """One function for the whole sequence: a compiled one on the CPU, cuDNN's on a GPU, for the cells that it knows."""

    name = "fused"

    def __call__(self, run: Recurrence) -> tuple[Tree, Tree]:
        reason = Compiled().obstacle()
        if not reason:
            try:
                return Compiled()(run)
            except (NotRepeatable, Unsupported) as error:
                reason = str(error)
        made = run.fast_form()
        if made is not None:
            return made
        if is_on_cudnn():
            usual = "LSTMCell, GRUCell and SimpleRNNCell have one, with their own activations and no extras"
            reason = why_not_cudnn("lstm", run.mask) or usual
        raise ValueError(f"{run.step} has no fused form here: {reason}. Use way='auto'.")


@dataclass(frozen=True)
class Auto(Way):
    """Compiles where it can and where that pays, else takes the form that a cell has for whole sequences; a loop where the
    sequence is long; and unrolls the others. `nnshop.explain` tells why.
    """

    name = "auto"

    def __call__(self, run: Recurrence) -> tuple[Tree, Tree]:
        reason, repeatable = Compiled().obstacle(), True
        if run.length == 1 and sum(v.size for v in tree_leaves(run.state)) < LARGE:
            reason = reason or "1 step of this size is too few to pay for the call"
        if not reason and not run.tried:
            try:
                return Compiled()(run, must_pay=True)
            except (NotRepeatable, Unsupported) as error:
                reason, repeatable = str(error), not isinstance(error, NotRepeatable)
        explaining.refuse("compiled", reason)
        return run.fast_form() or self._plainly(run, repeatable)

    def _plainly(self, run: Recurrence, repeatable: bool) -> tuple[Tree, Tree]:
        """By NNabla's functions: in a loop where the sequence is long, else unrolled."""
        reason = "" if repeatable else "the step is not the same at each time"
        if run.length < LOOP_FROM:
            reason = f"a sequence of {run.length} steps is unrolled; from {LOOP_FROM} on it is run in a loop"
        reason = Loop().obstacle() or reason
        if not reason:
            try:
                return Loop()(run)
            except NotRepeatable as error:  # it can be unrolled
                reason = str(error)
        explaining.refuse("loop", reason)
        return Unrolled()(run)


WAYS: dict[str, type[Way]] = {way.name: way for way in (Auto, Unrolled, Loop, Compiled, Fused)}


def find_way(way: str | Way) -> Way:
    """Finds a way by its name; a way passes through.

    Raises:
        ValueError: It is not known, or cannot be taken here.
    """
    found = WAYS[way]() if isinstance(way, str) and way in WAYS else way
    if not isinstance(found, Way):
        raise ValueError(
            f"way must be one of {', '.join(WAYS)}; got {way!r}. With options it is a value, such as "
            "nnshop.running.Loop(checkpoint_every=32)."
        )
    obstacle = found.obstacle()
    if obstacle:
        raise ValueError(f"way={found.name!r} cannot be used here: {obstacle}. Use way='auto', or 'unrolled'.")
    return found


def _check_every(checkpoint_every: int) -> None:
    if not is_whole(checkpoint_every) or checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be a number of steps, 1 or more; got {checkpoint_every!r}.")


@building()
def iterate(
    step: Callable,
    xs: Tree,
    state: Tree,
    length: int | None = None,
    reverse: bool = False,
    way: str | Way = "auto",
    running: Callable | None = None,
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
            compiles where it can, takes the loop for long sequences, and unrolls others; `explain` tells why. With options a
            way is a value: `nnshop.running.Loop(checkpoint_every=32)` keeps each 32nd state only, and so does `Compiled`.
        running: Tells the leaf of the state that is 0 (all of it) after the last step that matters, such as
            `lambda state: state[1]`. Where that is known while it runs, in the loop and in auto-forward mode, later steps are
            not computed. Elsewhere they are: they must leave alone what is used of the state. Their outputs mean nothing.
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
    found = find_way(way)
    check_time_axis(time_axis)
    length = sequence_length(xs, length, axis=time_axis)
    check_variables(state, "a state")
    check_flag("reverse", reverse)
    explaining.begin(step, length)
    with sharing_is_meant():  # among steps
        return Recurrence(found, step, xs, state, length, reverse, running, batch_major=time_axis == 1).run()


def check_time_axis(time_axis: Any) -> None:
    """Raises ValueError unless the axis is one of those that time may have."""
    if time_axis not in (0, 1):
        raise ValueError(f"time_axis is 0 for (T, B, ...), or 1 for (B, T, ...); got {time_axis!r}.")


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
