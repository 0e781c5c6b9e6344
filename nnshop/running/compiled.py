"""The compiled way: the step as native programs for the whole sequence, in one function of NNabla."""

from __future__ import annotations

from collections.abc import Sequence

import nnabla as nn
import numpy as np

from ..compiling.nodes import Weight
from ..compiling.products import pack
from ..core import Tree, shapes, tree_leaves, tree_like
from ..graphs import Drawing, as_list
from ..kernels.array_function import Shape, array_of, array_to_write, check_shapes, gradient_of
from . import explaining
from .draws import Drawn, Draws
from .gradients import Gradients, give_product
from .loop import find_running
from .parts import Parts
from .price import check_that_it_pays
from .recipe import Recipe
from .recurrence import Recurrence
from .tracing import trace
from .unrolled import check_state_kept
from .workspace import Workspace


def iterate(run: Recurrence, every: int | None, must_pay: bool) -> tuple[Tree, Tree]:
    """Compiles the step; see `nnshop.running.Compiled`.

    Args:
        run: What is run, without a mask.
        every: Keep the states of each such step only.
        must_pay: Raises Unsupported for a sequence so short that NNabla's own functions take less time.
    """
    graph, y, after = trace(run.step, run.one_step(), run.state, hoist=True)
    check_state_kept(shapes(run.state), shapes(after))
    if not graph.outputs:
        return y, after
    inputs = [*tree_leaves((run.xs, run.state)), *graph.closures]
    if must_pay:
        check_that_it_pays(graph, run.length)
    recipe = Recipe(graph, len(tree_leaves(run.xs)), len(tree_leaves(y)))
    wanted = frozenset(i for i, v in enumerate(inputs) if v.need_grad)
    ends = None if run.running is None else find_running(run.running, run.state)
    function = CompiledFunction(recipe, run.length, run.reverse, run.batch_major, wanted, every, ends)
    function.outside = graph.outside if nn.get_auto_forward() else []
    function.watched = [(v, v.shape) for _, given, _ in graph.outside for v in given if v.parent is None]
    explaining.take("compiled")
    made = as_list(function(*(inputs or [nn.Variable(())]), n_outputs=len(graph.outputs)))
    graph.stop_gradients(made)
    remaining = iter(made)
    return tree_like(y, remaining), tree_like(after, remaining)


def pack_weight(weight: Weight, array: np.ndarray, packed: np.ndarray | None) -> np.ndarray:
    """Packs a part of an array from outside, where it was packed before, if it was."""
    part = array.reshape(-1, weight.columns)[weight.row : weight.row + weight.rows]
    return pack(part.T if weight.transposed else part, packed)


_NOTHING = np.zeros((), np.float32)  # the gradient of a state that nobody reads


