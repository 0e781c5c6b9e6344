"""Dense layers: the affine map, and an output layer with its softmax cross entropy in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..compiling.products import multiply
from .array_function import (
    ArrayFunction,
    Shape,
    Variables,
    array_of,
    array_to_write,
    check_shapes,
    give_gradient,
    gradient_of,
    gradient_to_write,
    rows_of,
    sizes_of,
)
from .rows import exponentials

BLOCK = 512  # rows of logits that are there at once


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
            give_gradient(inputs[2], dy.sum(axis=0), accum[2])


@np.errstate(invalid="ignore", over="ignore")  # a NaN goes on, as in NNabla
def _cross_entropy(logits: np.ndarray, targets: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Turns logits (N, V) into exp(logit - the row's largest); returns by what to multiply that for the softmax."""
    at_targets = logits[_places(targets)]
    largest, sums = exponentials(logits, keep=True)
    losses[...] = np.where(targets < 0, 0, np.log(sums) - (at_targets - largest))
    return 1 / sums


@np.errstate(invalid="ignore", over="ignore")
def _cross_entropy_gradient(logits: np.ndarray, targets: np.ndarray, scales: np.ndarray, dlosses: np.ndarray) -> None:
    """Turns what `_cross_entropy` left into the gradient of the logits."""
    dlosses = np.where(targets < 0, 0, dlosses)
    logits *= (scales * dlosses)[:, np.newaxis]
    logits[_places(targets)] -= dlosses


def _places(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a matrix has the numbers of the targets; any will do for a negative one."""
    return np.arange(len(targets)), np.maximum(targets, 0)


class LinearCrossEntropy(ArrayFunction):
    """`(h (..., D), W, b (V,)?, target (...)) -> losses (...)`, in nats; where the target is negative, the loss is 0.

    Logits of more than BLOCK rows are never there at once: they are computed again in the backward pass.

    Args:
        transposed: W is `(V, D)`, such as an embedding's, instead of `(D, V)`.
    """

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        self.saved: Any = None  # of the last block: its logits after _cross_entropy, and its scales

    def forget(self) -> None:
        self.saved = None

    def output_shapes(self, *given: Shape) -> Sequence[Shape]:
        h, w, *bias, target = given
        affine_shape(self.name, len(h) - 1, h, w[::-1] if self.transposed else w, *bias)
        check_shapes(self.name, {"target": h[:-1]}, [target])
        return [target]

    def _take_apart(self, inputs: Variables) -> tuple:
        h, w, *bias, target = map(array_of, inputs)
        w = w.T if self.transposed else w
        return rows_of(h, len(w)), w, bias, target.ravel().astype(np.int64)

    def compute(self, inputs: Variables, outputs: Variables) -> None:
        h, w, bias, targets = self._take_apart(inputs)
        losses = array_to_write(outputs[0]).reshape(-1)
        for start in range(0, len(h), BLOCK):
            rows = slice(start, start + BLOCK)
            self.saved = self._block(h[rows], w, bias, targets[rows], losses[rows])

    def _block(self, h: np.ndarray, w: np.ndarray, bias: list, targets: np.ndarray, losses: np.ndarray) -> tuple:
        logits = self.saved[0] if self.saved else np.empty((0, 0), np.float32)
        self.saved = None
        if logits.shape != (len(h), w.shape[1]):
            logits = np.empty((len(h), w.shape[1]), np.float32)
        if bias:
            logits[...] = bias[0]
        multiply(h, w, logits, bool(bias))
        return logits, _cross_entropy(logits, targets, losses)

    def compute_gradients(self, inputs: Variables, outputs: Variables, propagate_down: list[bool], accum: list[bool]) -> None:
        h, w, bias, targets = self._take_apart(inputs)
        dlosses = gradient_of(outputs[0]).reshape(-1)
        losses = np.empty(len(h), np.float32)
        given: list[Any] = [gradient_to_write(v, a) if p else None for v, p, a in zip(inputs, propagate_down, accum)]
        if given[0] is not None:
            given[0] = rows_of(given[0], h.shape[1])
        if given[1] is not None and self.transposed:
            given[1] = given[1].T
        for start in reversed(range(0, len(h), BLOCK)):
            rows = slice(start, start + BLOCK)
            if self.saved is None or start + BLOCK < len(h):
                self.saved = self._block(h[rows], w, bias, targets[rows], losses[rows])
            dlogits, scales = self.saved
            _cross_entropy_gradient(dlogits, targets[rows], scales, dlosses[rows])
            first = start + BLOCK >= len(h)
            if given[0] is not None:
                multiply(dlogits, w.T, given[0][rows], accum[0])
            if given[1] is not None:
                _multiply_into(h[rows].T, dlogits, given[1], accum[1] or not first)
            if bias and given[2] is not None:
                given[2][...] = dlogits.sum(axis=0) + (given[2] if accum[2] or not first else 0)
        self.saved = None


def _multiply_into(a: np.ndarray, b: np.ndarray, out: np.ndarray, accumulate: bool) -> None:
    """`multiply` for an out that may be a transposed view."""
    if out.flags.c_contiguous:
        multiply(a, b, out, accumulate)
    else:
        multiply(b.T, a.T, out.T, accumulate)
