"""The shortcut to NNabla's arrays leaves NNabla as it is."""

from __future__ import annotations

import subprocess
import sys

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
