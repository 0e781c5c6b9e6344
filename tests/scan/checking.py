"""Values and gradients of what tests build by `scan`, compared with NumPy; and a function that counts how often it is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from measuring import factors, variables

from nnshop.kernels.array_function import ArrayFunction
from nnshop.scanning import Updates

# The ways, each in a graph that is run later and in auto-forward mode.
MODES = {
    "unrolled": ("unrolled", False),
    "loop": ("loop", False),
    "unrolled-eager": ("unrolled", True),
    "loop-eager": ("loop", True),
}
each_way = pytest.mark.parametrize("way", ["unrolled", "loop"])
each_mode = pytest.mark.parametrize("mode", list(MODES))
each_eager = pytest.mark.parametrize("mode", ["unrolled-eager", "loop-eager"])


class Found(NamedTuple):
    """Of one scan: outputs and then updates, gradients of `sum(factor * output)` for what it was given, and lengths."""

    values: list[np.ndarray]
    gradients: list[np.ndarray]
    lengths: Any


def measured(mode: str, build: Callable, *given: Any, loss: Callable | None = None) -> Found:
    """Runs `build(*variables, way=way) -> (outputs, updates)` forward and backward on Variables of these arrays.

    Args:
        mode: One of `MODES`.
        build: Calls scan.
        *given: Arrays.
        loss: Made of outputs and updates; by default it is their sum, by fixed random factors.
    """
    way, eager = MODES[mode]
    leaves = variables(tuple(np.asarray(array, np.float32) for array in given))
    with nn.auto_forward(eager):
        outputs, updates = build(*leaves, way=way)
        made = as_list(outputs) + list(updates.values())
        total = loss(*made) if loss else weighted(made)
        lengths = [] if updates.lengths is None else [updates.lengths]
    for leaf in [*leaves, *nn.get_parameters().values()]:
        leaf.grad.zero()
    if not eager:
        nn.forward_all([total, *made, *lengths])
    total.backward()
    return Found(
        [v.d.copy() for v in made], [leaf.g.copy() for leaf in leaves], lengths[0].d.tolist() if lengths else updates.lengths
    )


def as_list(made: Any) -> list:
    if made is None:
        return []
    return list(made) if isinstance(made, (list, tuple)) else [made]


def weighted(made: list[nn.Variable]) -> nn.Variable:
    terms = [F.sum(v * nn.Variable.from_numpy_array(r)) for v, r in zip(made, factors(tuple(made)))]
    return sum(terms[1:], terms[0])


def slopes(expected: Callable, given: list[np.ndarray], epsilon: float = 1e-6) -> list[np.ndarray]:
    """What `measured` takes gradients of, by central differences in float64; `expected(*arrays)` gives outputs and updates."""

    def loss() -> float:
        made = tuple(np.asarray(y, np.float64) for y in as_list(expected(*given)))
        return sum(float(np.sum(y * r)) for y, r in zip(made, factors(made)))

    def slope(array: np.ndarray, at: tuple) -> float:
        value = array[at]
        array[at] = value + epsilon
        above = loss()
        array[at] = value - epsilon
        below = loss()
        array[at] = value
        return (above - below) / (2 * epsilon)

    return [np.array([slope(a, at) for at in np.ndindex(a.shape)]).reshape(a.shape) for a in given]


def agrees(mode: str, build: Callable, expected: Callable, *given: Any, tolerance: float = 1e-5) -> Found:
    """Checks values and gradients of a scan against a function of the same arrays in NumPy; returns what was found."""
    exact = [np.array(np.asarray(array, np.float32), np.float64) for array in given]
    found = measured(mode, build, *given)
    assert_close(found.values, as_list(expected(*exact)), tolerance)
    assert_close(found.gradients, slopes(expected, exact), 10 * tolerance)
    return found


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Relative to the largest number of each array."""
    assert len(actual) == len(expected)
    for i, (a, b) in enumerate(zip(actual, expected)):
        assert np.shape(a) == np.shape(b), f"{i}"
        scale = max(1e-3, float(np.abs(b).max(initial=0)))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=f"{i}")


def held(steps: list, n_steps: int) -> np.ndarray:
    """The outputs of a scan that has ended: the last one is repeated."""
    return np.array([*steps, *[steps[-1]] * (n_steps - len(steps))])


def computed(*made: Any) -> list[np.ndarray]:
    """The values of Variables, computed in one forward where they are not yet."""
    if not nn.get_auto_forward():
        nn.forward_all(made)
    return [v.d.copy() for v in made]


def outputs_of(result: tuple[Any, Updates]) -> Any:
    """The values of what a scan returns."""
    outputs = computed(*as_list(result[0]))
    return outputs if isinstance(result[0], list) else outputs[0]


class Counted(ArrayFunction):
    """The identity, which counts how often it is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = self.backwards = 0

    def setup_impl(self, inputs: Any, outputs: Any) -> None:
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs: Any, outputs: Any) -> None:
        self.forwards += 1
        outputs[0].data.cast(np.float32)[...] = inputs[0].data.data

    def backward_impl(self, inputs: Any, outputs: Any, propagate_down: Any, accum: Any) -> None:
        self.backwards += 1
        inputs[0].grad.data[...] = outputs[0].grad.data + (inputs[0].grad.data if accum[0] else 0)
