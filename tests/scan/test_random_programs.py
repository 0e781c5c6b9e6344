"""Random programs: both ways equal an interpreter in NumPy, and central differences."""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import programs
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from measuring import factors
from programs import Program, Result

from nnshop import scan

Shape = tuple[int, ...]
repeatable = settings(deadline=None, derandomize=True, max_examples=120, suppress_health_check=[HealthCheck.filter_too_much])
lengths = st.integers(1, 6)
extra = st.sampled_from([0, 0, 0, 1, 2])


class Drawn:
    """A program that is being made.

    Args:
        draw: Hypothesis's.
        shape: Of a step; some entries are scalars instead.
        scalars: Whether there may be any.
    """

    def __init__(self, draw: st.DrawFn, shape: Shape, scalars: bool = True) -> None:
        self.draw, self.scalars, self.shape = draw, scalars, shape
        self.rng = np.random.RandomState(draw(st.integers(0, 999)))
        self.arguments: list[Shape] = []  # of the function

    def pick(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def one_shape(self) -> Shape:
        return self.pick(self.shape, self.shape, ()) if self.scalars else self.shape

    def array(self, *shape: int) -> list:
        return self.rng.uniform(-1, 1, shape).astype(np.float32).tolist()

    def sequence(self, steps: int) -> dict:
        shape, taps = self.one_shape(), self.draw(st.none() | st.lists(st.integers(-3, 3), min_size=1, max_size=3))
        self.arguments += [shape] * len(taps or [0])
        span = max(0, *taps) - min(0, *taps) if taps else 0
        return {"value": self.array(steps + span + self.draw(extra), *shape), "taps": taps}

    def output(self) -> tuple[dict | None, Shape]:
        shape, kind = self.one_shape(), self.pick("map", "plain", "taps", "taps")
        if kind == "map":
            return None, shape
        taps = self.draw(st.lists(st.integers(-4, -1), min_size=1, max_size=3, unique=True)) if kind == "taps" else None
        self.arguments += [shape] * len(taps or [-1])
        time = () if taps in (None, [-1]) else (-min(taps) + self.draw(extra),)
        return {"initial": self.array(*time, *shape), "taps": taps}, shape

    def non_sequence(self) -> list:
        shape = self.pick((2, 2), (2,), ()) if self.scalars and self.shape == (2,) else self.one_shape()
        self.arguments.append(shape)
        return self.array(*shape)

    def term(self, shape: Shape) -> list:
        """Of arguments, in this shape or a scalar."""
        i = self.draw(st.integers(0, len(self.arguments) - 1))
        expression, found = ["arg", i], self.arguments[i]
        if found == (2, 2):
            vectors = [j for j, other in enumerate(self.arguments) if other == (2,)]
            right = ["arg", self.pick(*vectors)] if vectors else ["arg", i]
            expression, found = ["dot", expression, right], (2,) if vectors else (2, 2)
        return expression if found in (shape, ()) else ["sum", expression]

    def expression(self, shape: Shape) -> list:
        """Bounded, and in this shape."""
        made = self.term(shape)
        for _ in range(self.draw(st.integers(0, 3))):
            made = [self.pick("add", "sub", "mul"), made, self.term(shape)]
        made = [self.pick("tanh", "tanh", "sigmoid"), made]
        if shape:  # from a scalar, too
            zeros = next((["arg", i] for i, found in enumerate(self.arguments) if found == shape), None)
            assume(zeros is not None)
            made = ["add", ["mul", ["const", 0.0], zeros], made]
        return made

    def program(self) -> Program:
        steps, n_sequences = self.draw(lengths), self.pick(0, 1, 1, 2, 3)
        sequences = [self.sequence(steps) for _ in range(n_sequences)]
        outputs = [self.output() for _ in range(self.pick(1, 1, 2, 3))]
        non_sequences = [self.non_sequence() for _ in range(self.pick(0, 1, 2))]
        assume(self.arguments)
        return {
            "sequences": sequences,
            "outputs_info": [info for info, _ in outputs],
            "non_sequences": non_sequences,
            "n_steps": self.draw(st.integers(1, steps)) if not sequences or self.draw(st.booleans()) else None,
            "go_backwards": self.draw(st.booleans()),
            "truncate_gradient": self.pick(-1, -1, 1, 2, 3, steps, steps + 1),
            "fn": [self.expression(shape) for _, shape in outputs],
        }

    def condition(self) -> list:
        i = self.draw(st.integers(0, len(self.arguments) - 1))
        scalar = not self.scalars or not self.arguments[i]
        return ["arg", i] if scalar else ["sum", ["arg", i]]


def end_within(drawn: Drawn, program: Program) -> None:
    """Adds a condition that no rounding can change, of which each step may be the first where it holds."""
    condition = drawn.condition()
    whole = {**program, "fn": [*program["fn"], condition], "outputs_info": [*program["outputs_info"], None]}
    found = programs.interpret(whole)[-1]
    above = drawn.pick(*found.ravel().tolist()) - 0.05
    assume(np.abs(found - above).min() > 1e-2)
    program.update(until=condition, until_above=above)


@st.composite
def any_program(draw: st.DrawFn) -> Program:
    drawn = Drawn(draw, draw(st.sampled_from([(), (2,), (2,), (2, 3)])))
    program = drawn.program()
    if draw(st.booleans()):
        end_within(drawn, program)
    return program


def assert_near(found: Result, expected: Result) -> None:
    """To 1e-4 of the largest number of each array, or of 0.1, since small gradients may be what is left of larger ones."""
    for mine, theirs in zip(found, expected):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs):
            assert np.shape(a) == np.shape(b)
            if b is not None:
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(0.1, np.abs(b).max(initial=0)))


