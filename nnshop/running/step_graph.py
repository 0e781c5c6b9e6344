"""The graph of one step, on leaves of its own, so that it can be run for any values of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import nnabla as nn
import nnabla.functions as F
from nnabla.function import PythonFunction

from ..graphs import Drawing, Rule, Traced, again, rewrite
from ..graphs.replaying import draw, draws, is_random, why_not_replayed, writes
from ..graphs.rewriting import stopping_as


class NotRepeatable(ValueError):
    """A step that is not the same at each time, or that cannot be computed twice with the same result."""


class StepGraph(Rule):
    """The part of a step's graph that depends on its inputs, draws random numbers or writes, on leaves of its own.

    All else stays outside, where it is computed once; the step takes its result as it takes weights.

    Args:
        traced: What the step made.
        hoist: Whether some of its functions may stay outside.

    Attributes:
        inputs: The leaves: for the inputs, then for the closures.
        closures: The Variables from outside that the step uses.
        outputs: No two are the same, and none is a leaf.
        drawing: What draws random numbers in it.
        computed: What is computed in Python, by its first output.
        outside: The functions that were made and stay outside, with their inputs and outputs. In auto-forward mode these are to
            be held: NNabla frees what Python does not hold, also where functions in place share it.
        written: Which inputs it writes to, when it computes its outputs: running statistics.

    Raises:
        NotRepeatable: It holds a function that cannot be computed twice with the same result.
    """

    def __init__(self, traced: Traced, hoist: bool) -> None:
        self.inputs = [nn.Variable(v.shape, need_grad=True) for v in traced.inputs]
        self.closures: list[nn.Variable] = []
        self.drawing: list[Drawing] = []
        self.computed: dict[nn.Variable, PythonFunction] = {}
        self.outside: list[tuple[Any, list[nn.Variable], list[nn.Variable]]] = []
        self._python, self._hoist = traced.python, hoist
        self._links: list[tuple[list[nn.Variable], list[nn.Variable]]] = []  # inputs and outputs of each function
        self._stopped: set[nn.Variable] = set()  # outputs that no gradient goes through
        self._written: set[nn.Variable] = set()
        self.outputs: list[nn.Variable] = []
        for v in rewrite(traced, dict(zip(traced.inputs, self.inputs)), self):
            self.outputs.append(self._of_its_own(v))
        self.written = [i for i, v in enumerate(self.inputs) if v in self._written]

    # The rule

    def wants(self, function: Any, depends: bool) -> bool:
        python = self._python.get(function)
        _check_repeatable(function)
        if not self._hoist or depends or writes(function, python) or draws(function, python):
            return True
        self.outside.append((function, function.inputs, function.outputs))
        return False

    def leaf(self, v: nn.Variable) -> nn.Variable:
        leaf = nn.Variable(v.shape, need_grad=True)
        self.inputs.append(leaf)
        self.closures.append(v)
        return leaf

    def stopped(self, new: nn.Variable) -> nn.Variable:
        copy = self._copy(new)
        copy.need_grad = False
        self._stopped.add(copy)
        return copy

    def apply(self, function: Any, given: list[nn.Variable]) -> list[nn.Variable]:
        python = self._python.get(function)
        self._written.update(given[i] for i in writes(function, python))
        given = [self._copy(v) if v.parent is None and function.inplace_data(i) else v for i, v in enumerate(given)]
        if is_random(function):
            made, drawing = draw(function, given)
            new = stopping_as(function, [made])
            self.drawing.append(drawing)
        else:
            new = again(function, given, python)
        if python is not None:
            self.computed[new[0]] = python
            if isinstance(python, Drawing) and python.random:
                python.nested = True
                self.drawing.append(python)
        self._stopped.update(v for v in new if function.need_grad and not v.need_grad)
        self._links.append((given, new))
        return new

    def _of_its_own(self, v: nn.Variable) -> nn.Variable:
        """The Variable, or a copy where it is a leaf, or another output too."""
        return self._copy(v) if v.parent is None or v in self.outputs else v

    def _copy(self, v: nn.Variable) -> nn.Variable:
        """A function in place keeps the array that its input has when it is made; a leaf gets others."""
        copy = F.identity(v)
        self._links.append(([v], [copy]))
        return copy

    def stop_gradients(self, made: list[nn.Variable]) -> None:
        """Lets no gradient go to those outputs of a loop that depend on nothing which could get one."""
        reached = self.reached(self.inputs)
        for output, inner in zip(made, self.outputs):
            if inner not in reached:
                output.need_grad = False

    def reached(self, start: Iterable[nn.Variable]) -> set[nn.Variable]:
        """Finds all that a gradient would flow back from to some of these."""
        found = set(start)
        for inputs, outputs in self._links:
            if any(v in found for v in inputs):
                found.update(v for v in outputs if v not in self._stopped)
        return found


def _check_repeatable(function: Any) -> None:
    reason = why_not_replayed(function)
    if reason:
        raise NotRepeatable(
            f"way='loop' cannot run a step with {function.info.type_name}: {reason}. Compute it outside of the step, or use "
            "way='unrolled'."
        )
