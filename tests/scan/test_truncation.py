"""truncate_gradient and bptt_window: which steps gradients come from, and between which they pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from checking import Counted, assert_close, each_mode, each_way, measured, slopes
from endings import T, linear
from measuring import factors, randomize

from nnshop import scan
from nnshop.functions import stop_gradient

rng = np.random.RandomState(2)


def recurrence(**options: Any) -> Callable:
    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        return scan(lambda x, y, w: y * w + x, x, y, w, **options, **way)

    return build


def recurrence_steps(x: np.ndarray, y: float, w: float) -> np.ndarray:
    ys = [y]
    for value in x:
        ys.append(ys[-1] * w + value)
    return np.array(ys)


@each_mode
@pytest.mark.parametrize("keep", [1, 2, T - 1, T, T + 3, -1])
def test_gradients_come_from_the_last_steps(mode: str, keep: int) -> None:
    x = rng.randn(T)
    found = measured(mode, recurrence(truncate_gradient=keep), x, 0.3, 0.7)
    ys, whole = recurrence_steps(x, 0.3, 0.7), keep == -1 or keep >= T
    expected = linear(factors((x,))[0], 0.7, T, T, T if whole else keep)
    assert_close(found.values, [ys[1:]])
    assert_close(found.gradients, [expected, np.array(expected[0] * 0.7 if whole else 0.0), np.sum(expected * ys[:-1])], 1e-4)


@each_mode
def test_a_loss_on_an_early_step_has_no_gradient(mode: str) -> None:
    given = (np.ones(5), 0.3, 0.7)
    found = measured(mode, recurrence(truncate_gradient=2), *given, loss=lambda y: y[1])
    assert not any(gradient.any() for gradient in found.gradients)
    full = measured(mode, recurrence(), *given, loss=lambda y: y[1])
    assert all(gradient.any() for gradient in full.gradients)


@each_mode
def test_early_steps_of_outputs_without_a_past_have_none_either(mode: str) -> None:
    def build(x: Any, w: Any, **way: str) -> Any:
        return scan(lambda x, w: x * w, x, None, w, truncate_gradient=2, **way)

    found = measured(mode, build, [1.0, 2.0, 3.0, 4.0], 5.0, loss=F.sum)
    assert_close(found.gradients, [[0, 0, 5, 5], np.array(7.0)])


@each_mode
def test_initials_that_the_last_steps_reach(mode: str) -> None:
    """Taps [-3, -1], the last two of three steps: step 1 reads initial[1], step 2 initial[2]."""

    def build(first: Any, **way: str) -> Any:
        info = {"initial": first, "taps": [-3, -1]}
        return scan(lambda y3, y1: y3 * 2 + y1 * 10, outputs_info=info, n_steps=3, truncate_gradient=2, **way)

    found = measured(mode, build, [1.0, 2.0, 3.0], loss=F.sum)
    assert_close(found.gradients, [[0, 2 + 20, 2]])


@each_mode
def test_backwards_the_last_steps_are_the_first_entries(mode: str) -> None:
    build = recurrence(truncate_gradient=2, go_backwards=True)
    found = measured(mode, build, np.ones(4), 0.0, 0.5, loss=F.sum)
    assert_close(found.gradients[:2], [[1, 1.5, 0, 0], np.array(0.0)])


@each_mode
@pytest.mark.parametrize("keep", [2, 3])
def test_truncation_of_updates(mode: str, keep: int) -> None:
    def build(x: Any, a: Any, **way: str) -> Any:
        return scan(lambda x: (x * a, {a: a * 0.5 + x}), x, truncate_gradient=keep, **way)

    x = rng.randn(3)
    found = measured(mode, build, x, 2.0)

    def expected(x: Any, a: Any) -> list:
        a1 = a * 0.5 + x[0]
        a2 = a1 * 0.5 + x[1]
        if keep == 2:
            a1 = 1.0 + fixed[0]
            a2 = a1 * 0.5 + x[1]
        return [np.array([fixed[0] * 2.0 if keep == 2 else x[0] * a, x[1] * a1, x[2] * a2]), a2 * 0.5 + x[2]]

    fixed = np.array(x, np.float32)
    exact = [np.array(fixed, np.float64), np.array(2.0)]
    assert_close(found.values, expected(*exact))
    assert_close(found.gradients, slopes(expected, exact), 1e-4)


@each_way
def test_truncation_of_weights(way: str) -> None:
    """The gradient of the last steps alone, from the state that the first ones made."""
    x, y = rng.randn(T, 2, 3), rng.randn(2, 4)

    def step(x: Any, y: Any) -> Any:
        return F.tanh(PF.affine(F.concatenate(x, y, axis=1), 4))

    def gradients(build: Callable, loss: Callable) -> tuple:
        found = measured(way, build, x, y, loss=loss)
        return found.values[0], [v.g.copy() for v in nn.get_parameters().values()]

    scan(step, nn.Variable((T, 2, 3)), nn.Variable((2, 4)))
    randomize()
    R = rng.randn(T, 2, 4)
    weighted = lambda R: lambda ys: F.sum(ys * nn.Variable.from_numpy_array(R))  # noqa: E731
    ys, found = gradients(lambda x, y, **way: scan(step, x, y, truncate_gradient=2, **way), weighted(R))
    last = nn.Variable.from_numpy_array(ys[T - 3])
    _, expected = gradients(lambda x, y, **way: scan(step, x[T - 2 :], last, **way), weighted(R[T - 2 :]))
    assert_close(found, expected)
    assert all(gradient.any() for gradient in expected)


@each_mode
@pytest.mark.parametrize("window", [1, 2, 3, 4, T, T + 1, 100])
def test_no_gradient_passes_between_windows(mode: str, window: int) -> None:
    """They are counted from the start; the last one may be shorter."""
    x = rng.randn(T)
    found = measured(mode, recurrence(bptt_window=window), x, 0.3, 0.7)
    ys, expected = recurrence_steps(x, 0.3, 0.7), linear(factors((x,))[0], 0.7, T, T, T, window)
    assert_close(found.values, [ys[1:]])
    assert_close(found.gradients, [expected, np.array(expected[0] * 0.7), np.sum(expected * ys[:-1])], 1e-4)


@each_mode
@pytest.mark.parametrize("window", [2, 3])
def test_windows_are_scans_in_a_row_that_pass_values_only(mode: str, window: int) -> None:
    """With taps, several outputs and updates."""

    def step(before: Any, now: Any, y2: Any, y1: Any, z: Any, total: Any) -> list:
        y = F.tanh(y2 * 0.5 + y1 * now - before)
        return [y, z * y1 + before, total * 0.5 + z]

    def whole(x: Any, first: Any, z: Any, total: Any, **way: str) -> Any:
        def updating(*given: Any) -> Any:
            *outputs, new = step(*given, total)
            return outputs, {total: new}

        info = [{"initial": first, "taps": [-2, -1]}, z]
        return scan(updating, {"input": x, "taps": [-1, 0]}, info, bptt_window=window, **way)

    def parts(x: Any, first: Any, z: Any, total: Any, **way: str) -> Any:
        made, updates = [], None
        for start in range(0, T, window):
            info = [{"initial": first, "taps": [-2, -1]}, z, total]
            entries = {"input": x[start : start + window + 1], "taps": [-1, 0]}
            (ys, zs, totals), updates = scan(step, entries, info, **way)
            made.append((ys, zs))
            first, z, total = (stop_gradient(v) for v in (F.concatenate(first, ys, axis=0)[-2:], zs[-1], totals[-1]))
        return [*(F.concatenate(*part, axis=0) for part in zip(*made)), totals[-1]], updates

    given = (rng.randn(T + 1, 2), rng.randn(2, 2), rng.randn(2), rng.randn(2))
    found, expected = measured(mode, whole, *given), measured(mode, parts, *given)
    assert_close(found.values, expected.values)
    assert_close(found.gradients, expected.gradients)


@each_mode
@pytest.mark.parametrize(("keep", "window"), [(3, 2), (4, 3), (1, 2), (5, 4), (2, 1)])
def test_both_together(mode: str, keep: int, window: int) -> None:
    """The last steps, of which the windows are those counted from the start."""
    x = rng.randn(T)
    found = measured(mode, recurrence(truncate_gradient=keep, bptt_window=window), x, 0.3, 0.7)
    ys, expected = recurrence_steps(x, 0.3, 0.7), linear(factors((x,))[0], 0.7, T, T, keep, window)
    assert_close(found.values, [ys[1:]])
    assert_close(found.gradients, [expected, np.array(0.0), np.sum(expected * ys[:-1])], 1e-4)


@each_mode
@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_backward_pass_of_early_steps_is_not_run(mode: str, keep: int) -> None:
    counted = Counted()

    def build(x: Any, y: Any, **way: str) -> Any:
        return scan(lambda x, y: counted(x * y), x, y, truncate_gradient=keep, **way)

    measured(mode, build, rng.randn(T), 1.0)
    again = keep if mode.startswith("loop") else 0  # the loop's backward pass computes a step again
    assert (counted.forwards, counted.backwards) == (T + again, keep)


@each_mode
def test_one_step(mode: str) -> None:
    for options in ({"truncate_gradient": 1}, {"bptt_window": 1}):
        found = measured(mode, recurrence(n_steps=1, **options), np.ones(3), 0.5, 3.0, loss=F.sum)
        assert_close(found.gradients, [[1, 0, 0], np.array(3.0), np.array(0.5)])
