"""The kernels of whole sequences against their equations in NumPy, float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
import reference
from measuring import assert_same

pytest.importorskip("numba")

from nnshop.kernels.gemm import DEPTH
from nnshop.kernels.gru import ResetAfterGRU, ResetBeforeGRU
from nnshop.kernels.lstm import LSTM
from nnshop.kernels.recurrence import Recurrence
from nnshop.kernels.simple_rnn import SimpleRNN
from nnshop.kernels.tile import ROWS, WIDTH

Arrays = dict[str, np.ndarray]


class Kind(NamedTuple):
    """A kernel, its step in NumPy, and what it takes."""

    make: Callable[..., Recurrence]
    step: Callable
    gates: int
    states: tuple[str, ...] = ("h",)
    biases: tuple[str, ...] = ("b",)


KINDS = {
    "lstm": Kind(LSTM, reference.lstm(), 4, ("h", "c")),
    "gru": Kind(ResetAfterGRU, reference.gru(), 3, biases=("b", "h2h/b")),
    "gru_before": Kind(ResetBeforeGRU, reference.gru(reset_after=False), 3),
    "rnn": Kind(SimpleRNN, reference.simple_rnn(), 1),
    "rnn_relu": Kind(lambda *a: SimpleRNN(*a, relu=True), reference.simple_rnn(reference.relu), 1),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
both_directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
HOLES = np.array([[1, 1, 0, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]], float)


def arrays_of(kind: Kind, batch: int, length: int, inputs: int, units: int, bias: bool = True, seed: int = 0) -> Arrays:
    """Random numbers for all that a kernel takes, in its order; float32 numbers, held in float64."""
    rng, width = np.random.RandomState(seed), kind.gates * units
    sizes = {"x": (batch, length, inputs), "x2h/W": (inputs, width), "h2h/W": (units, width)}
    if bias:
        sizes.update({name: (width if name == "b" else units,) for name in kind.biases})
    sizes.update({name: (batch, units) for name in kind.states})
    scales = {"x2h/W": 1.5 / np.sqrt(inputs), "h2h/W": 1.2 / np.sqrt(units)}
    numbers = {name: rng.randn(*size) * scales.get(name, 0.8) for name, size in sizes.items()}
    return {name: array.astype(np.float32).astype(np.float64) for name, array in numbers.items()}


def twin(kind: Kind, arrays: Arrays, mask: np.ndarray | None, reverse: bool) -> list[np.ndarray]:
    """y and the final states; a masked step leaves the states as they were, and y repeats h."""
    state: Any = tuple(arrays[name] for name in kind.states)
    state = state if len(state) > 1 else state[0]
    length = arrays["x"].shape[1]
    ys: list[Any] = [None] * length
    for t in reversed(range(length)) if reverse else range(length):
        _, after = kind.step(arrays, arrays["x"][:, t], state)
        state = after if mask is None else reference.choose(mask[:, t], after, state)
        ys[t] = reference.leaves(state)[0]
    return [np.stack(ys, axis=1), *reference.leaves(state)]


def output_factors(outputs: list[np.ndarray]) -> list[np.ndarray]:
    rng = np.random.RandomState(99)
    return [rng.randn(*output.shape) for output in outputs]


def compute(
    kind: Kind, arrays: Arrays, mask: np.ndarray | None, reverse: bool, given: list[np.ndarray]
) -> tuple[list[np.ndarray], Arrays]:
    """The kernel's outputs, and the gradients of their products with `given`."""
    inputs = {name: nn.Variable.from_numpy_array(array, need_grad=True) for name, array in arrays.items()}
    masks = [] if mask is None else [nn.Variable.from_numpy_array(mask)]
    biases = sum(name in arrays for name in kind.biases)
    outputs = kind.make(biases, mask is not None, reverse)(*inputs.values(), *masks)
    outputs = [output.apply(persistent=True) for output in outputs]
    loss = sum(F.sum(o * nn.Variable.from_numpy_array(g)) for o, g in zip(outputs, given))
    for v in inputs.values():
        v.grad.zero()
    loss.forward()
    loss.backward()
    return [output.d.copy() for output in outputs], {name: v.g.copy() for name, v in inputs.items()}


def losses_of(kind: Kind, mask: np.ndarray | None, reverse: bool, given: list[np.ndarray]) -> Callable[[Arrays], float]:
    return lambda arrays: sum(float(np.sum(a * b)) for a, b in zip(twin(kind, arrays, mask, reverse), given))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "holes"])
@with_and_without_bias
@both_directions
@each_kind
def test_every_gradient_is_that_of_the_equations(kind: Kind, reverse: bool, bias: bool, masked: bool) -> None:
    arrays = arrays_of(kind, 4, 5, 2, 3, bias)
    mask = HOLES if masked else None
    expected = twin(kind, arrays, mask, reverse)
    given = output_factors(expected)
    outputs, gradients = compute(kind, arrays, mask, reverse, given)
    assert_same(tuple(outputs), tuple(expected), 2e-6)
    assert_same(gradients, reference.gradients(losses_of(kind, mask, reverse, given), arrays), 5e-6)


