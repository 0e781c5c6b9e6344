"""`scan`: Theano's loop, for NNabla."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import replace
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.parameter import get_parameter_or_create

from ..building import building
from ..core import Tree, is_whole, tree_map
from ..functions import swap_time
from ..graphs import Traced, trace
from ..graphs.replaying import draws
from ..parameters import scratch
from ..running import Way, iterate
from ..running.ways import check_time_axis, find_way
from .arguments import Output, Sequence, as_variable, items, number_of_steps
from .ending import Ending, ending, hold, last_steps, start_of
from .returned import Returned
from .step import Call, State, check_arguments, cut, forgetting, gated, marks, stepping
from .strict import check_closures
from .updates import Updates


@building()
def scan(
    fn: Callable,
    sequences: Any = None,
    outputs_info: Any = None,
    non_sequences: Any = None,
    n_steps: int | None = None,
    truncate_gradient: int = -1,
    go_backwards: bool = False,
    name: str | None = None,
    strict: bool = False,
    return_list: bool = False,
    way: str | Way = "auto",
    *,
    time_axis: int = 0,
    bptt_window: int | None = None,
    cut_at_end: bool = False,
) -> tuple[Any, Updates]:
    """Calls a function once for each step of sequences, each time with some of its own past outputs, as `theano.scan` does.

    Without taps it is this loop, in the graph::

        for t in range(n_steps):
            y = fn(x[t], y, *non_sequences)

    Args:
        fn: Takes the entries of each sequence in the order of its taps, then of each recurrent output its past values in the
            order of its taps, then the non-sequences. Returns the outputs of this step, one or a list; beside them, if it
            likes, updates `{variable: new value}`, and `nnshop.until(condition)`. Parametric functions in it share their
            weights over time. It is called a few times more than once, and must do the same at each call.
        sequences: One, or a list: Variables or arrays `(L, ...)`, or dictionaries `{"input": x, "taps": [-1, 0]}`. At step t
            tap k reads `x[t + k - min(0, *taps)]`; so tap -1 is what comes before tap 0, and step 0 is the first for which
            all taps are there. A sequence lasts `L - (max(0, *taps) - min(0, *taps))` steps. A list of numbers is one
            sequence.
        outputs_info: One entry for each output, or a list: None where it is not recurrent; its value before step 0, of the
            shape of a step; or `{"initial": values, "taps": [-1, -2]}`. With other taps than [-1] the initial has a time
            axis: it holds the values of the steps -m to -1, for -m the lowest tap. None: no output is recurrent. A list of
            numbers is one initial value, a tuple of numbers several.
        non_sequences: What is passed at each step: one, or a list.
        n_steps: How many steps; by default as many as the shortest sequence lasts.
        truncate_gradient: k: gradients come from the last k steps that are done, and from nothing before. -1: from all. See
            `bptt_window` for truncated backpropagation through time.
        go_backwards: The last entries first. Each sequence starts from its own end; taps keep their meaning, and outputs are
            in the order in which they are computed.
        name: A parameter scope around the function's.
        strict: The function may read only what it is given, and what parametric functions make.
        return_list: A list of outputs also where there is one.
        way: "unrolled", "loop", "compiled" or "auto", or a value with options, as in `nnshop.iterate`.
        time_axis: 0, Theano's, or 1 for sequences, outputs and initials with time axes of shape `(B, T, ...)`.
        bptt_window: k: no gradient passes between windows of k steps, counted from the start: truncated backpropagation
            through time, in one graph.
        cut_at_end: In auto-forward mode: outputs end with the longest sample, where `until` ends them.

    Returns:
        `(outputs, updates)`. outputs: one Variable `(n_steps, ...)`, or a list, without initial values; None for none. After
        `until` has held, they repeat what they were then. updates: an `nnshop.scanning.Updates`, a dictionary with
        `apply()`, and `lengths`, the number of steps that were done.

    Raises:
        ValueError: Taps, lengths, shapes or numbers of outputs that do not fit.
        TypeError: The function does not take the arguments, or returns what is no output.

    References:
        `theano.scan` of Theano 1.0.5. Different are: shapes and lengths are known when the graph is built, so outputs keep
        `n_steps` entries after `until`; updates are not applied by themselves; a dictionary `{"initial": v, "taps": [-1]}`
        and one without taps are the same; too short initial values are an error, and so are tuples as `(-1,)` not
        different from lists. All is float32.

    Example:
        >>> x = nn.Variable.from_numpy_array([[1., 0.], [0., 1.], [1., 1.]])
        >>> ys, updates = scan(lambda x, y: x + y * 2, sequences=x, outputs_info=[.5, .5])
        >>> ys.forward(); ys.d.tolist()
        [[2.0, 1.0], [4.0, 3.0], [9.0, 7.0]]
    """
    _check_options(fn, truncate_gradient, time_axis, bptt_window)
    found_way = find_way(way)
    inputs = [Sequence.of(i, entry, time_axis) for i, entry in enumerate(items(sequences))]
    outputs = [Output.of(i, entry, time_axis) for i, entry in enumerate(items(outputs_info))]
    constants = [as_variable(v, f"non_sequence {i}") for i, v in enumerate(items(non_sequences))]
    n_steps = number_of_steps(n_steps, inputs)
    with nn.parameter_scope(name or ""):
        first, outputs = _try(fn, inputs, outputs, constants, strict, time_axis, cut_at_end, truncate_gradient != -1)
        xs = tuple(sequence.columns(n_steps, go_backwards) for sequence in inputs)
        call = Call(fn, outputs, constants, tuple(first.updates))
        plain = first.condition is None and bptt_window is None and truncate_gradient == -1
        axis = time_axis if plain else 0  # all else wants the time first
        xs = xs if axis == time_axis else tree_map(swap_time, xs)
        options = {"way": found_way, "time_axis": axis}
        plan, lengths = _Plan(call, xs, n_steps, bptt_window, time_axis == 1, options), None
        if first.condition is None:
            ys, state = plan.run(truncate_gradient)
        else:
            ys, state, lengths = plan.run_until(first.condition, truncate_gradient, cut_at_end)
    ys = [y if axis == time_axis else swap_time(y) for y in ys]
    found = Updates(dict(zip(first.updates, state.shared)), lengths)
    return (ys if return_list or len(ys) > 1 else ys[0] if ys else None), found


def _check_options(fn: Any, truncate_gradient: Any, time_axis: Any, bptt_window: Any) -> None:
    if not callable(fn):
        raise TypeError(f"scan takes a function of one step first; got {fn!r}.")
    if truncate_gradient != -1:
        _check_count("truncate_gradient", truncate_gradient, "1 or more steps, or -1 for all")
    if bptt_window is not None:
        _check_count("bptt_window", bptt_window, "1 or more steps")
    check_time_axis(time_axis)


def _check_count(option: str, value: Any, wanted: str) -> None:
    if not is_whole(value) or value < 1:
        raise ValueError(f"{option} must be {wanted}; got {value!r}.")


# ------------------------------------------------------------------------------------------ one call, to see what fn returns


def _try(
    fn: Callable,
    inputs: Several[Sequence],
    outputs: list[Output],
    constants: list[nn.Variable],
    strict: bool,
    time_axis: int,
    cut_at_end: bool,
    truncated: bool,
) -> tuple[Returned, list[Output]]:
    """Calls the function once without a trace; returns what came, and an entry for each output.

    Raises:
        ValueError, TypeError: As `scan`.
    """
    x = tuple(tuple(nn.Variable(s.entry_shape, need_grad=True) for _ in s.taps) for s in inputs)
    windows = tuple(tuple(nn.Variable(v.shape, need_grad=True) for v in output.start) for output in outputs)
    call = Call(fn, outputs, constants)
    arguments = call.arguments(x, State(windows, ()))
    check_arguments(fn, _argument_names(inputs, outputs, constants))
    with scratch(stand_ins=True):
        first = call(x, State(windows, ()))
        runs_twice = truncated and first.condition is not None
        if strict or runs_twice:
            other, made = (trace(lambda: call(x, State(windows, ())).variables()) for _ in range(2))
            made = made.without(other)
        if strict:
            check_closures(fn, made, other.variables(), [*arguments, *first.updates])
        if runs_twice:
            _check_not_random(made)
        names = {v.data: name for name, v in nn.get_parameters(grad_only=False).items()}
    outputs = outputs or [Output(f"output {i}") for i in range(len(first.outputs))]
    _check_outputs(first, outputs, time_axis)
    _check_updates(first)
    _check_condition(first, windows, cut_at_end)
    first = replace(first, updates={_own(v, names): new for v, new in first.updates.items()})
    return first, outputs


def _own(v: nn.Variable, names: dict[nn.NdArray, str]) -> nn.Variable:
    """The Variable, or the parameter that it stands for."""
    if v.data not in names:
        return v
    return get_parameter_or_create(names[v.data], v.shape, np.array(v.d), v.need_grad)


def _argument_names(inputs: Several[Sequence], outputs: list[Output], constants: list[nn.Variable]) -> list[str]:
    every: list[Sequence | Output] = [*inputs, *outputs]
    entries = [f"{entry.name} at tap {tap}" for entry in every for tap in entry.taps]
    return [*entries, *(f"non_sequence {i}" for i in range(len(constants)))]


def _check_outputs(first: Returned, outputs: list[Output], time_axis: int) -> None:
    if len(first.outputs) != len(outputs):
        raise ValueError(
            f"the function of the scan returned {len(first.outputs)} outputs, and outputs_info has {len(outputs)} entries; "
            "it needs one for each output, None where an output is not recurrent. "
            "A list of numbers is one initial value, a tuple of numbers several."
        )
    for made, output in zip(first.outputs, outputs):
        if output.start and made.shape != output.start[0].shape:
            raise ValueError(
                f"{output.name} has the shape {made.shape}, and its initial value {output.start[0].shape}; they must be the "
                "same." + ("" if output.taps == (-1,) else " With these taps the initial value has a time axis besides.")
            )
        if time_axis and not made.ndim:
            raise ValueError(f"{output.name} is a scalar at each step, so with time_axis=1 it has no axis for the batch.")


def _check_updates(first: Returned) -> None:
    for v, new in first.updates.items():
        if not isinstance(v, nn.Variable) or v.parent is not None:
            raise ValueError(f"only Variables that are not computed can be updated; got an update for {v!r}.")
        if new.shape != v.shape:
            raise ValueError(f"an update must keep the shape of its Variable, {v.shape}; got {new.shape}.")


def _check_condition(first: Returned, windows: Tree, cut_at_end: bool) -> None:
    condition = first.condition
    if cut_at_end and (condition is None or not nn.get_auto_forward()):
        why = (
            "a function that returns nnshop.until(condition)" if condition is None else "nn.auto_forward(), to know the length"
        )
        raise ValueError(f"cut_at_end=True needs {why}.")
    if condition is None or not condition.ndim:
        return
    if condition.ndim > 2 or condition.shape[1:] not in ((), (1,)):
        raise ValueError(f"the condition of until must have the shape () or (B,); got {condition.shape}.")
    states = {"an output": first.outputs, "an initial value": sum(windows, ()), "an update": tuple(first.updates)}
    for what, variables in states.items():
        for v in variables:
            if v.shape[:1] != condition.shape[:1]:
                raise ValueError(
                    f"until has a condition for each of {condition.shape[0]} samples, so everything needs that batch axis "
                    f"first; {what} has the shape {v.shape} at each step."
                )


def _check_not_random(made: Traced) -> None:
    kinds = [function.info.type_name for function in made.functions if draws(function, made.python.get(function))]
    if kinds:
        raise ValueError(
            f"truncate_gradient with until runs the scan twice, first to see where it ends, and {kinds[0]} would draw other "
            "numbers. Draw them outside, as a sequence."
        )


# ------------------------------------------------------------------------------------------------------------ all the steps


class _Plan:
    """A scan, ready to run.

    Args:
        call: The user's function.
        xs: Sequences of what each tap reads.
        n_steps: How many steps there are at most.
        window: Between how many steps gradients pass.
        batch_axis: Whether all entries of sequences are known to have one.
        options: Of `iterate`.
    """

    def __init__(self, call: Call, xs: Tree, n_steps: int, window: int | None, batch_axis: bool, options: dict) -> None:
        self.call, self.xs, self.n_steps, self.window, self.options = call, xs, n_steps, window, options
        self.batch_axis = batch_axis
        self.state = State(tuple(output.start for output in call.outputs), tuple(call.shared))

    def run(self, truncate: int) -> tuple[list[nn.Variable], State]:
        """Runs all steps; with truncate, the last so many in a part of their own, into which no gradient enters."""
        start = 0 if truncate == -1 else max(0, self.n_steps - truncate)
        if not start:
            return self._part(self.call, self.state, 0, self.n_steps)
        early, state = self._part(forgetting(self.call), self.state, 0, start)
        late, state = self._part(self.call, state, start, self.n_steps)
        return [F.concatenate(*both, axis=0) for both in zip(early, late)], state

    def _part(self, call: Callable, state: State, start: int, stop: int) -> tuple[list[nn.Variable], State]:
        xs = tree_map(lambda x: x[start:stop], self.xs) if stop - start < self.n_steps else self.xs
        step, xs = self._windowed(stepping(call), xs, start, stop)
        (ys, _), state = iterate(step, xs, state, stop - start, **self.options)
        return list(ys), state

    def _windowed(self, step: Callable, xs: Tree, start: int, stop: int) -> tuple[Callable, Tree]:
        return (step, xs) if self.window is None else (cut(step), (xs, marks(self.window, start, stop)))

    def run_until(
        self, condition: nn.Variable, truncate: int, cut_at_end: bool
    ) -> tuple[list[nn.Variable], State, nn.Variable]:
        """Runs until the condition holds, of which one of a single step is given; returns the number of steps too."""
        if truncate == -1:
            ys, end = self._ending(self.call, self.xs, condition)
        else:  # which steps are the last ones shows when it has ended
            _, end = self._ending(forgetting(self.call), self.xs, condition)
            gates = last_steps(self.n_steps, end.steps, truncate)
            ys, end = self._ending(gated(self.call), (self.xs, gates), condition)
        return [hold(y, end.steps, cut_at_end) for y in ys], end.state, end.steps

    def _ending(self, call: Callable, xs: Tree, condition: nn.Variable) -> tuple[Tree, Ending]:
        step, xs = self._windowed(stepping(call), xs, 0, self.n_steps)
        start = start_of(xs, self.state, condition, self.batch_axis)
        ys, end = iterate(ending(step), xs, start, self.n_steps, running=lambda end: end.running, **self.options)
        end.steps.need_grad = False
        return ys, end
