"""tanh, sigmoid and exp against float64, over all of float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("numba")

import numba

from nnshop.kernels import activations
from nnshop.kernels.compiling import FAST

TINY = np.float32(2.0**-149)
LARGEST = np.finfo(np.float32).max


def over_arrays(function: Callable) -> Callable[[np.ndarray], np.ndarray]:
    """As the kernels use it: a loop that becomes vector instructions, and what is left of it."""

    @numba.njit("void(f4[::1], f4[::1])", fastmath=FAST, error_model="numpy", boundscheck=False)
    def loop(x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    def apply(x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty_like(x)
        loop(x, y)
        np.testing.assert_array_equal(at_each_place(loop, x[-40:]), y[-40:])
        return y

    return apply


def at_each_place(loop: Callable, x: np.ndarray) -> np.ndarray:
    """One number at a time."""
    y = np.empty_like(x)
    for i in range(x.size):
        loop(x[i : i + 1], y[i : i + 1])
    return y


@pytest.fixture(scope="module")
def tanh() -> Callable:
    return over_arrays(activations.tanh)


@pytest.fixture(scope="module")
def sigmoid() -> Callable:
    return over_arrays(activations.sigmoid)


@pytest.fixture(scope="module")
def exp() -> Callable:
    return over_arrays(activations.exp)


def all_magnitudes() -> np.ndarray:
    """Every 9973rd float32 of each sign, all between -20 and 20 in small steps, and denormals."""
    bits = np.arange(0, 0x7F800000, 9973, dtype=np.uint32).view(np.float32)
    near = np.linspace(-20, 20, 400_001).astype(np.float32)
    special = np.array([0.0, TINY, 2 * TINY, 1e-39, np.finfo(np.float32).tiny, 9.010913, 9.010914, 88, 104, LARGEST])
    return np.concatenate([bits, -bits, near, special, -special]).astype(np.float32)


def test_tanh_is_exact_to_4e7_and_is_1_where_float32_is(tanh: Callable) -> None:
    x = all_magnitudes()
    y, expected = tanh(x), np.tanh(x.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=4e-7, atol=2 * TINY)
    np.testing.assert_array_equal(abs(y) == 1, abs(expected.astype(np.float32)) == 1)


def test_sigmoid_is_exact_to_3e7_of_its_value_down_to_denormals(sigmoid: Callable) -> None:
    x = all_magnitudes()
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(sigmoid(x), expected, rtol=3e-7, atol=2 * TINY)


def test_exp_is_exact_to_2e7_of_its_value_down_to_denormals(exp: Callable) -> None:
    x = all_magnitudes()
    x = np.concatenate([x[x <= 0], np.linspace(-110, 0, 500_001).astype(np.float32)])
    y = exp(x)
    np.testing.assert_allclose(y, np.exp(x.astype(np.float64)), rtol=2e-7, atol=2 * TINY)
    assert y.max() <= 1


def test_at_zero_and_at_the_limits(tanh: Callable, sigmoid: Callable, exp: Callable) -> None:
    ends = [0.0, -0.0, np.inf, -np.inf, LARGEST, -LARGEST]
    assert tanh(ends).tolist() == [0, 0, 1, -1, 1, -1]
    assert sigmoid(ends).tolist() == [0.5, 0.5, 1, 0, 1, 0]
    assert exp([0.0, -0.0, -np.inf, -LARGEST]).tolist() == [1, 1, 0, 0]


def test_nan_stays_nan_and_where_it_is(tanh: Callable, sigmoid: Callable, exp: Callable) -> None:
    x = -np.linspace(0, 5, 70).astype(np.float32)
    x[[0, 17, 33, 69]] = np.nan
    for function in (tanh, sigmoid, exp):
        np.testing.assert_array_equal(np.isnan(function(x)), np.isnan(x))


def test_they_hardly_fall_where_x_rises(tanh: Callable, sigmoid: Callable, exp: Callable) -> None:
    x = np.linspace(-12, 12, 300_001).astype(np.float32)
    for function, numbers in ((tanh, x), (sigmoid, x), (exp, np.linspace(-87, 0, 300_001))):
        assert np.diff(function(numbers)).min() >= -6e-7


def test_tanh_is_odd(tanh: Callable) -> None:
    x = all_magnitudes()
    np.testing.assert_array_equal(tanh(-x), -tanh(x))
