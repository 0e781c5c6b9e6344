"""What NNabla finds in place of its own modules does the same."""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from measuring import constant

from nnshop.kernels.array_function import ArrayFunction, array_of, array_to_write, give_gradient, gradient_of

OTHER, USUAL = (nn.Context(["cpu:float"], "CpuCachedArray", device) for device in ("1", "0"))


class Looking(ArrayFunction):
    """Doubles, and notes in which context."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.seen: list[str] = []

    def output_shapes(self, *given: tuple) -> list[tuple]:
        return [given[0]]

    def compute(self, inputs: Any, outputs: Any) -> None:
        self.seen.append(nn.get_current_context().device_id)
        if self.fails:
            raise ValueError("it fails")
        with nn.context_scope(USUAL):
            array_to_write(outputs[0])[...] = 2 * array_of(inputs[0])
        self.seen.append(nn.get_current_context().device_id)

    def compute_gradients(self, inputs: Any, outputs: Any, propagate_down: list[bool], accum: list[bool]) -> None:
        self.seen.append(nn.get_current_context().device_id)
        give_gradient(inputs[0], 2 * gradient_of(outputs[0]), accum[0])


def test_a_function_runs_in_the_context_that_it_was_made_in() -> None:
    with nn.context_scope(OTHER):
        function = Looking()
    x = nn.Variable((2, 3), need_grad=True)
    x.d, x.g = 1, 0
    y = function(x)
    outer = nn.get_current_context()
    y.forward()
    y.backward()
    assert function.seen == ["1"] * 3
    assert nn.get_current_context() is outer
    np.testing.assert_array_equal(x.g, 2)


@pytest.mark.parametrize("inner", [OTHER, None])
def test_an_error_leaves_the_context_as_it_was(inner: nn.Context | None) -> None:
    outer = nn.get_current_context()
    with nn.context_scope(inner or outer):
        y = Looking(fails=True)(constant(np.ones(2)))
    with pytest.raises((SystemError, RuntimeError)):
        y.forward()
    assert nn.get_current_context() is outer
    nn.set_default_context(outer)  # refused within a scope


def test_nnabla_finds_the_rest_of_its_modules() -> None:
    x = nn.Variable((2, 3), need_grad=True)
    x.d = 2
    with nn.auto_forward():
        (F.sin(x) * x).reshape((3, 2)).backward()
    assert not nn.get_auto_forward()
    np.testing.assert_allclose(nn.NdArray.from_numpy_array(x.d)[0, 1:].data, [2, 2])
