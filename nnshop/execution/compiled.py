"""The compiled way: the step as native programs for the whole sequence, in one function of NNabla."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import nnabla as nn
import numpy as np

from ..compiling import translations as _translations
from ..compiling.engine import Engine, Memory
from ..compiling.plan import Plan
from ..compiling.products import multiply, pack
from ..compiling.translate import Mixes, Translation
from ..core import Tree, shapes, tree_leaves, tree_like, tree_map
from ..functions import functions_of
from ..kernels.array_function import ArrayFunction, array_of, give_gradient, gradient_of, gradient_to_write
from .step_graph import StepGraph, as_list
from .tracing import trace
from .unrolled import check_state_kept


def iterate(
    step: Callable, xs: Tree, state: Tree, length: int, reverse: bool, running: Callable | None = None, batch_major: bool = False
) -> tuple[Tree, Tree]:
    """Compiles the step; see `nnshop.execution.iterate`."""

    def one(v: nn.Variable) -> nn.Variable:
        return nn.Variable((v.shape[0], *v.shape[2:]) if batch_major else v.shape[1:])

    graph, y, after = trace(step, tree_map(one, xs), state)
    check_state_kept(shapes(state), shapes(after))
    inputs = [*tree_leaves((xs, state)), *graph.closures]
    function = Compiled(graph, len(tree_leaves(xs)), len(tree_leaves(y)), length, reverse, batch_major, inputs)
    made = as_list(function(*inputs, n_outputs=len(graph.outputs)))
    remaining = iter(made)
    return tree_like(y, remaining), tree_like(after, remaining)


def translate(graph: StepGraph, n_x: int, n_states: int) -> Translation:
    """The nodes of a step: rows are the samples of the batch, where they do not meet."""
    kinds = ["x"] * n_x + ["state"] * n_states + ["closure"] * len(graph.closures)
    functions = functions_of(graph.outputs)
    leaves = graph.inputs[: n_x + n_states]
    batches = {v.shape[0] if v.ndim else None for v in leaves}
    if len(batches) == 1 and None not in batches and any(v.ndim > 1 for v in leaves):
        try:
            return Translation(graph.inputs, kinds, functions, graph.outputs, batches.pop())
        except Mixes:
            pass
    return Translation(graph.inputs, kinds, functions, graph.outputs, None)


class Compiled(ArrayFunction):
    """`(xs, states, closures) -> (ys, states)`, sequences `(T, B, ...)`, or `(B, T, ...)` with `batch_major`."""

    def __init__(self, graph: StepGraph, n_x: int, n_y: int, length: int, reverse: bool, batch_major: bool, inputs: Sequence) -> None:
        super().__init__()
        self.graph, self.n_x, self.n_y, self.length, self.reverse, self.batch_major = graph, n_x, n_y, length, reverse, batch_major
        self.n_states = len(graph.outputs) - n_y
        wanted = [i for i, v in enumerate(inputs) if v.need_grad]
        self.translation = translate(graph, n_x, self.n_states)
        self.batch = self.translation.batch or 1
        self.plan = Plan(self.translation, n_y, wanted)
        self.engine = Engine(self.plan)
        self.memory: Memory | None = None
        self.packed: dict = {}

    def setup_impl(self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable]) -> None:
        for v, output in zip(self.graph.outputs[: self.n_y], outputs):
            shape = (v.shape[0], self.length, *v.shape[1:]) if self.batch_major else (self.length, *v.shape)
            output.reset_shape(shape, True)
        for v, output in zip(self.graph.outputs[self.n_y :], outputs[self.n_y :]):
            output.reset_shape(v.shape, True)

    def _pack(self, inputs: Sequence[nn.Variable]) -> None:
        for weight, place in self.plan.weights.items():
            w = array_of(inputs[weight.input]).reshape(-1, weight.columns)[weight.row : weight.row + weight.rows]
            self.packed[weight] = pack(w.T if weight.transposed else w, self.packed.get(weight))
            self.memory.bind(place.buffer, self.packed[weight])

    def _take_sequence(self, place: Any, array: np.ndarray) -> None:
        n = place.width
        if self.batch_major and self.batch > 1:
            rows = self.memory.arrays[place.buffer]
            rows.reshape(self.length, self.batch, n)[...] = array.reshape(self.batch, self.length, n).swapaxes(0, 1)
        else:
            self.memory.bind(place.buffer, array.reshape(-1, n))

    def _take(self, inputs: Sequence[nn.Variable]) -> None:
        for (kind, i), place in self.plan.inputs.items():
            if kind == "x":
                self._take_sequence(place, array_of(inputs[i]))
            elif kind == "array":
                self.memory.bind(place.buffer, self.plan.graph.arrays[i])
            else:
                self.memory.bind(place.buffer, array_of(inputs[i]))

    def forward_impl(self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable]) -> None:
        plan, batch = self.plan, self.batch
        if self.memory is None:
            self.memory = Memory(plan, self.length, batch, self.reverse)
            self.memory.allocate()
        memory = self.memory
        self._pack(inputs)
        self._take(inputs)
        for i, place in enumerate(plan.before):
            start = memory.rows(place)
            (start[-batch:] if self.reverse else start[:batch])[...] = array_of(inputs[self.n_x + i]).reshape(batch, -1)
        for program in plan.forward:
            memory.run(program, self.engine.forward, self.reverse)
        for output, place, node in zip(outputs, plan.y_places, plan.ys):
            y = memory.rows(place).reshape(self.length, batch, node.size)
            y = y.swapaxes(0, 1) if self.batch_major else y
            output.data.cast(np.float32).reshape(y.shape)[...] = y
        for output, place in zip(outputs[self.n_y :], plan.after):
            end = memory.rows(place)
            output.data.cast(np.float32).reshape(batch, -1)[...] = end[:batch] if self.reverse else end[-batch:]

    def backward_impl(self, inputs, outputs, propagate_down, accum) -> None:
        plan, batch, memory = self.plan, self.batch, self.memory
        self._pack(inputs)
        self._take(inputs)
        for place, output in zip(plan.dy_places, outputs):
            self._take_sequence(place, gradient_of(output))
        for place, output in zip(plan.carry_places, outputs[self.n_y :]):
            memory.rows(place)[:batch] = gradient_of(output).reshape(batch, -1)
        for (kind, _), place in plan.gradient_places.items():
            if kind != "x":
                memory.rows(place)[...] = 0
        for program in plan.backward:
            memory.run(program, self.engine.backward, not self.reverse)
        started = set()

        def give(i, array):
            if propagate_down[i]:
                give_gradient(inputs[i], array.reshape(inputs[i].shape), accum[i] or i in started)
                started.add(i)

        for (kind, i), place in plan.gradient_places.items():
            d = memory.rows(place)
            if kind == "x" and self.batch_major:
                d = d.reshape(self.length, batch, -1).swapaxes(0, 1)
            give(i, d)
        for k, place in enumerate(plan.carry_places):
            give(self.n_x + k, memory.rows(place)[(self.length % 2) * batch :][:batch])
        for weight, a, a_place, d, d_place in plan.weight_gradients:
            i = weight.input
            if propagate_down[i]:
                out = gradient_to_write(inputs[i], accum[i] or i in started).reshape(-1, weight.columns)
                if i not in started and not accum[i]:
                    out[...] = 0
                started.add(i)
                left, right = _matrix(memory.rows(a_place), a), _matrix(memory.rows(d_place), d)
                if weight.transposed:
                    left, right = right, left
                multiply(left.T, right, out[weight.row : weight.row + weight.rows], True)


def _matrix(rows: np.ndarray, v) -> np.ndarray:
    """What a view reads in all rows, as a matrix."""
    if v.shape[0] == 1:
        step, (_, column) = rows.strides[0], v.strides
    else:
        step, column = 4 * v.strides[0], v.strides[1]
    return np.lib.stride_tricks.as_strided(rows[:, v.offset :], (len(rows) * v.shape[0], v.shape[1]), (step, 4 * column))
