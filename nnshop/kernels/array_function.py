"""The base of every function that nnshop computes itself, in Python, on the arrays of Variables."""

from __future__ import annotations

import sys
from typing import Any

import nnabla as nn
import numpy as np
from nnabla.function import PythonFunction

# At each access to an array NNabla tries to import `nnabla.nnabla_ext` or `nnabla.nnabla`, which do not exist, before
# `nnabla_ext` and `nnabla`. Looking for them on the disk takes 15 us; with these entries Python knows that they are not there.
for _absent in ("nnabla.nnabla_ext", "nnabla.nnabla"):
    sys.modules.setdefault(_absent, None)  # type: ignore[arg-type]


class ArrayFunction(PythonFunction):
    """A function of NNabla whose subclass defines `setup_impl`, `forward_impl` and `backward_impl`.

    Its gradient needs the data of all inputs and of no output; a subclass that needs less, or more, says so.
    """

    @property
    def name(self) -> str:
        return type(self).__name__

    def min_outputs(self) -> int:
        return 1

    def grad_depends_output_data(self, i: int, o: int) -> bool:
        return False

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return True


def array_of(x: nn.Variable) -> np.ndarray:
    """A Variable's data as a float32 array, to be read."""
    array = x.data.data
    return array if array.dtype == np.float32 else array.astype(np.float32)


def gradient_of(x: nn.Variable) -> np.ndarray:
    """The gradient that has arrived at a Variable, as a float32 array, to be read."""
    array = x.grad.data
    return array if array.dtype == np.float32 else array.astype(np.float32)


def gradient_to_write(x: nn.Variable, accumulate: bool) -> np.ndarray:
    """The array of a Variable's gradient: to add to it, or else to overwrite what it holds, which may be anything."""
    return x.grad.data if accumulate else x.grad.cast(np.float32)


def give_gradient(x: nn.Variable, gradient: Any, accumulate: bool) -> None:
    """Writes a gradient to a Variable, or adds it to the one that is there."""
    if accumulate:
        present = gradient_to_write(x, True)
        present += gradient
    else:
        gradient_to_write(x, False)[...] = gradient
