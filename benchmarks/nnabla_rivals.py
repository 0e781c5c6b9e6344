"""nnshop's ways, a graph written with NNabla's functions, and NNabla's own layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
from nnabla_training import draw_parameters, training_step, versions  # noqa: F401 -- versions is for the worker
from works import END, NEVER, SEED, START, STOCK, WAY

import nnshop

VOCABULARY = 10_000
Phases = dict[str, Callable[[], None]]
State = tuple[nn.Variable, nn.Variable]


@contextmanager
def known_way(way: str) -> Iterator[None]:
    """Says it, where this version of nnshop does not have the way to run."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("way must be one of"):
            raise
        raise NotImplementedError(f"way={way!r} is not there") from error


def zeros(*shape: int) -> nn.Variable:
    v = nn.Variable(shape)
    v.data.zero()
    return v


# ------------------------------------------------------------------------------------------------------- language model


def language_model(rival: str, units: int, batch: int, steps: int) -> Phases:
    words, targets = nn.Variable((batch, steps)), nn.Variable((batch, steps))
    x = PF.embed(words, VOCABULARY, units)
    if rival in WAY:
        h, carry = run_cells(x, units, WAY[rival])
        loss = nnshop.linear_cross_entropy(h, targets, VOCABULARY, reduction="batch_mean")
    else:
        h, carry = {SEED: plain_layers, STOCK: stock_layers}[rival](x, units)
        loss = plain_loss(h, targets)
    draw_parameters(0.1)
    return {"step": training_step(words, targets, loss, carry, VOCABULARY, max_norm=5.0)}


def run_cells(x: nn.Variable, units: int, way: str) -> tuple[nn.Variable, Callable[[], None]]:
    cell = nnshop.stack(nnshop.LSTMCell(units, name="layer0"), nnshop.LSTMCell(units, name="layer1"))
    state = nnshop.CarriedState(cell, x.shape[0])
    with known_way(way):
        h, final = nnshop.run(cell, x, state.initial, way=way)
    state.follow(final)
    return h, state.carry


def plain_layers(x: nn.Variable, units: int) -> tuple[nn.Variable, Callable[[], None]]:
    """What one writes with NNabla's functions: each step, each gate in the graph."""
    initial, final = [], []
    for name in ("layer0", "layer1"):
        state = (zeros(x.shape[0], units), zeros(x.shape[0], units))
        initial += state
        hs = []
        with nn.parameter_scope(name):
            for x_t in F.split(x, axis=1):
                h, state = plain_cell(x_t, state)
                hs.append(h)
        final += state
        x = F.stack(*hs, axis=1)
    return x, carrying(initial, final)


def plain_cell(x: nn.Variable, state: State) -> tuple[nn.Variable, State]:
    h, c = state
    units = h.shape[1]
    z = PF.affine(x, 4 * units, name="x2h") + PF.affine(h, 4 * units, with_bias=False, name="h2h")
    i, f, g, o = F.split(F.reshape(z, (-1, 4, units)), axis=1)
    c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
    h = F.sigmoid(o) * F.tanh(c)
    return h, (h, c)


def stock_layers(x: nn.Variable, units: int) -> tuple[nn.Variable, Callable[[], None]]:
    initial = [zeros(2, 1, x.shape[0], units), zeros(2, 1, x.shape[0], units)]
    y, *final = PF.lstm(F.transpose(x, (1, 0, 2)), *initial, num_layers=2)
    return F.transpose(y, (1, 0, 2)), carrying(initial, final)


def carrying(initial: list[nn.Variable], final: list[nn.Variable]) -> Callable[[], None]:
    for v in final:
        v.persistent = True  # else NNabla frees it in the backward pass

    def carry() -> None:
        for before, after in zip(initial, final):
            before.data.copy_from(after.data)

    return carry


def plain_loss(h: nn.Variable, targets: nn.Variable) -> nn.Variable:
    batch, steps, units = h.shape
    logits = PF.affine(F.reshape(h, (batch * steps, units)), VOCABULARY)
    return F.sum(F.softmax_cross_entropy(logits, F.reshape(targets, (-1, 1)))) * (1 / batch)


def generation(rival: str, units: int) -> Phases:
    words = zeros(1, 1)
    with nn.no_grad():
        h, carry = run_cells(PF.embed(words, VOCABULARY, units), units, WAY[rival])
        logits = nnshop.TimeDistributed(PF.affine)(h, VOCABULARY)
    draw_parameters(0.1)

    def token() -> None:
        logits.forward(clear_buffer=True)
        carry()
        words.d = np.argmax(logits.d)

    return {"token": token}


def decoding(rival: str, units: int, batch: int, width: int, length: int) -> Phases:
    lstms = [nnshop.LSTMCell(units, name=f"layer{i}") for i in range(2)]
    cell = nnshop.stack(nnshop.lift(PF.embed, VOCABULARY, units), *lstms, nnshop.lift(PF.affine, VOCABULARY, name="output"))
    cell(nn.Variable((1,)), cell.initial_state(1))  # makes the weights
    draw_parameters(0.1)
    nn.get_parameters()["output/affine/b"].d[END] = NEVER
    step = nnshop.decoding.Step(cell, batch * width)

    def text() -> None:
        if width == 1:
            nnshop.decoding.greedy(step, START, end=END, max_length=length)
        else:
            nnshop.decoding.beam_search(step, START, end=END, max_length=length, width=width)

    return {"text": text}


# -------------------------------------------------------------------------------------------------- layers and own cells


def layer(rival: str, kind: str, batch: int, steps: int, units: int) -> Phases:
    make = stock_layer if rival == STOCK else nnshop_layer
    return passes((batch, steps, units), partial(make, kind=kind, units=units))


def nnshop_layer(x: nn.Variable, kind: str, units: int) -> nn.Variable:
    made = {"lstm": nnshop.lstm, "gru": nnshop.gru, "rnn": nnshop.simple_rnn}[kind]
    return made(x, units, return_sequences=True)


def stock_layer(x: nn.Variable, kind: str, units: int) -> nn.Variable:
    state = zeros(1, 1, x.shape[0], units)
    x = F.transpose(x, (1, 0, 2))
    if kind == "lstm":
        y = PF.lstm(x, state, zeros(*state.shape))[0]
    else:
        y = {"gru": PF.gru, "rnn": PF.rnn}[kind](x, state)[0]
    return F.transpose(y, (1, 0, 2))


def own_cell(rival: str, batch: int, steps: int, units: int) -> Phases:
    way, spec = WAY[rival], nnshop.StateSpec((units,))
    cell = nnshop.Cell(plain_cell, (spec, spec))
    with known_way(way):
        return passes((batch, steps, units), lambda x: nnshop.run(cell, x, way=way)[0])


def passes(shape: tuple[int, int, int], function: Callable[[nn.Variable], nn.Variable]) -> Phases:
    """The forward pass of a function of sequences, and the backward pass with all gradients, that of x too."""
    x = nn.Variable(shape, need_grad=True)
    y = function(x)
    gradient: Any = nn.NdArray(y.shape)
    leaves = [x, *nn.get_parameters().values()]

    def prepare() -> None:
        draw_parameters(0.1)
        rng = np.random.default_rng(0)
        x.d = rng.standard_normal(shape, dtype=np.float32)
        gradient.cast(np.float32)[...] = rng.standard_normal(y.shape, dtype=np.float32)

    def forward() -> None:
        y.forward(clear_no_need_grad=True)

    def backward() -> None:
        for leaf in leaves:
            leaf.grad.zero()
        y.backward(gradient, clear_buffer=True)

    return {"forward": forward, "backward": backward}
