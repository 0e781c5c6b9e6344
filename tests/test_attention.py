"""Cells that attend to a memory: against NumPy, in all ways, over padding, in any wiring; and what readout feeds back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attention_reference
import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
import reference
from attention_reference import attending
from measuring import Measured, assert_same, constant, factors, measure, randomize, values, variable, weights
from nnabla.utils.nnp_graph import NnpLoader

from nnshop import (
    AbstractCell,
    Cell,
    GRUCell,
    LSTMCell,
    SimpleRNNCell,
    StateSpec,
    attend,
    lift,
    no_new_parameters,
    portable,
    readout,
    residual,
    run,
    save_nnp,
    shift,
    stack,
    teacher_forced,
    tree_leaves,
    tree_map,
)
from nnshop.functions import length_mask
from nnshop.recurrentshop.config import decode, encode
from nnshop.running import WAYS
from nnshop.scores import SCORES, Location, Score

B, T, D = 3, 5, 2  # the target: rows, steps, width
S, M = 4, 4  # the memory: positions, width; a dot score needs queries as wide
LENGTHS = [4, 2, 0]
MASK = np.arange(S) < np.array(LENGTHS)[:, None]
HOLES = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]])
STEPS = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 1, 1, 0]])  # a mask of the target
OPTIONS: dict[str, dict] = {
    "units": {"units": 3},
    "no units": {},
    "units, no feeding": {"units": 3, "input_feeding": False},
    "no units, no feeding": {"input_feeding": False},
}
each_score = pytest.mark.parametrize("score", SCORES)
each_option = pytest.mark.parametrize("option", OPTIONS)


def small(score: str) -> str | Score:
    return Location(units=3, filters=2, kernel_size=3) if score == "location" else score


def arrays(length: int = T, positions: int = S, batch: int = B) -> tuple[np.ndarray, np.ndarray]:
    """A target and a memory."""
    rng = np.random.RandomState(5)
    return rng.randn(batch, length, D), rng.randn(batch, positions, M)


def state_of(cell: AbstractCell, batch: int = B) -> Any:
    """Random numbers; those of former alignments too."""
    rng = np.random.RandomState(6)
    return tree_map(lambda spec: rng.randn(batch, *spec.shape), cell.state)


Make = Callable[[nn.Variable], AbstractCell]


def maker(score: str = "dot", cell: AbstractCell | None = None, **options: Any) -> Make:
    return lambda memory: attend(cell or GRUCell(M), memory, small(score), **options)


def prepare(make: Make, given: tuple[np.ndarray, np.ndarray]) -> Any:
    """Makes the weights, gives them random values, and returns an initial state."""
    with nn.auto_forward(False):
        x, memory = map(nn.Variable, (given[0].shape, given[1].shape))
        cell = make(memory)
        run(cell, x, way="unrolled")
    randomize()
    return state_of(cell, len(given[0]))


def measured(make: Make, given: tuple[np.ndarray, np.ndarray], state: Any, need_grad: bool = True, **options: Any) -> Measured:
    """The run of the cell that attends; the gradients of x are those of `(x, memory)`."""
    names = ("ys_factors", "state_factors", "auto_forward")
    apart = {name: options.pop(name) for name in names if name in options}
    build = lambda x, state: run(make(x[1]), x[0], state, **options)  # noqa: E731
    return measure(build, given, state, x_need_grad=need_grad, **apart)


def by_the_equations(
    given: tuple[np.ndarray, np.ndarray], state: Any, wrap: Callable[[np.ndarray], Callable], mask: np.ndarray | None = None
) -> Measured:
    """The same of `wrap(memory)`, a step in NumPy; gradients by finite differences."""
    named = {"x": given[0], "memory": given[1], **{f"state:{i}": leaf for i, leaf in enumerate(reference.leaves(state))}}
    named.update({f"weight:{name}": array for name, array in weights().items()})
    states = [name for name in named if name.startswith("state:")]

    def forward(named: dict[str, np.ndarray]) -> tuple:
        own = {name[7:]: array for name, array in named.items() if name.startswith("weight:")}
        start = reference.refill(state, [named[name] for name in states])
        return reference.run(wrap(named["memory"]), own, named["x"], start, mask)

    expected = forward(named)
    scales = reference.leaves((factors(expected[0]), factors(expected[1])))
    loss = lambda named: sum(float((a * b).sum()) for a, b in zip(reference.leaves(forward(named)), scales))  # noqa: E731
    slopes = reference.gradients(loss, named)
    of_weights = {name[7:]: slope for name, slope in slopes.items() if name.startswith("weight:")}
    of_state = reference.refill(state, [slopes[name] for name in states])
    return Measured(*expected, (slopes["x"], slopes["memory"]), of_state, of_weights)


def kinds_above(*outputs: nn.Variable) -> Counter:
    found: list[str] = []
    F.sink(*outputs).visit(lambda f: found.append(f.info.type_name))
    return Counter(found)


# Against NumPy


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@each_option
@each_score
def test_values_and_gradients_are_those_of_the_equations(score: str, option: str, padded: bool) -> None:
    """With respect to inputs, memory, states and all weights; of three rows, one has a memory of padding only."""
    make = maker(score, **OPTIONS[option], **({"lengths": LENGTHS} if padded else {}))
    given = arrays()
    state = prepare(make, given)
    feeding = OPTIONS[option].get("input_feeding", True)
    numpy_score = attention_reference.SCORES[score]

    def wrap(memory: np.ndarray) -> Callable:
        return attending(reference.gru(), numpy_score, memory, MASK if padded else None, feeding)

    assert_same(measured(make, given, state), by_the_equations(given, state, wrap))


def test_masked_steps_of_the_run_leave_all_state() -> None:
    """The cell's, the last attention and the sum of alignments, while the memory has padding of its own."""
    make = maker("location", LSTMCell(M), units=3, mask=constant(HOLES))
    given = arrays()
    state = prepare(make, given)
    step = lambda memory: attending(reference.lstm(), attention_reference.location, memory, HOLES)  # noqa: E731
    actual = measured(make, given, state, mask=constant(STEPS))
    assert_same(actual, by_the_equations(given, state, step, STEPS))


