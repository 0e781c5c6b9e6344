"""What the recurrent layers over whole sequences have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import nnabla as nn
import numpy as np

from .array_function import ArrayFunction, array_of, give_gradient, gradient_of, gradient_to_write
from .gemm import multiply

_NO_MASK = np.empty((0, 0), np.float32)


class Recurrence(ArrayFunction):
    """A layer `(x, W, U, *biases, *states, mask?) -> (y, *final states)`, computed for the whole sequence in one go.

    Shapes: x `(B, T, D)`, W `(D, G * H)`, U `(H, G * H)`, the first bias `(G * H,)`, states `(B, H)`, mask `(B, T)`, y
    `(B, T, H)`. A masked step leaves the states as they were, and y repeats the first of them.

    A subclass runs the loops over time, forwards and backwards, on arrays.

    Args:
        biases: How many there are among the inputs.
        mask: Whether the last input is one.
        reverse: From the last step to the first.
    """

    states = 1

    def __init__(self, biases: int, mask: bool, reverse: bool) -> None:
        super().__init__()
        self.biases, self.masked, self.reverse = biases, mask, reverse
        self.saved: Any = None  # what the backward pass needs of the forward pass, and computes in place of

    def min_outputs(self) -> int:
        return 1 + self.states

    def setup_impl(self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable]) -> None:
        batch, length, _ = inputs[0].shape
        units = inputs[2].shape[0]
        self.saved = None
        outputs[0].reset_shape((batch, length, units), True)
        for state in outputs[1:]:
            state.reset_shape((batch, units), True)

    def forward_impl(self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable]) -> None:
        y, *finals = (v.data.cast(np.float32) for v in outputs)
        self._forward(inputs, y, finals)

    def _take_apart(self, inputs: Sequence[nn.Variable]) -> tuple:
        """Arrays of x, W, U, the biases, the states, and the mask."""
        x, w, u, *rest = map(array_of, inputs)
        mask = rest.pop() if self.masked else _NO_MASK
        return x, w, u, rest[: self.biases], rest[self.biases :], mask

    def _forward(self, inputs: Sequence[nn.Variable], y: np.ndarray, finals: list[np.ndarray]) -> None:
        x, w, u, biases, states, mask = self._take_apart(inputs)
        gates = np.empty((*x.shape[:2], w.shape[1]), np.float32)
        multiply(_flat(x), w, _flat(gates))
        for final, state in zip(finals, states):
            final[...] = state
        self.saved = self._run_forward(gates, u, biases, finals, mask, y)

    def backward_impl(
        self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable], propagate_down: list[bool], accum: list[bool]
    ) -> None:
        x, w, u, _, _, mask = self._take_apart(inputs)
        if self.saved is None:  # backward once more
            y, *finals = (np.empty(v.shape, np.float32) for v in outputs)
            self._forward(inputs, y, finals)
        saved, self.saved = self.saved, None
        dy, *dfinals = map(gradient_of, outputs)
        dstates = [d.copy() for d in dfinals]
        dgates, du_factors, dbiases = self._run_backward(saved, u, dy, dstates, mask)
        dz = _flat(dgates)

        def give_product(i: int, factors: list) -> None:
            """Gives input i the products, side by side."""
            if propagate_down[i]:
                out, first = _flat(gradient_to_write(inputs[i], accum[i])), 0
                for a, b in factors:
                    multiply(a, b, out[:, first : first + b.shape[1]], accum[i])
                    first += b.shape[1]

        give_product(0, [(dz, w.T)])
        give_product(1, [(_flat(x).T, dz)])
        give_product(2, du_factors)
        for i, gradient in enumerate([*dbiases, *dstates], start=3):
            if propagate_down[i]:
                give_gradient(inputs[i], gradient, accum[i])

    @abstractmethod
    def _run_forward(
        self, gates: np.ndarray, u: np.ndarray, biases: list, finals: list, mask: np.ndarray, y: np.ndarray
    ) -> tuple:
        """Computes y, and turns the initial states into the final ones; gates `(B, T, G * H)` hold what x gives to them.

        Returns what `_run_backward` needs.
        """

    @abstractmethod
    def _run_backward(self, saved: tuple, u: np.ndarray, dy: np.ndarray, dstates: list, mask: np.ndarray) -> tuple:
        """Turns dstates, the gradients of the final states, into those of the initial ones.

        Returns the gradients of what x gives to the gates; the factors of that of U, pairs of matrices whose products stand
        side by side; and the gradients of the biases.
        """


def _flat(x: np.ndarray) -> np.ndarray:
    """`(B, T, n)` as `(B * T, n)`; a matrix as it is."""
    return x.reshape(-1, x.shape[-1])


def rows_of(*arrays: np.ndarray) -> list[np.ndarray]:
    """Sequences `(B, T, n)` as matrices of their rows, `(B * T, n)`."""
    return [_flat(array) for array in arrays]
