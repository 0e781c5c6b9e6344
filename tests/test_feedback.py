"""Readout, teacher forcing and shared states: the laws of what feeds back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
import reference
from measuring import values, variable

from nnshop import GRUCell, LSTMCell, SimpleRNNCell, lift, output_shape, readout, run, stack, sync, teacher_forced, tree_leaves

B, T, D = 2, 5, 3


def weights() -> dict[str, np.ndarray]:
    return {name: v.d.astype(np.float64) for name, v in nn.get_parameters().items()}


MERGES: dict[Any, Callable] = {
    "add": lambda x, r: x + r,
    "mul": lambda x, r: x * r,
    "avg": lambda x, r: (x + r) / 2,
    "max": np.maximum,
    "readout_only": lambda x, r: r,
}


@pytest.mark.parametrize("merge", MERGES)
def test_readout_is_its_equation(merge: str) -> None:
    x, h0, r0 = variable(B, T, D), variable(B, D, seed=1), variable(B, D, seed=2)
    ys, (h, last) = run(readout(GRUCell(D), (D,), merge, activation="tanh"), x, (h0, r0))
    got = values(ys, h, last)
    step, w = reference.gru(), weights()
    state, r, expected = h0.d.astype(np.float64), r0.d.astype(np.float64), []
    for t in range(T):
        r, state = step(w, MERGES[merge](x.d[:, t], np.tanh(r)), state)
        expected.append(r)
    np.testing.assert_allclose(got[0], np.stack(expected, axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got[1], state, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got[2], r, rtol=1e-4, atol=1e-6)


def test_a_function_merges_too_and_starts_from_zero() -> None:
    x = variable(B, T, D)
    cell = stack(GRUCell(6), lift(PF.affine, 4))
    ys, _ = run(readout(cell, (4,), lambda x, last: F.concatenate(x, 0.5 * last, axis=1)), x)
    first, _ = cell(F.concatenate(x[:, 0], F.constant(0, (B, 4)), axis=1), cell.initial_state(B))
    got, expected = values(ys, first)
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-5, atol=1e-7)


def test_the_gradient_goes_through_what_was_fed_back() -> None:
    """By finite differences, also to the initial readout."""
    x, h0, r0 = variable(B, T, D), variable(B, D, seed=1), variable(B, D, seed=2)
    ys, _ = run(readout(GRUCell(D), (D,)), x, (h0, r0))
    loss = F.sum(ys * variable(B, T, D, seed=3))
    loss.forward()
    for v in (x, r0):
        v.g = 0
    loss.backward()
    rng = np.random.RandomState(4)
    for v in (x, r0):
        direction, value, gradient = rng.randn(*v.shape), v.d.copy(), v.g.copy()
        ends = []
        for sign in (1, -1):
            v.d = value + sign * 1e-2 * direction
            ends += [float(values(loss)[0])]
        v.d = value
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float((gradient * direction).sum()), rel=2e-3)


def test_forced_with_its_own_outputs_it_runs_free() -> None:
    x, r0 = variable(B, T, D), variable(B, D, seed=2)
    cell = readout(LSTMCell(D), (D,))
    start = (LSTMCell(D).initial_state(B), r0)
    free, (state, last) = run(cell, x, start)
    own = nn.Variable((B, T, D))
    forced, (forced_state, forced_last) = run(teacher_forced(cell), (x, own), start)
    (own.d,) = values(free)
    for a, b in zip(values(free, *state, last), values(forced, *forced_state, forced_last)):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("t", range(T))
def test_changing_the_truth_at_t_changes_nothing_up_to_t(t: int) -> None:
    x, truth = variable(B, T, D), variable(B, T, D, seed=1)
    forced, _ = run(teacher_forced(readout(GRUCell(D), (D,))), (x, truth))
    (before,) = values(forced)
    changed = truth.d.copy()
    changed[:, t] += 1
    truth.d = changed
    (after,) = values(forced)
    np.testing.assert_array_equal(before[:, : t + 1], after[:, : t + 1])
    if t + 1 < T:
        assert (before[:, t + 1] != after[:, t + 1]).all()


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_scheduled_sampling_mixes_by_sample_and_step(probability: float) -> None:
    """A memoryless cell shows what it was fed: the truth is 7, its own outputs are not."""
    rows, steps = 200, 20
    p = nn.Variable((1,))
    p.d = probability
    cell = readout(lift(F.mul_scalar, 1.0), (1,), "readout_only")
    xs = (variable(rows, steps, 1), F.constant(7, (rows, steps, 1)))
    start = ((), F.constant(3, (rows, 1)))
    ys, _ = run(teacher_forced(cell, p), xs, start)
    (fed,) = values(ys)
    own_at_first = (fed[:, 1] == 3).mean()  # later, one's own output may be 7 as well
    assert own_at_first == pytest.approx(probability, abs=3 * (0.25 / rows) ** 0.5)
    expected = probability ** np.arange(steps)  # still 3 where it was its own each time
    np.testing.assert_allclose((fed[..., 0] == 3).mean(axis=0), expected, atol=3 * (0.25 / rows) ** 0.5)
    p.d = 1.0  # training may change it
    assert (values(ys)[0] == 3).all()


def test_no_gradient_goes_through_what_the_truth_replaced() -> None:
    x, truth, r0 = variable(B, T, D), variable(B, T, D, seed=1), variable(B, D, seed=2)
    p = nn.Variable((1,))
    ys, _ = run(teacher_forced(readout(GRUCell(D), (D,)), p), (x, truth), (GRUCell(D).initial_state(B), r0))
    for probability, moves in ((0.0, True), (1.0, False)):
        p.d, truth.g = probability, 0
        ys.forward()
        ys.backward()
        assert (np.abs(truth.g[:, :-1]) > 0).all() == moves
        assert (truth.g[:, -1] == 0).all()


MASK = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 1, 1], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize("way", ["unrolled", "loop"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("probability", [None, 0.0, 1.0])
def test_forced_with_a_mask_it_is_each_row_alone(probability: float | None, reverse: bool, way: str) -> None:
    """Whatever the padding of the truth holds. In reverse the truth is turned round with the input."""
    p = None if probability is None else nn.Variable.from_numpy_array(np.array([probability]))
    cell = teacher_forced(readout(GRUCell(D), (D,)), p)
    x, truth, h0, r0 = (np.random.RandomState(seed).randn(5, *s) for seed, s in enumerate([(T, D), (T, D), (D,), (D,)]))
    padded = [nn.Variable.from_numpy_array(np.where(MASK[..., None], v, np.nan)) for v in (x, truth)]
    start = nn.Variable.from_numpy_array(h0), nn.Variable.from_numpy_array(r0)
    mask = nn.Variable.from_numpy_array(MASK)
    got = values(*tree_leaves(run(cell, tuple(padded), start, mask=mask, reverse=reverse, way=way)))
    for row, counts in enumerate(MASK[:4] == 1):
        one = [nn.Variable.from_numpy_array(v[row : row + 1]) for v in (x[:, counts], truth[:, counts], h0, r0)]
        ys, h, last = values(*tree_leaves(run(cell, tuple(one[:2]), tuple(one[2:]), reverse=reverse)))
        np.testing.assert_allclose(got[0][row, counts], ys[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose([got[1][row], got[2][row]], [h[0], last[0]], rtol=1e-5, atol=1e-6)
        if probability != 1.0:
            np.testing.assert_allclose(last[0], truth[row, counts][0 if reverse else -1], rtol=1e-6)
    np.testing.assert_allclose([got[1][4], got[2][4]], [h0[4], r0[4]], rtol=1e-6)


def test_scheduled_sampling_with_a_mask() -> None:
    """A memoryless cell says what it was fed: the truth, or its own output, of the last step that counts."""
    rows, steps = 50, 12
    mask = np.random.RandomState(0).randint(2, size=(rows, steps))
    truth = np.arange(1.0, rows * steps + 1).reshape(rows, steps)
    xs = tuple(nn.Variable.from_numpy_array(np.where(mask, v, np.nan)[..., None]) for v in (truth, truth))
    cell = teacher_forced(readout(lift(F.mul_scalar, 1.0), (1,), "readout_only"), nn.Variable.from_numpy_array([0.4]))
    (fed,) = values(run(cell, xs, mask=nn.Variable.from_numpy_array(mask))[0])
    own = []
    for said, told, counts in zip(fed[..., 0], truth, mask == 1):
        assert not said[counts][:1].any()  # the initial readout
        own += (said[counts][1:] == said[counts][:-1]).tolist()
        assert ((said[counts][1:] == told[counts][:-1]) != (said[counts][1:] == said[counts][:-1])).all()
    assert np.mean(own) == pytest.approx(0.4, abs=4 * (0.24 / len(own)) ** 0.5)


def test_wrappers_that_feed_back_change_no_parameter_name() -> None:
    names = []
    for wrap in (lambda c: c, lambda c: readout(c, (D,)), lambda c: teacher_forced(readout(c, (D,)))):
        nn.clear_parameters()
        cell = wrap(stack(LSTMCell(4), GRUCell(D, name="top")))
        forced = "TeacherForced" in type(cell).__name__
        run(stack(cell), (variable(B, T, D), variable(B, T, D)) if forced else variable(B, T, D))
        names.append(sorted(nn.get_parameters()))
    assert names[0] == names[1] == names[2]


def test_masked_steps_keep_the_readout() -> None:
    x = variable(B, T, D)
    cell = readout(GRUCell(D), (D,))
    mask = nn.Variable.from_numpy_array(np.array([[1, 0, 1, 0, 1], [1, 1, 1, 1, 1]]))
    ys, (_, last) = run(cell, x, mask=mask)
    alone, (_, last_alone) = run(cell, nn.Variable.from_numpy_array(x.d[:1, ::2]))
    got, last_got, expected, last_expected = values(ys, last, alone, last_alone)
    np.testing.assert_allclose(got[0, ::2], expected[0], rtol=1e-5)
    np.testing.assert_allclose(last_got[0], last_expected[0], rtol=1e-5)


def test_sync_runs_one_state_through_all() -> None:
    x = variable(B, T, D)
    ys, state = run(sync(LSTMCell(4), F.tanh, LSTMCell(4, name="top")), x)
    got = values(ys, *state)
    w, step = weights(), reference.lstm()
    h, c, expected = np.zeros((B, 4)), np.zeros((B, 4)), []
    for t in range(T):
        y, (h, c) = step(reference.below("0", w), x.d[:, t], (h, c))
        y, (h, c) = step(reference.below("top", w), np.tanh(y), (h, c))
        expected.append(y)
    for a, b in zip(got, (np.stack(expected, axis=1), h, c)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_sync_of_one_is_that_one() -> None:
    x = variable(B, T, D)
    a, _ = run(sync(GRUCell(4)), x)
    b, _ = run(stack(GRUCell(4)), x)
    np.testing.assert_allclose(*values(a, b), rtol=1e-5, atol=1e-6)  # the one fused, the other step by step


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match=r"merge must be a function or one of add, .*; got 'plus'"):
        readout(GRUCell(3), (3,), "plus")
    with pytest.raises(ValueError, match="activation must be"):
        readout(GRUCell(3), (3,), activation="foo")
    with pytest.raises(ValueError, match=r"must return a state of shapes .*\(2, 4\)"):
        run(readout(GRUCell(3), (4,), "readout_only"), variable(B, T, 3))
    with pytest.raises(TypeError, match=r"teacher_forced needs what readout\(cell, shape\) returns; got GRUCell\(3\)"):
        teacher_forced(GRUCell(3))
    with pytest.raises(ValueError, match=r"sampling_probability must be a Variable of shape \(1,\); got \(2,\)"):
        teacher_forced(readout(GRUCell(3), (3,)), nn.Variable((2,)))
    x, forced = variable(B, T, 3), teacher_forced(readout(GRUCell(3), (3,)))
    for wrong in (x, (x, variable(B, T, 4)), (x, None), (x, x, x)):
        with pytest.raises(ValueError, match=r"takes pairs \(x, truth\), with the truth of the shape \(3,\) for each row"):
            run(forced, wrong)
    with pytest.raises(ValueError, match=r"sync needs cells of equal states; GRUCell\(3\) has \(3,\), the first one"):
        sync(LSTMCell(3), GRUCell(3))
    with pytest.raises(ValueError, match="sync needs cells of equal states"):
        sync(SimpleRNNCell(3), GRUCell(4))
    with pytest.raises(ValueError, match="sync needs at least one cell"):
        sync()
    assert output_shape(readout(GRUCell(3), (3,)), variable(B, 3)) == (3,)
