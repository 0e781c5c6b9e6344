"""Values that a graph is to compute are marked until then; what has a value keeps it."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from measuring import constant

from nnshop import values


def test_what_is_not_computed_is_named() -> None:
    x = constant(np.ones((2, 3)))
    y, z = x * 2, x + 1
    values.expect([y, z])
    y.forward()
    with pytest.raises(ValueError, match=r"who: values of shapes \[\(2, 3\)\] have not been computed.*forward them"):
        values.check_computed([y, z], "who", "forward them")
    nn.forward_all([y, z])
    values.check_computed([y, z], "who", "forward them")
    np.testing.assert_array_equal(y.d, np.full((2, 3), 2))


def test_what_has_a_value_keeps_it() -> None:
    x = constant(np.ones((2, 3)))
    computed = x * 2
    computed.forward()
    views = [x, F.reshape(x, (6,)), computed, F.reshape(computed, (6,))]
    values.expect(views)
    for v in (x, computed):
        assert np.isfinite(v.d).all()
    values.check_computed([x, computed], "", "")
    assert computed.d.tolist() == [[2] * 3] * 2


@pytest.mark.parametrize(("numbers", "computed"), [([1, np.nan], True), ([np.nan, 1], True), ([np.nan, np.nan], False)])
def test_a_value_of_which_some_are_nan_is_computed(numbers: list, computed: bool) -> None:
    assert values.is_computed(constant(numbers)) is computed


def test_values_change_places() -> None:
    """All are read before the first is written; each keeps an array of its own."""
    x, y = constant([1, 2]), constant([3, 4])
    values.copy([y, x], [x, y])
    assert (x.d.tolist(), y.d.tolist()) == ([3, 4], [1, 2])
    values.copy([y], [x])
    y.d = 0
    assert x.d.tolist() == [1, 2]


def test_what_is_computed_together() -> None:
    """In value and gradient they are as alone, whatever the others are."""
    x = constant(np.ones((2, 3))).apply(need_grad=True)
    y, others = x * 2, [F.log(x - 1), F.log(x - 2), F.sum(x, axis=1)]  # -inf, NaN, numbers
    values.expect(others)
    (made,) = values.together([y], others)
    x.g = 0
    made.forward(clear_no_need_grad=True)
    made.backward(clear_buffer=True)
    np.testing.assert_array_equal(made.d, np.full((2, 3), 2))
    np.testing.assert_array_equal(x.g, np.full((2, 3), 2))
    assert np.isneginf(others[0].d).all()
    assert others[2].d.tolist() == [3, 3]
    assert values.together([y], []) == [y]
