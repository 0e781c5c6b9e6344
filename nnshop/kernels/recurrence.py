"""What the recurrent layers over whole sequences have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from .array_function import (
    ArrayFunction,
    Shape,
    Variables,
    array_of,
    give_gradient,
    gradient_of,
    gradient_to_write,
    rows_of,
    sizes_of,
)
from .gemm import multiply

_NO_MASK = np.empty((0, 0), np.float32)


class Recurrence(ArrayFunction):
    """A layer `(x, W, U, *biases, *states, mask?) -> (y, *final states)`, computed for the whole sequence in one go.

    Shapes: x `(B, T, D)`, W `(D, G * H)`, U `(H, G * H)`, biases `(G * H,)` and `(H,)`, states `(B, H)`, mask `(B, T)`, y
    `(B, T, H)`. A masked step leaves the states as they were, and y repeats the first of them.

    A subclass runs the loops over time, forwards and backwards, on arrays.

    Args:
        biases: How many there are among the inputs.
        mask: Whether the last input is one.
        reverse: From the last step to the first.
    """

    states = 1
    gates = 1  # G

    def __init__(self, biases: int, mask: bool, reverse: bool) -> None:
        super().__init__()
        self.biases, self.masked, self.reverse = biases, mask, reverse
        self.saved: Any = None  # what the backward pass needs of the forward pass, and computes in place of

    def min_outputs(self) -> int:
        return 1 + self.states

    def forget(self) -> None:
        self.saved = None

    def output_shapes(self, *given: Shape) -> Sequence[Shape]:
        all_gates = f"{self.gates}H"
        axes = {"x": "B T D", "W": f"D {all_gates}", "U": f"H {all_gates}"}
        axes.update([("b", all_gates), ("b_hn", "H")][: self.biases])
        axes.update([("h", "B H"), ("c", "B H")][: self.states])
        axes.update([("mask", "B T")] if self.masked else [])
        sizes = sizes_of(self.name, axes, given)
        batch, length, units = (sizes[axis] for axis in "BTH")
        return [(batch, length, units), *[(batch, units)] * self.states]

    def compute(self, inputs: Variables, outputs: Variables) -> None:
        y, *finals = (v.data.cast(np.float32) for v in outputs)
        self._forward(inputs, y, finals)

    def _take_apart(self, inputs: Variables) -> tuple:
        """Arrays of x, W, U, the biases, the states, and the mask."""
        x, w, u, *rest = map(array_of, inputs)
        mask = rest.pop() if self.masked else _NO_MASK
        return x, w, u, rest[: self.biases], rest[self.biases :], mask

    def _forward(self, inputs: Variables, y: np.ndarray, finals: list[np.ndarray]) -> None:
        x, w, u, biases, states, mask = self._take_apart(inputs)
        gates = np.empty((*x.shape[:2], w.shape[1]), np.float32)
        multiply(rows_of(x), w, rows_of(gates))
        for final, state in zip(finals, states):
            final[...] = state
        self.saved = self._run_forward(gates, u, biases, finals, mask, y)

    def compute_gradients(self, inputs: Variables, outputs: Variables, propagate_down: list[bool], accum: list[bool]) -> None:
        x, w, u, _, _, mask = self._take_apart(inputs)
        if self.saved is None:  # backward once more
            y, *finals = (np.empty(v.shape, np.float32) for v in outputs)
            self._forward(inputs, y, finals)
        saved, self.saved = self.saved, None
        dy, *dfinals = map(gradient_of, outputs)
        dstates = [d.copy() for d in dfinals]
        dgates, du_factors, dbiases = self._run_backward(saved, u, dy, dstates, mask)
        dz = rows_of(dgates)

        def give_product(i: int, factors: list) -> None:
            """Gives input i the products, side by side."""
            if propagate_down[i]:
                out, first = rows_of(gradient_to_write(inputs[i], accum[i])), 0
                for a, b in factors:
                    multiply(a, b, out[:, first : first + b.shape[1]], accum[i])
                    first += b.shape[1]

        give_product(0, [(dz, w.T)])
        give_product(1, [(rows_of(x).T, dz)])
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
