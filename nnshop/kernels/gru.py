"""The gated recurrent unit over whole sequences, with the reset gate after the recurrent product or before it."""

from __future__ import annotations

import numpy as np
from numba import float32 as f4

from .activations import sigmoid, tanh
from .array_function import rows_of
from .compiling import compiled
from .gemm import multiply_packed, pack, pack_for
from .recurrence import Recurrence


@compiled("ssvvmmbsssm")
def _forward_after(gates, u, bias, h_bias, h, mask, reverse, y, h_before, candidates, step):
    """Keeps in candidates what h gives to n before the reset."""
    batch, length, units = y.shape
    g = 2 * units
    one = f4(1)
    for n in range(length):
        t = length - 1 - n if reverse else n
        for b in range(batch):
            step[b, :g] = bias[:g]
            step[b, g:] = h_bias
        multiply_packed(h, u, step, 1)
        for b in range(batch):
            hb, now, all_gates, q = h[b], step[b], gates[b, t], candidates[b, t]
            h_before[b, t] = hb
            if mask.size == 0 or mask[b, t] != 0:
                r_t, z_t, n_t = all_gates[:units], all_gates[units:g], all_gates[g:]
                q[:] = now[g:]
                for j in range(units):
                    r_t[j] = sigmoid(r_t[j] + now[j])
                for j in range(units):
                    z_t[j] = sigmoid(z_t[j] + now[units + j])
                for j in range(units):
                    n_t[j] = tanh(n_t[j] + bias[g + j] + r_t[j] * q[j])
                for j in range(units):
                    hb[j] = (one - z_t[j]) * n_t[j] + z_t[j] * hb[j]
            y[b, t] = hb


@compiled("sssmmbssvvm")
def _backward_after(gates, u, dy, dh, mask, reverse, h_before, candidates, dbias, dh_bias, step):
    """Puts the gradients in the places of gates and of candidates."""
    batch, length, units = dy.shape
    g = 2 * units
    one = f4(1)
    for n in range(length):
        t = n if reverse else length - 1 - n
        for b in range(batch):
            dhb, now, all_gates, q, hb = dh[b], step[b], gates[b, t], candidates[b, t], h_before[b, t]
            for j in range(units):
                dhb[j] += dy[b, t, j]
            if mask.size != 0 and mask[b, t] == 0:
                all_gates[:] = f4(0)
                q[:] = f4(0)
                now[:] = f4(0)
                continue
            r_t, z_t, n_t = all_gates[:units], all_gates[units:g], all_gates[g:]
            for j in range(units):
                now[units + j] = dhb[j] * (hb[j] - n_t[j]) * z_t[j] * (one - z_t[j])
            for j in range(units):
                n_t[j] = dhb[j] * (one - z_t[j]) * (one - n_t[j] * n_t[j])
            for j in range(units):
                dhb[j] *= z_t[j]
            for j in range(units):
                now[j] = n_t[j] * q[j] * r_t[j] * (one - r_t[j])
            for j in range(units):
                q[j] = n_t[j] * r_t[j]
            now[g:] = q
            all_gates[:g] = now[:g]
            for j in range(3 * units):
                dbias[j] += all_gates[j]
            for j in range(units):
                dh_bias[j] += q[j]
        multiply_packed(step, u, dh, 1)


@compiled("sssvmmbsssmmm")
def _forward_before(gates, u, u_n, bias, h, mask, reverse, y, h_before, resets, step, reset, step_n):
    """Keeps r * h in resets."""
    batch, length, units = y.shape
    g = 2 * units
    one = f4(1)
    for n in range(length):
        t = length - 1 - n if reverse else n
        for b in range(batch):
            step[b] = bias[:g]
            step_n[b] = bias[g:]
        multiply_packed(h, u, step, 1)
        for b in range(batch):
            hb, now, all_gates = h[b], step[b], gates[b, t]
            r_t, z_t = all_gates[:units], all_gates[units:g]
            h_before[b, t] = hb
            for j in range(units):
                r_t[j] = sigmoid(r_t[j] + now[j])
            for j in range(units):
                z_t[j] = sigmoid(z_t[j] + now[units + j])
            for j in range(units):
                reset[b, j] = r_t[j] * hb[j]
            resets[b, t] = reset[b]
        multiply_packed(reset, u_n, step_n, 1)
        for b in range(batch):
            hb, now = h[b], step_n[b]
            z_t, n_t = gates[b, t, units:g], gates[b, t, g:]
            for j in range(units):
                n_t[j] = tanh(n_t[j] + now[j])
            if mask.size == 0 or mask[b, t] != 0:
                for j in range(units):
                    hb[j] = (one - z_t[j]) * n_t[j] + z_t[j] * hb[j]
            y[b, t] = hb


