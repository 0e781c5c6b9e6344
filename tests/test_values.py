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
        values.computed([y, z], "who", "forward them")
    nn.forward_all([y, z])
    first, _ = values.computed([y, z], "who", "forward them")
    np.testing.assert_array_equal(first, np.full((2, 3), 2))


def test_what_has_a_value_keeps_it() -> None:
    x = constant(np.ones((2, 3)))
    computed = x * 2
    computed.forward()
    views = [x, F.reshape(x, (6,)), computed, F.reshape(computed, (6,))]
    values.expect(views)
    for v in (x, computed):
        assert np.isfinite(v.d).all()
    assert values.computed([x, computed], "", "")[1].tolist() == [[2] * 3] * 2
