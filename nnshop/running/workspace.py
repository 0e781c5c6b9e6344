"""The memory of a part of a sequence, and where in it lies what goes in and comes out: looked up once, used in each pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ..compiling.memory import Memory
from ..compiling.plan import Plan


class Workspace(Memory):
    """The buffers of a plan for so many steps of so many rows, of which these are views.

    Attributes:
        before, after (list): The states before the first step that runs and after the last one, `(B, n)`.
        ys (list): The outputs of all steps, `(T * B, n)`.
        carry, carried (list): The gradients of the states after the last step that ran, and before the first one.
        dxs (list): The gradients of inputs at all steps, each with the number of the input.
        sums (list): Gradients that programs add up over all steps, each with the number of the input, and whether the rows are
            groups, to be added up in turn.
    """

    def __init__(self, plan: Plan, length: int, batch: int, reverse: bool) -> None:
        super().__init__(plan, length, batch, reverse)
        first, last = slice(None, batch), slice(-batch, None)
        self.before = [self.rows(place)[last if reverse else first] for place in plan.before]
        self.after = [self.rows(place)[first if reverse else last] for place in plan.after]
        self.ys = [self.rows(place) for place in plan.y_places]
        for (kind, i), place in plan.inputs.items():
            if kind == "array":
                self.bind(place.buffer, plan.graph.arrays[i])

    @cached_property
    def carry(self) -> list[np.ndarray]:
        return [self.rows(place)[: self.batch] for place in self.plan.carry_places]

    @cached_property
    def carried(self) -> list[np.ndarray]:
        start = self.length % 2 * self.batch
        return [self.rows(place)[start : start + self.batch] for place in self.plan.carry_places]

    @cached_property
    def dxs(self) -> list[tuple[int, np.ndarray]]:
        return [(i, self.rows(place)) for (kind, i), place in self.plan.gradient_places.items() if kind == "x"]

    @cached_property
    def sums(self) -> list[tuple[int, np.ndarray, bool]]:
        places = [(kind, i, self.rows(place)) for (kind, i), place in self.plan.gradient_places.items() if kind != "x"]
        return [(i, rows, kind == "shared" and len(rows) > 1) for kind, i, rows in places]

    def start(self, states: Sequence[np.ndarray]) -> None:
        """Sets the states before the first step."""
        for before, state in zip(self.before, states):
            before[...] = state.reshape(before.shape)

    def start_backward(self, gradients: Sequence[np.ndarray]) -> None:
        """Sets the gradients of the states after the last step, and what is added up to 0."""
        for carry, d in zip(self.carry, gradients):
            carry[...] = d.reshape(carry.shape) if d.ndim else d
        for _, rows, _ in self.sums:
            rows.fill(0)
