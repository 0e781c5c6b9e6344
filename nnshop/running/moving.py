"""Moves steps of sequences between arrays, by NNabla's own functions: on the CPU and on a device alike."""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np

from ..context import in_float32, in_half, on_host


class Mover:
    """Copies and adds arrays of one shape.

    Nothing refers to the arrays afterwards: NNabla lets no two parts of an array that overlap be in use at once, and a step
    within a step may read the same sequence. So no part of an array is ever in a variable of a function, which an exception
    that somebody keeps, such as Ctrl-C in a notebook, would keep too.

    Args:
        shape (tuple of int): Shape of one step.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._source, self._target, self._nothing = nn.Variable(shape), nn.Variable(shape), nn.NdArray(shape)
        with in_float32(len(shape) < 2):  # one number for each row may be an id
            self._copy = F.mul_scalar(self._source, 1.0).parent  # unlike F.identity it converts to the target's type
            self._add = F.add2(self._target, self._source, inplace=True).parent

    def copy(
        self, source: nn.NdArray, target: nn.NdArray, source_step: int | None = None, target_step: int | None = None
    ) -> None:
        """Copies an array to another; with a step, from or to that step of an array `(T, ...)`."""
        self._apply(self._copy, [self._source], source, target, source_step, target_step)

    def add(self, source: nn.NdArray, target: nn.NdArray, target_step: int | None = None) -> None:
        """Adds an array to another, or to a step of it."""
        self._apply(self._add, [self._target, self._source], source, target, None, target_step)

    def _apply(
        self,
        function: Any,
        inputs: list[nn.Variable],
        source: nn.NdArray,
        target: nn.NdArray,
        source_step: int | None,
        target_step: int | None,
    ) -> None:
        try:
            self._source.data, self._target.data = self._part(source, source_step), self._part(target, target_step)
            function.forward(inputs, [self._target])
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Refers to no array any more."""
        self._source.data = self._target.data = self._nothing

    def _part(self, array: nn.NdArray, t: int | None) -> nn.NdArray:
        return array if t is None else array.narrow(0, t, 1).view(self.shape)

    def local(self, array: nn.NdArray) -> nn.NdArray:
        """The array, brought to where functions compute: else each step would be copied from the host by itself."""
        if not on_host(self._copy.context):
            array.cast(_type_of(array), self._copy.context)
        return array

    def writable(self, array: nn.NdArray) -> nn.NdArray:
        """The array, made ready for its steps to be written to: with memory of the type that functions write here."""
        context = self._copy.context
        array.cast(np.float16 if in_half(context) else np.float32, context)
        return array

    def store(self, length: int) -> nn.NdArray:
        """A new array of this many steps."""
        return self.writable(nn.NdArray((length, *self.shape)))


def _type_of(array: nn.NdArray) -> np.dtype:
    try:
        return array.dtype
    except RuntimeError:  # it is to be filled when it is read
        return np.dtype(np.float32)