@pytest.mark.parametrize("feeding", [True, False])
def test_without_a_state_it_starts_from_zeros(feeding: bool) -> None:
    cell = attend(GRUCell(M), variable(B, S, M), small("location"), units=3, input_feeding=feeding)
    specs = (StateSpec((M,)), StateSpec((S,)))
    assert cell.state == ((specs, StateSpec((3,))) if feeding else specs)
    x = variable(B, T, D)
    got = values(run(cell, x)[0], run(cell, x, tree_map(lambda v: F.constant(0, v.shape), cell.initial_state(B)))[0])
    np.testing.assert_array_equal(*got)
    assert attend(GRUCell(M), variable(B, S, M), units=3).state == (StateSpec((M,)), StateSpec((3,)))
    assert attend(GRUCell(M), variable(B, S, M), input_feeding=False).state == StateSpec((M,))


# Ways to run


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("way", sorted({*WAYS} - {"unrolled"}))
@each_option
@each_score
def test_all_ways_are_equal(score: str, option: str, way: str, masked: bool) -> None:
    make = maker(score, LSTMCell(M), **OPTIONS[option], lengths=LENGTHS)
    given, options = arrays(), {"mask": constant(STEPS)} if masked else {}
    state = prepare(make, given)
    expected = measured(make, given, state, way="unrolled", **options)
    assert_same(measured(make, given, state, way=way, **options), expected)
    unasked = measured(make, given, state, need_grad=False, way=way, **options)
    assert_same(unasked.weight_grads, expected.weight_grads)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("option", ["units", "no units, no feeding"])
@each_score
def test_auto_forward_computes_the_same(score: str, option: str, way: str) -> None:
    make, given = maker(score, **OPTIONS[option], lengths=LENGTHS), arrays()
    state = prepare(make, given)
    expected = measured(make, given, state, way=way, mask=constant(STEPS))
    assert_same(measured(make, given, state, way=way, mask=constant(STEPS), auto_forward=True), expected)


@each_option
@each_score
def test_portable_computes_the_same(score: str, option: str) -> None:
    make, given = maker(score, **OPTIONS[option], mask=constant(HOLES)), arrays()
    state = prepare(make, given)
    expected = measured(make, given, state, mask=constant(STEPS))
    with portable():
        assert_same(measured(make, given, state, mask=constant(STEPS)), expected)


