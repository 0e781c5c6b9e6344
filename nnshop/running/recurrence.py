"""What every way to run over time is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import nnabla as nn

from ..core import AbstractCell, Tree, tree_map
from ..functions import swap_time, where, without_padding


@dataclass(frozen=True, eq=False)
class Recurrence:
    """A step, what it runs over, and the way in which it does.

    Attributes:
        way: `(recurrence) -> (ys, state)`, one of `nnshop.running.WAYS`.
        step: `(x, state) -> (y, state)`; a cell is one.
        xs: A tree of sequences, `(T, ...)`, or `(B, T, ...)` with `batch_major`; None where the step takes no input.
        state: What it starts from.
        length: T.
        reverse: From the last step to the first.
        running: Tells the leaf of the state that is 0 after the last step that matters; see `nnshop.iterate`.
        mask: `(B, T)`, with `batch_major`. Masked steps leave the state alone; their inputs may be anything, and their outputs
            too that is finite.
        batch_major: Whether the sequences that come in and go out have the batch first.
        tried: Whether it is known that the step is not compiled.
    """

    way: Callable[[Recurrence], tuple[Tree, Tree]]
    step: Callable
    xs: Tree
    state: Tree
    length: int
    reverse: bool = False
    running: Callable | None = None
    mask: nn.Variable | None = None
    batch_major: bool = False
    tried: bool = False

    def run(self) -> tuple[Tree, Tree]:
        """Runs it."""
        return self.way(self)

    def of(self, cell: AbstractCell, xs: Tree, state: Tree) -> tuple[Tree, Tree]:
        """Runs a part of the cell instead, in the same way."""
        return replace(self, step=cell, xs=xs, state=state, tried=False).run()

    def through(self, cell: AbstractCell, xs: Tree, state: Tree) -> tuple[Tree, Tree]:
        """Runs what is the whole step of the cell: where that one is not compiled, this is not tried again."""
        return replace(self, step=cell, xs=xs, state=state).run()

    def fast_form(self) -> tuple[Tree, Tree] | None:
        """Runs the cell in the form that it has for whole sequences; None where there is none."""
        if not self.batch_major or not isinstance(self.step, AbstractCell):
            return None
        return self.step.over(replace(self, tried=True))

    def masked(self) -> Recurrence:
        """The same without a mask: it is one more input of the step."""
        if self.mask is None:
            return self
        return replace(self, step=_masked(self.step), xs=(self.xs, self.mask), mask=None)

    def time_first(self, iterate: Callable[[Recurrence], tuple[Tree, Tree]]) -> tuple[Tree, Tree]:
        """Runs it by a function that knows neither a mask nor a batch."""
        run = self.masked()
        if not self.batch_major:
            return iterate(run)
        ys, state = iterate(replace(run, xs=tree_map(swap_time, run.xs), batch_major=False))
        return tree_map(swap_time, ys), state

    def one_step(self) -> Tree:
        """Variables of the shapes of the input of one step."""
        if self.batch_major:
            return tree_map(lambda v: nn.Variable((v.shape[0], *v.shape[2:])), self.xs)
        return tree_map(lambda v: nn.Variable(v.shape[1:]), self.xs)


def _masked(step: Callable) -> Callable:
    """A step on `(x, keep)`, which leaves the state of the rows alone that are not to be kept."""

    def masked(x_keep: Tree, state: Tree) -> tuple[Tree, Tree]:
        x, keep = x_keep
        y, after = step(tree_map(partial(without_padding, keep), x), state)
        return y, tree_map(partial(where, keep), after, state)

    return masked
