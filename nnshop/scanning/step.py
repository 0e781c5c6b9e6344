"""The step of a `scan`, as `nnshop.iterate` runs it, and what can be wrapped around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import nnabla as nn
import numpy as np

from ..core import Tree, tree_leaves, tree_map
from ..functions import stop_gradient, where
from .arguments import Output
from .replacing import computed_of
from .returned import Returned


class State(NamedTuple):
    """What a step needs of the steps before it."""

    windows: tuple[tuple[nn.Variable, ...], ...]  # the last values of each output, the oldest first
    shared: tuple[nn.Variable, ...]  # the present values of the Variables that are updated


@dataclass(frozen=True)
class Call:
    """One call of the user's function, `(entries of sequences, state) -> Returned`.

    Args:
        fn: The user's function.
        outputs: How it reads its past.
        non_sequences: Its last arguments.
        shared: The Variables that it updates.
    """

    fn: Callable
    outputs: Sequence[Output]
    non_sequences: Sequence[nn.Variable]
    shared: Sequence[nn.Variable] = ()

    def arguments(self, x: Tree, state: State) -> list[nn.Variable]:
        past = [v for output, window in zip(self.outputs, state.windows) for v in output.read(window)]
        return [*tree_leaves(x), *past, *self.non_sequences]

    def __call__(self, x: Tree, state: State) -> Returned:
        arguments = self.arguments(x, state)
        if not self.shared:
            return Returned.of(self.fn(*arguments))
        # The function reads what it updates from outside. So it is called on Variables without a past, and then applied to the
        # arguments, and to the present values: the past also depends on what is updated, and must stay as it is.
        given = [v if v in self.shared else nn.Variable(v.shape, need_grad=True) for v in arguments]
        made: list[Returned] = []

        def build() -> list[nn.Variable]:
            made.append(Returned.of(self.fn(*given)))
            return made[-1].variables()

        own = [(alone, v) for alone, v in zip(given, arguments) if alone is not v]
        leaves = computed_of(build, [*own, *zip(self.shared, state.shared)])
        return made[-1].of_variables(leaves)


def check_arguments(fn: Callable, arguments: Sequence[str]) -> None:
    """Raises TypeError where a function cannot be called with so many arguments, and says what each of them is."""
    try:
        signature = inspect.signature(fn)
    except ValueError:  # some functions in C tell none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"the function of a scan is called with {len(arguments)} arguments ({', '.join(arguments)}), "
            f"which it does not take: {error}."
        ) from None


def forgetting(call: Callable) -> Callable:
    """Lets no gradient into a call."""
    return lambda x, state: _mapped(call(x, state), stop_gradient)


def gated(call: Callable) -> Callable:
    """Lets gradients into the calls whose gate is open; x is `(x, gate)`, the gate a scalar or `(B,)`."""

    def wrapped(x_gate: Tree, state: State) -> Returned:
        x, gate = x_gate
        return _mapped(call(x, state), lambda v: where(gate, v, stop_gradient(v)))

    return wrapped


def _mapped(returned: Returned, function: Callable) -> Returned:
    updates = {v: function(new) for v, new in returned.updates.items()}
    return replace(returned, outputs=tuple(map(function, returned.outputs)), updates=updates)


def stepping(call: Callable) -> Callable:
    """Makes a step of a call: `(x, state) -> ((outputs, condition), state)`."""

    def step(x: Tree, state: State) -> tuple[Tree, State]:
        returned = call(x, state)
        windows = tuple((*window, new)[1:] for window, new in zip(state.windows, returned.outputs))
        return (returned.outputs, returned.condition), State(windows, tuple(returned.updates.values()))

    return step


def cut(step: Callable) -> Callable:
    """Lets no gradient out of the steps that are marked, to those before; x is `(x, mark)`."""

    def wrapped(x_mark: Tree, state: State) -> tuple[Tree, State]:
        x, mark = x_mark
        return step(x, tree_map(lambda v: where(mark, stop_gradient(v), v), state))

    return wrapped


def marks(every: int, start: int, stop: int) -> nn.Variable:
    """For the steps from start to stop, 1 where a window of so many steps begins, but for the first."""
    t = np.arange(start, stop)
    return nn.Variable.from_numpy_array((t % every == 0) & (t > 0))