@repeatable
@given(any_program(), st.booleans())
def test_both_ways_equal_an_interpreter(program: Program, auto_forward: bool) -> None:
    R = list(factors(tuple(programs.interpret(program))))
    expected = programs.differences(program, R)
    event(f"until: {'until' in program}, truncated: {program['truncate_gradient'] != -1}")
    for way in ("unrolled", "loop"):
        assert_near(programs.run(program, R, way, auto_forward), expected)


# Updates


def run_with_updates(program: Program, R: list, way: str, auto_forward: bool) -> Result:
    """As `programs.run`, with outputs that were passed plainly as Variables that are updated; of these the last value."""
    given = programs.values_of(program)
    groups = [[x if x is None else programs.leaf(x) for x in arrays] for arrays in given[1:]]
    infos = program["outputs_info"]
    shared = {i: v for i, (v, info) in enumerate(zip(groups[1], infos)) if info and info["taps"] is None}

    def step(*arguments: Any) -> Any:
        remaining = iter(arguments)
        read = [next(remaining) for e in program["sequences"] for _ in e["taps"] or [0]]
        for i, info in enumerate(infos):
            read += [shared[i]] if i in shared else [next(remaining) for _ in (info and info["taps"]) or ()]
        made = programs.step(program, [*read, *remaining])
        outputs, end = made if "until" in program else (made, None)
        new = {v: outputs[i] for i, v in shared.items()}
        others = [y for i, y in enumerate(outputs) if i not in shared]
        return (others, new) if end is None else (new, end, others)

    with nn.auto_forward(auto_forward):
        made, updates = scan(
            step,
            [programs.tapped("input", v, e["taps"]) for v, e in zip(groups[0], program["sequences"])],
            [e and {"initial": v, "taps": e["taps"]} for i, (v, e) in enumerate(zip(groups[1], infos)) if i not in shared],
            groups[2],
            n_steps=program["n_steps"],
            truncate_gradient=program["truncate_gradient"],
            go_backwards=program["go_backwards"],
            return_list=True,
            way=way,
        )
        others = iter(made)
        outputs = [updates[shared[i]] if i in shared else next(others) for i in range(len(infos))]
        factor = [nn.Variable.from_numpy_array(r[-1]) if i in shared else programs.R_of(outputs[i], r) for i, r in enumerate(R)]
        terms = [F.sum(y * r) for y, r in zip(outputs, factor)]
        loss = sum(terms[1:], terms[0])
    for v in (v for group in groups for v in group if v is not None):
        v.grad.zero()
    if not auto_forward:
        nn.forward_all([loss, *outputs])
    loss.backward()
    slopes = [[v if v is None else v.g.copy() for v in group] for group in groups]
    return Result([y.d.copy() if i in shared else y.d[: len(r)].copy() for i, (y, r) in enumerate(zip(outputs, R))], *slopes)


