"""The base of every function that nnshop computes itself, in Python, on the arrays of Variables."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import nnabla as nn
import nnabla_ext
import nnabla_ext.cpu
import numpy as np
from nnabla.function import PythonFunction


class _Inside(ModuleType):
    """Stands for a module that NNabla looks for inside itself first, as Python 2 did, and has what the real one has.

    It has no `__path__`, so it is no package: NNabla finds the real submodules outside.
    """

    def __init__(self, real: ModuleType) -> None:
        super().__init__(f"nnabla.{real.__name__}")
        self._real = real

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real, name)


def _spare_nnabla_the_search() -> None:
    """Makes access to arrays several times faster: at each, NNabla searches the disk for `nnabla` and `nnabla_ext.cpu`."""
    for real in (nn, nnabla_ext):
        sys.modules.setdefault(f"nnabla.{real.__name__}", _Inside(real))
    sys.modules.setdefault("nnabla.nnabla_ext.cpu", nnabla_ext.cpu)


_spare_nnabla_the_search()


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
    """A Variable's data as a float32 array, to be read only; of other data it is a copy."""
    return _float32(x.data)


def gradient_of(x: nn.Variable) -> np.ndarray:
    """The gradient that has arrived at a Variable, as a float32 array, to be read."""
    return _float32(x.grad)


def _float32(values: nn.NdArray) -> np.ndarray:
    return values.get_data("r", np.float32)


def gradient_to_write(x: nn.Variable, accumulate: bool) -> np.ndarray:
    """The array of a Variable's gradient: to add to it, or else to overwrite what it holds, which may be anything."""
    array = x.grad.data if accumulate else None
    return array if array is not None and array.dtype == np.float32 else x.grad.cast(np.float32)


def give_gradient(x: nn.Variable, gradient: Any, accumulate: bool) -> None:
    """Writes a gradient to a Variable, or adds it to the one that is there."""
    if accumulate:
        present = gradient_to_write(x, True)
        present += gradient
    else:
        gradient_to_write(x, False)[...] = gradient
