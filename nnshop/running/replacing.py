"""What a function builds, told from what was there, and computed of other Variables than those that it read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import nnabla as nn
import nnabla.function
from nnabla.function import PythonFunction

from ..functions import functions_of
from .step_graph import as_list
from .tracing import noting_python_functions


class Made(NamedTuple):
    """What a call made.

    Attributes:
        outputs: What it returned.
        own: The functions that it made, in the order of computation; what else the outputs depend on was there.
        seen: The Variables of the graph of another such call: those that this one has too were there.
        python: The Python objects among its functions.
    """

    outputs: list[nn.Variable]
    own: list[Any]
    seen: set[nn.Variable]
    python: dict[Any, PythonFunction]


def made_by(build: Callable[[], list[nn.Variable]]) -> Made:
    """Calls a function that returns the outputs of a graph twice, which tells what it makes from what was there."""
    python: dict[Any, PythonFunction] = {}
    other = build()
    before = functions_of(other)
    with noting_python_functions(python):
        outputs = build()
    there = set(before)
    own = [function for function in functions_of(outputs) if function not in there]
    return Made(outputs, own, {*other, *(v for function in before for v in function.inputs)}, python)


def computed_of(
    build: Callable[[], list[nn.Variable]], instead: Sequence[tuple[nn.Variable, nn.Variable]]
) -> list[nn.Variable]:
    """Calls a function, and applies what depends on some Variables again, to others.

    Args:
        build: Makes a graph, and returns its outputs.
        instead: Pairs of a Variable that the graph reads, or another one on the same array, and what is read in its place.

    Returns:
        The outputs, computed of the others; the graph that was built, and what it read, remain as they are.

    Raises:
        ValueError: A function in Python from outside of `build` reads what is to be replaced.
    """
    python: dict[Any, PythonFunction] = {}
    eager = nn.get_auto_forward()
    with nn.auto_forward(False), noting_python_functions(python):
        before = set(functions_of(build())) if eager else set()  # what two calls both read was there before, and is computed
        outputs = build()
        functions = functions_of(outputs)
    new_of: dict[nn.Variable, nn.Variable] = {}

    def found(v: nn.Variable) -> nn.Variable | None:
        if v not in new_of and v.parent is None:
            for old, new in instead:
                if v == old or v.data == old.data:
                    new_of[v] = new
        return new_of.get(v)

    for function in functions:
        replaced = [found(v) for v in function.inputs]
        if any(v is not None for v in replaced) or (eager and function not in before):
            given = [v if new is None else new for v, new in zip(function.inputs, replaced)]
            new_of.update(zip(function.outputs, _applied(function, python.get(function), given)))
    return [found(v) or v for v in outputs]


def _applied(function: Any, computed: PythonFunction | None, given: list[nn.Variable]) -> list[nn.Variable]:
    """Applies a function like this one."""
    old, kind = function.outputs, function.info.type_name
    if computed is not None:
        made = as_list(computed(*given, n_outputs=len(old)))
    elif function.name == "Callback":  # NNabla's name for all functions in Python
        raise ValueError(f"{kind}, computed outside of the step, reads what the step updates; pass its result to the step.")
    else:
        make = getattr(nnabla.function, kind)(function.context, **function.info.args)
        made = as_list(make(*given, n_outputs=len(old), auto_forward=nn.get_auto_forward()))
    for before, after in zip(old, made):
        if function.need_grad and not before.need_grad:  # the gradient is stopped here
            after.need_grad = False
    return made
