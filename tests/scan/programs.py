"""Programs for `scan`, as data: run by a plain interpreter in NumPy, and by `nnshop.scan`.

A program is a dictionary in the format of the cases that were recorded from Theano: `sequences`, `outputs_info`,
`non_sequences`, `n_steps`, `go_backwards`, `truncate_gradient`, `fn` (one expression for each output), `until` and
`until_above` (an expression, and the number above which it ends the scan). An expression is `["arg", i]`, `["const", c]`, or an
operation on expressions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnshop import scan, until

Program = dict[str, Any]
Arrays = list[Any]  # arrays, and None where there is none


class Result(NamedTuple):
    """Outputs cut to the steps done, and gradients of `sum(output * R)`, shaped as what was given."""

    outputs: Arrays
    sequences: Arrays
    outputs_info: Arrays
    non_sequences: Arrays

    def gradients(self) -> Arrays:
        return [*self.sequences, *self.outputs_info, *self.non_sequences]


# ---------------------------------------------------------------------------------------------------------- expressions


def evaluate(expression: list, arguments: list, operations: dict[str, Callable]) -> Any:
    kind, *parts = expression
    if kind == "arg":
        return arguments[parts[0]]
    if kind == "const":
        return operations["const"](parts[0])
    return operations[kind](*(evaluate(part, arguments, operations) for part in parts))


NUMPY = {
    "const": np.float64,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "dot": np.dot,
    "tanh": np.tanh,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "exp": np.exp,
    "sum": np.sum,
}


def widened(function: Callable) -> Callable:
    """An operation on Variables of one shape, or a scalar and any."""

    def wrapped(a: nn.Variable, b: nn.Variable) -> nn.Variable:
        ndim = max(a.ndim, b.ndim)
        a, b = (v if v.ndim == ndim else F.reshape(v, (1,) * ndim, inplace=False) for v in (a, b))
        return function(a, b)

    return wrapped


def dot(a: nn.Variable, b: nn.Variable) -> nn.Variable:
    if a.ndim == b.ndim == 1:
        return F.sum(a * b)
    if a.ndim == b.ndim == 2:
        return F.affine(a, b)
    if a.ndim == 2:
        return F.sum(a * F.reshape(b, (1, -1), inplace=False), axis=1)
    return F.sum(F.reshape(a, (-1, 1), inplace=False) * b, axis=0)


NNABLA: dict[str, Callable] = {
    "const": lambda value: F.constant(value, ()),
    "add": widened(F.add2),
    "sub": widened(F.sub2),
    "mul": widened(F.mul2),
    "dot": dot,
    "tanh": F.tanh,
    "sigmoid": F.sigmoid,
    "exp": F.exp,
    "sum": F.sum,
}


# ---------------------------------------------------------------------------------------------------------------- NumPy


def interpret(program: Program, given: Result | None = None, early: Arrays | None = None) -> Arrays:
    """Runs a program step by step, in float64.

    Args:
        program: What to run.
        given: Sequences, initials and non-sequences in place of the program's.
        early: Outputs of the first steps, which are not computed but taken from here.
    """
    given = given or values_of(program)
    sequence_taps = [entry["taps"] or [0] for entry in program["sequences"]]
    output_taps = [[] if entry is None else entry["taps"] or [-1] for entry in program["outputs_info"]]
    lows = [min(0, *taps) for taps in sequence_taps]
    lasting = [len(x) + low - max(0, *taps) for x, low, taps in zip(given.sequences, lows, sequence_taps)]
    past = [-min(taps) if taps else 0 for taps in output_taps]
    made = [
        [] if initial is None else [initial] if taps == [-1] else list(initial[:before])
        for initial, taps, before in zip(given.outputs_info, output_taps, past)
    ]
    steps = program["n_steps"] or min(lasting)
    for t in range(steps):
        first = [last - 1 - t if program["go_backwards"] else t for last in lasting]
        arguments = [
            x[start + tap - low] for x, start, low, taps in zip(given.sequences, first, lows, sequence_taps) for tap in taps
        ]
        arguments += [values[tap] for values, taps in zip(made, output_taps) for tap in taps]
        arguments += given.non_sequences
        for i, (values, expression) in enumerate(zip(made, program["fn"])):
            known = early is not None and t < len(early[i])
            values.append(early[i][t] if known else evaluate(expression, arguments, NUMPY))
        if program.get("until") and evaluate(program["until"], arguments, NUMPY) > program["until_above"]:
            break
    return [np.array(values[before:]) for values, before in zip(made, past)]


def values_of(program: Program) -> Result:
    def array(value: Any) -> Any:
        return None if value is None else np.array(value, np.float64)

    return Result(
        [],
        [array(entry["value"]) for entry in program["sequences"]],
        [array(entry and entry["initial"]) for entry in program["outputs_info"]],
        [array(value) for value in program["non_sequences"]],
    )


def differences(program: Program, R: Arrays, epsilon: float = 1e-6) -> Result:
    """Outputs, and gradients by central differences. With truncation the outputs before the last steps do not change."""
    outputs = interpret(program)
    given, kept = values_of(program), program["truncate_gradient"]
    early = [y[: 0 if kept == -1 else max(0, len(y) - kept)] for y in outputs]

    def loss() -> float:
        return sum(float(np.sum(y * r)) for y, r in zip(interpret(program, given, early), R))

    def slopes(array: Any) -> Any:
        if array is None:
            return None
        found = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            value = array[at]
            array[at] = value + epsilon
            above = loss()
            array[at] = value - epsilon
            below = loss()
            array[at] = value
            found[at] = (above - below) / (2 * epsilon)
        return found

    return Result(outputs, *([slopes(array) for array in arrays] for arrays in given[1:]))


# ---------------------------------------------------------------------------------------------------------------- nnshop


def run(program: Program, R: Arrays, way: str, auto_forward: bool = False) -> Result:
    """Builds a program by `nnshop.scan`, and runs it forward and backward."""
    given = values_of(program)
    variables = Result([], *([x if x is None else leaf(x) for x in arrays] for arrays in given[1:]))
    with nn.auto_forward(auto_forward):
        outputs, updates = scan(
            lambda *arguments: step(program, arguments),
            [tapped("input", v, e["taps"]) for v, e in zip(variables.sequences, program["sequences"])],
            [e and tapped("initial", v, e["taps"]) for v, e in zip(variables.outputs_info, program["outputs_info"])],
            variables.non_sequences,
            n_steps=program["n_steps"],
            truncate_gradient=program["truncate_gradient"],
            go_backwards=program["go_backwards"],
            return_list=True,
            way=way,
        )
        weighted = [F.sum(y * R_of(y, r)) for y, r in zip(outputs, R)]
        loss = sum(weighted[1:], weighted[0])
    lengths = [] if updates.lengths is None else [updates.lengths]
    for v in variables.gradients():
        if v is not None:
            v.grad.zero()
    if not auto_forward:
        nn.forward_all([loss, *outputs, *lengths])
    loss.backward()
    done = int(updates.lengths.d) if lengths else outputs[0].shape[0]
    slopes = [[v if v is None else v.g.copy() for v in group] for group in variables[1:]]
    return Result([y.d[:done].copy() for y in outputs], *slopes)


def step(program: Program, arguments: Any) -> Any:
    outputs = [evaluate(expression, arguments, NNABLA) for expression in program["fn"]]
    if not program.get("until"):
        return outputs
    condition = evaluate(program["until"], arguments, NNABLA)
    return outputs, until(F.greater_scalar(condition, program["until_above"]))


def leaf(array: np.ndarray) -> nn.Variable:
    return nn.Variable.from_numpy_array(array, need_grad=True)


def tapped(key: str, v: nn.Variable, taps: list | None) -> Any:
    return v if taps is None else {key: v, "taps": taps}


def R_of(y: nn.Variable, r: Any) -> nn.Variable:
    """Factors of all steps of an output; those after the end are 0."""
    full = np.zeros(y.shape)
    full[: len(r)] = r
    return nn.Variable.from_numpy_array(full)


def assert_equal(found: Result, expected: Result, tolerance: float) -> None:
    """Outputs and gradients agree, relative to the largest value of each array."""
    for name in Result._fields:
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert len(mine) == len(theirs)
        for i, (a, b) in enumerate(zip(mine, theirs)):
            assert (a is None) == (b is None), f"{name} {i}"
            if a is not None:
                assert a.shape == b.shape, f"{name} {i}"
                scale = max(1e-3, float(np.abs(b).max(initial=0)))
                np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=f"{name} {i}")
