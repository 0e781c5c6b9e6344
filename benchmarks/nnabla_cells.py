"""A user's cells with nnshop: each written in NNabla's functions, or put together of nnshop's parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
from cells import MEMORY, draw, start
from nnabla.parameter import get_parameter_or_create
from nnabla_rivals import known_way, versions  # noqa: F401 -- versions is for the worker
from works import WAY

import nnshop
from nnshop import recurrentshop

Phases = dict[str, Callable]

# -------------------------------------------------------------------------------------------------------------- the cells


def affine(x: nn.Variable, units: int, name: str, with_bias: bool = True) -> nn.Variable:
    return PF.affine(x, units, name=name, with_bias=with_bias)


def gated(x: nn.Variable, h: nn.Variable, gates: int, x_name: str = "x", h_name: str = "h") -> nn.Variable:
    units = gates * h.shape[1]
    return affine(x, units, x_name) + affine(h, units, h_name, with_bias=False)


def split(z: nn.Variable, parts: int) -> list[nn.Variable]:
    return F.split(F.reshape(z, (z.shape[0], parts, -1)), axis=1)


def gates(z: nn.Variable, c: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
    i, f, g, o = split(z, 4)
    c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
    return F.sigmoid(o) * F.tanh(c), c


def norm(z: nn.Variable, name: str) -> nn.Variable:
    return PF.layer_normalization(z, batch_axis=0, name=name)


def lstm(x, state):
    h, c = state
    h, c = gates(gated(x, h, 4), c)
    return h, (h, c)


def layer_norm_lstm(x, state):
    h, c = state
    units = 4 * h.shape[1]
    z = norm(affine(x, units, "x"), "norm_x") + norm(affine(h, units, "h", with_bias=False), "norm_h")
    i, f, g, o = split(z, 4)
    c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
    h = F.sigmoid(o) * F.tanh(norm(c, "norm_c"))
    return h, (h, c)


def mgu(x, h):
    f = F.sigmoid(gated(x, h, 1, "xf", "hf"))
    n = F.tanh(gated(x, f * h, 1, "xn", "hn"))
    h = (1 - f) * h + f * n
    return h, h


def cornn(x, state):
    h, c = state
    act = F.tanh(gated(x, h, 1) + affine(c, c.shape[1], "c", with_bias=False))
    c = c + 0.1 * (act - h - c)
    h = h + 0.1 * c
    return h, (h, c)


def minimal_rnn(x, h):
    units = h.shape[1]
    z = F.tanh(affine(x, units, "x"))
    u = F.sigmoid(affine(h, units, "h") + affine(z, units, "z", with_bias=False))
    h = u * h + (1 - u) * z
    return h, h


def mlstm(x, state):
    memory, total = state
    batch, units = total.shape
    q, k, v = (affine(x, units, name, with_bias=False) for name in "qkv")
    k = k * units**-0.5
    i, f = (lambda g: (g[:, :1], g[:, 1:]))(F.sigmoid(affine(x, 2, "gates")))
    column, one = (lambda a: F.reshape(a, (batch, -1, 1))), (lambda a: F.reshape(a, (batch, 1, 1)))
    memory = one(f) * memory + one(i) * F.batch_matmul(column(v), column(k), transpose_b=True)
    total = f * total + i * k
    size = F.maximum_scalar(F.abs(F.sum(total * q, axis=1, keepdims=True)), 1)
    y = F.reshape(F.batch_matmul(memory, column(q)), (batch, units)) / size
    return F.sigmoid(affine(x, units, "o", with_bias=False)) * y, (memory, total)


def peephole_lstm(x, state):
    h, c = state
    units = h.shape[1]
    i, f, g, o = split(gated(x, h, 4), 4)
    p = F.reshape(get_parameter_or_create("peephole", (3 * units,)), (1, 3 * units))
    c = F.sigmoid(f + p[:, units : 2 * units] * c) * c + F.sigmoid(i + p[:, :units] * c) * F.tanh(g)
    h = F.sigmoid(o + p[:, 2 * units :] * c) * F.tanh(c)
    return h, (h, c)


def nested_lstm(x, state):
    h, c, inner = state
    i, f, g, o = split(gated(x, h, 4), 4)
    z = gated(F.sigmoid(i) * F.tanh(g), F.sigmoid(f) * c, 4, "inner_x", "inner_h")
    c, inner = gates(z, inner)
    h = F.sigmoid(o) * F.tanh(c)
    return h, (h, c, inner)


def sru(x, c):
    a, f, r = split(affine(x, 3 * c.shape[1], "x"), 3)
    f, r = F.sigmoid(f), F.sigmoid(r)
    c = f * c + (1 - f) * a
    return r * F.tanh(c) + (1 - r) * x, c


FUNCTIONS = (lstm, layer_norm_lstm, mgu, cornn, minimal_rnn, mlstm, peephole_lstm, nested_lstm, sru)
STEPS: dict[str, Callable] = {function.__name__: function for function in FUNCTIONS}


def two_lstms(batch: int, units: int) -> nnshop.AbstractCell:
    return nnshop.readout(nnshop.stack(nnshop.LSTMCell(units), nnshop.LSTMCell(units)), (units,))


def rs_lstm(batch: int, units: int) -> nnshop.AbstractCell:
    return recurrentshop.LSTMCell(units, name="rs")


def rs_gru(batch: int, units: int) -> nnshop.AbstractCell:
    return recurrentshop.GRUCell(units, name="rs")


def attention(batch: int, units: int) -> nnshop.AbstractCell:
    memory = get_parameter_or_create("memory", (batch, MEMORY, units))  # so that its gradient is compared, too
    return nnshop.attend(nnshop.LSTMCell(units), memory, "general", units=units)


PARTS: dict[str, Callable] = {make.__name__: make for make in (two_lstms, rs_lstm, rs_gru, attention)}


def scan(xs: nn.Variable, way: str) -> nn.Variable:
    batch, _, units = xs.shape

    def step(x: nn.Variable, h: nn.Variable) -> nn.Variable:
        return F.tanh(affine(h, units, "h", with_bias=False) + x)

    return nnshop.scan(step, xs, np.zeros((batch, units)), time_axis=1, way=way)[0]


def sequence(cell: str, xs: nn.Variable, way: str) -> nn.Variable:
    """The outputs of a cell `(B, T, H)`."""
    batch, _, units = xs.shape
    with known_way(way):
        if cell == "scan":
            return scan(xs, way)
        made = PARTS[cell](batch, units) if cell in PARTS else nnshop.Cell(STEPS[cell], start(cell, units, nnshop.StateSpec))
        return nnshop.run(made, xs, way=way)[0]


# ----------------------------------------------------------------------------------------------------------- what is timed


class Training:
    """Both passes of a cell, with the numbers that all rivals start from."""

    def __init__(self, cell: str, batch: int, steps: int, units: int, way: str) -> None:
        self.sizes = cell, batch, steps, units
        self.x = nn.Variable((batch, steps, units), need_grad=True)
        self.ys = sequence(cell, self.x, way)
        self.gradient: Any = nn.NdArray(self.ys.shape)
        self.weights = {_short(name): v for name, v in nn.get_parameters().items()}

    def prepare(self) -> None:
        weights, x, gradient = draw(*self.sizes)
        if weights.keys() != self.weights.keys():
            raise ValueError(f"the table has {sorted(weights)}, the cell {sorted(self.weights)}")
        for name, array in weights.items():
            self.weights[name].d = array.reshape(self.weights[name].shape)
        self.x.d = x
        self.gradient.cast(np.float32)[...] = gradient

    def step(self) -> None:
        self.ys.forward(clear_no_need_grad=True)
        for leaf in (self.x, *self.weights.values()):
            leaf.grad.zero()
        self.ys.backward(self.gradient, clear_buffer=True)

    def values(self) -> dict[str, np.ndarray]:
        self.step()
        gradients = {name: v.g.copy() for name, v in self.weights.items()}
        self.ys.forward()
        shapes = {name: array.shape for name, array in draw(*self.sizes)[0].items()}
        return {"y": self.ys.d, "x": self.x.g, **{name: gradients[name].reshape(shape) for name, shape in shapes.items()}}


def _short(name: str) -> str:
    """The name of a weight in the table: without the functions that made it."""
    return name.replace("affine/", "").replace("layer_normalization/", "")


def both_passes(rival: str, cell: str, batch: int, steps: int, units: int) -> Phases:
    training = Training(cell, batch, steps, units, WAY[rival])
    return {name: getattr(training, name) for name in ("prepare", "step", "values")}


def first_use(rival: str, cell: str, batch: int, steps: int, units: int, after: str | None = None) -> Phases:
    """Building a graph and both passes, twice; perhaps after another cell has been computed. The weights are there before."""
    if after:
        Training(after, batch, steps, units, WAY[rival]).step()
        nn.clear_parameters()
    Training(cell, batch, 1, units, "unrolled").prepare()

    def use() -> None:
        training = Training(cell, batch, steps, units, WAY[rival])
        training.prepare()
        training.step()

    return {"first": use, "again": use}