def test_large_products_by_compiled_kernels_are_the_same() -> None:
    """Those of the memory, of all queries, and of the output of all steps."""
    x, memory = variable(16, 40, 6), variable(16, 40, 64, seed=1)

    def build() -> nn.Variable:
        cell = attend(SimpleRNNCell(48), memory, "general", units=64, input_feeding=False, name="g")
        return run(stack(cell, attend(SimpleRNNCell(48), memory, "concat", units=64, name="c")), x)[0]

    fast = build()
    with portable():
        slow = build()
    got = values(fast, slow)
    np.testing.assert_allclose(got[0], got[1], rtol=1e-4, atol=1e-5)


@each_score
def test_one_row_one_step_and_one_position(score: str) -> None:
    """A single position has the weight 1 whatever the score."""
    given = arrays(length=1, positions=1, batch=1)
    make = maker(score, units=3, alignments=True)
    state = prepare(make, given)
    numpy_score = attention_reference.SCORES[score]
    alone = by_the_equations(given, state, lambda memory: attending(reference.gru(), numpy_score, memory))
    for way in WAYS:
        actual = measured(make, given, state, way=way, ys_factors=(factors(alone.ys), np.zeros((1, 1, 1))))
        assert_same(actual.ys[0], alone.ys)
        assert_same(actual[1:4], alone[1:4])
        np.testing.assert_array_equal(actual.ys[1], 1)


@each_score
def test_a_batch_of_one_is_a_row_of_a_batch(score: str) -> None:
    make, (x, memory) = maker(score, units=3, mask=None), arrays()
    state = prepare(make, (x, memory))
    whole = measured(make, (x, memory), state)
    scales = factors(whole.ys), factors(whole.state)
    for b in range(B):
        row = tree_map(lambda leaf, b=b: leaf[b : b + 1], ((x, memory), state, *scales))
        alone = measured(make, row[0], row[1], ys_factors=row[2], state_factors=row[3])
        assert_same(tree_map(lambda leaf: leaf[0], alone[:4]), tree_map(lambda leaf, b=b: leaf[b], whole[:4]))


# Padding of the memory


@each_option
@each_score
def test_what_the_padding_holds_changes_nothing(score: str, option: str) -> None:
    padding = np.array([np.nan, 1e30, -np.inf, np.nan])  # in each of its positions
    make, (x, memory) = maker(score, **OPTIONS[option], lengths=LENGTHS), arrays()
    state = prepare(make, (x, memory))
    expected = measured(make, (x, np.where(MASK[..., None], memory, 0)), state)
    actual = measured(make, (x, np.where(MASK[..., None], memory, padding)), state)
    assert_same(actual, expected, rtol=1e-7)
    np.testing.assert_array_equal(actual.x_grad[1][~MASK], 0)


@each_option
@each_score
def test_a_padded_memory_is_the_memory(score: str, option: str) -> None:
    """More positions, all of them padding, change no value and no gradient."""
    short, long = (maker(score, **OPTIONS[option], lengths=lengths) for lengths in (None, [S] * B))
    x, memory = arrays()
    padded = np.concatenate([memory, np.full((B, 3, M), np.nan)], axis=1)
    state = prepare(short, (x, memory))
    expected = measured(short, (x, memory), state)
    grown = lambda tree: grow(tree, score, option)  # noqa: E731
    actual = measured(long, (x, padded), grown(state), state_factors=grown(factors(expected.state)))
    assert_same(actual.ys, expected.ys)
    assert_same(actual.x_grad[0], expected.x_grad[0])
    assert_same(actual.x_grad[1][:, :S], expected.x_grad[1])
    assert_same(actual.weight_grads, expected.weight_grads)
    assert_same(actual.state, grown(expected.state))


def grow(tree: Any, score: str, option: str) -> Any:
    """The state over a memory that has three positions more: a sum of alignments has three zeros more."""
    if score != "location":
        return tree
    found = tree[0][1] if OPTIONS[option].get("input_feeding", True) else tree[1]
    return tree_map(lambda leaf: np.pad(leaf, ((0, 0), (0, 3))) if leaf is found else leaf, tree)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("feeding", [True, False])
