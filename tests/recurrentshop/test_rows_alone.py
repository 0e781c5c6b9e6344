"""What a wrapper, a mask, a carried state and a truth do together equals the rows alone, in one piece.

The rows alone are a loop in NumPy over the steps that count, in the order of computation. All combinations are walked: what is
fed back and how it is merged, forcing and sampling, shared states, cells whose output is of the old state, states that are
carried on, masks of every kind, both directions, and both ways to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from measuring import constant, randomize

import nnshop.recurrentshop as rs
from nnshop import Cell, StateSpec
from nnshop.running import ways

T, D = 4, 2
# Whole, padded on the left, on the right, with holes, and empty; in the second batch each row has another kind.
MASK = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]])
MASKS = [MASK, np.roll(MASK, 1, axis=0)]
B = len(MASK)
FACTORS = np.random.RandomState(9).randn(B, T, D), np.random.RandomState(8).randn(B, D)  # of outputs and of states in the loss
A, C = rs.SimpleRNNCell(D, name="a"), rs.SimpleRNNCell(D, name="c")

Weights = dict[str, np.ndarray]


# --------------------------------------------------------------------------------------------------------------- in NumPy


def elman(name: str) -> Callable:
    def step(w: Weights, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        return np.tanh(x @ w[f"{name}/x2h/W"] + w[f"{name}/b"] + h @ w[f"{name}/h2h/W"])

    return step


def numpy_stack(w: Weights, x: np.ndarray, states: list) -> tuple[np.ndarray, list]:
    h = elman("a")(w, x, states[0])
    y = elman("c")(w, h, states[1])
    return y, [h, y]


def numpy_sync(w: Weights, x: np.ndarray, states: list) -> tuple[np.ndarray, list]:
    h = elman("a")(w, x, states[0])
    y = elman("c")(w, h, h)
    return y, [y]


def numpy_old(w: Weights, x: np.ndarray, states: list) -> tuple[np.ndarray, list]:
    """The output is of the state before the step."""
    return 2 * states[0], [elman("a")(w, x, states[0])]


MERGES: dict[Any, Callable] = {
    "add": lambda x, last: x + last,
    "mul": lambda x, last: x * last,
    "avg": lambda x, last: (x + last) / 2,
    "max": np.maximum,
    "readout_only": lambda x, last: last,
    "function": lambda x, last: x - 0.5 * last,
}


# ------------------------------------------------------------------------------------------------------------- the networks


def sequential(**options: Any) -> Any:
    if options["readout"] == "function":
        options["readout"] = MERGES["function"]
    rnn = rs.RecurrentSequential(readout_activation="tanh", **options)
    rnn.add(A)
    rnn.add(C)
    return rnn


def old_state(x: Any, h: Any, last: Any = None) -> tuple[Any, Any]:
    return 2 * h, A(x if last is None else x + F.tanh(last), (h,))[1][0]


def model(readout: Any, **options: Any) -> Any:
    return rs.RecurrentModel(old_state, initial_states=[(D,)], readout_input=(D,) if readout else None, **options)


def graph(readout: Any, **options: Any) -> Any:
    x, h, last = (nn.Variable((1, D)) for _ in range(3))
    with nn.parameter_scope("net"):
        y, after = old_state(x, h, last if readout else None)
    parts = {"initial_states": [h], "final_states": [after], "readout_input": last if readout else None}
    return rs.RecurrentModel(x, y, **parts, **options)


KINDS: dict[str, tuple[Callable, Callable, int]] = {
    "stack": (sequential, numpy_stack, 2),
    "sync": (lambda **options: sequential(state_sync=True, **options), numpy_sync, 1),
    "model": (model, numpy_old, 1),
    "graph": (graph, numpy_old, 1),
}
NETWORKS = [*product(("stack", "sync"), (False, *MERGES)), *product(("model", "graph"), (False, "add"))]


@dataclass
class Case:
    """A network and how it is run; `forced`: by the truth, always ("truth"), or in a share of the steps ("share")."""

    kind: str
    merge: Any
    forced: str | None = None
    stateful: bool = False
    masked: bool = False
    backwards: bool = False
    own: bool = False  # what a share is: none of its own outputs, or all

    def steps_of(self, batch: int) -> np.ndarray:
        """Which steps count, in the order of computation."""
        mask = MASKS[batch] if self.masked else np.ones((B, T), int)
        return mask[:, ::-1] if self.backwards else mask

    def alone(self, w: Weights, batch: int, x: np.ndarray, truth: np.ndarray, start: list) -> tuple[np.ndarray, list]:
        """All outputs, and what each row leaves: its states, and what is to be fed back."""
        ys, ends = np.zeros((B, T, D)), []
        x = x[:, ::-1] if self.backwards else x
        for row, counts in enumerate(self.steps_of(batch)):
            states, last, y = *start[row], np.zeros(D)
            for t in range(T):
                if counts[t]:
                    fed = MERGES[self.merge](x[row, t], np.tanh(last)) if self.merge else x[row, t]
                    y, states = KINDS[self.kind][1](w, fed, states)
                    last = truth[row, t] if self.forced and not self.own else y
                ys[row, t] = y  # a step that does not count repeats the last output of this batch
            ends.append((states, last))
        return ys, ends

    def fresh(self) -> list:
        return [([np.zeros(D)] * KINDS[self.kind][2], np.zeros(D)) for _ in range(B)]


def cases(kind: str, merge: Any) -> Iterator[Case]:
    forcings = (None, "truth", "share") if merge else (None,)
    for forced, *flags in product(forcings, *[(False, True)] * 3):
        yield Case(kind, merge, forced, *flags)


class Network:
    """The graph of a case, and what it is fed."""

    def __init__(self, case: Case, unroll: bool) -> None:
        self.case, self.share = case, nn.Variable((1,))
        options = {"teacher_force": bool(case.forced), "stateful": case.stateful, "go_backwards": case.backwards}
        options["sampling_probability"] = self.share if case.forced == "share" else None
        self.rnn = KINDS[case.kind][0](
            readout=case.merge, unroll=unroll, return_sequences=True, return_states=True, name="net", **options
        )
        self.x, self.truth = nn.Variable((B, T, D), need_grad=True), nn.Variable((B, T, D), need_grad=True)
        self.mask = nn.Variable((B, T)) if case.masked else None
        self.y, *self.states = self.rnn(self.x, ground_truth=self.truth if case.forced else None, mask=self.mask)
        for v in (self.y, *self.states):
            v.persistent = True
        self.loss = F.sum(self.y * constant(FACTORS[0])) + sum(F.sum(v * constant(FACTORS[1])) for v in self.states)

    def feed(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Sets the inputs, with NaN wherever nothing counts; returns them without."""
        x, truth = np.random.RandomState(batch).randn(2, B, T, D)
        counts = self.case.steps_of(batch)
        if self.mask is not None:
            self.mask.d = MASKS[batch]
        aligned = counts[:, ::-1] if self.case.backwards else counts
        self.x.d, self.truth.d = np.where(aligned[..., None], x, np.nan), np.where(counts[..., None], truth, np.nan)
        return x, truth

    def check(self, w: Weights, case: Case) -> None:
        """One batch in values, then another one in values and gradients."""
        self.share.d = float(case.own)
        if case.stateful:
            self.rnn.reset_states()
        x, truth = self.feed(0)
        if case.stateful:  # then the output alone computes them
            self.y.forward(clear_no_need_grad=True)
        else:
            nn.forward_all([self.y, *self.states], clear_no_need_grad=True)
        expected, ends = case.alone(w, 0, x, truth, case.fresh())
        self.same(case, expected, ends)
        if case.stateful:
            self.rnn.carry()
        start = ends if case.stateful else case.fresh()
        x, truth = self.feed(1)
        gradients = self.backward()
        self.same(case, *case.alone(w, 1, x, truth, start))
        self.same_slope(case, w, x, truth, start, gradients)

    def same(self, case: Case, ys: np.ndarray, ends: list) -> None:
        np.testing.assert_allclose(self.y.d, ys, rtol=1e-5, atol=1e-5, err_msg=str(case))
        for i, state in enumerate(self.states):
            np.testing.assert_allclose(state.d, [states[i] for states, _ in ends], rtol=1e-5, atol=1e-5, err_msg=str(case))

    def backward(self) -> Weights:
        parameters = nn.get_parameters()
        for v in (self.x, self.truth, *parameters.values()):
            v.grad.zero()
        self.loss.forward(clear_no_need_grad=True)
        self.loss.backward(clear_buffer=True)
        return {"x": self.x.g.copy(), "truth": self.truth.g.copy(), **{name: v.g.copy() for name, v in parameters.items()}}

    def same_slope(self, case: Case, w: Weights, x: np.ndarray, truth: np.ndarray, start: list, gradients: Weights) -> None:
        """The gradients along one direction, by finite differences; with respect to what does not count they are 0."""
        at = {"x": x, "truth": truth, **{f"net/{name}": value for name, value in w.items()}}
        rng = np.random.RandomState(4)
        along = {name: rng.randn(*value.shape) for name, value in at.items()}

        def loss(step: float) -> float:
            moved = {name: value + step * along[name] for name, value in at.items()}
            weights = {name[4:]: value for name, value in moved.items() if name.startswith("net/")}
            ys, ends = case.alone(weights, 1, moved["x"], moved["truth"], start)
            left = sum((state * FACTORS[1][row]).sum() for row, (states, _) in enumerate(ends) for state in states)
            return float((ys * FACTORS[0]).sum() + left)

        expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
        got = sum(float((gradient * along[name]).sum()) for name, gradient in gradients.items())
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-3), case
        if case.masked:
            assert (gradients["x"][MASKS[1] == 0] == 0).all(), case
            assert (gradients["truth"][case.steps_of(1) == 0] == 0).all(), case


