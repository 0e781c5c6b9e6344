"""What a cell says: the laws of greedy decoding, sampling, beam search, and of a cell that listens to itself."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import decoding_reference as reference
import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from measuring import constant, randomize, values, variable

from nnshop import (
    Cell,
    GRUCell,
    LSTMCell,
    SimpleRNNCell,
    StateSpec,
    attend,
    lift,
    portable,
    residual,
    run,
    shift,
    stack,
    teacher_forced,
    tree_leaves,
    tree_map,
)
from nnshop.decoding import Decoded, Step, beam_search, beams, best, decode, greedy, sample, tile
from nnshop.kernels import why_not_compiled
from nnshop.kernels.array_function import ArrayFunction, array_of

V, S = 7, 4
END = 2
Tree = Any

needs_kernels = pytest.mark.skipif(bool(why_not_compiled()), reason=why_not_compiled())


# ------------------------------------------------------------------------------------------------------------- speakers


def looking(h: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
    """Logits, and alignments of some positions."""
    return PF.affine(h, V, name="out"), F.softmax(PF.affine(h, S, name="look"))


def fast_weights(h: nn.Variable, state: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
    """Multiplies by its own state, of a size that pays for a packed weight where that is the same at each step."""
    return F.tanh(F.affine(h, state)), 0.5 * state + F.broadcast(F.reshape(F.mean(h, axis=0), (1, -1)), state.shape)


SPEAKERS: dict[str, Callable[[], Any]] = {
    "gru": lambda: stack(lift(PF.embed, V, 5), GRUCell(6), lift(PF.affine, V)),
    "two lstms": lambda: stack(lift(PF.embed, V, 5), LSTMCell(6), residual(LSTMCell(6)), lift(PF.affine, V)),
    "large": lambda: stack(lift(PF.embed, V, 64), LSTMCell(160), lift(PF.affine, 300), F.tanh, lift(PF.affine, V)),
    "alignments": lambda: stack(lift(PF.embed, V, 5), SimpleRNNCell(6, name="cell"), lift(looking)),
    "no state": lambda: stack(lift(PF.embed, V, 5), lift(PF.affine, V)),
    "its own": lambda: Cell(
        lambda ids, h: (PF.affine(F.tanh(PF.embed(ids, V, 6) + h), V), F.tanh(h + PF.embed(ids, V, 6))), StateSpec((6,))
    ),
}
each_speaker = pytest.mark.parametrize("kind", SPEAKERS)


def speaker(kind: str = "gru", seed: int = 3, scale: float = 0.9) -> Any:
    """A cell with random weights, sure enough of itself that texts differ."""
    cell = SPEAKERS[kind]()
    with nn.auto_forward(False):
        cell(nn.Variable((1,)), cell.initial_state(1))
    randomize(seed, scale)
    return cell


def states(cell: Any, batch: int = 3, seed: int = 5) -> Tree:
    """A random state, as arrays, so that the rows of a batch say different things."""
    rng = np.random.RandomState(seed)
    return tree_map(lambda spec: rng.randn(batch, *spec.shape).astype(np.float32), cell.state)


def scripted(table: np.ndarray) -> Any:
    """A cell whose logits stand in a table `(T, V, V)`, by the step and by the last id."""
    steps, classes, _ = table.shape
    rows = nn.Variable.from_numpy_array(np.float32(table.reshape(steps * classes, classes)))

    def step(ids: nn.Variable, t: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
        return F.embed(t * classes + ids, rows), F.minimum_scalar(t + 1, steps - 1)

    return Cell(step, StateSpec(()))


def says(*ids: int, classes: int = 5, sure: float = 4.0) -> np.ndarray:
    """A table by which one of the ids is the most likely at each step, whatever was said before."""
    table = np.zeros((len(ids), classes, classes))
    for t, token in enumerate(ids):
        table[t, :, token] = sure
    return table


def row_of(state: Tree, b: int) -> Tree:
    return tree_map(lambda array: array[b : b + 1], state)


def speaking(cell: Any, start: int, state: Tree = None) -> reference.Speak:
    """One row of a cell as the reference asks for it: the whole text once more for each token, over the sequence."""
    state = tree_map(lambda array: nn.Variable.from_numpy_array(array), state)

    @cache
    def speak(ids: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        said, _ = run(cell, constant([[start, *ids]]), cell.initial_state(1) if state is None else state)
        logits, *look = said if isinstance(said, tuple) else (said,)
        return tuple(v[0, -1] for v in values(logits, *(look or [nn.Variable((1, 1, 1))])))

    return speak


def assert_same(actual: Decoded, expected: Decoded, rtol: float = 1e-5) -> None:
    np.testing.assert_array_equal(actual.ids, expected.ids)
    np.testing.assert_array_equal(actual.lengths, expected.lengths)
    np.testing.assert_allclose(actual.scores, expected.scores, rtol=rtol, atol=rtol)
    assert (actual.alignments is None) == (expected.alignments is None)
    if expected.alignments is not None:
        np.testing.assert_allclose(actual.alignments, expected.alignments, rtol=1e-4, atol=1e-5)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects a number for each step that is computed."""
    counted: list[int] = []
    call = Step.go_on

    def noted(self: Step, *arguments: Any) -> Any:
        counted.append(len(counted))
        return call(self, *arguments)

    monkeypatch.setattr(Step, "go_on", noted)
    return counted


# --------------------------------------------------------------------------------------------------------------- greedy


def by_hand(cell: Any, start: int, state: Tree, length: int) -> Decoded:
    """A graph for each step, without an end token."""
    state = tree_map(lambda array: nn.Variable.from_numpy_array(array), state)
    batch = tree_leaves(state)[0].shape[0] if tree_leaves(state) else 1
    ids, said, scores, looks = np.full(batch, start), [], np.zeros(batch), []
    for _ in range(length):
        y, state = cell(constant(ids), state)
        logits, *look = y if isinstance(y, tuple) else (y,)
        found = values(logits, *look, *tree_leaves(state))
        ids = found[0].argmax(axis=1)
        scores += [reference.log_softmax(row).max() for row in found[0]]
        said.append(ids)
        looks += [found[1]] if look else []
        state = tree_map(lambda v: v.get_unlinked_variable(), state)
    alignments = np.stack(looks, axis=1) if looks else None
    return Decoded(np.stack(said, axis=1), np.full(batch, length), scores, alignments)


