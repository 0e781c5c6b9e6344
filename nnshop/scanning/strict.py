"""What the function of a scan reads without having been given it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

import nnabla as nn

from ..graphs import Traced
from ..parameters import all_parameters


def check_closures(fn: Callable, made: Traced, before: set[nn.Variable], given: Iterable[nn.Variable]) -> None:
    """Raises ValueError if a function reads Variables that were there before, other than those given.

    The call is to be made in `scratch()`, and this too: parameters that the function finds by their names are others there.
    """
    inside = {v for function in made.functions for v in function.outputs}
    read = [v for function in made.functions for v in function.inputs] + made.outputs
    allowed = {*given, *nn.get_parameters(grad_only=False).values()}
    closures = [v for v in dict.fromkeys(read) if v not in inside and v not in allowed and v in before]
    if closures:
        names = _names(fn)
        raise ValueError(
            f"strict=True: the function of the scan reads {', '.join(_describe(v, names) for v in closures)}, "
            "which it was not given; pass what it needs as non_sequences."
        )


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