def weights() -> Weights:
    """Makes the weights that all networks of this page share, or finds them."""
    if not nn.get_parameters():
        sequential(readout=False, name="net")(nn.Variable((1, 1, D)))
        randomize()
    return {name[len("net/") :]: v.d.astype(np.float64) for name, v in nn.get_parameters().items()}


@pytest.mark.parametrize("way", ["unrolled", "loop"])
@pytest.mark.parametrize(("kind", "merge"), NETWORKS)
def test_all_together_equal_the_rows_alone(kind: str, merge: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "LOOP_FROM", 1)
    w = weights()
    for case in cases(kind, merge):
        network = Network(case, unroll=way == "unrolled")
        for own in (False, True) if case.forced == "share" else (False,):
            network.check(w, replace(case, own=own))
    assert weights().keys() == w.keys()


# ------------------------------------------------------------------------------------------------------------- in numbers


def leaky(**options: Any) -> rs.RecurrentSequential:
    """h' = x + what is fed back + h / 2."""
    rnn = rs.RecurrentSequential(return_sequences=True, **options)
    rnn.add(Cell(lambda x, h: (x + 0.5 * h, x + 0.5 * h), StateSpec((1,))))
    return rnn


def row(*numbers: float) -> nn.Variable:
    return constant(np.reshape(numbers, (1, -1, 1)))


