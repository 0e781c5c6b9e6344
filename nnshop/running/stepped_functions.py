"""A traced step by NNabla's functions, one step at a time."""

from __future__ import annotations

from collections.abc import Sequence

import nnabla as nn
import nnabla.functions as F
import numpy as np

from ..context import in_float32
from ..kernels.array_function import array_of
from .step_graph import StepGraph


class Functions:
    """The engine of a step that is not compiled, in the context of its making: on a device the states stay there.

    Args:
        graph: The step.
        n_x: How many inputs it has; states and closures follow.
    """

    def __init__(self, graph: StepGraph, n_x: int) -> None:
        self._closures = graph.closures
        constant = len(graph.inputs) - len(graph.closures)
        self._xs, self._before, self._leaves = graph.inputs[:n_x], graph.inputs[n_x:constant], graph.inputs[constant:]
        n_y = len(graph.outputs) - len(self._before)
        self._ys, self._after = graph.outputs[:n_y], graph.outputs[n_y:]
        for leaf in graph.inputs:
            leaf.need_grad = False  # else NNabla would ask each Python function, at each step, what its gradients depend on
        self._each = np.arange(self._before[0].shape[0] if self._before else 0)
        self._rows = nn.Variable(self._each.shape)
        self._sources = [nn.Variable(leaf.shape) for leaf in self._before]
        with nn.auto_forward(False):
            self._sink = F.sink(*graph.outputs) if graph.outputs else None
            with in_float32():  # a state may be ids
                self._taken = [F.gather(v, self._rows, axis=0) for v in self._sources]
        self._stepped = False

    def refresh(self) -> None:
        for leaf, closure in zip(self._leaves, self._closures):
            leaf.data = closure.data

    def start(self, given: Sequence[nn.Variable], width: int) -> None:
        rows = nn.Variable.from_numpy_array(self._each // width)
        with nn.auto_forward(False), in_float32():
            repeated = [F.gather(v.get_unlinked_variable(need_grad=False), rows, axis=0) for v in given]
        self._put(repeated)

    def step(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        self._go_on()
        for leaf, x in zip(self._xs, xs):
            leaf.data.cast(np.int32 if np.issubdtype(x.dtype, np.integer) else np.float32)[...] = x
        if self._sink is not None:
            self._sink.forward()
        self._stepped = True
        return [array_of(y) for y in self._ys]

    def gather(self, rows: np.ndarray) -> None:
        if not self._before:
            return
        if not self._stepped:
            for v in self._taken:
                v.data = nn.NdArray(v.shape)  # the states lie where it was
        self._rows.data.cast(np.int32)[...] = rows
        for source, v in zip(self._sources, self._after if self._stepped else self._before):
            source.data = v.data
        self._put(self._taken)

    def states(self) -> list[np.ndarray]:
        self._go_on()
        return [array_of(v) for v in self._before]

    def _go_on(self) -> None:
        if self._stepped:
            self.gather(self._each)

    def _put(self, states: Sequence[nn.Variable]) -> None:
        """Computes states, and begins the next step from them."""
        if states:
            nn.forward_all(list(states))
        for leaf, v in zip(self._before, states):
            leaf.data = v.data
        self._stepped = False
