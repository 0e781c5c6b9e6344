"""A scan that ends early: what it gives, what it leaves alone, and its gradients."""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from checking import MODES, Counted, agrees, assert_close, computed, each_eager, each_mode, each_way, held, measured
from endings import T, growing, growing_steps, leaking, leaking_steps, linear, sampled, samples
from measuring import assert_same, constant

from nnshop import length_mask, scan, until
from nnshop import map as scan_map

rng = np.random.RandomState(1)


# One condition


@each_mode
@pytest.mark.parametrize(("end", "n"), [("at the first step", 1), ("within", 3), ("at the last", T), ("never", T)])
def test_outputs_are_held_and_steps_after_the_end_have_no_gradient(mode: str, end: str, n: int) -> None:
    """Theano#5439, pytensor#2217: a recurrent output and a sequence."""
    x = np.full(T, 0.1)
    x[n - 1] = 0.1 if end == "never" else 2.0

    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        return scan(growing, x, y, w, **way)

    found = agrees(mode, build, lambda x, y, w: held(growing_steps(x, y, w), T), x, 0.3, 0.5)
    assert found.lengths == n
    assert found.gradients[0][:n].all()
    assert not found.gradients[0][n:].any()


@each_mode
def test_n_steps_bounds_it(mode: str) -> None:
    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        return scan(growing, x, y, w, n_steps=2, **way)

    found = agrees(mode, build, lambda x, y, w: np.array(growing_steps(x, y, w, 2)), [0.1, 0.2, 5.0], 0.3, 0.5)
    assert found.lengths == 2


@pytest.mark.parametrize("mode", ["loop", "loop-eager"])
def test_a_bound_that_is_never_reached_costs_little(mode: str) -> None:
    """Powers of two, as in Theano's tutorial, where it is 1024 steps."""

    def build(y: Any, **way: str) -> Any:
        def step(y: Any) -> Any:
            return y * 2, until(F.greater_scalar(y * 2, 45))

        return scan(step, outputs_info=y, n_steps=100_000)

    found = measured(mode, build, 1.0, loss=lambda ys: ys[-1])
    assert found.lengths == 6
    assert found.values[0][:8].tolist() == [2, 4, 8, 16, 32, 64, 64, 64]
    assert found.gradients[0] == 64


@each_mode
def test_a_map(mode: str) -> None:
    def build(x: Any, a: Any, **way: str) -> Any:
        return scan_map(lambda x, a: (x * a, until(F.less_scalar(x, 0))), x, a, **way)

    found = agrees(mode, build, lambda x, a: held(list(x[:3] * a), 5), [1.0, 2.0, -3.0, 4.0, -5.0], 0.5)
    assert found.lengths == 3


@each_mode
def test_backwards(mode: str) -> None:
    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        return scan(growing, x, y, w, go_backwards=True, **way)

    found = agrees(mode, build, lambda x, y, w: held(growing_steps(x[::-1], y, w), 5), [9.0, 9.0, 2.0, 0.2, 0.1], 0.3, 0.5)
    assert found.lengths == 3


@each_mode
def test_taps_of_both_and_outputs_of_several_shapes(mode: str) -> None:
    def build(x: Any, first: Any, **way: str) -> Any:
        def step(before: Any, after: Any, y2: Any, y1: Any) -> Any:
            y = y1 * 0.5 + y2 * before - after
            return [y, F.sum(y)], until(F.less_scalar(F.sum(after), -2))

        info = [{"initial": first, "taps": [-2, -1]}, None]
        return scan(step, {"input": x, "taps": [-1, 1]}, info, **way)

    def expected(x: Any, first: Any) -> list:
        ys = list(first)
        for t in range(3):
            ys.append(ys[-1] * 0.5 + ys[-2] * x[t] - x[t + 2])
        return [held(ys[2:], 5), held([y.sum() for y in ys[2:]], 5)]

    x = rng.uniform(-0.5, 0.5, (7, 2))
    x[4] = -2
    found = agrees(mode, build, expected, x, rng.randn(2, 2))
    assert found.lengths == 3


