"""Functions in Python leave NNabla, and the arrays that they read, as they are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from measuring import constant

import nnshop
from nnshop.functions import linear_cross_entropy

USE = """
import sys, warnings
import nnabla as nn, nnabla.functions as F
import nnshop, nnshop.kernels.array_function

x = nn.Variable((2, 3), need_grad=True)
x.d = 2
with nn.auto_forward():
    (F.sin(x) * x).reshape((3, 2)).backward()
y = (x * x).reshape((3, 2))
y.forward(), y.backward()
print(nn.get_auto_forward(), float(y.d[0, 0]), float(x.g[0, 0]))
print(sorted(name for name in sys.modules if name.startswith("nnabla.nnabla")))
"""


def test_no_module_of_nnabla_is_there_twice() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", USE], capture_output=True, text=True)
    assert "False 4.0" in done.stdout, done.stderr
    assert "['nnabla.nnabla', 'nnabla.nnabla_ext', 'nnabla.nnabla_ext.cpu']" in done.stdout


X = np.random.RandomState(0).randn(2, 5, 3)
READERS: dict[str, Callable[[], nn.Variable]] = {
    "run": lambda: nnshop.run(nnshop.GRUCell(4), constant(X), way="fused")[0],
    "run, masked": lambda: nnshop.run(nnshop.GRUCell(4), constant(X), lengths=[5, 2])[0],
    "lstm": lambda: nnshop.lstm(constant(X), 4),
    "linear_cross_entropy": lambda: linear_cross_entropy(
        constant(X), nn.parameter.get_parameter_or_create("W", (3, 7)), None, constant(np.ones((2, 5)))
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_reading_a_weight_does_not_change_it(reader: str) -> None:
    READERS[reader]()
    rng = np.random.RandomState(1)
    arrays = {name: rng.randn(*v.shape) for name, v in nn.get_parameters().items()}  # no number that float32 has
    for name, v in nn.get_parameters().items():
        v.d = arrays[name]
        v.grad.zero()
    loss = F.sum(READERS[reader]())
    loss.forward()
    loss.backward()
    for name, v in nn.get_parameters().items():
        assert v.d.dtype == np.float64
        np.testing.assert_array_equal(v.d, arrays[name])


def test_importing_nnshop_does_not_import_llvmlite() -> None:
    """It would take longer than all the rest."""
    use = "import sys, nnshop; print([name for name in sys.modules if name.split('.')[0] in ('llvmlite', 'numba')])"
    done = subprocess.run([sys.executable, "-c", use], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