@each_score
def test_alignments_are_a_distribution_over_what_counts(score: str, feeding: bool, way: str) -> None:
    mask = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
    make = maker(score, mask=constant(mask), alignments=True, input_feeding=feeding)
    given = arrays()
    state = prepare(make, given)
    ys, a = measured(make, given, state, way=way).ys
    assert a.shape == (B, T, S)
    np.testing.assert_array_equal(a[~np.broadcast_to(mask[:, None].astype(bool), a.shape)], 0)
    np.testing.assert_allclose(a.sum(axis=2)[:2], 1, rtol=1e-6)
    assert (a[0, :, mask[0] == 1] > 0).all()
    context = np.einsum("bts,bsm->btm", a, given[1])
    np.testing.assert_allclose(ys[..., -M:], context, rtol=1e-4, atol=1e-6)
    plain = measured(maker(score, mask=constant(mask), input_feeding=feeding), given, state, way=way).ys
    np.testing.assert_array_equal(ys, plain)


@each_score
def test_a_memory_of_padding_only_has_no_part(score: str) -> None:
    """Its context is zero, and so are all its gradients, with NaN in it."""
    x, memory = arrays()
    make = maker(score, lengths=[0] * B, alignments=True)
    state = prepare(make, (x, memory))
    actual = measured(make, (x, np.full_like(memory, np.nan)), state)
    np.testing.assert_array_equal(actual.ys[0][..., M:], 0)
    np.testing.assert_array_equal(actual.ys[1], 0)
    np.testing.assert_array_equal(actual.x_grad[1], 0)
    for leaf in tree_leaves((actual[:4], tuple(actual.weight_grads.values()))):
        assert np.isfinite(leaf).all()


def test_scores_of_any_size_leave_padding_out() -> None:
    """Where what counts has a score far below that of padding, which is 0 here."""
    memory = np.full((1, 3, 1), 1000.0)
    cell = attend(lift(F.mul_scalar, -1000.0), constant(memory), lengths=[2], alignments=True, input_feeding=False)
    (_, a), _ = run(cell, constant(np.ones((1, 2, 1))))
    np.testing.assert_allclose(values(a)[0], [[[0.5, 0.5, 0]] * 2])


def test_lengths_are_a_mask() -> None:
    given = arrays()
    state = prepare(maker(units=3), given)
    expected = measured(maker(units=3, mask=constant(MASK)), given, state)
    for lengths in (LENGTHS, np.array(LENGTHS), constant(LENGTHS)):
        assert_same(measured(maker(units=3, lengths=lengths), given, state), expected, rtol=1e-7)
    for mask in (constant(MASK * -3.5), length_mask(constant(LENGTHS), S)):  # what is not zero counts
        assert_same(measured(maker(units=3, mask=mask), given, state), expected, rtol=1e-7)


def test_half_precision_has_no_infinity() -> None:
    with nn.context_scope(nn.Context(["cpu:half", "cpu:float"], "CpuCachedArray", "0")):
        cell = attend(SimpleRNNCell(M), variable(2, S, M), lengths=[2, 0], alignments=True)
        (y, a), _ = cell(variable(2, D), cell.initial_state(2))
        nn.forward_all([y, a])
    assert np.isfinite(y.d).all()
    np.testing.assert_allclose(a.d.sum(axis=1), [1, 0], rtol=1e-2)


# Input feeding


@pytest.mark.parametrize("alignments", [False, True])
@pytest.mark.parametrize("units", [None, 3])
@each_score
def test_input_feeding_is_the_loop_by_hand(score: str, units: int | None, alignments: bool) -> None:
    """On the same weights, with the same attention that feeds nothing back."""
    given = arrays()
    feeding = maker(score, units=units, alignments=alignments, lengths=LENGTHS)
    state = prepare(feeding, given)

    def by_hand(pair: Any, state: Any) -> tuple:
        x, memory = pair
        cell = maker(score, units=units, alignments=alignments, lengths=LENGTHS, input_feeding=False)(memory)
        ys, (state, last) = [], state
        for t in range(T):
            y, state = cell(F.concatenate(x[:, t], last, axis=1), state)
            ys.append(y)
            attention = y[0] if alignments else y
            last = attention if units else attention[:, M:]
        stacked = [F.stack(*leaves, axis=1) for leaves in zip(*map(tree_leaves, ys))]
        return (tuple(stacked) if alignments else stacked[0]), (state, last)

    with no_new_parameters():
        assert_same(measured(feeding, given, state), measure(by_hand, given, state))