@repeatable
@given(any_program(), st.booleans())
def test_an_updated_variable_is_a_recurrent_output_of_which_the_last_value_is_seen(program: Program, eager: bool) -> None:
    updated = [info is not None and info["taps"] is None for info in program["outputs_info"]]
    assume(any(updated))
    R = list(factors(tuple(programs.interpret(program))))
    for i, r in enumerate(R):
        if updated[i]:
            r[:-1] = 0
    expected = programs.differences(program, R)
    last = expected._replace(outputs=[y[-1] if of else y for y, of in zip(expected.outputs, updated)])
    for way in ("unrolled", "loop"):
        assert_near(run_with_updates(program, R, way, eager), last)


# Conditions for each sample

B = 3


@st.composite
def any_program_of_samples(draw: st.DrawFn) -> Program:
    drawn = Drawn(draw, (B,), scalars=False)
    program = drawn.program()
    end_within(drawn, program)
    return program


def of_sample(program: Program, b: int) -> Program:
    def cut(entry: dict | None, key: str) -> dict | None:
        return entry and {**entry, key: np.array(entry[key])[..., b].tolist()}

    return {
        **program,
        "sequences": [cut(entry, "value") for entry in program["sequences"]],
        "outputs_info": [cut(entry, "initial") for entry in program["outputs_info"]],
        "non_sequences": [value[b] for value in program["non_sequences"]],
    }


def run_samples(program: Program, Rs: list, way: str, auto_forward: bool) -> tuple[Result, list[int]]:
    """As `programs.run`, with a condition `(B,)`; Rs are factors of each sample's outputs."""
    given = programs.values_of(program)
    groups = [[x if x is None else programs.leaf(x) for x in arrays] for arrays in given[1:]]
    with nn.auto_forward(auto_forward):
        outputs, updates = scan(
            lambda *arguments: programs.step(program, arguments),
            [programs.tapped("input", v, e["taps"]) for v, e in zip(groups[0], program["sequences"])],
            [e and programs.tapped("initial", v, e["taps"]) for v, e in zip(groups[1], program["outputs_info"])],
            groups[2],
            n_steps=program["n_steps"],
            truncate_gradient=program["truncate_gradient"],
            go_backwards=program["go_backwards"],
            return_list=True,
            way=way,
        )
        terms = []
        for i, y in enumerate(outputs):
            full = np.zeros(y.shape)
            for b, R in enumerate(Rs):
                full[: len(R[i]), b] = R[i]
            terms.append(F.sum(y * nn.Variable.from_numpy_array(full)))
        loss = sum(terms[1:], terms[0])
    for v in (v for group in groups for v in group if v is not None):
        v.grad.zero()
    if not auto_forward:
        nn.forward_all([loss, *outputs, updates.lengths])
    loss.backward()
    slopes = [[v if v is None else v.g.copy() for v in group] for group in groups]
    return Result([y.d.copy() for y in outputs], *slopes), updates.lengths.d.astype(int).tolist()


@repeatable
@given(any_program_of_samples(), st.booleans())
def test_each_sample_equals_a_program_of_its_own(program: Program, auto_forward: bool) -> None:
    alone = [of_sample(program, b) for b in range(B)]
    Rs = [list(factors(tuple(programs.interpret(one)), seed=b)) for b, one in enumerate(alone)]
    expected = [programs.differences(one, R) for one, R in zip(alone, Rs)]
    for way in ("unrolled", "loop"):
        found, done = run_samples(program, Rs, way, auto_forward)
        assert done == [len(result.outputs[0]) for result in expected]
        for b, (wanted, n) in enumerate(zip(expected, done)):
            rows = [[a if a is None else a[..., b] for a in group] for group in found]
            outputs = [y[:n] for y in rows[0]]
            assert_near(Result(outputs, *rows[1:]), wanted)
            for y in rows[0]:
                np.testing.assert_array_equal(y[n:], np.broadcast_to(y[n - 1], y[n:].shape))
