"""nnshop on a GPU, or on the CPU to try it out."""

from __future__ import annotations

import platform
from itertools import cycle
from typing import Callable

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
from nnabla.ext_utils import import_extension_module
from nnabla.utils import nvml

import nnshop

LAYERS = {"lstm": nnshop.lstm, "gru": nnshop.gru, "rnn": nnshop.simple_rnn}


class Device:
    """The context that is in use, and how to wait for it."""

    def __init__(self, context: str, type_config: str) -> None:
        self._used = nnshop.use_context(context, type_config=type_config)
        self._extension = import_extension_module(context)
        self.name = "CPU" if context == "cpu" else device_name(self._used.context.device_id)
        F.tanh(nn.NdArray((1,)))  # now the device has what CUDA itself takes of its memory

    def synchronize(self) -> None:
        self._extension.device_synchronize(self._used.context.device_id or "0")


def device_name(device_id: str) -> str:
    nvml.nvmlInit()
    name = nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(int(device_id)))
    nvml.nvmlShutdown()
    return name.decode() if isinstance(name, bytes) else name


def versions() -> dict[str, str]:
    return {
        "nnshop": nnshop.__version__,
        "NNabla": nn.__version__,
        "NumPy": np.__version__,
        "Python of NNabla": platform.python_version(),
    }


def draw_parameters() -> None:
    rng = np.random.RandomState(0)
    for parameter in nn.get_parameters().values():
        parameter.d = rng.uniform(-0.05, 0.05, parameter.shape)


def language_model(
    device: Device, units: int, batch: int, steps: int, classes: int, dropout: float, max_norm: float
) -> Callable[[], None]:
    drop = [nnshop.lift(F.dropout, dropout)] if dropout else []
    layers = [part for i in range(2) for part in (*drop, nnshop.LSTMCell(units, name=f"layer{i}"))]
    cell = nnshop.stack(*layers, *drop)
    words, targets = nn.Variable((batch, steps)), nn.Variable((batch, steps))
    state = nnshop.CarriedState(cell, batch)
    h, final = nnshop.run(cell, PF.embed(words, classes, units), state.initial)
    state.follow(final)
    loss = nnshop.linear_cross_entropy(h, targets, classes, reduction="batch_mean")
    draw_parameters()
    solver = S.Sgd(1.0)
    solver.set_parameters(nn.get_parameters())
    batches = cycle(np.random.RandomState(0).randint(classes, size=(4, 2, batch, steps)))

    def step() -> None:
        words.d, targets.d = next(batches)
        solver.zero_grad()
        loss.forward(clear_no_need_grad=True)
        float(loss.d)
        loss.backward(clear_buffer=True)
        nnshop.clip_grad_by_global_norm(solver, max_norm)
        solver.update()
        state.carry()

    return step


def layer(device: Device, kind: str, batch: int, steps: int, units: int) -> Callable[[], None]:
    x = nn.Variable((batch, steps, units), need_grad=True)
    y = LAYERS[kind](x, units, return_sequences=True)
    draw_parameters()
    rng, gradient = np.random.default_rng(0), nn.NdArray(y.shape)
    x.d, gradient.data = rng.standard_normal(x.shape, np.float32), rng.standard_normal(y.shape, np.float32)
    leaves = [x, *nn.get_parameters().values()]

    def forward_and_backward() -> None:
        for leaf in leaves:
            leaf.grad.zero()
        y.forward(clear_no_need_grad=True)
        y.backward(gradient, clear_buffer=True)

    return forward_and_backward