def test_input_feeding_matters() -> None:
    given = arrays()
    cell = attend(GRUCell(M), constant(given[1]), units=3)
    (before,) = values(run(cell, constant(given[0]), (constant(np.zeros((B, M))), constant(np.zeros((B, 3)))))[0])
    (after,) = values(run(cell, constant(given[0]), (constant(np.zeros((B, M))), constant(np.ones((B, 3)))))[0])
    assert (before != after).all()
    assert weights()["x2h/W"].shape[0] == D + 3


# Wirings


def names(cell: Callable[[], AbstractCell], width: int = D) -> set[str]:
    nn.clear_parameters()
    run(cell(), variable(B, T, width))
    return set(nn.get_parameters())


def test_weights_are_below_the_name_and_the_cells_keep_theirs() -> None:
    memory = variable(B, S, M)
    own = names(lambda: GRUCell(M))
    additive = {f"{key}" for key in ("memory/W", "b", "v", "query/W")}
    below = lambda scope, keys: {f"{scope}/{key}" for key in keys}  # noqa: E731
    for feeding in (True, False):
        assert names(lambda f=feeding: attend(GRUCell(M), memory, input_feeding=f)) == own
        assert names(lambda f=feeding: attend(GRUCell(M), memory, "concat", units=3, name="look", input_feeding=f)) == (
            own | below("look", [*additive, "output/W"])
        )
    in_stack = names(lambda: stack(GRUCell(3), attend(GRUCell(M, name="top"), memory, "concat", units=3)))
    assert in_stack == (below("0", own) | below("top", own) | below("attention", ["memory/W", "b", "v", "query/W", "output/W"]))
    unnamed = names(lambda: stack(attend(GRUCell(M), memory, "concat", units=3), GRUCell(3)))
    at_call, at_step = below("attention", ["memory/W", "b", "v"]), below("0/attention", ["query/W", "output/W"])
    assert unnamed == below("0", own) | below("1", own) | at_call | at_step


def test_graphs_of_the_same_code_share_weights() -> None:
    def build(memory: nn.Variable, x: nn.Variable) -> nn.Variable:
        cell = stack(attend(LSTMCell(M), memory, "location", units=3), lift(PF.affine, 2))
        return run(cell, x)[0]

    first = build(variable(B, S, M), variable(B, T, D))
    with no_new_parameters():
        second = build(variable(7, 9, M), variable(7, 2, D))  # another batch, other lengths
    assert (first.shape, second.shape) == ((B, T, 2), (7, 2, 2))


@pytest.mark.parametrize("way", WAYS)
def test_attending_nests(way: str) -> None:
    """A stack that attends, in a stack; a residual; two memories; each against the equations, with all gradients."""
    R, given = reference, arrays()
    dot, concat, general = (attention_reference.SCORES[name] for name in ("dot", "concat", "general"))

    def wired(memory: nn.Variable) -> AbstractCell:
        deep = attend(stack(LSTMCell(3), GRUCell(M)), memory, lengths=LENGTHS, units=5, name="deep")
        with nn.parameter_scope("1"):  # where the stack looks for the rest of its weights
            plus = residual(attend(GRUCell(5), memory, "concat", units=5))
        with nn.parameter_scope("2"):
            inner = attend(GRUCell(2), memory, "concat", units=6, name="first")
        return stack(deep, plus, attend(inner, memory[:, :2], "general", name="second", input_feeding=False))

    def equations(memory: np.ndarray) -> Callable:
        deep = attending(R.stacked(R.lstm(), R.gru()), dot, memory, MASK, scope="deep")
        plus = R.residual(attending(R.gru(), concat, memory))
        inner = attending(R.gru(), concat, memory, scope="first")
        return R.stacked(deep, plus, attending(inner, general, memory[:, :2], input_feeding=False, scope="second"))

    state = prepare(wired, given)
    assert_same(measured(wired, given, state, way=way), by_the_equations(given, state, equations))


