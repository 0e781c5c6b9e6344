"""Every row of the table of cells, on the device as on the CPU: values, and gradients of inputs, states and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from cells_table import BUILT_IN, Row, each_row
from gpu_device import require_device
from measuring import assert_same, constant, inputs, measure, prepare, randomize, runs, start, variable
from nnabla.parameter import get_parameter_or_create

import nnshop
from nnshop import GRUCell, LSTMCell, SimpleRNNCell, TimeDistributed, bidirectional, lift, run, stack
from nnshop.functions import linear_cross_entropy, sequence_loss
from nnshop.graphs import functions_of
from nnshop.running import Loop

require_device()

NEAR = 1e-4  # of each array's largest number, at least 1
NEAR_IN_HALF = 2e-2
MASK = np.array([[1, 1, 0, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "reverse": {"reverse": True},
    "mask": {"mask": MASK},
    "mask-reverse": {"mask": MASK, "reverse": True},
    "one_step": {},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_way = pytest.mark.parametrize("way", ["auto", "unrolled", "loop"])


def options_of(variant: str) -> dict[str, Any]:
    return {name: constant(v) if name == "mask" else v for name, v in VARIANTS[variant].items()}


@each_variant
@each_way
@each_row()
def test_cells_are_those_of_the_cpu(row: Row, way: str, variant: str, device: Callable) -> None:
    cell, x, state = start(row, batch=4, length=1 if variant == "one_step" else 5)
    expected = measure(runs(cell, way="unrolled", **options_of(variant)), x, state)
    with device():
        actual = measure(runs(cell, way=way, **options_of(variant)), x, state)
        assert_same(actual, expected, rtol=NEAR)
        unasked = measure(runs(cell, way=way, **options_of(variant)), x, state, x_need_grad=False)
        assert_same(unasked.weight_grads, expected.weight_grads, rtol=NEAR)


FUSED: dict[str, Callable] = {
    "LSTM": LSTMCell,
    "GRU": GRUCell,
    "RNN": SimpleRNNCell,
    "RNN-relu": lambda units, **options: SimpleRNNCell(units, activation="relu", **options),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 1, 5, 4), (4, 7, 3, 33), (20, 35, 200, 200)])
@pytest.mark.parametrize("kind", FUSED)
def test_layers_in_one_function_are_those_of_the_cpu(
    kind: str, sizes: tuple, reverse: bool, bias: bool, device: Callable
) -> None:
    batch, length, width, units = sizes
    cell = FUSED[kind](units, with_bias=bias)
    prepare(cell, width)
    randomize(scale=1 / np.sqrt(width + units))
    x, state = inputs(cell, width, batch, length)
    expected = measure(runs(cell, way="unrolled", reverse=reverse), x, state)
    with device():
        build = runs(cell, way="fused", reverse=reverse)
        assert kind.split("-")[0] in {f.name for f in functions_of([build(nn.Variable(x.shape), None)[0]])}
        assert_same(measure(build, x, state), expected, rtol=NEAR)
        assert_same(measure(build, x, state, auto_forward=True), expected, rtol=NEAR)


@each_way
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@each_row(*BUILT_IN)
def test_cells_in_half_are_near(row: Row, masked: bool, way: str, device: Callable) -> None:
    cell, x, state = start(row, batch=4)
    expected = measure(runs(cell, way="unrolled", **options_of("mask" if masked else "whole")), x, state)
    with device("half"):
        actual = measure(runs(cell, way=way, **options_of("mask" if masked else "whole")), x, state)
    assert_same(actual, expected, rtol=NEAR_IN_HALF)


@each_way
def test_ids_are_exact_in_half(way: str, device: Callable) -> None:
    ids = np.array([[2049, 4095, 1], [3001, 2051, 4998]])
    prepare(lift(PF.embed, 5000, 1), 1)
    nn.get_parameters()["embed/W"].d = table = np.arange(5000)[:, None] % 7
    with device("half"):
        ys, _ = run(lift(PF.embed, 5000, 1), constant(ids), way=way, lengths=[3, 3])
    ys.forward()
    np.testing.assert_array_equal(ys.d, table[ids])


def test_layers_and_losses_are_those_of_the_cpu(device: Callable) -> None:
    """As a model uses them: both directions, a dense layer on all steps, and each form of the loss."""
    targets, weights = constant([[2, 6, 0], [1, 2, 5]]), constant([[1, 1, 0.5], [1, 0, 0]])

    def build(x: nn.Variable, state: Any) -> tuple:
        h = bidirectional(x, LSTMCell(4), GRUCell(3), lengths=[3, 2])
        y = TimeDistributed(PF.affine)(nnshop.simple_rnn(h, 5, return_sequences=True), 7)
        weight = get_parameter_or_create("out", (7, 7))
        losses = [
            sequence_loss(y, targets, weights, reduction="none", label_smoothing=0.1),
            sequence_loss(y, targets, ignore_index=2, reduction="none"),
            linear_cross_entropy(y, weight, None, targets, weights, reduction="none"),
        ]
        return F.stack(*losses, axis=2), ()

    with nn.auto_forward(False):
        build(nn.Variable((2, 3, 4)), ())
    randomize()
    x = np.random.RandomState(0).randn(2, 3, 4)
    expected = measure(build, x, ())
    with device():
        assert_same(measure(build, x, ()), expected, rtol=NEAR)


# ------------------------------------------------------------------------------------------------------------------- dropout


@each_way
def test_dropout_is_drawn_anew_at_each_step_and_replayed_for_the_gradient(way: str, device: Callable) -> None:
    x, p = variable(8, 6, 500), 0.3
    with device():
        ys, _ = run(lift(F.dropout, p), x, way=way)
        x.grad.zero()
        ys.forward()
        ys.backward(nn.NdArray.from_numpy_array(np.ones(ys.shape, np.float32)))
    np.testing.assert_allclose(ys.d, x.d * x.g, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.unique(np.round(x.g, 4)), [0, 1 / (1 - p)], atol=1e-4)
    dropped = x.g == 0
    assert abs(dropped.mean() - p) < 5 * np.sqrt(p * (1 - p) / dropped.size)
    assert not any((dropped[:, t] == dropped[:, 0]).all() for t in range(1, 6))


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_loop_with_dropout_computes_its_steps_again_as_they_were(every: int, device: Callable) -> None:
    """What each step kept is known from the gradient, and with it the whole is computed without dropout."""
    cell = stack(lift(F.dropout, 0.5), LSTMCell(8))
    prepare(cell, 8)
    x = variable(4, 5, 8)
    with device():
        ys, _ = run(cell, x, way=Loop(checkpoint_every=every))
        loss = F.sum(ys)
        x.grad.zero()
        loss.forward()
        loss.backward()
    kept = constant((x.g != 0) * 2.0)
    again = variable(4, 5, 8)
    with nn.parameter_scope("1"):
        expected, _ = run(LSTMCell(8), again * kept, way="unrolled")
    loss_again = F.sum(expected)
    again.grad.zero()
    nn.forward_all([expected, loss_again])
    loss_again.backward()
    assert_same((ys.d, x.g), (expected.d, again.g), rtol=NEAR)
