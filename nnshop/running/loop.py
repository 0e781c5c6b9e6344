"""The loop: one graph of the step, run once for each step of time within one function of NNabla."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import nnabla as nn
import nnabla.functions as F

from ..core import Tree, is_whole, shapes, tree_leaves, tree_like, tree_map
from ..kernels.array_function import Shape, Variables, check_shapes
from ..portable import is_portable
from . import explaining
from .drawing import Drawing
from .moving import Mover
from .step_graph import StepGraph, as_list
from .tracing import trace
from .unrolled import check_state_kept


def iterate(
    step: Callable,
    xs: Tree,
    state: Tree,
    length: int,
    reverse: bool,
    running: Callable | None = None,
    checkpoint_every: int | None = None,
) -> tuple[Tree, Tree]:
    """Traces the step, and applies the loop; see `nnshop.running.iterate`."""
    if is_portable():
        raise ValueError("portable() allows NNabla's own functions only, and way='loop' is none; use way='unrolled'.")
    every = check_every(checkpoint_every)
    graph, y, after = trace(step, tree_map(lambda v: nn.Variable(v.shape[1:]), xs), state)
    check_state_kept(shapes(state), shapes(after))
    if not graph.outputs:
        return y, after
    inputs = [*tree_leaves((xs, state)), *graph.closures]
    reached = graph.reached(graph.inputs)
    if not any(v.need_grad for v in inputs) or not any(v in reached for v in graph.outputs):
        every = length  # no backward pass is to come
    explaining.take("loop")
    loop = Loop(graph, len(tree_leaves(xs)), len(tree_leaves(y)), length, reverse, every)
    if running is not None:
        loop.running = loop.states[find_running(running, state)].variable
    made = as_list(loop(*(inputs or [nn.Variable(())]), n_outputs=len(graph.outputs)))  # NNabla wants an input
    graph.stop_gradients(made)
    remaining = iter(made)
    return tree_like(y, remaining), tree_like(after, remaining)


def check_every(checkpoint_every: int | None) -> int:
    if checkpoint_every is None:
        return 1
    if not is_whole(checkpoint_every) or checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be a number of steps, 1 or more; got {checkpoint_every!r}.")
    return int(checkpoint_every)


def find_running(running: Callable, state: Tree) -> int:
    """Which leaf of the state tells that the loop may end."""
    leaves = tree_leaves(state)
    chosen = running(state)
    for i, leaf in enumerate(leaves):
        if leaf is chosen:
            return i
    raise ValueError("running must tell a leaf of the state, such as lambda state: state[1]; compute it in the step.")


class _Port:
    """An input or an output of the step, and what moves its steps."""

    def __init__(self, variable: nn.Variable) -> None:
        self.variable, self.mover = variable, Mover(variable.shape)

    def read(self, sequence: nn.NdArray, t: int) -> None:
        self.mover.copy(sequence, self.variable.data, source_step=t)

    def write(self, sequence: nn.NdArray, t: int) -> None:
        self.mover.copy(self.variable.data, sequence, target_step=t)

    def read_gradient(self, sequence: nn.NdArray, t: int) -> None:
        self.mover.copy(sequence, self.variable.grad, source_step=t)

    def add_gradient(self, sequence: nn.NdArray, t: int) -> None:
        self.mover.add(self.variable.grad, sequence, target_step=t)


class Loop(Drawing):
    """`(xs, states, closures) -> (ys, states)`, sequences `(T, ...)`.

    The forward pass keeps the states; the backward pass computes each step again, with the random numbers that were drawn.

    Args:
        graph: The step.
        n_x: How many of its inputs are steps of sequences; states follow.
        n_y: How many of its outputs are; states follow.
        length: T.
        reverse: From the last step to the first.
        every: Keep the states of each such step only, and compute those between once more in the backward pass.
    """

    def __init__(self, graph: StepGraph, n_x: int, n_y: int, length: int, reverse: bool, every: int) -> None:
        super().__init__()
        n_leaves = n_x + len(graph.outputs) - n_y
        self.graph, self.length, self.every = graph, length, every
        self.random, self.written = bool(graph.drawing), graph.written
        self.order = range(length)[::-1] if reverse else range(length)
        with nn.auto_forward(False):
            self.x = [_Port(v) for v in graph.inputs[:n_x]]
            self.states = [_Port(v) for v in graph.inputs[n_x:n_leaves]]
            self.y = [_Port(v) for v in graph.outputs[:n_y]]
            self.sink = F.sink(*graph.outputs, one_input_grad=False)
        self.closures, self.after = graph.inputs[n_leaves:], graph.outputs[n_y:]
        self.gradients = [(port.variable.grad, after.grad) for port, after in zip(self.states, self.after)]
        self.running: nn.Variable | None = None  # the state that ends the loop when it is 0
        self.done = length
        self.kept: list[nn.NdArray] = []

    def output_shapes(self, *given: Shape) -> Sequence[Shape]:
        wanted = {f"sequence {i}": (self.length, *port.mover.shape) for i, port in enumerate(self.x)}
        wanted.update((f"state {i}", port.mover.shape) for i, port in enumerate(self.states))
        wanted.update((f"closure {i}", v.shape) for i, v in enumerate(self.closures))
        check_shapes(self.name, wanted or {"nothing": ()}, given)
        return [*((self.length, *port.mover.shape) for port in self.y), *(port.mover.shape for port in self.states)]

    def _parts(self, inputs: Sequence) -> tuple[Sequence, Sequence, Sequence]:
        """Splits what belongs to each input into what belongs to sequences, states and closures."""
        n_x, n_leaves = len(self.x), len(self.x) + len(self.states)
        return inputs[:n_x], inputs[n_x:n_leaves], inputs[n_leaves:]

    # Forward

    def compute(self, inputs: Variables, outputs: Variables) -> None:
        self._take(inputs)
        self._start_drawing()
        self.done = self.length
        ys = [port.mover.writable(output.data) for port, output in zip(self.y, outputs)]
        self.kept = self.kept or [port.mover.store(-(-self.length // self.every)) for port in self.states]
        for port, given in zip(self.states, self._parts(inputs)[1]):
            port.mover.copy(given.data, port.variable.data)
        for n, t in enumerate(self.order):
            if n % self.every == 0:
                self._keep_states(self.kept, n // self.every)
            self._compute(n, self.replaying)
            for port, sequence in zip(self.y, ys):
                port.write(sequence, t)
            self._advance()
            if self.running is not None and not self.running.data.get_data("r").any():
                self._leave_early(n + 1, ys)
                break
        for port, output in zip(self.states, outputs[len(self.y) :]):
            port.mover.copy(port.variable.data, output.data)

    def _leave_early(self, done: int, ys: list[nn.NdArray]) -> None:
        """Ends the forward pass before the last step. Outputs of the others must hold something: the last ones."""
        self.done = done
        for t in self.order[done:]:
            for port, sequence in zip(self.y, ys):
                port.write(sequence, t)

    def _take(self, inputs: Sequence[nn.Variable]) -> None:
        """Uses sequences and closures where they are."""
        for port in (*self.x, *self.states, *self.y):
            port.mover.let_go()
        xs, _, closures = self._parts(inputs)
        self.xs = [port.mover.local(given.data) for port, given in zip(self.x, xs)]
        for leaf, given in zip(self.closures, closures):
            leaf.data = given.data

    def _start_drawing(self) -> None:
        """Lets what has a seed draw anew, but once for all steps of the loop that this one is nested in."""
        first = self.drawn is None or not self.nested
        for drawing in self.graph.drawing:
            drawing.drawn, drawing.replaying = None if first else drawing.drawn, self.replaying
        if not self.replaying:
            self.drawn = []

    def _compute(self, n: int, replaying: bool) -> None:
        """Computes the n-th step, counted from where the loop starts, of the states that the leaves hold."""
        for port, sequence in zip(self.x, self.xs):
            port.read(sequence, self.order[n])
        drawing = self.graph.drawing
        if drawing and replaying:
            for function, drawn in zip(drawing, self.drawn[n]):
                function.drawn = drawn
        self.sink.forward()
        if drawing and not replaying:
            self.drawn.append([function.drawn for function in drawing])

    def _advance(self) -> None:
        for port, after in zip(self.states, self.after):
            port.mover.copy(after.data, port.variable.data)

    def _keep_states(self, stores: list[nn.NdArray], i: int) -> None:
        for port, store in zip(self.states, stores):
            port.write(store, i)

    def _restore_states(self, stores: list[nn.NdArray], i: int) -> None:
        for port, store in zip(self.states, stores):
            port.read(store, i)

    # Backward

    def compute_gradients(self, inputs: Variables, outputs: Variables, propagate_down: list[bool], accum: list[bool]) -> None:
        self._take(inputs)
        self._leave_unwritten()
        self._want_gradients(propagate_down)
        for drawing in self.graph.drawing:
            drawing.replaying = True
        self._start_gradients(inputs, propagate_down)
        for port, after, pair in zip(self.states, self.after, self.gradients):
            port.variable.grad, after.grad = pair  # they are exchanged at each step, which an interrupt may leave half done
        dys = [port.mover.local(output.grad) for port, output in zip(self.y, outputs)]
        for port, output in zip(self.states, outputs[len(self.y) :]):
            port.mover.copy(output.grad, port.variable.grad)
        for start in reversed(range(0, self.done, self.every)):
            stop = min(start + self.every, self.done)
            stores, first = self._states_between(start, stop)
            for n in reversed(range(start, stop)):
                self._restore_states(stores, n - first)
                self._compute(n, replaying=True)
                self._compute_gradients(n, dys)
        for port, given, asked in zip(self.states, self._parts(inputs)[1], self._parts(propagate_down)[1]):
            if asked:
                port.mover.add(port.variable.grad, port.mover.writable(given.grad))

    def _leave_unwritten(self) -> None:
        """Lets what the forward pass wrote to as it is: each step has written once."""
        for i in self.written:
            leaf = self.graph.inputs[i]
            leaf.data = nn.NdArray(leaf.shape).copy_from(leaf.data, use_current_context=False)

    def _want_gradients(self, propagate_down: Sequence[bool]) -> None:
        """Asks the step for the gradients that are needed; a state needs one if any step makes it of what needs one."""
        wanted = {leaf for leaf, asked in zip(self.graph.inputs, propagate_down) if asked}
        while True:
            reached = self.graph.reached(wanted)
            more = {p.variable for p, after in zip(self.states, self.after) if after in reached} - wanted
            if not more:
                break
            wanted |= more
        for leaf in self.graph.inputs:
            leaf.need_grad = leaf in wanted

    def _start_gradients(self, inputs: Sequence[nn.Variable], propagate_down: Sequence[bool]) -> None:
        """Makes ready to add to the gradients of sequences and closures; NNabla has zeroed those that are to be overwritten."""
        (xs, _, closures), (asked_xs, _, asked_closures) = self._parts(inputs), self._parts(propagate_down)
        self.dxs = [(port, port.mover.writable(given.grad)) for port, given, asked in zip(self.x, xs, asked_xs) if asked]
        for leaf, given, asked in zip(self.closures, closures, asked_closures):
            if asked:
                leaf.grad = given.grad

    def _states_between(self, start: int, stop: int) -> tuple[list[nn.NdArray], int]:
        """Computes the states before these steps again, from the kept one; returns their stores, and the step of the first."""
        if self.every == 1:
            return self.kept, 0
        stores = [port.mover.store(stop - start) for port in self.states]
        self._restore_states(self.kept, start // self.every)
        for n in range(start, stop):
            self._keep_states(stores, n - start)
            if n + 1 < stop:
                self._compute(n, replaying=True)
                self._advance()
        return stores, start

    def _compute_gradients(self, n: int, dys: Sequence[nn.NdArray]) -> None:
        """Goes back through one step; the gradient of the state after it lies where that of the state before it goes to."""
        t = self.order[n]
        for port, sequence in zip(self.y, dys):
            port.read_gradient(sequence, t)
        for port, after in zip(self.states, self.after):
            after.grad, port.variable.grad = port.variable.grad, after.grad
            port.variable.grad.zero()
        for port, _ in self.dxs:
            port.variable.grad.zero()
        self.sink.backward(None)
        for port, sequence in self.dxs:
            port.add_gradient(sequence, t)
