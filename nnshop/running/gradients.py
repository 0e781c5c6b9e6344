"""Gives the gradients that programs computed to the inputs of a function of NNabla."""

from __future__ import annotations

from collections.abc import Sequence

import nnabla as nn
import numpy as np

from ..compiling.memory import Memory
from ..compiling.plan import WeightGradient
from ..compiling.products import address, multiply
from ..kernels.array_function import gradient_to_write


class Gradients:
    """The gradients of inputs, which are written to or added to. One Variable may be several inputs, or share its gradient."""

    def __init__(self, inputs: Sequence[nn.Variable], asked: Sequence[bool], accum: Sequence[bool]) -> None:
        self.inputs, self.asked, self.accum = inputs, asked, accum
        self._arrays: dict[int, tuple[np.ndarray, bool]] = {}
        self._written: set[int] = set()  # addresses

    def array(self, i: int) -> tuple[np.ndarray, bool]:
        """The array of an input's gradient, and whether what it holds counts."""
        if i not in self._arrays:
            array = gradient_to_write(self.inputs[i], self.accum[i])
            at = address(array)
            self._arrays[i] = array, self.accum[i] or at in self._written
            self._written.add(at)
        return self._arrays[i]

    def part(self, i: int, start: int, stop: int) -> tuple[np.ndarray, bool]:
        """A range of the numbers of an array, and whether what it holds counts; zeros lie in the rest of the array."""
        array, adds = self.array(i)
        if not adds and stop - start < array.size:
            array[...] = 0
            adds = True
        self._arrays[i] = array, True
        return array.reshape(-1)[start:stop], adds

    def give(self, i: int, gradient: np.ndarray) -> None:
        if self.asked[i]:
            array, adds = self.array(i)
            if adds:
                array += gradient.reshape(array.shape)
            else:
                array[...] = gradient.reshape(array.shape)
            self._arrays[i] = array, True


def give_product(memory: Memory, factors: WeightGradient, gradients: Gradients) -> None:
    """Gives the sum of the outer products of all rows to the gradient of a weight."""
    weight = factors.weight
    start = weight.row * weight.columns
    out, adds = gradients.part(weight.input, start, start + weight.rows * weight.columns)
    a = memory.matrix(factors.input_place, factors.input)
    d = memory.matrix(factors.gradient_place, factors.gradient)
    left, right = (d, a) if weight.transposed else (a, d)
    multiply(left.T, right, out.reshape(weight.rows, weight.columns), adds)
