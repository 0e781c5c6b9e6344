"""Holding outputs over masked steps: the compiled form against the loop."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from measuring import assert_same, constant, factors

from nnshop.running import WAYS, Auto, Unrolled
from nnshop.running.sequences import _hold

HOLES = np.array([[1, 1, 0, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]], float)
both_directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def measured(ys: np.ndarray, mask: np.ndarray, reverse: bool, way: str, accumulate: bool = False) -> tuple:
    """The held outputs, and the gradient of ys."""
    v = nn.Variable.from_numpy_array(ys, need_grad=True)
    held = _hold(v, constant(mask), reverse, WAYS[way]()).apply(persistent=True)
    loss = F.sum(held * constant(factors(held)))
    loss = loss + F.sum(v * constant(factors(v, 3))) if accumulate else loss
    v.grad.zero()
    loss.forward()
    loss.backward()
    return held.d.copy(), v.g.copy()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("inner", [(3,), (), (2, 3)])
@both_directions
def test_hold_is_the_loop(reverse: bool, inner: tuple, accumulate: bool) -> None:
    ys = np.random.RandomState(0).randn(*HOLES.shape, *inner)
    expected = measured(ys, HOLES, reverse, "unrolled", accumulate)
    assert_same(measured(ys, HOLES, reverse, "auto", accumulate), expected, 1e-6)


@both_directions
def test_random_masks(reverse: bool) -> None:
    rng = np.random.RandomState(1)
    for batch, length in ((1, 1), (1, 9), (7, 1), (6, 12)):
        for share in (0, 0.2, 0.8, 1):
            ys, mask = rng.randn(batch, length, 2), (rng.rand(batch, length) < share).astype(float)
            assert_same(measured(ys, mask, reverse, "auto"), measured(ys, mask, reverse, "unrolled"), 1e-6)


@both_directions
def test_masked_outputs_may_be_nan(reverse: bool) -> None:
    ys = np.random.RandomState(0).randn(*HOLES.shape, 3)
    expected = measured(ys, HOLES, reverse, "auto")
    assert_same(measured(np.where(HOLES[:, :, None], ys, np.nan), HOLES, reverse, "auto"), expected, 0)


def test_auto_uses_it() -> None:
    held = _hold(nn.Variable((2, 3, 4)), nn.Variable((2, 3)), False, Auto())
    assert held.parent.name == "Callback"  # NNabla's name for a function that is computed in Python
    assert held.parent.inputs[0].shape == (2, 3, 4)
    assert _hold(nn.Variable((2, 3, 4)), nn.Variable((2, 3)), False, Unrolled()).parent.name != "Callback"
