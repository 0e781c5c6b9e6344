"""The graph of one step, on leaves of its own, so that it can be run for any values of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import nnabla as nn
import nnabla.functions as F
from nnabla.function import PythonFunction

from .drawing import Drawing, draw, is_random, why_not_drawn

# These write to some of their inputs, when they compute their output: the running mean and variance.
RUNNING = ("BatchNormalization", "FusedBatchNormalization", "SyncBatchNormalization")
# What these write to has a part in their output: computed again, they would give another one.
WRITING = ("Assign", "INQAffine", "INQConvolution", "MeanSubtraction", "MinMaxQuantize", "SpectralNorm", "VATNoise")


class NotRepeatable(ValueError):
    """A step that is not the same at each time, or that cannot be computed twice with the same result."""


class StepGraph:
    """The part of a step's graph that depends on its inputs, draws random numbers or writes, on leaves of its own.

    All else stays outside, where it is computed once; the step takes its result as it takes weights.

    Args:
        inputs: Variables that the graph of the step starts from.
        outputs: What it computes of them.
        functions: What the step made, in the order of computation. They are taken out of that graph.
        python: The Python objects among them.
        hoist: Whether some of them may stay outside.

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

    def __init__(
        self,
        inputs: list[nn.Variable],
        outputs: list[nn.Variable],
        functions: Iterable[Any],
        python: dict[Any, PythonFunction],
        hoist: bool,
    ) -> None:
        self.inputs = [nn.Variable(v.shape, need_grad=True) for v in inputs]
        self.closures: list[nn.Variable] = []
        self.drawing: list[Drawing] = []
        self.computed: dict[nn.Variable, PythonFunction] = {}
        self.outside: list[tuple[Any, list[nn.Variable], list[nn.Variable]]] = []
        self._links: list[tuple[list[nn.Variable], list[nn.Variable]]] = []  # inputs and outputs of each function
        self._stopped: set[nn.Variable] = set()  # outputs that no gradient goes through
        written: set[nn.Variable] = set()
        new_of = dict(zip(inputs, self.inputs))
        inside = set(inputs)
        for function in functions:
            _check_repeatable(function)
            computed = python.get(function)
            writes = _writes(function, computed)
            if not hoist or writes or draws(function, computed) or any(v in inside for v in function.inputs):
                given = [self._taken(v, inputs, new_of) for v in function.inputs]
                written.update(given[i] for i in writes)
                given = [self._copy(v) if v.parent is None and function.inplace_data(i) else v for i, v in enumerate(given)]
                old = function.outputs
                inside.update(old)
                new_of.update(zip(old, self._apply(function, computed, given, old)))
            else:
                self.outside.append((function, function.inputs, function.outputs))
        self.outputs: list[nn.Variable] = []
        for v in outputs:
            self.outputs.append(self._of_its_own(self._taken(v, inputs, new_of)))
        self.written = [i for i, v in enumerate(self.inputs) if v in written]

    def _taken(self, v: nn.Variable, inputs: list[nn.Variable], new_of: dict[nn.Variable, nn.Variable]) -> nn.Variable:
        """What stands for an input of a function; of what was unlinked within the step, a copy that stops the gradient.

        NNabla takes such a Variable to be equal to the one that it was unlinked from.
        """
        if v not in new_of:
            return self._leaf(v, new_of)
        new = new_of[v]
        outside = new.parent is None and v not in inputs
        if v.parent is not None or outside or (v in inputs and v.need_grad):
            return new
        copy = self._copy(new)
        copy.need_grad = False
        self._stopped.add(copy)
        return copy

    def _leaf(self, closure: nn.Variable, new_of: dict[nn.Variable, nn.Variable]) -> nn.Variable:
        """Makes what stands for a Variable from outside."""
        leaf = new_of[closure] = nn.Variable(closure.shape, need_grad=True)
        self.inputs.append(leaf)
        self.closures.append(closure)
        return leaf

    def _apply(
        self, function: Any, computed: PythonFunction | None, given: list[nn.Variable], old: list[nn.Variable]
    ) -> list[nn.Variable]:
        """Puts a function on other inputs, and returns its new outputs."""
        passes = function.need_grad
        if is_random(function):
            made, drawing = draw(function, given)
            self.drawing.append(drawing)
        elif function.info.type_name == "Slice":  # set up again, it would count from the end twice
            made = F.slice(*given, **function.info.args)
        elif computed is None:
            made = function(*given, n_outputs=len(old), auto_forward=False)
        else:  # as above, NNabla would miscount the references to the Python object, and free it too early
            made = computed(*given, n_outputs=len(old))
            self.computed[as_list(made)[0]] = computed
            if isinstance(computed, Drawing) and computed.random:
                computed.nested = True
                self.drawing.append(computed)
        new = as_list(made)
        for before, after in zip(old, new):
            if passes and not before.need_grad:  # the step stops the gradient here
                after.need_grad = False
                self._stopped.add(after)
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


def as_list(made: Any) -> list[nn.Variable]:
    """What a function of NNabla returned, which for one output is no tuple."""
    return list(made) if isinstance(made, (list, tuple)) else [made]


def _writes(function: Any, computed: PythonFunction | None) -> Iterable[int]:
    """Which inputs a function may write to."""
    if isinstance(computed, Drawing):
        return computed.written
    return range(1, len(function.inputs)) if function.info.type_name in RUNNING else ()


def draws(function: Any, computed: PythonFunction | None) -> bool:
    return is_random(function) or (isinstance(computed, Drawing) and computed.random)


def _check_repeatable(function: Any) -> None:
    kind, arguments = function.info.type_name, function.info.args
    reason = "it changes what it reads" if kind in WRITING and not arguments.get("test") else why_not_drawn(function)
    if reason:
        raise NotRepeatable(
            f"way='loop' cannot run a step with {kind}: {reason}. Compute it outside of the step, or use way='unrolled'."
        )
