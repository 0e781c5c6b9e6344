"""nnshop on a GPU, or on the CPU to try it out."""

from __future__ import annotations

from collections.abc import Callable

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
from nnabla.ext_utils import import_extension_module
from nnabla.utils import nvml
from nnabla_training import draw_parameters, training_step, versions  # noqa: F401 -- versions is for the worker

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
    draw_parameters(0.05)
    return training_step(words, targets, loss, state.carry, classes, max_norm)


def layer(device: Device, kind: str, batch: int, steps: int, units: int) -> Callable[[], None]:
    x = nn.Variable((batch, steps, units), need_grad=True)
    y = LAYERS[kind](x, units, return_sequences=True)
    draw_parameters(0.05)
    rng, gradient = np.random.default_rng(0), nn.NdArray(y.shape)
    x.d, gradient.data = rng.standard_normal(x.shape, np.float32), rng.standard_normal(y.shape, np.float32)
    leaves = [x, *nn.get_parameters().values()]

    def forward_and_backward() -> None:
        for leaf in leaves:
            leaf.grad.zero()
        y.forward(clear_no_need_grad=True)
        y.backward(gradient, clear_buffer=True)

    return forward_and_backward
