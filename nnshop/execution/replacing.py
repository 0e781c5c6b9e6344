"""Computes what a function builds, of other Variables than those that it read."""

from __future__ import annotations

from typing import Any, Callable

import nnabla as nn
import nnabla.functions as F
from nnabla.function import PythonFunction

from .step_graph import as_list
from .tracing import noting_python_functions


def computed_of(build: Callable[[], list[nn.Variable]], instead: dict[nn.Variable, nn.Variable]) -> list[nn.Variable]:
    """Calls a function, and applies what depends on some Variables again, to others.

    Args:
        build: Makes a graph, and returns its outputs.
        instead: For Variables that the graph reads, those to be read in their place.

    Returns:
        The outputs, computed of the others.
    """
    if not instead:
        return build()
    python: dict[Any, PythonFunction] = {}
    with noting_python_functions(python):
        outputs = build()
    functions: list[Any] = []
    F.sink(*outputs).visit(functions.append)
    new_of = dict(instead)
    for function in functions[:-1]:  # all but the sink
        if any(v in new_of for v in function.inputs):
            given = [new_of.get(v, v) for v in function.inputs]
            new_of.update(zip(function.outputs, _applied(function, python.get(function), given)))
    return [new_of.get(v, v) for v in outputs]


def _applied(function: Any, computed: PythonFunction | None, given: list[nn.Variable]) -> list[nn.Variable]:
    old, passes = function.outputs, function.need_grad
    if computed is None:
        made = as_list(function(*given, n_outputs=len(old), auto_forward=nn.get_auto_forward()))
    else:
        made = as_list(computed(*given, n_outputs=len(old)))
    for before, after in zip(old, made):
        if passes and not before.need_grad:  # the gradient is stopped here
            after.need_grad = False
    return made
