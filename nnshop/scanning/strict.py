"""What the function of a scan reads without having been given it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Callable

import nnabla as nn
import nnabla.functions as F

from ..parameters import all_parameters
from .returned import Returned


def check_closures(fn: Callable, arguments: list[nn.Variable], given: Iterable[nn.Variable]) -> None:
    """Raises ValueError if a function reads Variables that were there before, other than those given.

    What two calls both read was there before. Call it in `scratch()`: parameters that the function finds by their names
    are others there.
    """
    first, second = (_Graph(Returned.of(fn(*arguments))) for _ in range(2))
    made = second.functions - first.functions
    inside = {v for function in made for v in function.outputs}
    read = [v for function in second.ordered if function in made for v in function.inputs] + second.outputs
    allowed = {*arguments, *given, *nn.get_parameters(grad_only=False).values()}
    closures = [v for v in dict.fromkeys(read) if v not in inside and v not in allowed and v in first.variables]
    if closures:
        names = _names(fn)
        raise ValueError(
            f"strict=True: the function of the scan reads {', '.join(_describe(v, names) for v in closures)}, "
            "which it was not given; pass what it needs as non_sequences."
        )


class _Graph:
    def __init__(self, returned: Returned) -> None:
        self.outputs = returned.variables()
        self.ordered: list[Any] = []
        if self.outputs:
            F.sink(*self.outputs).visit(self.ordered.append)
            self.ordered.pop()  # the sink
        self.functions = set(self.ordered)
        self.variables = {v for function in self.ordered for v in function.inputs} | set(self.outputs)


def _names(fn: Callable) -> dict[nn.Variable, str]:
    """How the function calls the Variables that it sees from outside, or their names as parameters."""
    names = {v: name for name, v in all_parameters().items()}
    try:
        seen = inspect.getclosurevars(fn)
    except TypeError:  # it is no function in Python
        return names
    names.update({v: name for name, v in {**seen.globals, **seen.nonlocals}.items() if isinstance(v, nn.Variable)})
    return names


def _describe(v: nn.Variable, names: dict[nn.Variable, str]) -> str:
    return f"{names[v]} {v.shape}" if v in names else f"a Variable of shape {v.shape}"
