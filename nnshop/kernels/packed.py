"""The affine map of few rows by one weight, again and again: the weight is packed once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .array_function import ArrayFunction, Shape, Variables, array_of, rows_of
from .dense import affine_shape
from .gemm import multiply_packed, pack_for


class PackedAffine(ArrayFunction):
    """`(x (..., D), W (D, V), b (V,)?) -> x W + b`, of the shape (..., V), without a gradient.

    W is read once, and then taken to be the same until `forget` is called.
    """

    def __init__(self) -> None:
        super().__init__()
        self._packed: np.ndarray | None = None

    def forget(self) -> None:
        self._packed = None

    def output_shapes(self, *given: Shape) -> Sequence[Shape]:
        return [affine_shape(self.name, len(given[0]) - 1, *given)]

    def compute(self, inputs: Variables, outputs: Variables) -> None:
        depth, width = inputs[1].shape
        x, y = rows_of(array_of(inputs[0]), depth), rows_of(outputs[0].data.cast(np.float32), width)
        if self._packed is None:
            self._packed = pack_for(1, len(x), array_of(inputs[1]))
        if len(inputs) > 2:
            y[...] = array_of(inputs[2])
        multiply_packed(x, self._packed, y, len(inputs) > 2)

    def compute_gradients(self, inputs: Variables, outputs: Variables, propagate_down: list[bool], accum: list[bool]) -> None:
        raise NotImplementedError("PackedAffine has no gradient; use F.affine.")