@each_mode
@pytest.mark.parametrize(("condition", "n"), [(1, 1), (True, 1), (0, 3), (np.float32(2), 1)])
def test_a_condition_may_be_a_number(mode: str, condition: Any, n: int) -> None:
    found = measured(mode, lambda x, **way: scan(lambda x: (x, until(condition)), x, **way), [1, 2, 3])
    assert found.lengths == n
    assert found.values[0].tolist() == ([1, 2, 3] if n == 3 else [1, 1, 1])


@each_mode
def test_no_gradient_goes_through_the_condition(mode: str) -> None:
    def build(x: Any, w: Any, **way: str) -> Any:
        return scan(lambda x, w: (x, until(x * w)), x, None, w, **way)

    found = measured(mode, build, [0.0, 3.0, 1.0], 2.0)
    assert found.lengths == 2
    assert found.gradients[1] == 0


@each_way
def test_another_run_of_the_graph_may_end_elsewhere(way: str) -> None:
    x = nn.Variable.from_numpy_array(np.zeros(4), need_grad=True)
    ys, updates = scan(growing, x, 0.3, 0.5, way=way)
    loss = F.sum(ys * ys)
    for n in (2, 4, 1, 3):
        x.d = np.where(np.arange(4) == n - 1, 2.0, 0.1)
        x.grad.zero()
        nn.forward_all([loss, ys, updates.lengths])
        loss.backward()
        expected = held(growing_steps(x.d, 0.3, 0.5), 4)
        assert updates.lengths.d == n
        assert_close([ys.d, x.g], [expected, linear(2 * expected, 0.5, n, 4)])


# Nothing comes back from steps after the end


@each_mode
def test_no_nan_from_what_cannot_be_computed_after_the_end(mode: str) -> None:
    """Entries of a sequence that the step cannot take, and a state of which it can take no more."""

    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        def step(x: Any, y: Any, w: Any) -> Any:
            y = F.log(y) * w / x + F.log(x)
            return y, until(F.less_scalar(y, 2))

        return scan(step, x, y, w, **way)

    def expected(x: Any, y: Any, w: Any) -> Any:
        first = np.log(y) * w / x[0] + np.log(x[0])
        return held([first, np.log(first) * w / x[1] + np.log(x[1])], 5)

    found = agrees(mode, build, expected, [2.0, 4.0, 0.0, -1.0, 0.0], 20.0, 1.5)
    assert found.lengths == 2
    assert not found.gradients[0][2:].any()


@each_mode
def test_no_nan_from_a_state_of_samples_after_the_end(mode: str) -> None:
    def logs(y: Any, w: Any) -> list:
        ys = []
        for _ in range(5):
            y = np.log(y * w)
            ys.append(y)
            if y < 0.5:
                break
        return ys

    def build(y: Any, w: Any, **way: str) -> Any:
        def step(y: Any, w: Any) -> Any:
            y = F.log(y * w)
            return y, until(F.less_scalar(y, 0.5))

        return scan(step, None, y, w, n_steps=5, **way)

    def expected(y: Any, w: Any) -> Any:
        return np.stack([held(logs(value, w[0]), 5) for value in y], axis=1)

    found = agrees(mode, build, expected, [1.2, 2.5, 30.0], [1.1], tolerance=1e-4)
    assert found.lengths == [1, 2, 3]


@each_mode
def test_no_nan_from_what_a_sequence_of_samples_holds_after_the_end(mode: str) -> None:
    """Such as padding; with the batch axis first it is known which entries are of a sample that has ended."""
    x = np.array([[2.0, 0.0, 0.0], [3.0, 5.0, 0.0]])

    def build(x: Any, w: Any, **way: str) -> Any:
        return scan(lambda x, w: (w / x, until(F.less_scalar(w / x, 1.0))), x, None, w, time_axis=1, **way)

    def expected(x: Any, w: Any) -> Any:
        first = w / x[:, 0]
        return held([first, [first[0], w[1] / x[1, 1]]], 3).T

    found = agrees(mode, build, expected, x, [1.0, 4.0])
    assert found.lengths == [1, 2]


# Early exit


def ends(condition: Any, n: int) -> Any:
    """A condition that holds in step n, counted from 1, of what counts its steps from 1."""
    return until(F.greater_equal_scalar(condition, n))


