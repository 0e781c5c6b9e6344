"""A step wired as a graph at one batch size equals the function that wired it, at any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

from nnshop.functions import stop_gradient
from nnshop.graphs import functions_of
from nnshop.recurrentshop import LSTMCell, RecurrentModel

MEMORY = np.random.RandomState(9).randn(1, 4, 3).astype(np.float32)
LSTM = LSTMCell(4, name="lstm")


def plain(x: Any, h: Any) -> Any:
    h = F.tanh(PF.affine(x, 4, name="x") + PF.affine(h, 4, name="h"))
    return h, h


def sliced(x: Any, h: Any) -> Any:
    z = PF.affine(F.concatenate(x, h, axis=1), 8, name="z")
    h = F.sigmoid(z[:, :4]) * F.tanh(z[:, 4:])
    return h[:, 1:3], h


def reshaped(x: Any, h: Any) -> Any:
    pairs = F.reshape(PF.affine(x, 8, name="x"), (x.shape[0] * 4, 2))
    rows = F.reshape(F.softmax(pairs, axis=1), (x.shape[0], 2, 4))
    h = h + F.sum(rows, axis=1) + F.sum(F.reshape(rows, (-1, 4, 2)), axis=2)
    return F.reshape(h, (h.shape[0], 2, 2)), h


def broadcast(x: Any, h: Any) -> Any:
    column = F.reshape(PF.affine(h, 1, name="h"), (h.shape[0], 1, 1))
    grid = F.broadcast(column, (h.shape[0], 4, 3)) * F.reshape(x, (x.shape[0], 1, 3))
    h = F.tanh(F.sum(grid, axis=2))
    return h, h


def constants(x: Any, h: Any) -> Any:
    h = F.concatenate(F.constant(0.5, (x.shape[0], 1)), PF.affine(x, 3, name="x"), axis=1) + h
    return h, h


def normalized(x: Any, h: Any) -> Any:
    h = F.tanh(PF.layer_normalization(PF.affine(x, 4, name="x") + h, name="n"))
    return h, h


def attending(x: Any, h: Any) -> Any:
    """Over a memory outside the step, the same for all samples."""
    memory = nn.Variable.from_numpy_array(MEMORY)
    scores = F.affine(PF.affine(h, 3, name="q"), F.reshape(F.transpose(memory, (0, 2, 1)), (3, 4)))  # (B, 4)
    h = F.tanh(PF.affine(F.affine(F.softmax(scores), F.reshape(memory, (4, 3))), 4, name="c") + PF.affine(x, 4, name="x"))
    return h, h


def batch_attention(x: Any, h: Any) -> Any:
    keys = F.reshape(PF.affine(x, 12, name="k"), (x.shape[0], 4, 3))
    weights = F.softmax(F.batch_matmul(keys, F.reshape(PF.affine(h, 3, name="q"), (h.shape[0], 3, 1))), axis=1)
    h = h + PF.affine(F.reshape(F.batch_matmul(weights, keys, transpose_a=True), (h.shape[0], 3)), 4, name="o")
    return h, h


def with_a_cell(x: Any, h: Any) -> Any:
    y, (h, _) = LSTM(x, (h, 0.5 * h))
    return y, h


STEPS = [plain, sliced, reshaped, broadcast, constants, normalized, attending, batch_attention, with_a_cell]


def wire(step: Callable, batch: int, **options: Any) -> RecurrentModel:
    x, h = nn.Variable((batch, 3)), nn.Variable((batch, 4))
    y, after = step(x, h)
    return RecurrentModel(x, y, initial_states=[h], final_states=[after], return_sequences=True, return_states=True, **options)


def measure(rnn: RecurrentModel, batch: int) -> list[np.ndarray]:
    x = nn.Variable.from_numpy_array(np.random.RandomState(batch).randn(batch, 5, 3)).apply(need_grad=True)
    outputs = rnn(x)
    loss = sum(F.sum(F.sin(v)) for v in outputs)
    parameters = nn.get_parameters()
    for v in (x, *parameters.values()):
        v.g = 0
    loss.forward()
    loss.backward()
    nn.forward_all(outputs)
    return [v.d.copy() for v in outputs] + [x.g.copy()] + [parameters[name].g.copy() for name in sorted(parameters)]


@pytest.mark.parametrize("traced", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_wired_step_is_its_function(step: Callable, batch: int, traced: int) -> None:
    wired = measure(wire(step, traced), batch)
    with nn.parameter_scope(""):  # the graph's weights are where it was built
        function = RecurrentModel(step, initial_states=[(4,)], return_sequences=True, return_states=True, name="")
    for a, b in zip(wired, measure(function, batch)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_noise_is_drawn_anew_at_each_step_for_each_sample() -> None:
    x, h = nn.Variable((2, 3)), nn.Variable((2, 4))
    y = F.randn(shape=(2, 4)) + 0 * h + 0 * F.sum(x, axis=1, keepdims=True)
    rnn = RecurrentModel(x, y, initial_states=[h], final_states=[y], return_sequences=True)
    ys = rnn(nn.Variable.from_numpy_array(np.zeros((3, 5, 3))))
    ys.forward()
    assert len(np.unique(ys.d)) == 3 * 5 * 4
    first = ys.d.copy()
    ys.forward()
    assert (ys.d != first).all()


def test_dropout_in_a_wired_step() -> None:
    x, h = nn.Variable((2, 3)), nn.Variable((2, 4))
    y = F.dropout(h + 1 + 0 * F.sum(x, axis=1, keepdims=True), 0.5)
    rnn = RecurrentModel(x, y, initial_states=[h], final_states=[0 * h], return_sequences=True)
    ys = rnn(nn.Variable.from_numpy_array(np.zeros((40, 5, 3))))
    ys.forward()
    assert set(np.unique(ys.d)) == {0.0, 2.0}
    assert not (ys.d[:, 0] == ys.d[:, 1]).all()


def test_closures_over_outer_variables_get_their_gradient() -> None:
    scale = nn.Variable.from_numpy_array(np.full((1, 4), 0.5)).apply(need_grad=True)
    x, h = nn.Variable((2, 3)), nn.Variable((2, 4))
    y = F.tanh(PF.affine(x, 4) + h * scale)
    ys = RecurrentModel(x, y, initial_states=[h], final_states=[y], return_sequences=True)(nn.Variable((3, 5, 3)))
    scale.g = 0
    ys.forward()
    ys.backward()
    assert np.abs(scale.g).min() >= 0
    assert scale.g.any() or not ys.d.any()


def stopped(x: Any, h: Any) -> Any:
    h = F.tanh(PF.affine(x, 4, name="x") + h)
    return h * stop_gradient(h), h


def test_a_gradient_that_the_step_stops_is_stopped() -> None:
    wired = measure(wire(stopped, 2), 3)
    function = RecurrentModel(stopped, initial_states=[(4,)], return_sequences=True, return_states=True, name="")
    for a, b in zip(wired, measure(function, 3)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_building_computes_nothing() -> None:
    """So running statistics stay as they are, and no random number is drawn."""
    x, h = nn.Variable((4, 3)), nn.Variable((4, 3))
    y = PF.batch_normalization(F.dropout(x + h + 1, 0.5))
    ys = RecurrentModel(x, y, initial_states=[h], final_states=[y], return_sequences=True)(nn.Variable((4, 5, 3)))
    running = nn.get_parameters(grad_only=False)["bn/var"]
    assert (running.d == 1).all()
    assert all(not v.data.modification_count for function in functions_of([ys]) for v in function.outputs)
    ys.forward()
    assert (running.d != 1).any()


def test_several_inputs_and_outputs() -> None:
    a, b, h = nn.Variable((2, 3)), nn.Variable((2, 1)), nn.Variable((2, 3))
    after = h + a * F.broadcast(b, (2, 3))
    rnn = RecurrentModel([a, b], [after, 2 * b], initial_states=h, final_states=after, return_sequences=True)
    rng = np.random.RandomState(0)
    xs = tuple(nn.Variable.from_numpy_array(rng.randn(4, 5, n)) for n in (3, 1))
    total, doubled = rnn(xs)
    nn.forward_all([total, doubled])
    np.testing.assert_allclose(total.d, np.cumsum(xs[0].d * xs[1].d, axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(doubled.d, 2 * xs[1].d, rtol=1e-6)


def test_what_does_not_carry_over_is_named() -> None:
    x, h = nn.Variable((2, 3)), nn.Variable((2, 4))
    z = PF.affine(x, 4) + h
    for y, match in (
        (F.reshape(F.transpose(z, (1, 0)), (4, 2)), "Reshape.*the batch is not its first axis"),
        (z[:1] + 0 * z, r"Slice|Add2"),
        (z - F.broadcast(F.reshape(F.mean(z), (1, 1)), (2, 4)), r"Mean|Reshape"),
    ):
        y = F.transpose(y, (1, 0)) if y.shape == (4, 2) else y
        rnn = RecurrentModel(x, y, initial_states=[h], final_states=[z])
        with pytest.raises(ValueError, match=rf"({match}).*batch size 2.*batch size 3.*|({match}).*Pass a function"):
            rnn(nn.Variable((3, 5, 3)))


def test_misuse_of_a_wired_step_is_named() -> None:
    x, h, other = nn.Variable((2, 3)), nn.Variable((2, 4)), nn.Variable((3, 4))
    y = PF.affine(x, 4) + h
    with pytest.raises(ValueError, match=r"needs input, output, and as many final_states"):
        RecurrentModel(x, y, initial_states=[h], final_states=[])
    with pytest.raises(ValueError, match=r"used for nothing"):
        RecurrentModel([x, nn.Variable((2, 7))], y, initial_states=[h], final_states=[y])
    with pytest.raises(ValueError, match=r"one batch size; they have shapes \[\(2, 3\), \(3, 4\)\]"):
        RecurrentModel(x, y, initial_states=[other], final_states=[other])
    with pytest.raises(ValueError, match=r"does not depend on the inputs"):
        RecurrentModel(x, y, initial_states=[h], final_states=[nn.Variable((2, 4))])
    rnn = RecurrentModel(x, y, initial_states=[h], final_states=[y])
    with pytest.raises(ValueError, match=r"wired for an input of shape \(3,\) a sample; got \(5,\)"):
        rnn(nn.Variable((2, 4, 5)))
    with pytest.raises(ValueError, match=r"a function needs the shapes of its states"):
        RecurrentModel(lambda x, h: (h, h))
    with pytest.raises(ValueError, match=r"teacher_force=True replaces what is fed back; give readout_input"):
        RecurrentModel(x, y, initial_states=[h], final_states=[y], teacher_force=True)
