"""A traced step as native programs that run one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import nnabla as nn
import numpy as np

from ..compiling.memory import Memory
from ..compiling.nodes import Weight
from ..kernels.array_function import array_of
from .compiled import pack_weight
from .draws import Drawn, Draws
from .recipe import Recipe
from .step_graph import StepGraph


class Side(NamedTuple):
    """The rows of outputs, and the states before and after a step; with each step the states change places."""

    ys: list[np.ndarray]
    before: list[np.ndarray]
    after: list[np.ndarray]


class Programs:
    """A traced step on arrays of its own: copies of what is outside, packed weights, and the states.

    Args:
        graph: The step.
        n_x, n_y: How many inputs and outputs it has; states follow.

    Raises:
        Unsupported: One of its functions is not translated.
    """

    def __init__(self, graph: StepGraph, n_x: int, n_y: int) -> None:
        self._recipe = Recipe(graph, n_x, n_y)
        self._constant, self._closures = n_x + self._recipe.n_states, graph.closures
        self._shapes = [v.shape for v in graph.outputs[:n_y]]
        self._state_shapes = [v.shape for v in graph.inputs[n_x : self._constant]]
        self._engine = self._recipe.engine(frozenset())
        self._plan = self._engine.plan
        self._memory = Memory(self._plan, 1, self._recipe.batch or 1, False)
        self._packed: dict[Weight, np.ndarray] = {}
        self._given: dict[int, np.ndarray] = {}
        self._drawn = Drawn(Draws(self._recipe.draws))
        leaves = [*graph.inputs, *(draw.source for draw in self._recipe.draws)]
        self._side, self._sides = 0, [self._look(), self._look()]
        for (kind, i), place in self._plan.inputs.items():
            if kind == "array":
                self._memory.bind(place.buffer, self._plan.graph.arrays[i])
            else:  # one array may lie in two places, as one for each row and as one for all
                array = self._given.setdefault(i, np.zeros(leaves[i].shape, np.float32))
                self._memory.bind(place.buffer, array)

    def refresh(self) -> None:
        """Reads what is outside."""
        for i, closure in enumerate(self._closures, self._constant):
            if i in self._given:
                self._given[i][...] = array_of(closure)
        for weight, place in self._plan.forward_weights:
            array = array_of(self._closures[weight.input - self._constant])
            self._packed[weight] = pack_weight(weight, array, self._packed.get(weight))
            self._memory.bind(place.buffer, self._packed[weight])

    def start(self, given: Sequence[nn.Variable], width: int) -> None:
        """Sets the states, each row `width` times."""
        for state, v in zip(self.states(), given):
            state[...] = np.repeat(array_of(v), width, axis=0)

    def step(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        for i, x in enumerate(xs):
            if i in self._given:
                self._given[i][...] = x
        for i, numbers in enumerate(self._drawn.next(), self._constant + len(self._closures)):
            if i in self._given:
                self._given[i][...] = numbers
        self._engine.run_forward(self._memory)
        ys = [rows.reshape(shape) for rows, shape in zip(self._sides[self._side].ys, self._shapes)]
        self._turn()
        return ys

    def gather(self, rows: np.ndarray) -> None:
        """Lets each row go on from another one."""
        side = self._sides[self._side]
        for before, after in zip(side.before, side.after):
            np.take(before, rows, axis=0, out=after, mode="clip")  # which needs no copy in between, as "raise" does
        self._turn()

    def states(self) -> list[np.ndarray]:
        """The states that the next step begins from, as they lie."""
        return self._sides[self._side].before

    def _turn(self) -> None:
        self._memory.turn()
        self._side = 1 - self._side

    def _look(self) -> Side:
        """What lies where now; in the end all is turned."""
        rows, plan, states = self._memory.rows, self._plan, self._state_shapes
        before = [rows(place).reshape(shape) for place, shape in zip(plan.before, states)]
        after = [rows(place).reshape(shape) for place, shape in zip(plan.after, states)]
        ys = [rows(place) for place in plan.y_places]
        self._memory.turn()
        return Side(ys, before, after)