def test_a_decoder_may_feed_its_choice_back_around_attention() -> None:
    """Ids in, attention, logits, the best id back: free it says what it says when it is told so."""
    memory, first = variable(B, S, M), constant(np.array([1, 2, 0]))
    attending = attend(
        stack(lift(PF.embed, 6, 3), LSTMCell(M)), memory, "general", units=4, lengths=[4, 2, 3], input_feeding=False
    )
    logits = stack(attending, lift(PF.affine, 6, name="logits"))
    decoder = readout(logits, (), merge="readout_only", feed=lambda y: F.max(y, axis=1, only_index=True))
    assert decoder(None, (logits.initial_state(B), first))[0].shape == (B, 6)
    randomize(scale=3)
    start = (logits.initial_state(B), first)
    ys, (_, last) = run(decoder, None, start, length=T)
    got, chosen = values(ys, last)
    np.testing.assert_array_equal(chosen, got[:, -1].argmax(axis=1))
    own = np.concatenate([first.d[:, None], got.argmax(axis=2)[:, :-1]], axis=1)
    told, _ = run(logits, constant(own))
    np.testing.assert_allclose(values(told)[0], got, rtol=1e-5, atol=1e-6)
    assert len(np.unique(got.argmax(axis=2))) > 1


def test_the_projected_memory_is_in_the_graph_once() -> None:
    """However many steps there are; so are the masks."""
    memory = variable(B, S, M)

    def count(steps: int, way: str) -> Counter:
        cell = attend(SimpleRNNCell(M), memory, "normalized_concat", units=3, lengths=LENGTHS)
        return kinds_above(run(cell, variable(B, steps, D), way=way)[0])

    few, many = count(2, "unrolled"), count(6, "unrolled")
    each = Counter({kind: (many[kind] - n) / 4 for kind, n in few.items()})
    assert all(n == int(n) for n in each.values())
    # In each step: two of the cell, that of the query, that by v, and that of the output.
    assert (each["Affine"], few["Affine"]) == (5, 1 + 2 * 5)
    assert (each["Where"], each["PowScalar"], each["Constant"]) == (0, 0, 0)
    assert count(6, "loop")["Affine"] == 1  # a closure of the loop


# Other scores


@dataclass(frozen=True)
class Near(Score):
    """A user's score, as in the documentation."""

    rate: float = 1.0

    def __call__(self, query: nn.Variable, keys: nn.Variable) -> nn.Variable:
        away = keys - F.reshape(query, (keys.shape[0], 1, keys.shape[2]), inplace=False)
        return -self.rate * F.sum(away * away, axis=2)


@dataclass(frozen=True)
class Counted(Score):
    """A user's score with weights and a memory of where it was."""

    cumulates = True

    def prepare(self, memory: nn.Variable) -> nn.Variable:
        return PF.affine(memory, 1, base_axis=2, name="salience")

    def __call__(self, query: nn.Variable, keys: nn.Variable, cumulated: nn.Variable) -> nn.Variable:  # type: ignore[override]
        return F.reshape(keys, keys.shape[:2], inplace=False) - 2 * cumulated


