"""The simple (Elman) network over whole sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32 as f4

from .activations import tanh
from .array_function import rows_of
from .compiling import compiled
from .gemm import multiply_packed, pack, pack_for
from .recurrence import Recurrence


@compiled("ssvmmbbssm")
def _forward(gates, u, bias, h, mask, reverse, relu, y, h_before, step):
    """Puts the new h in the place of gates, also where a mask keeps it from being used."""
    batch, length, units = y.shape
    for n in range(length):
        t = length - 1 - n if reverse else n
        for b in range(batch):
            step[b] = bias
        multiply_packed(h, u, step, 1)
        for b in range(batch):
            hb, now, new = h[b], step[b], gates[b, t]
            h_before[b, t] = hb
            if relu:
                for j in range(units):
                    a = new[j] + now[j]
                    new[j] = a if a > f4(0) else f4(0)  # of a NaN too, as in NNabla
            else:
                for j in range(units):
                    new[j] = tanh(new[j] + now[j])
            if mask.size == 0 or mask[b, t] != 0:
                hb[:] = new
            y[b, t] = hb


@compiled("sssmmbbvm")
def _backward(gates, u, dy, dh, mask, reverse, relu, dbias, step):
    """Puts the gradient of what went into the activation in the place of what came out."""
    batch, length, units = dy.shape
    one, zero = f4(1), f4(0)
    for n in range(length):
        t = n if reverse else length - 1 - n
        for b in range(batch):
            dhb, now, out = dh[b], step[b], gates[b, t]
            for j in range(units):
                dhb[j] += dy[b, t, j]
            if mask.size != 0 and mask[b, t] == 0:
                out[:] = zero
                now[:] = zero
                continue
            if relu:
                for j in range(units):
                    now[j] = dhb[j] if out[j] > zero else zero
            else:
                for j in range(units):
                    now[j] = dhb[j] * (one - out[j] * out[j])
            dhb[:] = zero
            for j in range(units):
                dbias[j] += now[j]
            out[:] = now
        multiply_packed(step, u, dh, 1)


class SimpleRNN(Recurrence):
    """`(x, W, U, b?, h, mask?) -> (y, h')`; the equation is that of `simple_rnn_cell`, with tanh or relu."""

    def __init__(self, *arguments: Any, relu: bool = False) -> None:
        super().__init__(*arguments)
        self.relu = relu

    def _run_forward(
        self, gates: np.ndarray, u: np.ndarray, biases: list, finals: list, mask: np.ndarray, y: np.ndarray
    ) -> tuple:
        bias = biases[0] if biases else np.zeros(gates.shape[2], np.float32)
        h_before, step = np.empty_like(y), np.empty_like(y[:, 0])
        _forward(gates, pack_for(y.shape[1], len(y), u), bias, *finals, mask, self.reverse, self.relu, y, h_before, step)
        return gates, h_before

    def _run_backward(self, saved: tuple, u: np.ndarray, dy: np.ndarray, dstates: list, mask: np.ndarray) -> tuple:
        gates, h_before = saved
        dbias, step = np.zeros(gates.shape[2], np.float32), np.empty_like(dstates[0])
        _backward(gates, pack(u.T), dy, *dstates, mask, self.reverse, self.relu, dbias, step)
        h_rows, d_rows = map(rows_of, (h_before, gates))
        return gates, [(h_rows.T, d_rows)], [dbias][: self.biases]