@each_speaker
def test_greedy_is_the_loop_by_hand(kind: str) -> None:
    cell = speaker(kind)
    state = states(cell)
    assert_same(greedy(cell, 1, state, max_length=6), by_hand(cell, 1, state, 6), rtol=1e-4)


@pytest.mark.parametrize("kind", ["gru", "two lstms", "alignments", "its own"])
@pytest.mark.parametrize("method", [greedy, beam_search])
def test_a_batch_is_its_rows(kind: str, method: Callable) -> None:
    start, mixed = np.array([1, 3, 0]), 0
    for seed in range(8):
        nn.clear_parameters()
        cell = speaker(kind, seed)
        state = states(cell)
        together = method(cell, start, state, end=END, max_length=7)
        mixed += len(set(together.lengths.tolist())) > 1
        for b in range(3):
            alone = method(cell, int(start[b]), row_of(state, b), end=END, max_length=7)
            steps = alone.ids.shape[1]
            assert alone.lengths[0] == together.lengths[b]
            np.testing.assert_array_equal(alone.ids[0], together.ids[b, :steps])
            np.testing.assert_array_equal(together.ids[b, steps:], END)
            np.testing.assert_allclose(alone.scores[0], together.scores[b], rtol=1e-4, atol=1e-6)
            if together.alignments is not None:
                np.testing.assert_allclose(alone.alignments[0], together.alignments[b, :steps], rtol=1e-4, atol=1e-6)
                assert not together.alignments[b, steps:].any()
    assert mixed >= 2  # else nothing was seen of rows that end before others


