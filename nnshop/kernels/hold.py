"""What a mask does to outputs: masked steps repeat the last one that counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .array_function import ArrayFunction, Shape, Variables, array_of, array_to_write, give_gradient, gradient_of, sizes_of


class Hold(ArrayFunction):
    """`(ys (B, T, ...), mask (B, T)) -> (B, T, ...)`; before the first step that counts it gives zeros.

    Args:
        reverse: The first step is the last one.
    """

    def __init__(self, reverse: bool) -> None:
        super().__init__()
        self.reverse = reverse

    def output_shapes(self, *given: Shape) -> Sequence[Shape]:
        ys, mask = given
        sizes_of(self.name, {"the first two axes of ys": "B T", "mask": "B T"}, [ys[:2], mask])
        return [ys]

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return j == 1

    def _sources(self, mask: np.ndarray) -> np.ndarray:
        """The step that each step's output is of, `(B, T)`; -1 before the first."""
        mask = mask[:, ::-1] if self.reverse else mask
        steps = np.maximum.accumulate(np.where(mask != 0, np.arange(mask.shape[1]), -1), axis=1)
        if not self.reverse:
            return steps
        return np.where(steps < 0, -1, mask.shape[1] - 1 - steps)[:, ::-1]

    def compute(self, inputs: Variables, outputs: Variables) -> None:
        ys, sources = array_of(inputs[0]), self._sources(array_of(inputs[1]))
        out = array_to_write(outputs[0])
        out[...] = ys[np.arange(len(ys))[:, None], sources]
        out[sources < 0] = 0

    def compute_gradients(self, inputs: Variables, outputs: Variables, propagate_down: list[bool], accum: list[bool]) -> None:
        if not propagate_down[0]:
            return
        given, sources = gradient_of(outputs[0]), self._sources(array_of(inputs[1]))
        gradient, held = np.zeros_like(given), sources >= 0
        rows = np.broadcast_to(np.arange(len(given))[:, None], sources.shape)
        own = held & (sources == np.arange(sources.shape[1]))
        gradient[own] = given[own]
        np.add.at(gradient, (rows[held & ~own], sources[held & ~own]), given[held & ~own])
        give_gradient(inputs[0], gradient, accum[0])
