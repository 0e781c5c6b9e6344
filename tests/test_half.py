"""16 bits, on the CPU, where NNabla computes them too, slowly: all is near what 32 bits give, and what must be exact is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest
from cells_table import Row, each_row
from measuring import assert_same, constant, measure, prepare, randomize, runs, start, variable

import nnshop
from nnshop import (
    GRUCell,
    LSTMCell,
    TimeDistributed,
    clip_grad_by_global_norm,
    decoding,
    lift,
    linear_cross_entropy,
    run,
    sequence_loss,
    shift,
    stack,
    teacher_forced,
    tree_leaves,
    unstack,
    use_context,
)
from nnshop.context import in_float32
from nnshop.functions import swap_time, where
from nnshop.seq2seq import EncoderDecoder

MASK = np.array([[1, 1, 0, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
NEAR = 1e-2  # of an array's largest number, at least 1: 16 bits have 3 digits, and steps add up their errors
IDS = np.array([[2049, 4095, 1], [3001, 2051, 4999]])  # 16 bits have none of those above 2048
CLASSES = 5001


@pytest.fixture
def half() -> Iterator[None]:
    with use_context("cpu", type_config="half"):
        yield


def backend() -> list[str]:
    return nn.get_current_context().backend


# ------------------------------------------------------------------------------------------------------------ cells and ways


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("way", ["auto", "loop"])
@each_row()
def test_cells_are_near(row: Row, way: str, masked: bool) -> None:
    cell, x, state = start(row, batch=4)
    options = {"mask": constant(MASK), "reverse": True} if masked else {}
    expected = measure(runs(cell, way="unrolled", **options), x, state)
    with use_context("cpu", type_config="half"):
        actual = measure(runs(cell, way=way, **options), x, state)
    assert_same(actual, expected, rtol=NEAR)
    assert all(leaf.dtype == np.float16 for leaf in tree_leaves((actual.ys,)))


@pytest.mark.parametrize("layer", [nnshop.lstm, nnshop.gru, nnshop.simple_rnn])
def test_layers_are_near(layer: Callable) -> None:
    def build(x: nn.Variable, state: Any) -> tuple:
        return layer(x, 4, return_sequences=True, return_state=True, go_backwards=True, lengths=[5, 2, 0])

    build(nn.Variable((3, 5, 4)), ())
    randomize()
    x = np.random.RandomState(0).randn(3, 5, 4)
    expected = measure(build, x, ())
    with use_context("cpu", type_config="half"):
        assert_same(measure(build, x, ()), expected, rtol=NEAR)


def test_dropout_in_a_loop_is_replayed(half: None) -> None:
    x, cell = variable(2, 5, 30), stack(lift(F.dropout, 0.5), lift(lambda x: x * 1))
    ys, _ = run(cell, x, way="loop")
    x.grad.zero()
    ys.forward()
    ys.backward(nn.NdArray.from_numpy_array(np.ones(ys.shape, np.float32)))
    np.testing.assert_allclose(ys.d, x.g * x.d, rtol=1e-2, atol=1e-2)
    assert set(np.unique(x.g)) == {0, 2}


# -------------------------------------------------------------------------------------------------------------------- losses


LOSSES: list[dict[str, Any]] = [
    {},
    {"reduction": "batch_mean"},
    {"reduction": "time_mean", "ignore_index": 2},
    {"weights": [[1, 0.5, 0], [0, 2, 1]], "label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", LOSSES)
@pytest.mark.parametrize("form", ["logits", "linear"])
def test_losses_are_near(form: str, options: dict) -> None:
    h, weight, bias = (variable(*shape, seed=i) for i, shape in enumerate([(2, 3, 4), (4, 7), (7,)]))
    targets = constant([[2, 6, 0], [1, 2, 5]])

    def measured() -> tuple:
        given = {name: constant(v) if name == "weights" else v for name, v in options.items()}
        if form == "linear":
            loss = nnshop.functions.linear_cross_entropy(h, weight, bias, targets, **given)
        else:
            loss = sequence_loss(F.affine(h, weight, bias, base_axis=2), targets, **given)
        for v in (h, weight, bias):
            v.grad.zero()
        total = F.sum(loss)
        nn.forward_all([loss, total])
        total.backward()
        return loss.d.copy(), *(v.g.astype(np.float32) for v in (h, weight, bias))

    expected = measured()
    with use_context("cpu", type_config="half"):
        assert_same(measured(), expected, rtol=NEAR)


def test_sums_of_losses_are_not_cut_off(half: None) -> None:
    """The largest number of 16 bits is 65504."""
    logits, targets = variable(9, 1000, 2), constant(np.zeros((9, 1000)))
    logits.d = [-10, 10]
    total, mean = (sequence_loss(logits, targets, reduction=reduction) for reduction in ("sum", "mean"))
    nn.forward_all([total, mean])
    np.testing.assert_allclose([float(total.d), float(mean.d)], [180_000, 20], rtol=1e-3)


@pytest.mark.parametrize("form", ["logits", "linear", "parametric"])
@pytest.mark.parametrize("options", [{}, {"ignore_index": 2048}, {"label_smoothing": 0.1}, {"weights": [[1, 1, 0], [0, 1, 1]]}])
def test_targets_are_exact(form: str, options: dict) -> None:
    """The loss knows the target 2049 from 2048."""
    h, weight, targets = variable(2, 3, 4), variable(4, CLASSES, seed=1), constant(IDS)

    def loss() -> float:
        given = {name: constant(v) if name == "weights" else v for name, v in options.items()}
        if form == "logits":
            found = sequence_loss(F.affine(h, weight, base_axis=2), targets, **given)
        elif form == "linear":
            found = nnshop.functions.linear_cross_entropy(h, weight, None, targets, **given)
        else:
            found = linear_cross_entropy(h, targets, CLASSES, **given)
            randomize()
        found.forward()
        return float(found.d)

    expected = loss()
    with use_context("cpu", type_config="half"):
        assert loss() == pytest.approx(expected, rel=2e-3)


# ----------------------------------------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize("way", ["auto", "unrolled", "loop"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_ids_reach_each_step(way: str, masked: bool, half: None) -> None:
    table = np.arange(CLASSES)[:, None] % 7
    prepare(lift(PF.embed, CLASSES, 1), 1)
    nn.get_parameters()["embed/W"].d = table
    ys, _ = run(lift(PF.embed, CLASSES, 1), constant(IDS), way=way, lengths=[3, 3] if masked else None)
    ys.forward()
    np.testing.assert_array_equal(ys.d, table[IDS])


@pytest.mark.parametrize("auto_forward", [False, True], ids=["static", "eager"])
def test_helpers_keep_ids(auto_forward: bool, half: None) -> None:
    ids = constant(IDS)
    with nn.auto_forward(auto_forward):
        found = [
            (swap_time(ids), IDS.T),
            (shift(ids, constant([4097, 2051])), np.concatenate([[[4097], [2051]], IDS[:, :-1]], axis=1)),
            (where(constant([[1, 0, 1], [0, 0, 1]]), ids, F.constant(0, IDS.shape)), IDS * [[1, 0, 1], [0, 0, 1]]),
            *zip(unstack(ids, axis=1), IDS.T),
            (nnshop.functions.reshape(ids, (3, 2)), IDS.reshape(3, 2)),
            (TimeDistributed(lambda x: nnshop.functions.reshape(x, (6, 1)))(ids), IDS[:, :, None]),
        ]
    nn.forward_all([v for v, _ in found])
    for v, expected in found:
        np.testing.assert_array_equal(v.d, expected)


@pytest.mark.parametrize("way", ["unrolled", "loop"])
def test_ids_as_states_and_outputs_are_kept(way: str, half: None) -> None:
    last = nnshop.Cell(lambda x, state: (state, x), nnshop.StateSpec(()))
    ys, state = run(last, constant(IDS), constant([4097, 2051]), way=way, lengths=[3, 2])
    nn.forward_all([ys, state])
    np.testing.assert_array_equal(ys.d, [[4097, 2049, 4095], [2051, 3001, 3001]])
    np.testing.assert_array_equal(state.d, [1, 2051])


def test_lengths_above_2048(half: None) -> None:
    mask = nnshop.length_mask([2049, 3000], 3000)
    mask.forward()
    np.testing.assert_array_equal(mask.d.sum(axis=1, dtype=np.float64), [2049, 3000])


def speaker() -> Any:
    """Says the id after the one that it hears, all of them above 2048."""
    cell = lift(PF.embed, CLASSES, CLASSES)
    cell(nn.Variable((1,)), ())
    table = np.zeros((CLASSES, CLASSES), np.float32)
    table[np.arange(CLASSES - 1), np.arange(1, CLASSES)] = 3
    nn.get_parameters()["embed/W"].d = table
    return cell


@pytest.mark.parametrize("way", ["unrolled", "loop"])
def test_a_cell_hears_the_id_that_it_said(way: str, half: None) -> None:
    cell = decoding.decode(speaker(), start=[2049, 3000])
    logits, (_, last) = run(cell, None, cell.initial_state(2), length=4, way=way)
    forced, _ = run(teacher_forced(cell), (None, constant(IDS)), way=way)
    nn.forward_all([logits, last, forced])
    np.testing.assert_array_equal(logits.d.argmax(axis=2), [[2050, 2051, 2052, 2053], [3001, 3002, 3003, 3004]])
    np.testing.assert_array_equal(last.d, [2053, 3004])
    np.testing.assert_array_equal(forced.d.argmax(axis=2), np.c_[[2049, 3000], IDS[:, :-1]] + 1)


def test_what_is_said_has_ids_above_2048(half: None) -> None:
    said = decoding.greedy(speaker(), [2049, 3000], max_length=3)
    np.testing.assert_array_equal(said.ids, [[2050, 2051, 2052], [3001, 3002, 3003]])
    said = decoding.beam_search(speaker(), [2049, 3000], max_length=3, width=3)
    np.testing.assert_array_equal(said.ids, [[2050, 2051, 2052], [3001, 3002, 3003]])


@pytest.mark.parametrize("width", [1, 3])
def test_ids_that_a_cell_remembers_are_exact(width: int, half: None) -> None:
    speaker()
    spec = nnshop.StateSpec(())
    cell = nnshop.Cell(lambda x, last: (PF.embed(last[0], CLASSES, CLASSES), (last[1], x)), (spec, spec))
    state = (np.array([4097, 2051]), np.array([2053, 4095]))
    said = decoding.beam_search(cell, [2049, 3000], state, max_length=4, width=width)
    np.testing.assert_array_equal(said.ids, [[4098, 2054, 2050, 4099], [2052, 4096, 3001, 2053]])


@pytest.mark.parametrize("auto_forward", [False, True], ids=["static", "eager"])
def test_decoding_is_near(auto_forward: bool) -> None:
    cell = stack(lift(PF.embed, 9, 4), LSTMCell(4), GRUCell(4), lift(PF.affine, 9))
    cell(nn.Variable((1,)), cell.initial_state(1))
    randomize()
    for search in (decoding.greedy, decoding.beam_search):
        expected = search(cell, [0, 1, 2], end=3, max_length=8)
        with use_context("cpu", type_config="half"), nn.auto_forward(auto_forward):
            actual = search(cell, [0, 1, 2], end=3, max_length=8)
        np.testing.assert_array_equal(actual.ids, expected.ids)
        np.testing.assert_allclose(actual.scores, expected.scores, atol=0.05)


@pytest.mark.parametrize("probability", [None, 0.0])
def test_an_encoder_decoder_is_near_and_has_exact_ids(probability: float | None) -> None:
    model = EncoderDecoder(CLASSES, CLASSES, 4997, 4998, encoder=GRUCell(4), decoder=LSTMCell(4), attention="general", width=4)
    sampling = None if probability is None else constant([probability])

    def loss() -> float:
        found = model.loss(
            constant(IDS), constant(IDS), source_lengths=[3, 2], target_lengths=[1, 3], sampling_probability=sampling
        )
        randomize()
        found.forward()
        return float(found.d)

    expected = loss()
    with use_context("cpu", type_config="half"):
        assert loss() == pytest.approx(expected, rel=5e-3)


# ------------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("solver", [S.Sgd, S.Adam, S.Momentum])
def test_weights_stay_floats_and_the_norm_is_that_of_floats(solver: Any) -> None:
    losses = []
    for kind in ("float", "half"):
        nn.clear_parameters()
        nn.seed(1)
        with use_context("cpu", type_config=kind):
            x = constant(np.random.RandomState(0).randn(4, 5, 3))
            loss = F.mean(nnshop.lstm(x, 4, return_sequences=True) ** 2)
            made = solver(0.01)
            made.set_parameters(nn.get_parameters())
            randomize(scale=1.0)
            for _ in range(3):
                made.zero_grad()
                loss.forward()
                loss.backward()
                norm = clip_grad_by_global_norm(made, 0.01)
                made.update()
            losses.append((float(loss.d), norm))
            assert all(v.data.dtype == np.float32 for v in nn.get_parameters().values())
    np.testing.assert_allclose(losses[1], losses[0], rtol=NEAR)


def test_a_norm_above_the_largest_number_of_16_bits(half: None) -> None:
    solver, w = S.Sgd(1.0), nn.parameter.get_parameter_or_create("w", (4,))
    solver.set_parameters({"w": w})
    w.grad.cast(np.float16)[...] = 60_000
    assert clip_grad_by_global_norm(solver, 1.0) == pytest.approx(120_000, rel=1e-3)


def test_states_are_carried(half: None) -> None:
    cell, x = GRUCell(4), variable(2, 5, 3)
    state = nnshop.CarriedState(cell, 2)
    ys, final = run(cell, x, state.initial)
    state.follow(final)
    assert not state.has_run
    with pytest.raises(ValueError, match="have not been computed"):
        state.carry()
    ys.forward()
    assert state.has_run
    state.carry()
    np.testing.assert_array_equal(state.initial.d, ys.d[:, -1])
    state.reset()
    assert not state.has_run


# -------------------------------------------------------------------------------------------------------------- floats inside


def test_floats_inside_of_halves() -> None:
    before = nn.get_current_context()
    with in_float32():
        assert nn.get_current_context() is before
    device = nn.Context(["cudnn:half", "cudnn:float", "cuda:half", "cuda:float", "cpu:float"], "CpuCachedArray", "3")
    with nn.context_scope(device):
        with in_float32(False):
            assert backend() == device.backend
        with in_float32():
            assert backend() == ["cudnn:float", "cudnn:float", "cuda:float", "cuda:float", "cpu:float"]
            inside = nn.get_current_context()
            assert (inside.device_id, inside.array_class) == ("3", "CpuCachedArray")
            with in_float32():
                assert nn.get_current_context() is inside
        assert backend() == device.backend


@pytest.mark.parametrize("each_sample", [False, True])
def test_a_scan_counts_beyond_what_16_bits_hold(each_sample: bool) -> None:
    length, end = 2110, 2101
    stops = np.zeros((length, 2) if each_sample else length)
    stops[end - 1] = 1
    xs = nn.Variable.from_numpy_array(stops)
    with use_context("cpu", type_config="half"):
        ys, updates = nnshop.scan(lambda stop: ((1 - stop) * 2, nnshop.until(stop)), sequences=xs, way="loop")
        nn.forward_all([ys, updates.lengths])
    assert np.unique(updates.lengths.d).tolist() == [end]
    assert (ys.d[: end - 1] == 2).all()
    assert (ys.d[end - 1 :] == 0).all()  # the last one that counts, repeated
