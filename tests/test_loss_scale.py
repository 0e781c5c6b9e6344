"""Training in 16 bits. NNabla computes it on the CPU too, slowly: these networks are tiny."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

import nnshop
from nnshop.seq2seq import EncoderDecoder
from nnshop.training import LossScale, TrainingError


@pytest.fixture
def half() -> Iterator[None]:
    with nnshop.use_context("cpu", type_config="half"):
        yield


def slope(factor: float) -> tuple[nn.Variable, nn.Variable, S.Sgd]:
    """A parameter, a loss whose gradient is `factor`, and its solver."""
    w = nn.parameter.get_parameter_or_create("w", (1,), np.ones(1))
    loss = F.sum(w * factor)
    solver = S.Sgd(1.0)
    solver.set_parameters(nn.get_parameters())
    return w, loss, solver


def step(loss: nn.Variable, solver: Any, scale: LossScale) -> bool:
    loss.forward()
    solver.zero_grad()
    scale.backward(loss)
    scale.unscale(solver)
    accepted = scale.accepts(not solver.check_inf_or_nan_grad())
    if accepted:
        solver.update()
    return accepted


@pytest.mark.parametrize("factor", [1e-2, 1e-3, 1e-4])
def test_small_gradients_survive_with_a_scale(half: None, factor: float) -> None:
    _, loss, solver = slope(1.0)
    scaled, scale = F.mul_scalar(F.mul_scalar(loss, factor), factor), LossScale()
    solver.zero_grad()
    scaled.forward()
    scale.backward(scaled)
    scale.unscale(solver)
    (w,) = solver.get_parameters().values()
    np.testing.assert_allclose(w.g, factor**2, rtol=5e-3)
    assert w.grad.dtype == np.float32
    if factor**2 < 3e-8:  # half's smallest number is 6e-8
        solver.zero_grad()
        scaled.backward()
        assert not w.g.any()


def test_an_overflow_is_left_out_and_the_next_fits(half: None) -> None:
    w, loss, solver = slope(10.0)
    scale = LossScale()
    taken = [step(loss, solver, scale) for _ in range(6)]
    assert taken == [False, False, False, True, True, True]  # 10 * 4096 is within 65,504
    assert (scale.value, scale.skipped, scale.good_steps) == (4096, 3, 3)
    np.testing.assert_array_equal(w.d, [1 - 3 * 10])


def test_a_step_left_out_changes_neither_parameters_nor_solver(half: None) -> None:
    w = nn.parameter.get_parameter_or_create("w", (1,), np.ones(1))
    loss, solver, scale = F.sum(w * 100), S.Adam(), LossScale()
    solver.set_parameters(nn.get_parameters())
    before = solver.get_states()["w"]
    assert not step(loss, solver, scale)
    after = solver.get_states()["w"]
    assert (w.d == 1).all()
    assert before.t == after.t == 0
    assert not any(v.d.any() for v in after.pstate.values())


def test_parameters_stay_float32(half: None) -> None:
    w, loss, solver = slope(1.0)
    solver.set_learning_rate(1e-4)  # 1 - 1e-4 is 1 in half: a parameter of 16 bits would stand still
    for _ in range(100):
        step(loss, solver, LossScale())
    assert w.data.dtype == np.float32
    np.testing.assert_allclose(w.d, 0.99, rtol=1e-5)


def test_the_scale_grows_again_but_never_beyond_the_first() -> None:
    scale = LossScale(8.0, growth_steps=3)
    assert not scale.accepts(False)
    values = []
    for _ in range(7):
        scale.accepts(True)
        values.append(scale.value)
    assert values == [4, 4, 8, 8, 8, 8, 8]
    scale.accepts(False)
    assert [scale.accepts(True) and scale.value for _ in range(3)] == [4, 4, 8]  # a count from 0


def test_what_is_wrong_at_the_least_scale_is_an_error() -> None:
    scale = LossScale(2.0)
    assert not scale.accepts(False)
    with pytest.raises(TrainingError, match="gradients are not finite, even with a loss scale of 1"):
        scale.accepts(False)
    with pytest.raises(TrainingError, match="even with a loss scale of 1"):
        LossScale.for_context().accepts(False)  # float


def test_each_context_has_its_scale(half: None) -> None:
    assert LossScale.for_context().value == 2**15
    with nnshop.use_context("cpu"):
        assert LossScale.for_context().value == 1


def test_a_scale_goes_on_from_its_numbers() -> None:
    scale, other = LossScale(16.0, growth_steps=3), LossScale(16.0, growth_steps=3)
    for finite in (False, False, True, True):
        scale.accepts(finite)
    other.set(scale.get())
    for s in (scale, other):
        s.accepts(True)
    assert other.get() == scale.get() == [8.0, 3, 2, 16.0]


def test_a_scale_of_another_precision_begins_anew(half: None) -> None:
    sixteen, thirty_two = LossScale.for_context(), LossScale(1.0)
    sixteen.accepts(False)
    thirty_two.set(sixteen.get())
    assert thirty_two.get() == [1.0, 0, 1, 1.0]
    with pytest.raises(TrainingError):
        thirty_two.accepts(False)
    sixteen = LossScale.for_context()
    sixteen.set(thirty_two.get())
    assert sixteen.get() == [2.0**15, 0, 1, 2.0**15]


@pytest.mark.parametrize(
    "arguments", [{"value": 0}, {"value": 2.0**16}, {"value": 1, "least": 2}, {"growth_steps": 0}, {"growth_steps": 1.5}]
)
def test_wrong_numbers(arguments: dict) -> None:
    with pytest.raises(ValueError, match="LossScale needs 0 < least <= value <= 32768"):
        LossScale(**arguments)


def test_an_encoder_decoder_trains_in_half_as_in_float() -> None:
    curves = []
    for kind in ("float", "half"):
        nn.clear_parameters()
        nn.seed(1)
        with nnshop.use_context("cpu", type_config=kind):
            curves.append(learn_to_copy(LossScale.for_context()))
            assert all(v.data.dtype == np.float32 for v in nn.get_parameters().values())
    np.testing.assert_allclose(*curves, rtol=0.02)
    assert curves[1][-1] < 0.8 * curves[1][0]


def learn_to_copy(scale: LossScale) -> list[float]:
    network = EncoderDecoder(6, 6, start=0, end=1, encoder=nnshop.LSTMCell(8), decoder=nnshop.LSTMCell(8), attention="general")
    ids = nn.Variable.from_numpy_array(np.random.RandomState(0).randint(2, 6, (4, 3)))
    loss, solver = network.loss(ids, ids, [3, 2, 3, 1], [3, 2, 3, 1]), S.Adam(0.02)
    solver.set_parameters(nn.get_parameters())
    losses = []
    while len(losses) < 25:
        losses += [float(loss.d)] if step(loss, solver, scale) else []
    return losses
