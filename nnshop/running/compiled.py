"""The compiled way: the step as native programs for the whole sequence, in one function of NNabla."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import nnabla as nn
import numpy as np

from ..compiling.memory import Memory
from ..compiling.nodes import Unsupported, Weight
from ..compiling.places import Place
from ..compiling.products import pack
from ..core import Tree, shapes, tree_leaves, tree_like, tree_map
from ..functions import functions_of
from ..kernels.array_function import Shape, array_of, check_shapes, gradient_of
from ..portable import is_portable
from . import explaining
from .drawing import Drawing
from .draws import Drawn, Draws
from .gradients import Gradients, give_product
from .loop import check_every, find_running
from .recipe import Recipe
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
    batch_major: bool = False,
    must_pay: bool = False,
) -> tuple[Tree, Tree]:
    """Compiles the step; see `nnshop.running.iterate`.

    Args:
        batch_major: Sequences are `(B, T, ...)`.
        must_pay: Raises Unsupported for a sequence so short that NNabla's own functions take less time.
    """

    def one(v: nn.Variable) -> nn.Variable:
        return nn.Variable((v.shape[0], *v.shape[2:]) if batch_major else v.shape[1:])

    if is_portable():
        raise ValueError("portable() allows NNabla's own functions only, and way='compiled' is none; use way='unrolled'.")
    graph, y, after = trace(step, tree_map(one, xs), state, hoist=True)
    check_state_kept(shapes(state), shapes(after))
    if not graph.outputs:
        return y, after
    inputs = [*tree_leaves((xs, state)), *graph.closures]
    if must_pay:
        _check_that_it_pays(graph, length)
    recipe = Recipe(graph, len(tree_leaves(xs)), len(tree_leaves(y)))
    wanted = frozenset(i for i, v in enumerate(inputs) if v.need_grad)
    every = None if checkpoint_every is None else check_every(checkpoint_every)
    ends = None if running is None else find_running(running, state)
    function = Compiled(recipe, length, reverse, batch_major, wanted, every, ends)
    function.outside = graph.outside if nn.get_auto_forward() else []
    function.watched = [(v, v.shape) for _, given, _ in graph.outside for v in given if v.parent is None]
    explaining.take("compiled")
    made = as_list(function(*(inputs or [nn.Variable(())]), n_outputs=len(graph.outputs)))
    graph.stop_gradients(made)
    remaining = iter(made)
    return tree_like(y, remaining), tree_like(after, remaining)


BUDGET = 2**30  # bytes that the buffers of one sequence may take; a longer sequence is done in parts
CHECK_EACH = 16  # after so many steps it is seen whether a sequence has ended
# A function in Python costs 0.1 to 0.2 ms a call, as many calls of NNabla's functions, and one of those as much as so many
# numbers or products in it.
CALLS, NUMBERS, PRODUCTS = 80, 2_000, 20_000


def _check_that_it_pays(graph: StepGraph, length: int) -> None:
    calls = 0.0
    for function in functions_of(graph.outputs):
        made = sum(v.size for v in function.outputs)
        products = made * function.inputs[1].shape[0] if function.info.type_name == "Affine" else 0
        calls += 1 + made / NUMBERS + products / PRODUCTS
    if length * calls < CALLS:
        raise Unsupported(f"{length} steps of this size are too few to pay for the call")


def pack_weight(weight: Weight, array: np.ndarray, packed: np.ndarray | None) -> np.ndarray:
    """Packs a part of an array from outside, where it was packed before, if it was."""
    part = array.reshape(-1, weight.columns)[weight.row : weight.row + weight.rows]
    return pack(part.T if weight.transposed else part, packed)


class Compiled(Drawing):
    """`(xs, states, closures) -> (ys, states)`, sequences `(T, B, ...)`, or `(B, T, ...)` with `batch_major`.

    Args:
        recipe: The step.
        length: T.
        reverse: From the last step to the first.
        batch_major: Where the axis of the batch is.
        wanted: The inputs whose gradients will be asked for, as far as that is known.
        every: Keep the states of each such step only; the backward pass computes the others again.
        running: Leave out steps after this leaf of the state is 0, as soon as that is seen.
    """

    def __init__(
        self,
        recipe: Recipe,
        length: int,
        reverse: bool,
        batch_major: bool,
        wanted: frozenset[int],
        every: int | None = None,
        running: int | None = None,
    ) -> None:
        super().__init__()
        self.random, self.draws = bool(recipe.draws), Draws(recipe.draws, reverse)
        self.recipe, self.reverse, self.batch_major = recipe, reverse, batch_major
        self.batch = recipe.batch or 1
        self.every, self.running, self.checks = every, running, recipe.checks()
        self.packed: dict[Weight, np.ndarray] = {}
        self.outside: list = []
        self.watched: list[tuple[nn.Variable, Shape]] = []  # what NNabla makes closures of
        self._use(wanted)
        self._divide(length)

    def _divide(self, length: int) -> None:
        """Divides the sequence into parts, which are run one after the other."""
        self.length = length
        fit = max(1, BUDGET // max(1, self.plan.bytes_of_a_step(self.batch)))
        every = min(self.every or length, fit)
        self.checkpoints = every < length  # only the states are kept of each part
        if self.running is not None and not self.checkpoints:
            every = CHECK_EACH
        parts = [range(start, min(start + every, length)) for start in range(0, length, every)]
        self.parts = parts[::-1] if self.reverse else parts

    def _use(self, wanted: frozenset[int]) -> None:
        """Uses the programs for these gradients."""
        self.engine = self.recipe.engine(wanted)
        self.plan = self.engine.plan
        self.forget()

    def min_outputs(self) -> int:
        return len(self.recipe.outputs)

    def forget(self) -> None:
        self.memories: dict[int, Memory] = {}
        self.part_in: dict[int, range] = {}  # what the forward pass left in each
        self.kept: list[list[np.ndarray]] = []

    def output_shapes(self, *given: Shape) -> list[Shape]:
        """Sequences may have another length than when the graph was built; all else must be as it was."""
        recipe, axis = self.recipe, int(self.batch_major)
        if recipe.n_x and len(given[0]) > axis and given[0][axis] > 0:
            self._divide(given[0][axis])
        shapes = [self._whole(shape) if i < recipe.n_x else shape for i, shape in enumerate(recipe.input_shapes())]
        if shapes:
            check_shapes("way='compiled'", {f"input {i}": shape for i, shape in enumerate(shapes)}, given)
        outputs = [v.shape for v in recipe.outputs]
        return [self._whole(shape) if i < recipe.n_y else shape for i, shape in enumerate(outputs)]

    def _whole(self, shape: Shape) -> Shape:
        """The shape of a sequence of such steps."""
        return (shape[0], self.length, *shape[1:]) if self.batch_major else (self.length, *shape)

    # Forward

    def compute(self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable]) -> None:
        recipe = self.recipe
        self._check_watched()
        for i, ids in self.checks:
            ids.check(inputs[i].data.data)
        if not self.replaying:
            self.drawn = Drawn(self.draws, self.drawn if self.nested else None)
        self._pack(inputs, self.plan.forward_weights)
        ys = [output.data.cast(np.float32) for output in outputs[: recipe.n_y]]
        states = [array_of(v) for v in inputs[recipe.n_x : recipe.n_x + recipe.n_states]]
        self.kept, self.part_in = [], {}
        for part in self.parts:
            memory = self._run_part(part, inputs, states)
            for y, place in zip(ys, self.plan.y_places):
                self._write(y, part, memory.rows(place))
            states = [self._last(memory, place) for place in self.plan.after]
            if self.running is not None and not states[self.running].any():
                self._fill_up(part, ys)
                break
        for output, state in zip(outputs[recipe.n_y :], states):
            output.data.cast(np.float32).reshape(state.shape)[...] = state

    def _check_watched(self) -> None:
        """Some of NNabla's functions, such as slices, do not notice that an input has changed its shape."""
        for v, shape in self.watched:
            if v.shape != shape:
                raise ValueError(
                    f"way='compiled' was built for a Variable of shape {shape}, which is {v.shape} now; build the graph again."
                )

    def _fill_up(self, last: range, ys: Sequence[np.ndarray]) -> None:
        """Outputs of steps that are left out must hold something: what the last step gave."""
        for y in ys:
            steps = self._steps(y, range(self.length))
            if self.reverse:
                steps[: last.start] = steps[last.start]
            else:
                steps[last.stop :] = steps[last.stop - 1]

    def _run_part(self, part: range, inputs: Sequence[nn.Variable], states: Sequence[np.ndarray]) -> Memory:
        """Runs the steps of a part forwards, from these states on."""
        if len(self.parts) > 1 and not any(kept is states for kept in self.kept):
            states = [state.copy() for state in states]
            self.kept.append(states)
        slot = self._slot(part)
        if slot not in self.memories:
            self.memories[slot] = Memory(self.plan, len(part), self.batch, self.reverse)
        memory = self.memories[slot]
        self._bind(memory, inputs, part)
        for place, state in zip(self.plan.before, states):
            rows = memory.rows(place)
            (rows[-self.batch :] if self.reverse else rows[: self.batch])[...] = state.reshape(self.batch, -1)
        self.engine.run_forward(memory)
        self.part_in[slot] = part
        return memory

    def _slot(self, part: range) -> int:
        """Which memory a part has: with checkpoints they share one."""
        return len(part) if self.checkpoints else part.start

    def _bind(self, memory: Memory, inputs: Sequence[nn.Variable], part: range) -> None:
        """Lets a memory have what is outside."""
        drawn = self.drawn.of(part)
        for weight, place in self.plan.forward_weights:
            memory.bind(place.buffer, self.packed[weight])
        for (kind, i), place in self.plan.inputs.items():
            if kind == "x":
                memory.give(place, self._steps(array_of(inputs[i]), part))
            elif kind == "drawn":
                memory.give(place, drawn[self.recipe.drawn(i)].reshape(len(part), self.batch, -1))
            else:
                memory.bind(place.buffer, self.plan.graph.arrays[i] if kind == "array" else array_of(inputs[i]))

    def _pack(self, inputs: Sequence[nn.Variable], weights: Sequence) -> None:
        for weight, _ in weights:
            self.packed[weight] = pack_weight(weight, array_of(inputs[weight.input]), self.packed.get(weight))

    def _steps(self, sequence: np.ndarray, part: range) -> np.ndarray:
        """The steps of a part of a sequence, `(steps, rows, n)`."""
        if self.batch_major:
            return sequence.reshape(len(sequence), self.length, -1)[:, part.start : part.stop].swapaxes(0, 1)
        return sequence.reshape(self.length, self.batch, -1)[part.start : part.stop]

    def _write(self, sequence: np.ndarray, part: range, rows: np.ndarray, add: bool = False) -> None:
        """Writes the rows of the steps of a part to a sequence."""
        steps = self._steps(sequence, part)
        if add:
            steps += rows.reshape(steps.shape)
        else:
            steps[...] = rows.reshape(steps.shape)

    def _last(self, memory: Memory, place: Place) -> np.ndarray:
        """The state after the last step that ran."""
        rows = memory.rows(place)
        return rows[: self.batch] if self.reverse else rows[-self.batch :]

    # Backward

    def compute_gradients(
        self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable], propagate_down: list[bool], accum: list[bool]
    ) -> None:
        wanted = frozenset(i for i, asked in enumerate(propagate_down) if asked)
        if not wanted <= self.plan.wanted:  # more than was known when the forward pass ran
            kept = self.kept
            self._use(wanted)
            self.kept = kept
            self._pack(inputs, self.plan.forward_weights)
        if not wanted:
            return
        self._pack(inputs, self.plan.backward_weights)
        gradients = Gradients(inputs, propagate_down, accum)
        n_x, n_y = self.recipe.n_x, self.recipe.n_y
        sums = {key: place for key, place in self.plan.gradient_places.items() if key[0] != "x"}
        totals: dict[int, np.ndarray] = {}
        carried = [gradient_of(v).reshape(self.batch, -1) for v in outputs[n_y:]]
        if not self.kept:
            self.kept = [[array_of(v) for v in inputs[n_x : n_x + self.recipe.n_states]]]
        for part, states in reversed([*zip(self.parts, self.kept)]):
            memory = self._memory_of(part, inputs, states)
            for place in sums.values():
                memory.rows(place).fill(0)
            for place, v in zip(self.plan.dy_places, outputs):
                memory.give(place, self._steps(gradient_of(v), part))
            for place, d in zip(self.plan.carry_places, carried):
                memory.rows(place)[: self.batch] = d
            self.engine.run_backward(memory)
            carried = [memory.rows(place)[(len(part) % 2) * self.batch :][: self.batch] for place in self.plan.carry_places]
            self._give_parts(memory, part, gradients)
            for (kind, i), place in sums.items():
                total = memory.rows(place) if kind == "sample" else memory.total(place)
                totals[i] = total + totals[i] if i in totals else total
        for i, total in totals.items():
            gradients.give(i, total)
        for k, d in enumerate(carried):
            gradients.give(n_x + k, d)
        self.kept = self.kept if len(self.parts) > 1 else []
        if self.checkpoints:
            self.memories, self.part_in = {}, {}  # what is large is not held until the next pass

    def _memory_of(self, part: range, inputs: Sequence[nn.Variable], states: Sequence[np.ndarray]) -> Memory:
        """What the forward pass left of a part; runs it again where that is gone."""
        slot = self._slot(part)
        if self.part_in.get(slot) != part:
            self._run_part(part, inputs, states)
        memory = self.memories[slot]
        for weight, place in self.plan.backward_weights:
            memory.bind(place.buffer, self.packed[weight])
        self.part_in.pop(slot)  # the backward pass uses it up
        return memory

    def _give_parts(self, memory: Memory, part: range, gradients: Gradients) -> None:
        """Gives the gradients of the steps of inputs, and what the steps add to those of weights."""
        for (kind, i), place in self.plan.gradient_places.items():
            if kind == "x" and gradients.asked[i]:
                array, adds = gradients.array(i)
                self._write(array, part, memory.rows(place), adds)
        for factors in self.plan.weight_gradients:
            if gradients.asked[factors.weight.input]:
                give_product(memory, factors, gradients)