class CompiledFunction(Drawing):
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
        self.recipe, self.every, self.running, self.checks = recipe, every, running, recipe.checks()
        self.parts = Parts(recipe.batch or 1, batch_major, reverse)
        self.packed: dict[Weight, np.ndarray] = {}
        self.outside: list = []
        self.watched: list[tuple[nn.Variable, Shape]] = []  # what NNabla makes closures of
        self._use(wanted)
        self._divide(length)

    def _divide(self, length: int) -> None:
        self.parts.divide(length, self.every, self.plan.bytes_of_a_step(self.parts.batch), self.running is not None)

    def _use(self, wanted: frozenset[int]) -> None:
        """Uses the programs for these gradients."""
        self.engine = self.recipe.engine(wanted)
        self.plan = self.engine.plan
        self.forget()

    def min_outputs(self) -> int:
        return len(self.recipe.outputs)

    def forget(self) -> None:
        self.spaces: dict[int, Workspace] = {}
        self.part_in: dict[int, range] = {}  # what the forward pass left in each
        self.kept: list[list[np.ndarray]] = []

    def output_shapes(self, *given: Shape) -> list[Shape]:
        """Sequences may have another length than when the graph was built; all else must be as it was."""
        recipe, whole, axis = self.recipe, self.parts.whole, int(self.parts.batch_major)
        if recipe.n_x and len(given[0]) > axis and given[0][axis] > 0:
            self._divide(given[0][axis])
        shapes = [whole(shape) if i < recipe.n_x else shape for i, shape in enumerate(recipe.input_shapes())]
        if shapes:
            check_shapes("way='compiled'", {f"input {i}": shape for i, shape in enumerate(shapes)}, given)
        return [whole(v.shape) if i < recipe.n_y else v.shape for i, v in enumerate(recipe.outputs)]

    # Forward

    def compute(self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable]) -> None:
        recipe = self.recipe
        self._check_watched()
        for i, ids in self.checks:
            ids.check(inputs[i].data.data)
        if not self.replaying:
            self.drawn = Drawn(self.draws, self.drawn if self.nested else None)
        self._pack(inputs)
        ys = [array_to_write(v) for v in outputs[: recipe.n_y]]
        states = self._read_states(inputs)
        self.kept, self.part_in = [], {}
        for part in self.parts.all:
            space = self._run_part(part, inputs, states)
            for y, rows in zip(ys, space.ys):
                self.parts.write(y, part, rows)
            states = space.after
            if self.running is not None and not states[self.running].any():
                for y in ys:
                    self.parts.fill_up(y, part)
                break
        for output, state in zip(outputs[recipe.n_y :], states):
            array_to_write(output).reshape(state.shape)[...] = state

    def _check_watched(self) -> None:
        """Some of NNabla's functions, such as slices, do not notice that an input has changed its shape."""
        for v, shape in self.watched:
            if v.shape != shape:
                raise ValueError(
                    f"way='compiled' was built for a Variable of shape {shape}, which is {v.shape} now; build the graph again."
                )

    def _read_states(self, inputs: Sequence[nn.Variable]) -> list[np.ndarray]:
        n_x = self.recipe.n_x
        return [array_of(v) for v in inputs[n_x : n_x + self.recipe.n_states]]

    def _run_part(self, part: range, inputs: Sequence[nn.Variable], states: Sequence[np.ndarray]) -> Workspace:
        """Runs the steps of a part forwards, from these states on."""
        if len(self.parts.all) > 1 and not any(kept is states for kept in self.kept):
            states = [state.copy() for state in states]
            self.kept.append(states)
        slot = self._slot(part)
        if slot not in self.spaces:
            self.spaces[slot] = Workspace(self.plan, len(part), self.parts.batch, self.parts.reverse)
        space = self.spaces[slot]
        self._bind(space, inputs, part)
        space.start(states)
        self.engine.run_forward(space)
        self.part_in[slot] = part
        return space

    def _slot(self, part: range) -> int:
        """Which workspace a part has: with checkpoints they share one."""
        return len(part) if self.parts.checkpoints else part.start

    def _bind(self, space: Workspace, inputs: Sequence[nn.Variable], part: range) -> None:
        """Lets a workspace have what is outside."""
        drawn = self.drawn.of(part)
        for weight, place in self.plan.forward_weights:
            space.bind(place.buffer, self.packed[weight])
        for (kind, i), place in self.plan.inputs.items():
            if kind == "x":
                space.give(place, self.parts.steps(array_of(inputs[i]), part))
            elif kind == "drawn":
                space.give(place, drawn[self.recipe.drawn(i)].reshape(len(part), self.parts.batch, -1))
            elif kind != "array":
                space.bind(place.buffer, array_of(inputs[i]))

    def _pack(self, inputs: Sequence[nn.Variable]) -> None:
        """Packs weights for both passes: it takes longer to ask NNabla for a small array than to pack it."""
        arrays: dict[int, np.ndarray] = {}
        for weight, _ in (*self.plan.forward_weights, *self.plan.backward_weights):
            if weight.input not in arrays:
                arrays[weight.input] = array_of(inputs[weight.input])
            self.packed[weight] = pack_weight(weight, arrays[weight.input], self.packed.get(weight))

    # Backward

    def compute_gradients(
        self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable], propagate_down: list[bool], accum: list[bool]
    ) -> None:
        wanted = frozenset(i for i, asked in enumerate(propagate_down) if asked)
        if not wanted <= self.plan.wanted:  # more than was known when the forward pass ran
            kept = self.kept
            self._use(wanted)
            self.kept = kept
            self._pack(inputs)
        if not wanted:
            return
        gradients = Gradients(inputs, propagate_down, accum)
        n_x, n_y = self.recipe.n_x, self.recipe.n_y
        carried = [_NOTHING if v.grad.zeroing else gradient_of(v) for v in outputs[n_y:]]
        kept = self.kept or [None]  # type: ignore[list-item]
        for part in self.parts.all[len(kept) :]:
            self._give_zeros(part, gradients)
        for part, states in reversed([*zip(self.parts.all, kept)]):
            space = self._space_of(part, inputs, states)
            for place, v in zip(self.plan.dy_places, outputs):
                space.give(place, self.parts.steps(gradient_of(v), part))
            space.start_backward(carried)
            self.engine.run_backward(space)
            carried = space.carried
            self._give_part(space, part, gradients)
        for k, d in enumerate(carried):
            gradients.give(n_x + k, d)
        self.kept = self.kept if len(self.parts.all) > 1 else []
        if self.parts.checkpoints:
            self.spaces, self.part_in = {}, {}  # what is large is not held until the next pass

    def _space_of(self, part: range, inputs: Sequence[nn.Variable], states: Sequence[np.ndarray] | None) -> Workspace:
        """What the forward pass left of a part; runs it again where that is gone."""
        slot = self._slot(part)
        if self.part_in.get(slot) != part:
            self._run_part(part, inputs, self._read_states(inputs) if states is None else states)
        space = self.spaces[slot]
        for weight, place in self.plan.backward_weights:
            space.bind(place.buffer, self.packed[weight])
        self.part_in.pop(slot)  # the backward pass uses it up
        return space

    def _give_zeros(self, part: range, gradients: Gradients) -> None:
        """Gives their gradient to the steps of inputs that were not run."""
        for kind, i in self.plan.gradient_places:
            if kind == "x" and gradients.asked[i]:
                array, adds = gradients.array(i)
                if not adds:
                    self.parts.steps(array, part)[...] = 0

    def _give_part(self, space: Workspace, part: range, gradients: Gradients) -> None:
        """Gives the gradients of the steps of inputs, and what the steps add to those of other inputs."""
        for i, rows in space.dxs:
            if gradients.asked[i]:
                array, adds = gradients.array(i)
                self.parts.write(array, part, rows, adds)
        for factors in self.plan.weight_gradients:
            if gradients.asked[factors.weight.input]:
                give_product(space, factors, gradients)
        for i, rows, grouped in space.sums:
            gradients.give(i, rows.sum(axis=0) if grouped else rows)
