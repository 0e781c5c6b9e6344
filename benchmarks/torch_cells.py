"""A user's cells in PyTorch: each a step `(weights, state, x) -> (state, y)` in a loop of Python."""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import torch
from cells import draw, start
from torch.nn.functional import layer_norm

Phases = dict[str, Callable]
Weights = dict[str, torch.Tensor]


def versions() -> dict[str, str]:
    return {"PyTorch": torch.__version__, "Python of PyTorch": platform.python_version()}


# -------------------------------------------------------------------------------------------------------------- the cells


def affine(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    bias = w.get(f"{name}/b")
    return x @ w[f"{name}/W"] if bias is None else torch.addmm(bias, x, w[f"{name}/W"])


def gates(z: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    i, f, g, o = z.chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def norm(w: Weights, name: str, z: torch.Tensor) -> torch.Tensor:
    return layer_norm(z, z.shape[1:], w[f"{name}/gamma"], w[f"{name}/beta"])


def lstm(w, state, x):
    h, c = state
    h, c = gates(affine(w, "x", x) + affine(w, "h", h), c)
    return (h, c), h


def layer_norm_lstm(w, state, x):
    h, c = state
    z = norm(w, "norm_x", affine(w, "x", x)) + norm(w, "norm_h", affine(w, "h", h))
    i, f, g, o = z.chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * norm(w, "norm_c", c).tanh()
    return (h, c), h


def mgu(w, h, x):
    f = (affine(w, "xf", x) + affine(w, "hf", h)).sigmoid()
    n = (affine(w, "xn", x) + affine(w, "hn", f * h)).tanh()
    h = (1 - f) * h + f * n
    return h, h


def _built_in(w, scope, x, h):
    return torch.addmm(w[f"{scope}b"], x, w[f"{scope}x2h/W"]) + h @ w[f"{scope}h2h/W"]


def two_lstms(w, state, x):
    h, c, h2, c2 = state
    h, c = gates(_built_in(w, "0/", x + h2, h), c)
    h2, c2 = gates(_built_in(w, "1/", h, h2), c2)
    return (h, c, h2, c2), h2


def hard_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return (0.2 * x + 0.5).clamp(0, 1)


def rs_lstm(w, state, x):
    h, c = state
    i, f, g, o = _built_in(w, "rs/", x, h).chunk(4, dim=1)
    c = (hard_sigmoid(f) * c + hard_sigmoid(i) * g.tanh()).tanh()
    h = hard_sigmoid(o) * c
    return (h, c), h


def rs_gru(w, h, x):
    x_r, x_z, x_n = torch.addmm(w["rs/b"], x, w["rs/x2h/W"]).chunk(3, dim=1)
    n = h.shape[1]
    h_r, h_z = (h @ w["rs/h2h/W"][:, : 2 * n]).chunk(2, dim=1)
    r, z = hard_sigmoid(x_r + h_r), hard_sigmoid(x_z + h_z)
    new = (x_n + (r * h) @ w["rs/h2h/W"][:, 2 * n :]).tanh()
    h = z * new + (1 - z) * h
    return h, h


def attention(w, state, x):
    h, c, attended = state
    h, c = gates(_built_in(w, "", torch.cat([x, attended], dim=1), h), c)
    scores = torch.bmm((h @ w["attention/query/W"])[:, None], w["memory"].transpose(1, 2))
    context = torch.bmm(scores.softmax(dim=2), w["memory"])[:, 0]
    attended = (torch.cat([h, context], dim=1) @ w["attention/output/W"]).tanh()
    return (h, c, attended), attended


def scan(w, h, x):
    h = (affine(w, "h", h) + x).tanh()
    return h, h


def cornn(w, state, x):
    h, c = state
    act = (affine(w, "x", x) + affine(w, "h", h) + affine(w, "c", c)).tanh()
    c = c + 0.1 * (act - h - c)
    h = h + 0.1 * c
    return (h, c), h


def minimal_rnn(w, h, x):
    z = affine(w, "x", x).tanh()
    u = (affine(w, "h", h) + affine(w, "z", z)).sigmoid()
    h = u * h + (1 - u) * z
    return h, h


def mlstm(w, state, x):
    memory, total = state
    q, k, v = affine(w, "q", x), affine(w, "k", x) * x.shape[1] ** -0.5, affine(w, "v", x)
    i, f = affine(w, "gates", x).sigmoid().chunk(2, dim=1)
    memory = f[:, :, None] * memory + i[:, :, None] * (v[:, :, None] * k[:, None, :])
    total = f * total + i * k
    y = torch.bmm(memory, q[:, :, None])[:, :, 0] / (total * q).sum(dim=1, keepdim=True).abs().clamp(min=1)
    return (memory, total), affine(w, "o", x).sigmoid() * y


def peephole_lstm(w, state, x):
    h, c = state
    i, f, g, o = (affine(w, "x", x) + affine(w, "h", h)).chunk(4, dim=1)
    p_i, p_f, p_o = w["peephole"].chunk(3)
    c = (f + p_f * c).sigmoid() * c + (i + p_i * c).sigmoid() * g.tanh()
    h = (o + p_o * c).sigmoid() * c.tanh()
    return (h, c), h


def nested_lstm(w, state, x):
    h, c, inner = state
    i, f, g, o = (affine(w, "x", x) + affine(w, "h", h)).chunk(4, dim=1)
    c, inner = gates(affine(w, "inner_x", i.sigmoid() * g.tanh()) + affine(w, "inner_h", f.sigmoid() * c), inner)
    h = o.sigmoid() * c.tanh()
    return (h, c, inner), h


def sru(w, c, x):
    a, f, r = affine(w, "x", x).chunk(3, dim=1)
    f, r = f.sigmoid(), r.sigmoid()
    c = f * c + (1 - f) * a
    return c, r * c.tanh() + (1 - r) * x


STEPS: dict[str, Callable] = {
    step.__name__: step
    for step in (lstm, layer_norm_lstm, mgu, two_lstms, rs_lstm, rs_gru, attention, scan)
    + (cornn, minimal_rnn, mlstm, peephole_lstm, nested_lstm, sru)
}


# ----------------------------------------------------------------------------------------------------------- what is timed


def both_passes(rival: str, cell: str, batch: int, steps: int, units: int) -> Phases:
    drawn, x, gradient = draw(cell, batch, steps, units)
    weights = {name: torch.from_numpy(array).requires_grad_() for name, array in drawn.items()}
    xs, gradients = (torch.from_numpy(np.ascontiguousarray(a.swapaxes(0, 1))) for a in (x, gradient))
    xs.requires_grad_()
    del x, gradient

    def forward() -> torch.Tensor:
        state, ys = start(cell, units, lambda shape: torch.zeros(batch, *shape)), []
        for x in xs.unbind():
            state, y = STEPS[cell](weights, state, x)
            ys.append(y)
        return torch.stack(ys)

    def step() -> None:
        for leaf in (xs, *weights.values()):
            leaf.grad = None
        forward().backward(gradients)

    def values() -> dict[str, np.ndarray]:
        step()
        arrays = {"y": forward().detach().swapaxes(0, 1), "x": xs.grad.swapaxes(0, 1)}
        return {name: a.numpy() for name, a in {**arrays, **{name: w.grad for name, w in weights.items()}}.items()}

    return {"step": step, "values": values}
