"""Dense layers: the affine map, and an output layer with its softmax cross entropy in one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..compiling.products import multiply
from .array_function import (
    ArrayFunction,
    Shape,
    Variables,
    array_of,
    array_to_write,
    check_shapes,
    gradient_of,
    gradient_to_write,
    rows_of,
    sizes_of,
)
from .rows import add_up, exponentials, scale

BLOCK = 512  # rows of logits that are computed at once
KEPT = 2**24  # logits that are kept for the backward pass, 64 MiB


def affine_shape(who: str, base_axis: int, x: Shape, *weights: Shape) -> Shape:
    """The shape of `x W + b`; see `Affine`."""
    axes = dict([("x", "D"), ("W", "D V"), ("b", "V")][: 1 + len(weights)])
    sizes_of(who, axes, [(math.prod(x[base_axis:]),), *weights])
    return (*x[:base_axis], weights[0][1])


class Affine(ArrayFunction):
    """`(x (..., D), W (D, V), b (V,)?) -> x W + b`, of the shape (..., V).

    Args:
        base_axis: The axis of x from which on its axes are D together.
    """

    def __init__(self, base_axis: int = 1) -> None:
        super().__init__()
        self.base_axis = base_axis

    def output_shapes(self, *given: Shape) -> Sequence[Shape]:
        return [affine_shape(self.name, self.base_axis, *given)]

    def compute(self, inputs: Variables, outputs: Variables) -> None:
        x, w, *bias = map(array_of, inputs)
        y = rows_of(array_to_write(outputs[0]), w.shape[1])
        if bias:
            y[...] = bias[0]
        multiply(rows_of(x, len(w)), w, y, bool(bias))

    def compute_gradients(self, inputs: Variables, outputs: Variables, propagate_down: list[bool], accum: list[bool]) -> None:
        x, w, *_ = map(array_of, inputs)
        x, dy = rows_of(x, len(w)), rows_of(gradient_of(outputs[0]), w.shape[1])
        for i, (a, b) in enumerate([(dy, w.T), (x.T, dy)]):
            if propagate_down[i]:
                multiply(a, b, rows_of(gradient_to_write(inputs[i], accum[i]), b.shape[1]), accum[i])
        if len(inputs) > 2 and propagate_down[2]:
            add_up(dy, gradient_to_write(inputs[2], accum[2]), accum[2])


@np.errstate(invalid="ignore", over="ignore")  # a NaN goes on, as in NNabla
def _cross_entropy(logits: np.ndarray, bias: np.ndarray | None, targets: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Turns logits (N, V), without bias, into exp(logit - the row's largest); returns what makes the softmax of that."""
    at_targets = logits[_places(targets)]
    if bias is not None:
        at_targets += bias[np.maximum(targets, 0)]
    largest, sums = exponentials(logits, keep=True, bias=bias)
    losses[...] = np.where(targets < 0, 0, np.log(sums) - (at_targets - largest))
    return 1 / sums


@np.errstate(invalid="ignore", over="ignore")
def _cross_entropy_gradient(logits: np.ndarray, targets: np.ndarray, scales: np.ndarray, dlosses: np.ndarray) -> None:
    """Turns what `_cross_entropy` left into the gradient of the logits."""
    dlosses = np.where(targets < 0, 0, dlosses)
    scale(logits, scales * dlosses)
    logits[_places(targets)] -= dlosses


def _places(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a matrix has the numbers of the targets; any will do for a negative one."""
    return np.arange(len(targets)), np.maximum(targets, 0)


class LinearCrossEntropy(ArrayFunction):
    """`(h (..., D), W, b (V,)?, target (...)) -> losses (...)`, in nats; where the target is negative, the loss is 0.

    What the backward pass needs of more than KEPT logits is not there at once: those are computed again, by blocks of rows.

    Args:
        transposed: W is `(V, D)`, such as an embedding's, instead of `(D, V)`.
    """

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        self.rooms: dict[int, np.ndarray] = {}  # memory for blocks of logits, by number
        self.left: dict[int, tuple[int, np.ndarray]] = {}  # which block `_cross_entropy` has turned there, and its scales

    def forget(self) -> None:
        self.rooms, self.left = {}, {}

    def output_shapes(self, *given: Shape) -> Sequence[Shape]:
        h, w, *bias, target = given
        affine_shape(self.name, len(h) - 1, h, w[::-1] if self.transposed else w, *bias)
        check_shapes(self.name, {"target": h[:-1]}, [target])
        return [target]

    def _take_apart(self, inputs: Variables) -> tuple:
        h, w, *bias, target = map(array_of, inputs)
        w = w.T if self.transposed else w
        return rows_of(h, len(w)), w, bias[0] if bias else None, target.ravel().astype(np.int64)

    def _blocks(self, rows: int, columns: int) -> list[tuple[int, slice]]:
        """The number of the memory that each block has, and its rows. Those that would be too much share the first one."""
        most = max(1, KEPT // (BLOCK * columns))
        return [(n if n < most else 0, slice(n * BLOCK, (n + 1) * BLOCK)) for n in range(-(-rows // BLOCK))]

    def _compute_block(self, room: int, rows: slice, the: tuple, losses: np.ndarray) -> None:
        h, w, bias, targets = the
        shape = len(h[rows]), w.shape[1]
        if room not in self.rooms or self.rooms[room].shape != shape:
            self.rooms[room] = np.empty(shape, np.float32)
        logits = multiply(h[rows], w, self.rooms[room])
        self.left[room] = rows.start, _cross_entropy(logits, bias, targets[rows], losses[rows])

    def compute(self, inputs: Variables, outputs: Variables) -> None:
        the = self._take_apart(inputs)
        losses = array_to_write(outputs[0]).reshape(-1)
        for room, rows in self._blocks(len(the[0]), the[1].shape[1]):
            self._compute_block(room, rows, the, losses)

    def compute_gradients(self, inputs: Variables, outputs: Variables, propagate_down: list[bool], accum: list[bool]) -> None:
        the = h, w, _, targets = self._take_apart(inputs)
        dlosses = gradient_of(outputs[0]).reshape(-1)
        losses = np.empty(len(h), np.float32)
        asked = [gradient_to_write(v, a) if p else None for v, p, a in zip(inputs, propagate_down, accum)]
        dh, dw, db = *asked[:2], (asked[2] if len(inputs) > 3 else None)
        dh = None if dh is None else rows_of(dh, h.shape[1])
        dw = dw.T if dw is not None and self.transposed else dw
        blocks = self._blocks(len(h), w.shape[1])
        for room, rows in reversed(blocks):
            if self.left.get(room, (None,))[0] != rows.start:
                self._compute_block(room, rows, the, losses)
            _, scales = self.left.pop(room)
            dlogits, first = self.rooms[room], rows == blocks[-1][1]
            _cross_entropy_gradient(dlogits, targets[rows], scales, dlosses[rows])
            if dh is not None:
                multiply(dlogits, w.T, dh[rows], accum[0])
            if dw is not None:
                _multiply_into(h[rows].T, dlogits, dw, accum[1] or not first)
            if db is not None:
                add_up(dlogits, db, accum[2] or not first)


def _multiply_into(a: np.ndarray, b: np.ndarray, out: np.ndarray, accumulate: bool) -> None:
    """`multiply` for an out that may be a transposed view."""
    if out.flags.c_contiguous:
        multiply(a, b, out, accumulate)
    else:
        multiply(b.T, a.T, out.T, accumulate)
