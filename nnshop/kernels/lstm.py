"""The long short-term memory over whole sequences."""

from __future__ import annotations

import numpy as np
from numba import float32 as f4

from .activations import sigmoid, tanh
from .array_function import rows_of
from .compiling import compiled
from .gemm import multiply_packed, pack, pack_for
from .recurrence import Recurrence


# Each gate has a loop of its own, over contiguous numbers: those are what the compiler turns into vector instructions.
@compiled("ssvmmmbsssm")
def _forward(gates, u, bias, h, c, mask, reverse, y, h_before, c_before, step):
    batch, length, units = y.shape
    f, g, o = units, 2 * units, 3 * units
    for n in range(length):
        t = length - 1 - n if reverse else n
        for b in range(batch):
            step[b] = bias
        multiply_packed(h, u, step, 1)
        for b in range(batch):
            hb, cb, now, all_gates = h[b], c[b], step[b], gates[b, t]
            h_before[b, t], c_before[b, t] = hb, cb
            if mask.size == 0 or mask[b, t] != 0:
                i_t, f_t, g_t, o_t = all_gates[:f], all_gates[f:g], all_gates[g:o], all_gates[o:]
                for j in range(units):
                    i_t[j] = sigmoid(i_t[j] + now[j])
                for j in range(units):
                    f_t[j] = sigmoid(f_t[j] + now[f + j])
                for j in range(units):
                    g_t[j] = tanh(g_t[j] + now[g + j])
                for j in range(units):
                    o_t[j] = sigmoid(o_t[j] + now[o + j])
                for j in range(units):
                    cb[j] = f_t[j] * cb[j] + i_t[j] * g_t[j]
                for j in range(units):
                    hb[j] = o_t[j] * tanh(cb[j])
            y[b, t] = hb


@compiled("sssmmmbsvm")
def _backward(gates, u, dy, dh, dc, mask, reverse, c_before, dbias, step):
    """Puts the gates' gradients in the place of the gates."""
    batch, length, units = dy.shape
    f, g, o = units, 2 * units, 3 * units
    one = f4(1)
    for n in range(length):
        t = n if reverse else length - 1 - n
        for b in range(batch):
            dhb, dcb, now, all_gates, cb = dh[b], dc[b], step[b], gates[b, t], c_before[b, t]
            for j in range(units):
                dhb[j] += dy[b, t, j]
            if mask.size != 0 and mask[b, t] == 0:
                all_gates[:] = f4(0)
                now[:] = f4(0)
                continue
            i_t, f_t, g_t, o_t = all_gates[:f], all_gates[f:g], all_gates[g:o], all_gates[o:]
            for j in range(units):
                k = tanh(f_t[j] * cb[j] + i_t[j] * g_t[j])
                dcb[j] += dhb[j] * o_t[j] * (one - k * k)
                now[o + j] = dhb[j] * k * o_t[j] * (one - o_t[j])
            for j in range(units):
                now[j] = dcb[j] * g_t[j] * i_t[j] * (one - i_t[j])
            for j in range(units):
                now[f + j] = dcb[j] * cb[j] * f_t[j] * (one - f_t[j])
            for j in range(units):
                now[g + j] = dcb[j] * i_t[j] * (one - g_t[j] * g_t[j])
            for j in range(units):
                dcb[j] *= f_t[j]
            dhb[:] = f4(0)  # all of it has gone into the gates; the product below brings what h gave to them
            for j in range(4 * units):
                dbias[j] += now[j]
            all_gates[:] = now
        multiply_packed(step, u, dh, 1)


class LSTM(Recurrence):
    """`(x, W, U, b?, h, c, mask?) -> (y, h', c')`, gates i, f, g, o; the equations are those of `lstm_cell`."""

    states = 2
    gates = 4

    def _run_forward(
        self, gates: np.ndarray, u: np.ndarray, biases: list, finals: list, mask: np.ndarray, y: np.ndarray
    ) -> tuple:
        width = gates.shape[2]
        bias = biases[0] if biases else np.zeros(width, np.float32)
        h_before, c_before, step = np.empty_like(y), np.empty_like(y), np.empty((len(y), width), np.float32)
        _forward(gates, pack_for(y.shape[1], len(y), u), bias, *finals, mask, self.reverse, y, h_before, c_before, step)
        return gates, h_before, c_before

    def _run_backward(self, saved: tuple, u: np.ndarray, dy: np.ndarray, dstates: list, mask: np.ndarray) -> tuple:
        gates, h_before, c_before = saved
        width = gates.shape[2]
        dbias, step = np.zeros(width, np.float32), np.empty((len(dy), width), np.float32)
        _backward(gates, pack(u.T), dy, *dstates, mask, self.reverse, c_before, dbias, step)
        h_rows, d_rows = map(rows_of, (h_before, gates))
        return gates, [(h_rows.T, d_rows)], [dbias][: self.biases]
