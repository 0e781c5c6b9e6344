"""Takes the graph that a call of a function builds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, NamedTuple

import nnabla as nn
import numpy as np
from nnabla.function import PythonFunction

from ..blocks import Blocks
from .visiting import functions_of


class Traced(NamedTuple):
    """A graph, from some Variables to others.

    Attributes:
        inputs: The Variables that others will stand for.
        outputs: What is computed.
        functions: By which functions, in the order of computation.
        python: The Python objects among these functions, as far as they are known.
    """

    inputs: list[nn.Variable]
    outputs: list[nn.Variable]
    functions: list[Any]
    python: dict[Any, PythonFunction]

    def without(self, other: Traced) -> Traced:
        """What this call made itself: functions that another call's graph has too were there before."""
        there = set(other.functions)
        return self._replace(functions=[function for function in self.functions if function not in there])

    def variables(self) -> set[nn.Variable]:
        """All that the functions read, and the outputs."""
        return {*self.outputs, *(v for function in self.functions for v in function.inputs)}


def trace(build: Callable[..., list[nn.Variable]], inputs: Sequence[nn.Variable] = ()) -> Traced:
    """Calls a function that returns the outputs of a graph, and takes the graph. Other threads may build theirs meanwhile.

    Args:
        build: `(*inputs) -> outputs`.
        inputs: What it is called with.
    """
    python: dict[Any, PythonFunction] = {}
    with noting_python_functions(python):
        outputs = list(build(*inputs))
    return Traced(list(inputs), outputs, functions_of(outputs), python)


_NOTES: Blocks[dict[Any, PythonFunction]] = Blocks("notes of Python functions")


def noting_python_functions(found: dict[Any, PythonFunction]) -> AbstractContextManager:
    """Notes which Python object computes which function that this thread makes in the block; NNabla itself does not tell."""
    return _NOTES.open(found)


def _noted(call: Callable) -> Callable:
    @wraps(call)
    def noting(self: PythonFunction, *inputs: nn.Variable, **options: Any) -> Any:
        made = call(self, *inputs, **options)
        for found in _NOTES.values():
            found[(made[0] if isinstance(made, (list, tuple)) else made).parent] = self
        return made

    return noting


# Once and for all: exchanged for the time of a block it would be exchanged for other threads, and may be put back too early.
PythonFunction.__call__ = _noted(PythonFunction.__call__)


def is_same(first: Traced, second: Traced) -> bool:
    """Whether two graphs have the same functions, of the same Variables; inputs and what is computed of them correspond."""
    partner = dict(zip(first.inputs, second.inputs))

    def match(a: nn.Variable, b: nn.Variable) -> bool:
        return partner[a] == b if a in partner else _is_same_value(a, b)

    same = len(first.functions) == len(second.functions) and len(first.outputs) == len(second.outputs)
    for f, g in zip(first.functions, second.functions):
        same = same and f.info.type_name == g.info.type_name and f.info.args == g.info.args
        same = same and all(map(match, f.inputs, g.inputs))
        partner.update(zip(f.outputs, g.outputs))
    return same and all(map(match, first.outputs, second.outputs))


def _is_same_value(a: nn.Variable, b: nn.Variable) -> bool:
    """Whether two Variables from outside are one, as two references to a weight are, or constants of the same value."""
    if a == b or a.data == b.data:
        return True
    if a.parent is not None or b.parent is not None or a.shape != b.shape:
        return False
    return np.array_equal(a.data.get_data("r"), b.data.get_data("r"), equal_nan=True)