def test_a_row_ends_by_the_end_token() -> None:
    """Row 0 starts with 3, row 1 with 4; what they say is in a table by the last id."""
    table = np.zeros((6, 5, 5))
    for last, following in {3: 1, 1: END, 4: 0, 0: 0, END: 3}.items():  # after the end it would go on with 3
        table[:, last, following] = 3
    log_p = reference.log_softmax(table[0, 3])[1]  # each token that is said is as likely
    said = greedy(scripted(table), [3, 4], end=END, max_length=6)
    np.testing.assert_array_equal(said.ids, [[1, END, END, END, END, END], [0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(said.lengths, [1, 6])
    np.testing.assert_allclose(said.scores, [2 * log_p, 6 * log_p], rtol=1e-6)
    assert said.alignments is None


@pytest.mark.parametrize("method", [greedy, sample, beam_search])
def test_it_stops_when_all_rows_have_ended(method: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, counted = scripted(says(3, 1, END, 4, sure=40)), counting(monkeypatch)
    said = method(cell, 0, end=END, max_length=50, batch_size=2)
    np.testing.assert_array_equal(said.ids, [[3, 1, END]] * 2)
    np.testing.assert_array_equal(said.lengths, [2, 2])
    assert len(counted) == 3


@pytest.mark.parametrize("method", [greedy, sample, beam_search])
def test_it_stops_at_max_length(method: Callable) -> None:
    said = method(scripted(says(3, sure=40)), 0, end=END, max_length=4)
    np.testing.assert_array_equal(said.ids, [[3, 3, 3, 3]])
    np.testing.assert_array_equal(said.lengths, [4])


def test_an_end_alone_has_a_bound() -> None:
    said = greedy(scripted(says(3)), 0, end=END)
    assert said.ids.shape == (1, 1000)


def test_the_alignment_of_the_end_token_counts_and_none_after_it() -> None:
    """Logits as in a script; it looks at the position of its step."""
    script = scripted(np.stack([says(3)[0], says(END)[0], says(1)[0], says(END)[0]]))
    table = np.float32(np.eye(S))

    def step(ids: nn.Variable, state: Tree) -> tuple[Tree, Tree]:
        logits, after = script(ids, state)
        return (logits, F.embed(state, nn.Variable.from_numpy_array(table))), after

    for method in (greedy, beam_search):
        said = method(Cell(step, StateSpec(())), [0, 1], end=END, max_length=4)
        np.testing.assert_array_equal(said.alignments, [np.eye(S)[:2]] * 2)


@each_speaker
def test_scores_are_the_log_probabilities_of_what_is_said(kind: str) -> None:
    cell = speaker(kind)
    state = states(cell)
    for method, options in ((greedy, {}), (sample, {"seed": 1, "temperature": 2.0, "top_k": 5}), (beam_search, {"width": 4})):
        said = method(cell, 1, state, end=END, max_length=6, batch_size=1 if kind == "no state" else None, **options)
        for b, (ids, length, score) in enumerate(zip(said.ids, said.lengths, said.scores)):
            speak = speaking(cell, 1, row_of(state, b))
            text = tuple(ids[: length + 1].tolist())
            expected = sum(reference.log_softmax(speak(text[:t])[0])[token] for t, token in enumerate(text))
            np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-5)


def test_of_equals_the_lowest_id_is_said() -> None:
    table = np.zeros((1, 6, 6))
    for method in (greedy, beam_search):
        np.testing.assert_array_equal(method(scripted(table), 3, max_length=2).ids, [[0, 0]])
        np.testing.assert_array_equal(method(scripted(table), 3, end=5, max_length=2).ids, [[0, 0]])
    np.testing.assert_array_equal(beam_search(scripted(table), 3, end=0, max_length=2, width=1).ids, [[0]])


# ------------------------------------------------------------------------------------------------- what a step is made of


def test_a_step_reads_the_weights_at_each_call() -> None:
    for kind in ("gru", "large"):
        nn.clear_parameters()
        cell = speaker(kind)
        step, state = Step(cell, 3), states(cell)
        before = greedy(step, 1, state, max_length=5)
        randomize(seed=8)
        after = greedy(step, 1, state, max_length=5)
        assert_same(after, greedy(cell, 1, state, max_length=5))
        assert not np.array_equal(before.ids, after.ids)
        for parameter in nn.get_parameters().values():
            parameter.data = nn.NdArray.from_numpy_array(-parameter.d)
        assert_same(greedy(step, 1, state, max_length=5), greedy(cell, 1, state, max_length=5))


def test_a_step_serves_all_functions_and_starts_anew() -> None:
    cell = speaker("alignments")
    step, state = Step(cell, 12), states(cell, 12)
    few = tree_map(lambda array: array[:3], state)
    first = greedy(step, 1, state, end=END, max_length=5)
    searched = beam_search(step, 1, few, end=END, max_length=5, width=4)
    assert_same(searched, beam_search(cell, 1, few, end=END, max_length=5, width=4))
    drawn = sample(step, 1, state, end=END, max_length=5, seed=4)
    assert_same(drawn, sample(cell, 1, state, end=END, max_length=5, seed=4))
    assert_same(greedy(step, 1, state, end=END, max_length=5), first)
    assert (step.classes, step.inputs, step.positions) == (V, V, S)


class Counted(ArrayFunction):
    """The identity, which counts how often it is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def setup_impl(self, inputs: Any, outputs: Any) -> None:
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs: Any, outputs: Any) -> None:
        self.times += 1
        outputs[0].data.cast(np.float32)[...] = array_of(inputs[0])

    def backward_impl(self, *_: Any) -> None:
        raise NotImplementedError


def test_what_does_not_depend_on_the_step_is_computed_once() -> None:
    cell, memory, counted = speaker(), variable(3, 6), Counted()
    encoded = counted(memory)
    in_the_step = Counted()

    def hold(ids: nn.Variable, state: Tree) -> tuple[Tree, Tree]:
        logits, state = cell(ids, state)
        return logits + PF.affine(encoded, V, name="memory") + 0 * in_the_step(logits), state

    holding = Cell(hold, cell.state)
    with nn.auto_forward(False):
        holding(nn.Variable((3,)), cell.initial_state(3))
    randomize()
    step = Step(holding, 3)
    assert counted.times == 0
    first = greedy(step, 1, max_length=4)
    assert (counted.times, in_the_step.times) == (1, 4)
    memory.d = -2 * memory.d
    second = greedy(step, 1, max_length=4)
    assert (counted.times, in_the_step.times) == (2, 8)
    assert not np.array_equal(first.ids, second.ids)
    assert_same(second, greedy(holding, 1, max_length=4, batch_size=3))
    with pytest.raises(ValueError, match=r"gives outputs of 3 rows for a batch of 1.* Give batch_size"):
        greedy(holding, 1, max_length=4)


def test_it_starts_from_the_state_of_an_encoder() -> None:
    cell, source = speaker(), constant(np.array([[1, 2, 3], [4, 5, 6]]))
    with nn.parameter_scope("encoder"):
        reader = stack(lift(PF.embed, V, 5), GRUCell(6))
        _, (_, encoded) = run(reader, source)
    randomize()
    state = ((), encoded, ())
    step = Step(cell, 2)
    for ids in ([[1, 2, 3], [4, 5, 6]], [[0, 0, 1], [3, 3, 3]]):
        source.d = ids
        said = greedy(step, 1, state, end=END, max_length=6)
        (h,) = values(encoded)
        assert_same(said, greedy(cell, 1, ((), h, ()), end=END, max_length=6))
        wide = beam_search(cell, 1, state, end=END, max_length=6, width=3)
        assert_same(wide, beam_search(cell, 1, ((), h, ()), end=END, max_length=6, width=3))


def test_it_attends_to_a_memory() -> None:
    """Greedily as a loop by hand, and by beams with the memory's rows repeated."""
    memory, lengths = variable(3, S, 5), [4, 2, 3]

    def attending(width: int) -> Any:
        def say(pair: Tree) -> Tree:
            return PF.affine(pair[0], V, name="out"), pair[1]

        rows = np.repeat(lengths, width)
        attended = attend(GRUCell(6, name="cell"), tile(memory, width), "general", units=6, lengths=rows, alignments=True)
        return stack(lift(PF.embed, V, 5), stack(attended, name="decoder"), lift(say))

    cell = attending(1)
    with nn.auto_forward(False):
        cell(nn.Variable((3,)), cell.initial_state(3))
    randomize(scale=1.2)
    state = states(cell)
    said = greedy(cell, 1, state, max_length=5)
    assert_same(said, by_hand(cell, 1, state, 5), rtol=1e-4)
    np.testing.assert_allclose(said.alignments.sum(axis=2), 1, rtol=1e-5)
    assert not said.alignments[1, :, 2:].any()
    one = beam_search(cell, 1, state, end=END, max_length=5, width=1)
    assert_same(one, greedy(cell, 1, state, end=END, max_length=5))
    wide = beam_search(attending(3), 1, state, end=END, max_length=5, width=3)
    for b in range(3):
        text = tuple(wide.ids[b, : wide.lengths[b] + 1].tolist())
        ids = constant(np.array([[1, *text[:-1]]] * 3))
        logits, looks = values(*run(cell, ids, tree_map(lambda a: nn.Variable.from_numpy_array(a), state))[0])
        expected = sum(reference.log_softmax(logits[b, t])[token] for t, token in enumerate(text))
        np.testing.assert_allclose(wide.scores[b], expected, rtol=1e-4)
        np.testing.assert_allclose(wide.alignments[b, : len(text)], looks[b], rtol=1e-4, atol=1e-6)


@needs_kernels
@each_speaker
def test_a_step_is_compiled(kind: str) -> None:
    assert Step(speaker(kind), 3)._stepper.compiled


@needs_kernels
def test_a_weight_that_changes_with_each_step_is_not_packed() -> None:
    """It is the state."""
    size = 50
    cell = stack(lift(PF.embed, V, size), Cell(fast_weights, StateSpec((size,))), lift(PF.affine, V))
    with nn.auto_forward(False):
        cell(nn.Variable((size,)), cell.initial_state(size))
    randomize(scale=0.5)
    state = states(cell, size)
    assert_same(greedy(cell, 1, state, max_length=5), by_hand(cell, 1, state, 5), rtol=1e-4)


@pytest.mark.parametrize("method", [greedy, beam_search])
def test_it_is_the_same_in_auto_forward_mode_without_gradients_and_in_portable_form(method: Callable) -> None:
    memory = variable(3, V)
    cell = speaker("alignments")
    state = states(cell)
    expected = method(cell, 1, state, end=END, max_length=6)
    with portable():
        assert_same(method(cell, 1, state, end=END, max_length=6), expected)
    with nn.no_grad():
        assert_same(method(cell, 1, state, end=END, max_length=6), expected)
    with nn.auto_forward(True):
        assert_same(method(cell, 1, state, end=END, max_length=6), expected)
        variables = tree_map(lambda array: 2 * nn.Variable.from_numpy_array(array), state)
        held = F.tanh(memory)
        biased = Cell(lambda ids, before: (cell(ids, before)[0][0] + held, cell(ids, before)[1]), cell.state)
        found = greedy(biased, 1, variables, max_length=4)
    with nn.auto_forward(False):
        held = F.tanh(memory)
        biased = Cell(lambda ids, before: (cell(ids, before)[0][0] + held, cell(ids, before)[1]), cell.state)
        assert_same(found, greedy(biased, 1, tree_map(lambda array: 2 * array, state), max_length=4))


def test_without_llvmlite_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = speaker("large")
    state = states(cell)
    calls = [(greedy, {}), (beam_search, {"n_best": 5}), (sample, {"seed": 1})]
    expected = [method(cell, 1, state, end=END, max_length=5, **options) for method, options in calls]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llvmlite" else find_spec(name))
    best._compiled_rows.cache_clear()
    assert not Step(cell, 3)._stepper.compiled
    for (method, options), same in zip(calls, expected):
        assert_same(method(cell, 1, state, end=END, max_length=5, **options), same, rtol=1e-4)
    best._compiled_rows.cache_clear()


@needs_kernels
@pytest.mark.parametrize("classes", [1, 5, 127, 128, 129, 1000])
def test_the_kernel_is_its_twin(classes: int) -> None:
    """With many equal numbers, and with numbers that are -inf."""
    rng = np.random.RandomState(classes)
    logits = rng.randint(-4, 5, (6, classes)).astype(np.float32)
    logits[1] = rng.randn(classes) * 30
    logits[2] = np.sort(rng.randn(classes))
    logits[3, : classes // 2] = -np.inf
    logits[4] -= 1e5
    for k in {1, min(3, classes), classes}:
        for without in (-1, 0, classes - 1):
            found = best.best_of(logits, k, without)
            ids, highest, above = best._by_numpy(logits, k, without)[1:]
            largest = logits.max(axis=1).astype(np.float64)
            exact = largest + np.log(np.exp(logits - largest[:, np.newaxis]).sum(axis=1))
            left = np.where(np.arange(classes) == without, -np.inf, logits)
            order = np.argsort(-left, axis=1, kind="stable")[:, :k]
            held = np.take_along_axis(left, order, axis=1)
            for some in (found.ids, ids):
                np.testing.assert_array_equal(np.where(held > -np.inf, some, 0), np.where(held > -np.inf, order, 0))
            for sums in (found.log_sums, highest.astype(np.float64) + above):
                np.testing.assert_allclose(sums - largest, exact - largest, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found.log_p, held - exact[:, np.newaxis], rtol=1e-5, atol=1e-6)
            assert (found.log_p <= 0).all()


# ------------------------------------------------------------------------------------------------------------- sampling

# One in a million runs of a right sampler has a larger chi square, by degrees of freedom; the seed is fixed all the same.
CHI_SQUARE = {1: 23.93, 2: 27.63, 3: 30.66, 4: 33.38, 5: 35.89, 6: 38.26}
LOGITS = np.array([0.3, 2.0, -1.0, 1.2, 0.3, -2.5, 0.9])


def assert_drawn_from(p: np.ndarray, ids: np.ndarray) -> None:
    counts, likely = np.bincount(ids, minlength=len(p)), p > 0
    assert counts[~likely].sum() == 0
    expected = p[likely] * ids.size
    if likely.sum() > 1:
        assert ((counts[likely] - expected) ** 2 / expected).sum() < CHI_SQUARE[likely.sum() - 1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 3},
        {"top_k": 1},
        {"top_k": 7, "top_p": 1.0},
        {"top_p": 0.7},
        {"top_p": 0.01},
        {"top_k": 4},  # the fourth and the fifth are equal
        {"top_p": 0.85},
        {"temperature": 2.0, "top_k": 5, "top_p": 0.6},
    ],
    ids=str,
)
def test_tokens_are_drawn_by_their_probability(options: dict[str, Any]) -> None:
    rows, steps = 500, 40
    said = sample(
        scripted(LOGITS[np.newaxis, np.newaxis].repeat(7, axis=1)), 0, max_length=steps, batch_size=rows, seed=7, **options
    )
    assert_drawn_from(reference.distribution(LOGITS, **options), said.ids.ravel())
    scores = reference.log_softmax(LOGITS)[said.ids].sum(axis=1)  # by the cell itself, without the options
    np.testing.assert_allclose(said.scores, scores, rtol=1e-5)


def test_each_row_and_step_is_drawn_by_its_own_logits() -> None:
    table = np.random.RandomState(0).randn(2, 4, 4) * 1.5
    said = sample(scripted(table), np.repeat([0, 3], 6000), max_length=2, seed=5)
    for start, ids in ((0, said.ids[:6000]), (3, said.ids[6000:])):
        assert_drawn_from(reference.distribution(table[0, start]), ids[:, 0])
        for first in range(4):
            assert_drawn_from(reference.distribution(table[1, first]), ids[ids[:, 0] == first, 1])


def test_a_seed_makes_the_same_texts() -> None:
    cell = speaker()
    state = states(cell)

    def texts(seed: Any) -> list:
        return sample(cell, 1, state, max_length=8, seed=seed).ids.tolist()

    assert texts(3) == texts(3) == texts(np.random.RandomState(3))
    assert texts(3) != texts(4)
    generator = np.random.RandomState(3)
    assert texts(generator) != texts(generator)
    nn.seed(11)
    first, second = texts(None), texts(None)
    nn.seed(11)
    assert [texts(None), texts(None)] == [first, second]
    assert first != second


LIMITS = np.finfo(np.float32)


def test_one_rule_for_temperatures_tested_at_its_edges() -> None:
    """Both draw at the lowest and the highest number that 32 bits hold, and refuse those beyond."""
    cell, rows = scripted(LOGITS[np.newaxis, np.newaxis].repeat(7, axis=1)), 500

    def drawn_in_the_graph(temperature: Any) -> np.ndarray:
        own = decode(cell, 0, "sample", temperature)
        return values(run(own, None, own.initial_state(rows), length=1)[1][1])[0]

    def drawn_outside(temperature: Any) -> np.ndarray:
        return sample(cell, 0, max_length=1, batch_size=rows, temperature=temperature).ids[:, 0]

    for drawn in (drawn_in_the_graph, drawn_outside):
        for temperature in (float(LIMITS.tiny), LIMITS.tiny, 2e-38):
            np.testing.assert_array_equal(drawn(temperature), LOGITS.argmax())
        for temperature in (float(LIMITS.max), LIMITS.max):
            assert_drawn_from(np.full(V, 1 / V), drawn(temperature).astype(int))
        for temperature in (1e-46, 1e-39, 1.1e-38, 0.0, -1.0, 3.5e38, np.inf, np.nan, True, "1", None):
            with pytest.raises(ValueError, match="temperature must be a number above 0; got"):
                drawn(temperature)


def test_cold_it_is_greedy() -> None:
    cell = speaker()
    state = states(cell)
    expected = greedy(cell, 1, state, end=END, max_length=8)
    assert_same(sample(cell, 1, state, end=END, max_length=8, temperature=1e-6), expected)
    assert_same(sample(cell, 1, state, end=END, max_length=8, top_k=1), expected)
    assert_same(sample(cell, 1, state, end=END, max_length=8, top_p=1e-9), expected)


# ---------------------------------------------------------------------------------------------------------- beam search


@each_speaker
def test_a_beam_of_one_is_greedy(kind: str) -> None:
    cell = speaker(kind)
    state, options = states(cell), {"batch_size": 1} if kind == "no state" else {}
    for ending in ({"end": END, "max_length": 7}, {"max_length": 5}, {"end": 0, "max_length": 3}):
        expected = greedy(cell, 1, state, **ending, **options)
        assert_same(beam_search(cell, 1, state, width=1, **ending, **options), expected)


def test_a_length_penalty_lets_a_beam_of_one_go_on_where_greedy_ends() -> None:
    """It ranks log 0.5 / (5 / 6) ** 5 = -1.7 for the end below log 0.4 / 1 = -0.9 for a token more."""
    p = np.array([[0.5, 0.4, 0.1], [0.9, 0.05, 0.05]])
    cell = scripted(np.log(p)[:, np.newaxis].repeat(3, axis=1))
    options: dict[str, Any] = {"end": 0, "max_length": 2, "width": 1}
    assert greedy(cell, 1, end=0, max_length=2).ids.tolist() == [[0]]
    assert beam_search(cell, 1, **options).ids.tolist() == [[0]]
    assert beam_search(cell, 1, **options, length_penalty=5.0).ids.tolist() == [[1, 0]]


PENALTIES: list[dict[str, Any]] = [
    {},
    {"length_penalty": 0.6},
    {"length_penalty": 2.0},
    {"coverage_penalty": 0.4},
    {"length_penalty": 1.0, "coverage_penalty": 0.2, "min_length": 2},
    {"min_length": 1},
]
each_penalty = pytest.mark.parametrize("options", PENALTIES, ids=str)


def assert_hypotheses(said: Decoded, b: int, expected: list[reference.Hypothesis]) -> None:
    """Row b says what is expected, from the best on."""
    for n, hypothesis in enumerate(expected):
        ids, length = said.ids[b, n], said.lengths[b, n]
        steps = len(hypothesis.ids)
        assert length == hypothesis.length
        np.testing.assert_array_equal(ids[:steps], hypothesis.ids)
        np.testing.assert_array_equal(ids[steps:], END)
        np.testing.assert_allclose(said.scores[b, n], hypothesis.score, rtol=1e-4)
        if said.alignments is not None:
            np.testing.assert_allclose(said.alignments[b, n, :steps], hypothesis.looks, rtol=1e-4, atol=1e-6)
            assert not said.alignments[b, n, steps:].any()


def tiny_speaker(seed: int, classes: int, live: int) -> Any:
    """Of its classes all but the first few are hopeless, so that a beam may be wider than there are texts of those."""

    def say(h: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
        return PF.affine(h, classes, name="out"), F.softmax(PF.affine(h, S, name="look"))

    cell = stack(lift(PF.embed, classes, 4), GRUCell(4), lift(say))
    with nn.auto_forward(False):
        cell(nn.Variable((1,)), cell.initial_state(1))
    randomize(seed, scale=1.3)
    nn.get_parameters()["2/out/affine/b"].d[live:] = -1e4
    return cell


@each_penalty
@pytest.mark.parametrize(("live", "length"), [(3, 4), (4, 3)])
def test_a_wide_beam_is_brute_force(options: dict[str, Any], live: int, length: int) -> None:
    cell = tiny_speaker(live + len(options), 100, live)
    state = states(cell, 2)
    said = beam_search(cell, 1, state, end=END, max_length=length, width=100, n_best=6, **options)
    for b in range(2):
        expected = reference.brute_force(speaking(cell, 1, row_of(state, b)), range(live), END, length, **options)
        assert_hypotheses(said, b, expected[:6])


@each_penalty
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_narrow_beam_is_the_reference(options: dict[str, Any], width: int) -> None:
    cell = speaker("alignments", seed=width + len(options))
    state = states(cell)
    said = beam_search(cell, 1, state, end=END, max_length=6, width=width, n_best=width, **options)
    for b in range(3):
        expected = reference.beam_search(speaking(cell, 1, row_of(state, b)), range(V), END, 6, width, **options)
        assert_hypotheses(said, b, expected)


def test_without_an_end_token_it_searches_too() -> None:
    cell = speaker("alignments")
    state = states(cell)
    said = beam_search(cell, 1, state, max_length=4, width=4, n_best=4)
    for b in range(3):
        expected = reference.beam_search(speaking(cell, 1, row_of(state, b)), range(V), None, 4, 4)
        assert_hypotheses(said, b, expected)


def random_searches() -> Iterator[tuple[Any, Tree, dict[str, Any]]]:
    rng = np.random.RandomState(2)
    for seed in range(12):
        nn.clear_parameters()
        cell = speaker("alignments", seed, scale=rng.choice([0.3, 0.9, 1.5]))
        nn.get_parameters()["2/out/affine/b"].d[END] += 2  # or hardly one would end
        options = {
            "length_penalty": rng.choice([0.0, 0.7, 1.5]),
            "coverage_penalty": rng.choice([0.0, 0.3]),
            "min_length": rng.randint(3),
            "n_best": rng.randint(1, 5),
            "width": 4,
        }
        yield cell, states(cell, 4, seed), options


def test_stopping_early_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, rules = counting(monkeypatch), {"never": lambda _: False, "all ended": lambda search: search.finished.all()}
    saved: Counter = Counter()
    for cell, state, options in random_searches():
        early = beam_search(cell, 1, state, end=END, max_length=12, **options)
        steps = len(counted)
        for name, rule in rules.items():
            counted.clear()
            with monkeypatch.context() as patch:
                patch.setattr(beams._Search, "is_decided", lambda self, wanted, rule=rule: rule(self))
                assert_same(early, beam_search(cell, 1, state, end=END, max_length=12, **options))
            saved[name] += steps < len(counted)
        counted.clear()
    assert saved["never"] >= 6  # of 12
    assert saved["all ended"] >= 2


def test_the_best_come_first_and_alone_by_default() -> None:
    for cell, state, options in random_searches():
        many = beam_search(cell, 1, state, end=END, max_length=6, **{**options, "n_best": 4})
        alone = beam_search(cell, 1, state, end=END, max_length=6, **{**options, "n_best": None})
        ranks = [[rank_of(many, b, n, options) for n in range(4)] for b in range(4)]
        np.testing.assert_array_equal(ranks, np.sort(ranks, axis=1)[:, ::-1])
        texts = [{tuple(ids) for ids in row} for row in many.ids]
        assert [len(row) for row in texts] == [4] * 4
        steps = alone.ids.shape[1]
        assert_same(
            alone, Decoded(many.ids[:, 0, :steps], many.lengths[:, 0], many.scores[:, 0], many.alignments[:, 0, :steps])
        )


def rank_of(said: Decoded, b: int, n: int, options: dict[str, Any]) -> float:
    """By what is returned of a hypothesis."""
    found = said.scores[b, n] / ((5 + said.lengths[b, n]) / 6) ** options["length_penalty"]
    sums = said.alignments[b, n].sum(axis=0, dtype=np.float64)
    return found + options["coverage_penalty"] * np.log(np.minimum(sums, 1)).sum()


def test_nothing_follows_the_end_and_a_finished_score_stays() -> None:
    for cell, state, options in random_searches():
        options = {**options, "n_best": 4}
        short = beam_search(cell, 1, state, end=END, max_length=4, **options)
        long = beam_search(cell, 1, state, end=END, max_length=9, **options)
        scores = {(b, *ids[: n + 1]): s for b in range(4) for ids, n, s in zip(short.ids[b], short.lengths[b], short.scores[b])}
        for b in range(4):
            for ids, length, score in zip(long.ids[b], long.lengths[b], long.scores[b]):
                assert (ids[length:] == END).all()
                assert END not in ids[:length]
                assert length >= options["min_length"]
                if (b, *ids[: length + 1]) in scores:
                    np.testing.assert_allclose(score, scores[(b, *ids[: length + 1])], rtol=1e-6)


def test_hypotheses_that_are_not_possible_have_no_probability() -> None:
    cell = scripted(says(0, 1, classes=3))
    said = beam_search(cell, 0, end=END, max_length=2, min_length=1, width=3, n_best=3)
    assert np.isfinite(said.scores).all()
    table = np.full((1, 3, 3), -np.inf)
    table[..., 1] = 0
    said = beam_search(scripted(table), 0, max_length=2, width=3, n_best=3)
    np.testing.assert_array_equal(said.ids[0, 0], [1, 1])
    np.testing.assert_array_equal(said.scores, [[0, -np.inf, -np.inf]])


def test_padding_of_the_memory_changes_no_order() -> None:
    """Positions that nothing looks at cost all hypotheses the same."""
    cell = speaker("alignments")

    def padded(ids: nn.Variable, state: Tree) -> tuple[Tree, Tree]:
        (logits, look), state = cell(ids, state)
        return (logits, F.concatenate(look, F.constant(0, look.shape), axis=1)), state

    state, options = states(cell), {"end": END, "max_length": 6, "coverage_penalty": 0.5, "width": 4, "n_best": 3}
    expected = beam_search(cell, 1, state, **options)
    found = beam_search(Cell(padded, cell.state), 1, state, **options)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.alignments[..., :S], expected.alignments, rtol=1e-5)


def test_a_hypothesis_with_a_better_end_overtakes() -> None:
    """The most likely first token leads to less likely texts: the beam finds the other, greedy decoding does not."""
    table = np.full((3, 4, 4), -9.0)
    table[0, :, 0], table[0, :, 1] = 0.1, 0.0
    table[1, 0] = [0, 0, 0, 0]
    table[1, 1, 3] = 9
    table[2, :, END] = 9
    assert greedy(scripted(table), 0, end=END, max_length=3).ids[0, 0] == 0
    np.testing.assert_array_equal(beam_search(scripted(table), 0, end=END, max_length=3, width=2).ids, [[1, 3, END]])


def test_a_length_penalty_may_let_a_long_text_win_late() -> None:
    """The end is the likely first token, at a rank that the other text reaches only after some steps."""
    table = np.full((2, 4, 4), -30.0)
    table[0, :, END], table[0, :, 1] = np.log(0.7), np.log(0.3)
    table[1, :, 3] = 0
    options = {"end": END, "width": 2, "length_penalty": 2.0}
    np.testing.assert_array_equal(beam_search(scripted(table), 0, max_length=9, **options).ids, [[1] + [3] * 8])
    np.testing.assert_array_equal(beam_search(scripted(table), 0, max_length=3, **options).ids, [[END]])


def test_tile_repeats_rows() -> None:
    x = variable(3, 2, 4)
    y = tile(x, 5)
    np.testing.assert_array_equal(values(y)[0], np.repeat(np.float32(x.d), 5, axis=0))
    (y * constant(np.arange(120).reshape(15, 2, 4))).backward()
    np.testing.assert_array_equal(x.g, np.arange(120).reshape(3, 5, 2, 4).sum(axis=1))
    assert tile(x, 1) is x


# ------------------------------------------------------------------------------------------- a cell that listens to itself


@pytest.mark.parametrize("way", ["unrolled", "loop"])
@pytest.mark.parametrize("kind", ["gru", "alignments", "its own"])
def test_decode_says_in_a_graph_what_greedy_says(kind: str, way: str) -> None:
    cell = speaker(kind)
    own, state = decode(cell, [1, 4, 0]), states(cell)
    expected = greedy(cell, [1, 4, 0], state, max_length=6)
    before = tree_map(lambda array: nn.Variable.from_numpy_array(array), state)
    said, (_, last) = run(own, None, (before, own.initial_state(3)[1]), length=6, way=way)
    logits, ids = values(said[0] if isinstance(said, tuple) else said, last)
    np.testing.assert_array_equal(logits.argmax(axis=2), expected.ids)
    np.testing.assert_array_equal(ids, expected.ids[:, -1])


@pytest.mark.parametrize("way", ["unrolled", "loop"])
def test_decode_draws_by_probability(way: str) -> None:
    rows = 4000
    own = decode(scripted(LOGITS[np.newaxis, np.newaxis].repeat(7, axis=1)), 0, "sample", temperature=2.0)
    drawn = []
    for length in (1, 3):
        _, (_, last) = run(own, None, own.initial_state(rows), length=length, way=way)
        drawn += [values(last)[0].astype(int)]
    for ids in drawn:
        assert_drawn_from(reference.distribution(LOGITS, temperature=2.0), ids)
    assert not np.array_equal(*drawn)


def scheduled(cell: Any, truth: np.ndarray, probability: float, way: str, choose: str = "greedy") -> np.ndarray:
    """The logits, from the id 0 on."""
    share = constant([probability])
    forced = teacher_forced(decode(cell, 0, choose), share)
    ys, _ = run(forced, (None, constant(truth)), length=truth.shape[1], way=way)
    return values(ys)[0]


@pytest.mark.parametrize("way", ["unrolled", "loop"])
def test_scheduled_sampling_is_between_teacher_forcing_and_running_free(way: str) -> None:
    cell = speaker()
    truth = np.random.RandomState(0).randint(V, size=(3, 6))
    forced = values(run(cell, shift(constant(truth)))[0])[0]  # from the id 0 on
    own = decode(cell, 0)
    free = values(run(own, None, own.initial_state(3), length=6, way=way)[0])[0]
    np.testing.assert_allclose(scheduled(cell, truth, 0, way), forced, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scheduled(cell, truth, 1, way), free, rtol=1e-4, atol=1e-5)
    assert not np.allclose(forced, free)


@pytest.mark.parametrize("way", ["unrolled", "loop"])
def test_the_share_of_own_ids_is_the_probability_that_is_set(way: str) -> None:
    """It says the last id again, plus 1; the truth is always 0. So what it is fed with shows in its logits."""
    rows, steps, share = 500, 8, constant([0.0])
    table = np.eye(V)[(np.arange(V) + 1) % V] * 5
    forced = teacher_forced(decode(scripted(table[np.newaxis]), 0), share)
    ys, _ = run(forced, (None, constant(np.zeros((rows, steps)))), length=steps, way=way)
    for probability in (0.25, 0.7):
        share.d = probability
        fed = (values(ys)[0].argmax(axis=2) - 1) % V  # (B, T)
        own = fed[:, 1:] != 0
        count, expected = own.sum(), own.size * probability
        assert abs(count - expected) < 5 * np.sqrt(expected * (1 - probability))  # by chance once in a million
        by_row, by_step = own.mean(axis=1), own.mean(axis=0)
        assert len(set(by_row)) > 2  # not one coin for all of a row
        assert (np.abs(by_step - probability) < 0.12).all()
        for t in range(1, steps):
            np.testing.assert_array_equal(fed[own[:, t - 1], t], (fed[own[:, t - 1], t - 1] + 1) % V)


@pytest.mark.parametrize("way", ["unrolled", "loop"])
def test_no_gradient_goes_through_an_id(way: str) -> None:
    """The gradients are those with the same ids as constants."""
    cell = speaker()
    truth = np.random.RandomState(0).randint(V, size=(3, 5))
    fed_truth = nn.Variable.from_numpy_array(truth)
    own, factor = decode(cell, 0), constant(np.random.RandomState(1).randn(3, 5, V))

    def gradients(ys: nn.Variable) -> dict[str, np.ndarray]:
        loss = F.sum(ys * factor)
        for parameter in nn.get_parameters().values():
            parameter.grad.zero()
        loss.forward()
        loss.backward()
        return {name: parameter.g.copy() for name, parameter in nn.get_parameters().items()}

    free = run(own, None, own.initial_state(3), length=5, way=way)[0]
    ids = values(free)[0].argmax(axis=2)
    found = gradients(free)
    expected = gradients(run(cell, shift(constant(ids)))[0])
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-3, atol=1e-4, err_msg=name)
    mixed = run(teacher_forced(own, constant([0.5])), (None, fed_truth), length=5, way=way)[0]
    assert all(np.isfinite(gradient).all() for gradient in gradients(mixed).values())


# -------------------------------------------------------------------------------------------------------------- mistakes


def small() -> Any:
    return speaker("gru")


def call(method: Callable, start: Any = 1, state: Tree = None, rows: int | None = None, **options: Any) -> Callable:
    """To be called later; with rows, by a Step for so many."""
    options.setdefault("max_length", 3)
    return lambda: method(small() if rows is None else Step(small(), rows), start, state, **options)


MISTAKES: dict[str, tuple[str, Callable]] = {
    "no end": ("needs an end token or max_length", call(greedy, max_length=None)),
    "no steps": ("max_length must be a whole number, 1 or more; got 0", call(greedy, max_length=0)),
    "start too large": ("start must be among the 7 ids that the cell takes, from 0; got 7", call(greedy, 7)),
    "start below 0": (r"start must be among the 7 ids .*; got \[0, -1\]", call(greedy, [0, -1])),
    "start no id": (r"start must be an id, or ids \(B,\), whole numbers; got 0.5", call(sample, 0.5)),
    "start of two axes": (r"start must be an id, or ids \(B,\)", call(greedy, [[1]])),
    "no start": (r"start must be an id, or ids \(B,\)", call(greedy, [])),
    "end too large": ("end must be among the 7 ids that the cell says, from 0; got 9", call(greedy, end=9)),
    "end below 0": ("end must be among the 7 ids", call(beam_search, end=-1)),
    "end no id": ("end must be an id, a whole number; got 'a'", call(greedy, end="a")),
    "no batch": ("batch_size must be a whole number, 1 or more; got 0", call(greedy, batch_size=0)),
    "batches differ": ("one batch size B; it is 3 by batch_size, 2 by start", call(greedy, [1, 1], batch_size=3)),
    "batch of a step": ("it is 3 by the Step for 3 rows, 2 by start", call(greedy, [1, 1], rows=3)),
    "rows of a step": (r"width 2 needs a Step for B \* 2 rows; this one is for 3", call(beam_search, rows=3, width=2)),
    "repeated state": (
        "3 by the Step for 6 rows, 6 by state.*beam_search itself repeats it",
        call(beam_search, state=((), np.zeros((6, 6)), ()), rows=6, width=2),
    ),
    "structure of the state": (
        r"needs a state of shapes .*\(1, 6\), \(\)\); got \(1, 6\)",
        call(greedy, state=np.zeros((1, 6))),
    ),
    "width of the state": ("needs a state of shapes", call(greedy, state=((), np.zeros((1, 5)), ()))),
    "number of rows": ("batch_size must be a whole number, 1 or more; got True", lambda: Step(small(), True)),
    "no rows": ("batch_size must be a whole number, 1 or more; got 0", lambda: Step(small(), 0)),
    "temperature": ("temperature must be a number above 0; got 0", call(sample, temperature=0)),
    "top_k": ("top_k must be a whole number, 1 or more; got 0", call(sample, top_k=0)),
    "top_k of too many": ("top_k must be at most V=7, .*; got 8", call(sample, top_k=8)),
    "top_p": ("top_p is a probability above 0, 1 at most; got 0", call(sample, top_p=0)),
    "top_p above 1": ("top_p is a probability above 0, 1 at most; got 1.5", call(sample, top_p=1.5)),
    "width": ("width must be a whole number, 1 or more; got 0", call(beam_search, width=0)),
    "too wide": ("width must be at most V=7, .*; got 8", call(beam_search, width=8)),
    "n_best": ("n_best must be a whole number, 1 or more; got 0", call(beam_search, n_best=0)),
    "more than width": ("n_best must be at most width=2, .*; got 3", call(beam_search, width=2, n_best=3)),
    "min_length": ("min_length must be a whole number, 0 or more; got -1", call(beam_search, end=2, min_length=-1)),
    "never ends": ("min_length=3 needs an end token, and a max_length above it", call(beam_search, end=2, min_length=3)),
    "no end to delay": ("min_length=2 needs an end token", call(beam_search, min_length=2)),
    "length penalty": ("length_penalty must be a number, 0 or more; got -1", call(beam_search, length_penalty=-1)),
    "coverage penalty": ("coverage_penalty must be a number, 0 or more; got nan", call(beam_search, coverage_penalty=np.nan)),
    "no alignments": ("coverage_penalty=0.5 needs a cell that gives", call(beam_search, coverage_penalty=0.5)),
    "tile": ("width must be a whole number, 1 or more; got 0", lambda: tile(nn.Variable((2, 3)), 0)),
    "choice": ("choose must be one of 'greedy', 'sample'; got 'best'", lambda: decode(small(), 1, "best")),
    "decode from no id": ("start must be an id", lambda: decode(small(), -1)),
    "decode from two": (r"start has the shape \(2,\), for a batch of 3", lambda: decode(small(), [1, 2]).initial_state(3)),
    "cold decode": ("temperature must be a number above 0; got 0", lambda: decode(small(), 1, "sample", 0)),
    "warm greedy": ("temperature=2.0 changes nothing of choose='greedy'", lambda: decode(small(), 1, "greedy", 2.0)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    message, mistaken = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        mistaken()


def test_what_is_no_cell_is_named() -> None:
    for mistaken in (lambda: greedy(F.tanh, 1, max_length=2), lambda: decode(F.tanh, 1), lambda: Step(F.tanh, 2)):
        with pytest.raises(TypeError, match="a cell is what"):
            mistaken()


def test_a_misspelt_scope_makes_no_weights() -> None:
    cell = speaker()
    before = list(nn.get_parameters())
    with nn.parameter_scope("decoder"), pytest.raises(ValueError, match=r"made decoder/0/embed/W \(did you mean 0/embed/W"):
        greedy(cell, 1, max_length=2)
    assert list(nn.get_parameters()) == before
    nn.clear_parameters()
    with pytest.raises(ValueError, match="no_new_parameters"):
        Step(cell, 2)


def of_rank_three(ids: nn.Variable) -> nn.Variable:
    return PF.embed(F.reshape(ids, (2, 1)), V, 4) + F.constant(0, (2, 3, 4))


EMBED, OUT = lift(PF.embed, V, 5), lift(PF.affine, V)
NOT_DECODED: dict[str, tuple[str, Any]] = {
    "dropout": ("draws random numbers", stack(EMBED, lift(F.dropout, 0.3), OUT)),
    "noise": ("draws random numbers", lift(lambda ids: PF.embed(ids, V, V) + F.randn(shape=(2, V)))),
    "statistics": ("collects statistics", stack(EMBED, lift(PF.batch_normalization), OUT)),
    "no logits": (r"gives logits \(B, V\).* gives \(2, 3, 4\)", lift(of_rank_three)),
    "three outputs": ("gives logits", lift(lambda ids: (PF.embed(ids, V, V),) * 3)),
    "takes no ids": ("takes one step of shape", LSTMCell(8)),
    "small embedding": ("the embedding has 5 rows, but the cell says one of 7", stack(lift(PF.embed, 5, 4), OUT)),
}


@pytest.mark.parametrize("kind", NOT_DECODED)
def test_cells_that_cannot_be_decoded_are_named(kind: str) -> None:
    message, cell = NOT_DECODED[kind]
    if kind != "takes no ids":
        cell(nn.Variable((2,)), cell.initial_state(2))
    with pytest.raises(ValueError, match=message):
        Step(cell, 2)


def test_a_step_that_differs_each_time_is_named() -> None:
    turn: Counter = Counter()

    def step(ids: nn.Variable) -> nn.Variable:
        turn["n"] += 1
        return PF.embed(ids, V, V) * turn["n"]

    PF.embed(nn.Variable((2,)), V, V)
    with pytest.raises(ValueError, match="step cannot be computed again and again"):
        Step(lift(step), 2)


def test_a_start_may_have_an_id_of_its_own() -> None:
    """The embedding has one more row than there are logits."""
    cell = stack(lift(PF.embed, V + 1, 5), GRUCell(6), lift(PF.affine, V))
    cell(nn.Variable((1,)), cell.initial_state(1))
    randomize()
    step = Step(cell, 1)
    assert (step.inputs, step.classes) == (V + 1, V)
    state = states(cell, 1)
    assert_same(greedy(step, V, state, max_length=4), by_hand(cell, V, state, 4))
    with pytest.raises(ValueError, match="among the 8 ids that the cell takes, from 0; got 8"):
        greedy(step, V + 1, max_length=4)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("method", [greedy, sample, beam_search])
def test_logits_that_are_no_numbers_are_found(method: Callable, wrong: float) -> None:
    table = says(3, 3, 3)
    table[1, :, 4] = wrong
    with pytest.raises(ValueError, match=r"step 1 gave logits with NaN or inf, .* in the rows \[0, 1\]"):
        method(scripted(table), 0, max_length=3, batch_size=2, **({"width": 1} if method is beam_search else {}))