def computed(y: nn.Variable) -> list[float]:
    y.forward()
    return y.d.ravel().tolist()


@pytest.mark.parametrize(
    ("mask", "backwards", "expected"),
    [
        ([0, 0, 1, 1], False, [0, 0, 3, 35.5]),
        ([1, 0, 1, 1], False, [1, 1, 13.5, 40.75]),
        ([1, 1, 0, 0], True, [0, 0, 2, 32]),  # the truth is in the order of the outputs, so 30 is that of the first one
        ([1, 1, 0, 1], True, [4, 4, 14, 38]),
    ],
    ids=str,
)
def test_the_truth_that_is_fed_is_that_of_the_last_step_that_counts(mask: list, backwards: bool, expected: list) -> None:
    rnn = leaky(readout="add", teacher_force=True, go_backwards=backwards)
    ys = rnn(row(1, 2, 3, 4), ground_truth=row(10, 20, 30, 40), mask=constant([mask]))
    assert computed(ys) == expected


def test_the_next_batch_is_fed_the_last_truth_of_this_one() -> None:
    rnn, x, truth = leaky(readout="add", teacher_force=True, stateful=True), row(1), row(10)
    y = rnn(x, ground_truth=truth)
    assert computed(y) == [1]
    rnn.carry()
    x.d = 2
    assert computed(y) == [12.5]


def test_what_is_carried_on_was_computed_of_the_batch() -> None:
    """Of a model that was wired, and whose output is of the old state."""
    x, h = nn.Variable((1, 1)), nn.Variable((1, 1))
    wiring = {"initial_states": [h], "final_states": [x + 0.5 * h]}
    rnn = rs.RecurrentModel(x, 2 * h, stateful=True, return_sequences=True, **wiring)
    x = row(1, 1, 1)
    y = rnn(x)
    assert computed(y) == [0, 2, 3]
    rnn.carry()
    x.d = 2
    assert computed(y) == [3.5, 5.75, 6.875]


@pytest.mark.parametrize("output", ["y", "h", "counter", "infinite"])
def test_whatever_output_is_computed_all_states_are_carried(output: str) -> None:
    """In every graph that ran; a state that is infinite changes no output."""

    def step(x: Any, states: Any) -> tuple[Any, Any]:
        h, counter, infinite = states
        return x + counter, (x + h, counter + 1, infinite * 3e38 * 10)

    rnn = rs.RecurrentSequential(readout="add", stateful=True, return_states=True, state_initializer=[None, None, "ones"])
    rnn.add(Cell(step, (StateSpec((1,)),) * 3))
    graphs = [rnn(constant(np.ones((b, 2, 1))), mask=constant(np.ones((b, 2)))) for b in (1, 2)]
    for made in graphs:
        dict(zip(("y", "h", "counter", "infinite"), made))[output].forward(clear_buffer=True)
    rnn.carry()
    for state in rnn._carried:
        assert [v.tolist() for v in state.get()] == [[[number]] * state.batch_size for number in (3, 2, np.inf, 3)]
    y = graphs[0][0]
    assert computed(y) == [1 + (1 + 3 + 2) + 3]  # x + (x + last + counter) + the next counter