@compiled("ssssmmbsvmmm")
def _backward_before(gates, u, u_n, dy, dh, mask, reverse, h_before, dbias, step, dreset, step_n):
    """Puts the gradients in the places of gates."""
    batch, length, units = dy.shape
    g = 2 * units
    one = f4(1)
    for n in range(length):
        t = n if reverse else length - 1 - n
        for b in range(batch):
            dhb, now, all_gates, hb = dh[b], step[b], gates[b, t], h_before[b, t]
            for j in range(units):
                dhb[j] += dy[b, t, j]
            if mask.size != 0 and mask[b, t] == 0:
                all_gates[:] = f4(0)
                step_n[b] = f4(0)
                now[:] = f4(0)
                continue
            z_t, n_t = all_gates[units:g], all_gates[g:]
            for j in range(units):
                now[units + j] = dhb[j] * (hb[j] - n_t[j]) * z_t[j] * (one - z_t[j])
            for j in range(units):
                n_t[j] = dhb[j] * (one - z_t[j]) * (one - n_t[j] * n_t[j])
            for j in range(units):
                dhb[j] *= z_t[j]
            step_n[b] = n_t
        multiply_packed(step_n, u_n, dreset, 0)
        for b in range(batch):
            if mask.size != 0 and mask[b, t] == 0:
                continue
            dhb, now, all_gates, hb, d = dh[b], step[b], gates[b, t], h_before[b, t], dreset[b]
            r_t = all_gates[:units]
            for j in range(units):
                now[j] = d[j] * hb[j] * r_t[j] * (one - r_t[j])
            for j in range(units):
                dhb[j] += d[j] * r_t[j]
            all_gates[:g] = now
            for j in range(3 * units):
                dbias[j] += all_gates[j]
        multiply_packed(step, u, dh, 1)


class ResetAfterGRU(Recurrence):
    """`(x, W, U, b?, b_hn?, h, mask?) -> (y, h')`, gates r, z, n; the equations are those of `gru_cell`."""

    gates = 3

    def _run_forward(
        self, gates: np.ndarray, u: np.ndarray, biases: list, finals: list, mask: np.ndarray, y: np.ndarray
    ) -> tuple:
        width, units = gates.shape[2], y.shape[2]
        bias, h_bias = biases or (np.zeros(width, np.float32), np.zeros(units, np.float32))
        h_before, candidates, step = np.empty_like(y), np.empty_like(y), np.empty((len(y), width), np.float32)
        _forward_after(
            gates, pack_for(y.shape[1], len(y), u), bias, h_bias, *finals, mask, self.reverse, y, h_before, candidates, step
        )
        return gates, h_before, candidates

    def _run_backward(self, saved: tuple, u: np.ndarray, dy: np.ndarray, dstates: list, mask: np.ndarray) -> tuple:
        gates, h_before, candidates = saved
        width, units = gates.shape[2], dy.shape[2]
        dbias, dh_bias, step = (np.zeros(s, np.float32) for s in (width, units, (len(dy), width)))
        _backward_after(gates, pack(u.T), dy, *dstates, mask, self.reverse, h_before, candidates, dbias, dh_bias, step)
        h_rows, d_rows, dn_rows = map(rows_of, (h_before, gates, candidates))
        return gates, [(h_rows.T, d_rows[:, : 2 * units]), (h_rows.T, dn_rows)], [dbias, dh_bias][: self.biases]


class ResetBeforeGRU(Recurrence):
    """`(x, W, U, b?, h, mask?) -> (y, h')`, gates r, z, n; the equations are those of `gru_cell` with reset_after=False."""

    gates = 3

    def _run_forward(
        self, gates: np.ndarray, u: np.ndarray, biases: list, finals: list, mask: np.ndarray, y: np.ndarray
    ) -> tuple:
        width, units = gates.shape[2], y.shape[2]
        bias = biases[0] if biases else np.zeros(width, np.float32)
        h_before, resets = np.empty_like(y), np.empty_like(y)
        step, reset, step_n = (np.empty((len(y), n), np.float32) for n in (2 * units, units, units))
        parts = pack(u[:, : 2 * units]), pack(u[:, 2 * units :])
        _forward_before(gates, *parts, bias, *finals, mask, self.reverse, y, h_before, resets, step, reset, step_n)
        return gates, h_before, resets

    def _run_backward(self, saved: tuple, u: np.ndarray, dy: np.ndarray, dstates: list, mask: np.ndarray) -> tuple:
        gates, h_before, resets = saved
        width, units = gates.shape[2], dy.shape[2]
        dbias = np.zeros(width, np.float32)
        step, dreset, step_n = (np.empty((len(dy), n), np.float32) for n in (2 * units, units, units))
        parts = pack(u[:, : 2 * units].T), pack(u[:, 2 * units :].T)
        _backward_before(gates, *parts, dy, *dstates, mask, self.reverse, h_before, dbias, step, dreset, step_n)
        h_rows, d_rows, reset_rows = map(rows_of, (h_before, gates, resets))
        return gates, [(h_rows.T, d_rows[:, : 2 * units]), (reset_rows.T, d_rows[:, 2 * units :])], [dbias][: self.biases]
