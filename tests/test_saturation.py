"""Where float32 ends: gates that are closed or open let nothing through or all, and activations keep their precision.

All goes through `run`, in the fastest way, which is a kernel where there is one, against float64.
"""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest
from measuring import constant

from nnshop import GRUCell, LSTMCell, SimpleRNNCell, run
from nnshop.functions import linear_cross_entropy

TINY = np.float32(2.0**-149)
LARGEST = np.finfo(np.float32).max
ENDS = np.array([0.0, TINY, np.finfo(np.float32).tiny, 9.010913, 9.010914, 88, 104, 1e6, LARGEST, np.inf, np.nan])
each_way = pytest.mark.parametrize("way", ["auto", "loop"])


def all_of_float32() -> np.ndarray:
    """Every 99,991st float32 of each sign, small steps between -110 and 110, and the ends."""
    bits = np.arange(0, 0x7F800000, 99_991, dtype=np.uint32).view(np.float32)
    near = np.linspace(-110, 110, 100_001)
    return np.concatenate([bits, -bits, near, ENDS, -ENDS]).astype(np.float32)


def outputs_of(cell: object, x: np.ndarray, *state: float) -> list[np.ndarray]:
    """The final state of a cell of one unit, after one step of each number, all in one batch."""
    start = [constant(np.full((len(x), 1), s)) for s in state]
    _, after = run(cell, constant(x[:, None, None]), start[0] if len(start) == 1 else tuple(start))
    after = after if isinstance(after, tuple) else (after,)
    nn.forward_all(after)
    return [v.d[:, 0] for v in after]


def test_tanh_over_all_of_float32() -> None:
    x = all_of_float32()
    (y,) = outputs_of(SimpleRNNCell(1, w_init=np.ones((1, 1)), recurrent_w_init=np.zeros((1, 1))), x, 0)
    expected = np.tanh(x.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=2 * TINY)
    np.testing.assert_array_equal(abs(y) == 1, abs(expected.astype(np.float32)) == 1)


def test_the_sigmoid_over_all_of_float32() -> None:
    """What a forget gate leaves of c = 1, where the input gate is shut."""
    x = all_of_float32()
    x = x[np.isfinite(x)]
    shut = {"w_init": np.array([[0, 1, 0, 0]]), "b_init": np.array([-np.inf, 0, 0, 0])}
    _, c = outputs_of(LSTMCell(1, **shut, recurrent_w_init=np.zeros((1, 4))), x, 0, 1)
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(c, expected, rtol=1e-6, atol=2 * TINY)


def test_the_sigmoid_at_the_ends() -> None:
    z = np.concatenate([ENDS, -ENDS]).astype(np.float32)
    zeros = np.zeros_like(z)
    bias = np.concatenate([zeros - np.inf, z, zeros, zeros])
    cell = LSTMCell(z.size, b_init=bias, w_init=np.zeros((1, bias.size)), recurrent_w_init=np.zeros((z.size, bias.size)))
    _, (_, c) = run(cell, constant(np.ones((1, 1, 1))), (constant([zeros]), constant([zeros + 1])))
    c.forward()
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(c.d[0], 1 / (1 + np.exp(-z.astype(np.float64))), rtol=1e-6, atol=2 * TINY)


def closed_lstm(forget: float, let_in: float) -> LSTMCell:
    """One of a single unit, without weights."""
    bias = np.array([let_in, forget, 1, 0])
    return LSTMCell(1, b_init=bias, w_init=np.zeros((1, 4)), recurrent_w_init=np.zeros((1, 4)))


def test_an_lstm_remembers_for_20000_steps() -> None:
    x, h, c = constant(np.ones((1, 20_000, 1))), constant([[0.0]]), nn.Variable((1, 1), need_grad=True)
    c.d = 1
    _, (_, after) = run(closed_lstm(50, -50), x, (h, c))
    after.forward()
    c.grad.zero()
    after.backward()
    assert after.d.item() == 1
    assert c.g.item() == 1


def test_a_gru_remembers_for_20000_steps() -> None:
    for reset_after in (True, False):
        nn.clear_parameters()
        weights = {"w_init": np.zeros((1, 3)), "recurrent_w_init": np.zeros((1, 3)), "b_init": np.array([0.0, 50, 1])}
        cell = GRUCell(1, reset_after=reset_after, **weights)
        _, after = run(cell, constant(np.ones((1, 20_000, 1))), constant([[0.25]]))
        after.forward()
        assert after.d.item() == 0.25


@each_way
def test_a_forget_gate_shuts_on_large_states(way: str) -> None:
    _, (_, after) = run(closed_lstm(-30, -np.inf), constant([[[1.0]]]), (constant([[0.0]]), constant([[1e6]])), way=way)
    after.forward()
    np.testing.assert_allclose(after.d, 1e6 / (1 + np.exp(30.0)), rtol=1e-6)


@each_way
def test_a_saturated_unit_has_no_gradient(way: str) -> None:
    cell = SimpleRNNCell(2, w_init=np.array([[1.0, 1e-7]]), recurrent_w_init=np.zeros((2, 2)))
    y, _ = run(cell, constant([[[1e6], [1e6]]]), way=way)
    w = nn.get_parameters()["x2h/W"]
    w.grad.zero()
    y.forward()
    y.backward()
    assert y.d[0, :, 0].tolist() == [1, 1]
    assert w.g[0, 0] == 0
    np.testing.assert_allclose(w.g[0, 1], 2e6 * (1 - np.tanh(0.1) ** 2), rtol=1e-5)


def test_probabilities_fall_to_denormals_and_to_zero() -> None:
    """The gradient of the biases of an output layer is what the classes' probabilities are."""
    logits = np.array([0, -80, -95, -200, -np.inf])
    bias = nn.Variable.from_numpy_array(logits, need_grad=True)
    loss = linear_cross_entropy(constant(np.zeros((1, 1, 1))), constant(np.zeros((1, 5))), bias, constant([[0]]))
    bias.grad.zero()
    loss.forward()
    loss.backward()
    np.testing.assert_allclose(bias.g[1:], np.exp(logits[1:]), rtol=1e-6, atol=2 * TINY)