@each_mode
@pytest.mark.parametrize("samples", [False, True])
def test_later_steps_are_not_computed_where_the_end_is_known(mode: str, samples: bool) -> None:
    counted = Counted()

    def build(y: Any, **way: str) -> Any:
        def step(y: Any) -> Any:
            y = counted(y) + 1
            return y, ends(y, 4)

        return scan(step, outputs_info=y, n_steps=9, **way)

    found = measured(mode, build, [0.0, 1.0] if samples else 0.0)
    assert found.lengths == ([4, 3] if samples else 4)
    if mode == "unrolled":
        assert counted.forwards == 9
    elif mode == "unrolled-eager":
        assert (counted.forwards, counted.backwards) == (4, 4)
    else:
        assert (counted.forwards, counted.backwards) == (4 + 4, 4)  # the loop's backward pass computes each step again


def test_auto_forward_does_not_even_build_later_steps() -> None:
    calls: list = []

    def step(y: Any) -> Any:
        calls.append(1)
        return y + 1, ends(y + 1, 3)

    with nn.auto_forward():
        scan(step, outputs_info=0.0, n_steps=400, way="unrolled")
    assert len(calls) < 3 + 5


@each_eager
def test_outputs_may_be_cut_at_the_end(mode: str) -> None:
    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        return scan(growing, x, y, w, cut_at_end=True, **way)

    found = agrees(mode, build, lambda *given: np.array(growing_steps(*given)), [0.1, 0.2, 2.0, 3.0, 4.0], 0.3, 0.5)
    assert found.values[0].shape == (3,)
    assert found.lengths == 3


@each_eager
@pytest.mark.parametrize("time_axis", [0, 1])
def test_outputs_of_samples_are_cut_at_the_end_of_the_longest(mode: str, time_axis: int) -> None:
    x, y, w = samples()
    x = x[:, :2]

    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        return scan(sampled(leaking, (2,)), x, y, w, cut_at_end=True, time_axis=time_axis, **way)

    def expected(x: Any, y: Any, w: Any) -> Any:
        x = np.swapaxes(x, 0, time_axis)
        return np.stack([held(leaking_steps(x[:, b], y[b], w[0]), 5) for b in range(2)], axis=1 - time_axis)

    found = agrees(mode, build, expected, np.swapaxes(x, 0, time_axis), y[:2], w)
    assert found.lengths == [2, 5]
    assert found.values[0].shape[time_axis] == 5


# The lengths


@each_way
def test_lengths_remain_when_buffers_are_freed(way: str) -> None:
    x = constant([0.1, 0.1, 2.0, 0.1]).apply(need_grad=True)
    ys, updates = scan(growing, x, 0.3, 0.5, way=way)
    loss = F.sum(ys**2)
    loss.forward(clear_no_need_grad=True)
    assert float(updates.lengths.d) == 3
    loss.backward(clear_buffer=True)
    assert float(updates.lengths.d) == 3


@each_mode
def test_a_loss_may_be_masked_by_lengths(mode: str) -> None:
    x, y, w = samples()

    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        ys, updates = scan(sampled(leaking), x, y, w, **way)
        mask = F.reshape(F.transpose(length_mask(updates.lengths, T), (1, 0)), (T, 3, 1), inplace=False)
        return ys * F.broadcast(mask, ys.shape) / F.broadcast(F.reshape(updates.lengths, (1, 3, 1)), ys.shape), updates

    def expected(x: Any, y: Any, w: Any) -> Any:
        parts = []
        for b in range(3):
            steps = leaking_steps(x[:, b], y[b], w[0])
            parts.append(np.array([*steps, *[np.zeros(2)] * (T - len(steps))]) / len(steps))
        return np.stack(parts, axis=1)

    agrees(mode, build, expected, x, y, w)


@each_mode
def test_only_the_number_of_steps(mode: str) -> None:
    """No outputs, no updates."""
    way, eager = MODES[mode]
    with nn.auto_forward(eager):
        outputs, updates = scan(lambda x: until(F.less_scalar(x, 0)), [1.0, 2.0, -3.0, 4.0], way=way)
    assert outputs is None
    assert computed(updates.lengths)[0] == 3


@each_mode
def test_gradients_in_the_second_run_are_those_of_the_first(mode: str) -> None:
    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        return scan(growing, x, y, w, **way)

    first, second = (measured(mode, build, [0.1, 2.0, 0.3], 0.3, 0.5) for _ in range(2))
    assert_same(tuple(first.gradients), tuple(second.gradients), rtol=0)
