"""The affine map of few rows by one weight, again and again: the weight is packed once."""

from __future__ import annotations

from collections.abc import Sequence

import nnabla as nn
import numpy as np

from ..compiling.products import multiply_packed, pack
from .array_function import ArrayFunction, array_of


class PackedAffine(ArrayFunction):
    """`(x (N, D), W (D, V), b (V,)?) -> x W + b`, of the shape (N, V), without a gradient.

    W is read once, and then taken to be the same until `forget` is called.
    """

    def __init__(self) -> None:
        super().__init__()
        self._packed: np.ndarray | None = None

    def forget(self) -> None:
        self._packed = None

    def setup_impl(self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable]) -> None:
        outputs[0].reset_shape((inputs[0].shape[0], inputs[1].shape[1]), True)

    def forward_impl(self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable]) -> None:
        x, y = array_of(inputs[0]), outputs[0].data.cast(np.float32)
        if self._packed is None:
            self._packed = pack(array_of(inputs[1]))
        if len(inputs) > 2:
            y[...] = array_of(inputs[2])
        multiply_packed(x, self._packed, y, len(inputs) > 2)

    def backward_impl(
        self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable], propagate_down: list[bool], accum: list[bool]
    ) -> None:
        raise NotImplementedError("PackedAffine has no gradient; use F.affine.")
