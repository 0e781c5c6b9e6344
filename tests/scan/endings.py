"""Steps that end, by nnshop and by NumPy, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla.functions as F
import numpy as np

from nnshop import until

T = 6


def growing(x: Any, y: Any, w: Any) -> Any:
    """Ends above 1."""
    y = y * w + x
    return y, until(F.greater_scalar(y, 1))


def growing_steps(x: Any, y: Any, w: Any, n_steps: int | None = None) -> list:
    ys: list = []
    for value in x[:n_steps]:
        y = y * w + value
        ys.append(y)
        if y > 1:
            break
    return ys


def linear(R: np.ndarray, w: float, n: int, n_steps: int, keep: int = 1000, window: int = 1000) -> np.ndarray:
    """Gradients for x of `y = y * w + x` that ends after n steps, of `sum(R * y)`, from the last steps, and within windows."""
    at_end = np.array([*R[: n - 1], R[n - 1 : n_steps].sum()])
    slopes, after = np.zeros(n_steps), 0.0
    for t in reversed(range(max(0, n - keep), n)):
        slopes[t] = at_end[t] + after
        after = 0.0 if t % window == 0 else slopes[t] * w
    return slopes


def sampled(step: Callable, shape: tuple[int, ...] = (3,)) -> Callable:
    """A step of samples, with its condition in a shape."""

    def wrapped(*arguments: Any) -> Any:
        y, condition = step(*arguments)
        return y, until(F.reshape(condition, shape, inplace=False))

    return wrapped


def leaking(x: Any, y: Any, w: Any) -> Any:
    """`(B, 2)`; ends for a sample above 1."""
    y = F.tanh(x + y * w)
    return y, F.greater_scalar(F.sum(y, axis=1), 1)


def leaking_steps(x: Any, y: Any, w: Any) -> Any:
    ys = []
    for value in x:
        y = np.tanh(value + y * w)
        ys.append(y)
        if y.sum() > 1:
            break
    return ys


def samples() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """They end at steps 2, 5 and never."""
    rng = np.random.RandomState(1)
    x = rng.uniform(-0.4, 0.1, (T, 3, 2))
    x[1, 0], x[4, 1] = 1.5, 2.0
    return x, rng.uniform(-0.2, 0.2, (3, 2)), np.array([[0.4, -0.3]])
