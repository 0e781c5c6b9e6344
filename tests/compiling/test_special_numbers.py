"""What compiled steps make of NaN, infinities and zeros: what NNabla makes of them."""

from __future__ import annotations

from collections.abc import Callable

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

from nnshop.functions import stop_gradient
from nnshop.running import iterate

NUMBERS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 200.0, -200.0, 6.0])
PAIRS = np.stack([a.ravel() for a in np.meshgrid(NUMBERS, NUMBERS)]).astype(np.float32)
INFINITE = np.where(np.isnan(PAIRS), -np.inf, PAIRS)


def bound(c: float, like: nn.Variable) -> nn.Variable:
    return F.constant(c, like.shape)


FUNCTIONS: dict[str, Callable] = {
    "maximum2": F.maximum2,
    "minimum2": F.minimum2,
    "maximum_scalar": lambda a, b: F.maximum_scalar(a, 0.5),
    "minimum_scalar": lambda a, b: F.minimum_scalar(a, 0.5),
    "relu": lambda a, b: F.relu(a),
    "leaky_relu": lambda a, b: F.leaky_relu(a),
    "relu6": lambda a, b: F.relu6(a),
    "hard_tanh": lambda a, b: F.hard_tanh(a),
    "hard_sigmoid": lambda a, b: F.hard_sigmoid(a),
    "clip": lambda a, b: F.clip_by_value(a, bound(-0.5, a), bound(0.5, a)),
    "where": lambda a, b: F.where(F.greater_scalar(stop_gradient(a), 0), a, b),
    "where of numbers": lambda a, b: F.where(stop_gradient(a), b, a),
    "comparisons": lambda a, b: a + sum(
        f(stop_gradient(a), stop_gradient(b)) for f in (F.equal, F.not_equal, F.less, F.less_equal, F.greater, F.greater_equal)
    ),
    "logical": lambda a, b: a + sum(
        f(stop_gradient(a), stop_gradient(b)) for f in (F.logical_and, F.logical_or, F.logical_xor)
    ),
    "tests": lambda a, b: b + F.isnan(stop_gradient(a)) + 2 * F.isinf(stop_gradient(a)),
    "abs": lambda a, b: F.abs(a),
    "sign": lambda a, b: F.sign(a),
    "reset_nan": lambda a, b: F.reset_nan(a, 3) * F.reset_inf(a, 4),
    "tanh": lambda a, b: F.tanh(a),
    "sigmoid": lambda a, b: F.sigmoid(a),
    "exp": lambda a, b: F.exp(a),
    "softplus": lambda a, b: F.softplus(a),
    "elu": lambda a, b: F.elu(a),
}  # fmt: skip
MORE: dict[str, Callable] = {  # where NNabla's result depends on where the NaN stands
    "max": lambda a: F.max(a, axis=2),
    "min": lambda a: F.min(a, axis=2),
    "softmax of what is masked": lambda a: F.softmax(F.minimum_scalar(a, 3), axis=2),
    "log_softmax": lambda a: F.log_softmax(F.minimum_scalar(F.maximum_scalar(a, -5), 3), axis=2),
}


def through(function: Callable, way: str, *given: np.ndarray) -> list[np.ndarray]:
    """Values and gradients of a function in a step, of arrays `(T, B, ...)`."""
    xs = tuple(nn.Variable.from_numpy_array(a, need_grad=True) for a in given)
    state = nn.Variable.from_numpy_array(np.zeros((given[0].shape[1], 1)))
    ys, _ = iterate(lambda x, h: (function(*x), h), xs, state, way=way)
    ys.forward()
    for v in xs:
        v.grad.zero()
    ys.backward(np.arange(1.0, ys.d.size + 1).reshape(ys.shape))
    return [ys.d.copy(), *(v.g.copy() for v in xs)]


def assert_equal(function: Callable, *given: np.ndarray) -> None:
    (ys, *gradients), (expected, *slopes) = (through(function, way, *given) for way in ("compiled", "unrolled"))
    np.testing.assert_allclose(ys, expected, rtol=1e-5)
    for actual, slope in zip(gradients, slopes):
        if ys.shape == slope.shape:  # at what is not a number there is no slope
            nan = np.any([np.isnan(a) for a in (expected, *given)], axis=0)
            actual, slope = (np.where(nan, 0, g) for g in (actual, slope))
        np.testing.assert_allclose(actual, slope, rtol=1e-5, atol=5e-5)  # of slopes up to 100


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_numbers_are_nnablas(name: str, guards: object) -> None:
    assert_equal(FUNCTIONS[name], *PAIRS.reshape(2, 2, 2, 5, 5))


@pytest.mark.parametrize("name", MORE)
def test_infinities_are_nnablas(name: str, guards: object) -> None:
    assert_equal(MORE[name], INFINITE[0].reshape(2, 2, 5, 5))


@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("width", [1, 3, 17])
def test_a_nan_in_a_row_is_its_largest_and_its_smallest(name: str, width: int) -> None:
    x = np.random.RandomState(0).randn(2, 3, 1, width)
    x[0, 1, 0, width // 2] = np.nan
    ys, _ = through(MORE[name], "compiled", x)
    np.testing.assert_allclose(ys, getattr(np, name)(x, axis=3), rtol=1e-6)