def near(weights: Any, query: np.ndarray, memory: np.ndarray, _: Any) -> np.ndarray:
    return -0.5 * ((memory - query[:, None]) ** 2).sum(axis=2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("feeding", [True, False])
def test_a_score_of_ones_own(feeding: bool, way: str) -> None:
    given = arrays()
    make: Make = lambda memory: attend(GRUCell(M), memory, Near(0.5), lengths=LENGTHS, input_feeding=feeding)  # noqa: E731
    state = prepare(make, given)
    step = lambda memory: attending(reference.gru(), near, memory, MASK, feeding)  # noqa: E731
    assert_same(measured(make, given, state, way=way), by_the_equations(given, state, step))


def test_a_score_of_ones_own_with_weights_and_a_past() -> None:
    memory, x = variable(B, S, M), variable(B, T, D)
    cell = attend(GRUCell(M), memory, Counted(), alignments=True, name="own")
    (_, a), ((_, total), _) = run(cell, x)
    got, summed = values(a, total)
    assert "own/salience/affine/W" in nn.get_parameters()
    np.testing.assert_allclose(summed, got.sum(axis=1), rtol=1e-5)
    fixed = memory.d @ weights()["own/salience/affine/W"][:, 0] + weights()["own/salience/affine/b"]
    expected = attention_reference.softmax(fixed - 2 * got[:, :3].sum(axis=1), np.ones((B, S)))
    np.testing.assert_allclose(got[:, 3], expected, rtol=1e-4)


def test_location_goes_on_from_where_it_was() -> None:
    """The sum of alignments is what it sees of its past: with others to begin with, it attends elsewhere."""
    memory, x = variable(B, S, M), variable(B, T, D)
    cell = attend(GRUCell(M), memory, small("location"), alignments=True)
    (_, a), ((_, total), _) = run(cell, x)
    randomize()
    got, summed = values(a, total)
    np.testing.assert_allclose(summed, got.sum(axis=1), rtol=1e-5)
    start = cell.initial_state(B)
    (_, other), _ = run(cell, x, ((start[0][0], constant(np.eye(S)[:B] * 5)), start[1]))
    assert np.abs(values(other)[0] - got).max() > 0.05


# Saving


@pytest.mark.parametrize("mask", [None, HOLES], ids=["whole", "padded"])
@each_score
def test_it_comes_back_from_an_nnp_file(score: str, mask: np.ndarray | None, tmp_path: Path) -> None:
    x, memory = map(nn.Variable, ((B, T, D), (B, S, M)))
    x.d, memory.d = arrays()
    fed = {} if mask is None else {"mask": constant(mask)}
    with portable():
        cell = attend(LSTMCell(M), memory, small(score), units=3, alignments=True, **fed)
        (ys, a), _ = run(cell, x)
    randomize()
    expected = values(ys, a)
    save_nnp(tmp_path / "attending.nnp", {"x": x, "memory": memory, **fed}, {"y": ys, "a": a})
    nn.clear_parameters()
    network = NnpLoader(str(tmp_path / "attending.nnp")).get_network("network")
    for name, v in {"x": x, "memory": memory, **fed}.items():
        network.inputs[name].d = v.d
    for found, value in zip(values(network.outputs["y"], network.outputs["a"]), expected):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


def test_a_cell_with_a_memory_has_no_config() -> None:
    for feeding in (True, False):
        with pytest.raises(ValueError, match="cannot be described as data"):
            encode(attend(GRUCell(M), variable(B, S, M), input_feeding=feeding))


def test_it_prints_what_it_attends_to() -> None:
    cell = attend(GRUCell(8), variable(4, 9, 6), "general", units=5, input_feeding=False)
    assert repr(cell) == "Attending(GRUCell(8), General() of a memory (4, 9, 6))"


# Mistakes


def test_mistakes_are_found_before_there_are_weights() -> None:
    memory = variable(B, S, M)
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (TypeError, "a cell is what LSTMCell", lambda: attend(F.tanh, memory)),  # type: ignore[arg-type]
        (TypeError, "attend: the memory must be a Variable; got ndarray", lambda: attend(GRUCell(M), memory.d)),
        (
            TypeError,
            "attend: the mask must be a Variable; got ndarray",
            lambda: attend(GRUCell(M), memory, "concat", mask=MASK),
        ),  # type: ignore[arg-type]
        (ValueError, r"a memory \(B, S, M\), .*; got \(3, 4\)", lambda: attend(GRUCell(M), variable(3, 4), "concat")),
        (ValueError, "lengths or a mask, not both", lambda: attend(GRUCell(M), memory, lengths=LENGTHS, mask=constant(MASK))),
        (ValueError, "between 0 and the sequence length T=4", lambda: attend(GRUCell(M), memory, "concat", lengths=[5, 1, 1])),
        (ValueError, r"must have the shape \(3, 4\); got \(2, 4\)", lambda: attend(GRUCell(M), memory, lengths=[1, 2])),
        (ValueError, r"must have the shape \(3, 4\); got \(3, 5\)", lambda: attend(GRUCell(M), memory, mask=variable(3, 5))),
        (ValueError, "score must be a Score, .* got 'add'", lambda: attend(GRUCell(M), memory, "add")),
        (ValueError, "attend needs units >= 1, a whole number; got 0", lambda: attend(GRUCell(M), memory, "concat", units=0)),
        (ValueError, r"the query, the cell's output, has width 5, the memory 4", lambda: run_of(attend(GRUCell(5), memory))),
        (ValueError, r"memory \(3, 4, 4\) has a batch of 3, the step one of 6", lambda: step_of(memory, 6)),
        (ValueError, r"nnshop.decoding.tile\(memory, width\)", lambda: run_of(attend(GRUCell(M), variable(2, S, M)))),
        (ValueError, "nnshop.decoding.tile", lambda: run_of(attend(GRUCell(M), variable(2, S, M), input_feeding=False))),
        (ValueError, r"an input \(B, D\); got \(3,\). .* embed them", lambda: run_of(attend(GRUCell(M), memory), B, T)),
        (
            ValueError,
            "an output is one|whose output is one Variable",
            lambda: run_of(attend(PAIR, memory, input_feeding=False)),
        ),
        (ValueError, r"Bad\(\) must return scores \(B, S\), \(3, 4\); it returned \(3, 4, 1\)", lambda: run_of(bad(memory))),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
        assert not nn.get_parameters(), message


PAIR = Cell(lambda x, state: ((x, x), state))


@dataclass(frozen=True)
class Bad(Score):
    def __call__(self, query: nn.Variable, keys: nn.Variable) -> nn.Variable:
        return F.sum(keys, axis=2, keepdims=True)


def bad(memory: nn.Variable) -> AbstractCell:
    return attend(GRUCell(M), memory, Bad())


def run_of(cell: AbstractCell, *shape: int) -> Any:
    return run(cell, variable(*(shape or (B, T, D))))


def step_of(memory: nn.Variable, batch: int) -> Any:
    cell = attend(GRUCell(M), memory)
    return cell(variable(batch, D), cell.initial_state(batch))


# What a readout feeds back


def test_what_is_fed_back_may_be_made_of_the_output() -> None:
    x = variable(B, T, D)
    cell = readout(GRUCell(D), (D,), feed=lambda y: 2 * y)
    ys, (_, last) = run(cell, x)
    state, fed, expected = GRUCell(D).initial_state(B), F.constant(0, (B, D)), []
    for t in range(T):
        y, state = GRUCell(D)(x[:, t] + fed, state)
        fed = 2 * y
        expected.append(y)
    got = values(ys, last, *expected)
    np.testing.assert_allclose(got[0], np.stack(got[2:], axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], 2 * got[-1], rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_number_for_each_row_may_be_fed_back(way: str, masked: bool) -> None:
    """Of shape (): such as the id that a decoder chose. This one says the next id, modulo 3."""

    def following(y: nn.Variable) -> nn.Variable:
        return F.max(F.concatenate(y[:, 2:], y[:, :2], axis=1), axis=1, only_index=True)

    cell = readout(lift(lambda last: F.one_hot(F.reshape(last, (B, 1)), (3,))), (), "readout_only", feed=following)
    start = (), constant([0, 1, 2])
    if masked:
        ys, (_, last) = run(cell, variable(B, T, D), start, mask=constant(STEPS), way=way)
    else:
        ys, (_, last) = run(cell, None, start, length=T, way=way)
    got, end = values(ys, last)
    steps = STEPS.cumsum(axis=1) if masked else np.broadcast_to(np.arange(1, T + 1), (B, T))
    np.testing.assert_array_equal(end, (np.arange(3) + steps[:, -1]) % 3)
    said = got.sum(axis=2) > 0  # before the first step that counts, the output is zero
    np.testing.assert_array_equal(said, steps > 0)
    np.testing.assert_array_equal(got.argmax(axis=2)[said], ((np.arange(3)[:, None] + steps - 1) % 3)[said])


def test_teacher_forcing_replaces_what_is_fed_back() -> None:
    x, truth = variable(B, T, D), variable(B, T, D, seed=1)
    cell = readout(GRUCell(D), (D,), "readout_only", feed=F.tanh)
    forced, (_, last) = run(teacher_forced(cell), (x, truth))
    plain, _ = run(GRUCell(D), shift(truth))
    got = values(forced, plain, last)
    np.testing.assert_allclose(got[0], got[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[2], truth.d[:, -1], rtol=1e-6)


def test_a_readout_with_a_feed_is_a_value() -> None:
    plain, fed = readout(GRUCell(D), (D,)), readout(GRUCell(D), (D,), feed=F.tanh)
    assert repr(plain) == "Readout(GRUCell(2), (2,))"
    assert "feed=<function tanh" in repr(fed)
    assert plain != fed
    for cell in (plain, fed):
        assert decode(encode(cell)) == cell
    old = encode(plain)
    del old["arguments"]["feed"]  # as configs were before
    assert decode(old) == plain
    with pytest.raises(ValueError, match="cannot be described as data"):
        encode(readout(GRUCell(D), (D,), feed=lambda y: y))
    with pytest.raises(ValueError, match="feed must be a function of a step's output; got 'argmax'"):
        readout(GRUCell(D), (D,), feed="argmax")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must return a state of shapes .*\(3, 2\).*got .*\(3,\)"):
        run(readout(GRUCell(D), (D,), feed=lambda y: F.sum(y, axis=1)), variable(B, T, D))