SHAPES = {
    "ones": (1, 1, 1, 1),
    "one_row": (1, 7, 3, 5),
    "one_step": (4, 1, 2, 3),
    "one_unit": (3, 6, 4, 1),
    "one_input": (3, 4, 1, 6),
    "a_tile": (ROWS, 3, WIDTH, WIDTH),
    "beyond_a_tile": (ROWS + 1, 3, 5, 33),
    "around_tiles": (2 * ROWS + 3, 2, WIDTH + 1, WIDTH - 1),
    "deep": (2, 3, 2, DEPTH + 3),
    "wide_inputs": (3, 2, DEPTH + 44, 8),
    "long": (2, 60, 3, 4),
}


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "holes"])
@both_directions
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@each_kind
def test_all_sizes(kind: Kind, shape: tuple, reverse: bool, masked: bool) -> None:
    """Values, and the derivative of the loss along a random direction of each input."""
    arrays = arrays_of(kind, *shape, seed=5)
    rng = np.random.RandomState(8)
    mask = (rng.rand(*shape[:2]) < 0.7).astype(float) if masked else None
    expected = twin(kind, arrays, mask, reverse)
    given = output_factors(expected)
    outputs, gradients = compute(kind, arrays, mask, reverse, given)
    assert_same(tuple(outputs), tuple(expected), 1e-5)
    loss = losses_of(kind, mask, reverse, given)
    for name, array in arrays.items():
        direction = rng.randn(*array.shape) / np.sqrt(array.size)
        sides = [loss({**arrays, name: array + side * direction}) for side in (1e-6, -1e-6)]
        slope = (sides[0] - sides[1]) / 2e-6
        assert float(np.sum(gradients[name] * direction)) == pytest.approx(
            slope, rel=2e-5, abs=1e-5 * (1 + np.linalg.norm(gradients[name]))
        ), name


@pytest.mark.parametrize("keep", [0.3, -1.0, 1e-30, np.nan, np.inf])
@each_kind
def test_any_number_but_zero_counts_in_a_mask(kind: Kind, keep: float) -> None:
    arrays = arrays_of(kind, 4, 5, 2, 3)
    given = output_factors(twin(kind, arrays, HOLES, False))
    expected, actual = (compute(kind, arrays, HOLES * f if f == 1 else np.where(HOLES, f, 0), False, given) for f in (1, keep))
    assert_same(tuple(actual[0]), tuple(expected[0]), 0)
    assert_same(actual[1], expected[1], 0)


@pytest.mark.parametrize(
    "kind", [kind for name, kind in KINDS.items() if name != "rnn_relu"], ids=lambda kind: kind.make.__name__
)
def test_large_numbers_saturate(kind: Kind) -> None:
    arrays = arrays_of(kind, 3, 4, 2, 3)
    arrays["x"] *= 1e6
    with np.errstate(over="ignore"):
        expected = twin(kind, arrays, None, False)
    given = output_factors(expected)
    outputs, gradients = compute(kind, arrays, None, False, given)
    assert_same(tuple(outputs), tuple(expected), 2e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38])
@both_directions
@each_kind
def test_what_is_not_finite_stays_in_its_row(kind: Kind, reverse: bool, bad: float) -> None:
    arrays = arrays_of(kind, ROWS + 2, 4, 3, WIDTH + 1)
    given = output_factors(twin(kind, arrays, None, reverse))
    expected, slopes = compute(kind, arrays, None, reverse, given)
    row = ROWS - 1
    for name in ("x", *kind.states):
        spoilt = {**arrays, name: arrays[name].copy()}
        spoilt[name][row, 1] = bad
        outputs, gradients = compute(kind, spoilt, None, reverse, given)
        for actual, right in zip(outputs, expected):
            np.testing.assert_array_equal(np.delete(actual, row, 0), np.delete(right, row, 0))
        for of in ("x", *kind.states):
            np.testing.assert_array_equal(np.delete(gradients[of], row, 0), np.delete(slopes[of], row, 0))
        if np.isnan(bad) and kind is not KINDS["rnn_relu"]:  # NNabla's relu makes 0 of NaN
            assert np.isnan(outputs[0][row]).any()


@both_directions
@pytest.mark.parametrize(
    "kind", [kind for name, kind in KINDS.items() if name != "rnn_relu"], ids=lambda kind: kind.make.__name__
)
def test_nan_begins_at_its_step(kind: Kind, reverse: bool) -> None:
    arrays = arrays_of(kind, 2, 5, 3, 4)
    expected = twin(kind, arrays, None, reverse)
    arrays["x"][1, 2] = np.nan
    outputs, _ = compute(kind, arrays, None, reverse, output_factors(expected))
    before = slice(3, None) if reverse else slice(0, 2)
    assert_same(outputs[0][:, before], expected[0][:, before], 2e-6)
    assert np.isnan(np.delete(outputs[0][1], np.arange(5)[before], axis=0)).all()


@each_kind
def test_equal_data_give_equal_results_each_time(kind: Kind) -> None:
    arrays = arrays_of(kind, ROWS + 3, 6, 7, 35)
    given = output_factors(twin(kind, arrays, None, False))
    first, second = (compute(kind, arrays, None, False, given) for _ in range(2))
    assert_same(tuple(second[0]), tuple(first[0]), 0)
    assert_same(second[1], first[1], 0)
