"""A warning of weights that are shared where another layer is surely meant."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import nnabla as nn

from .blocks import Blocks
from .graphs import functions_of
from .parameters import all_parameters

_MEANT: Blocks[bool] = Blocks("sharing is meant")


def sharing_is_meant(is_meant: bool = True) -> AbstractContextManager:
    """In this block nothing is warned of, where it is meant: the name is the caller's, or this is a step of a recurrence."""
    return _MEANT.open(is_meant)


def warn_of_sharing(who: Any, xs: Iterable[nn.Variable], ys: Iterable[nn.Variable]) -> None:
    """Warns where inputs are outputs of the very weights that they are given to, as in an upper layer without a name.

    Between those outputs and these inputs there may be functions, but none with other weights: that would be another part of a
    network, and to come back from there, as a cycle does, is no mistake.

    Args:
        who: What was run.
        xs: What it was given.
        ys: What it made of that.
    """
    before = {v.parent for v in xs} - {None}
    if not before or any(_MEANT.values()):
        return
    names = {v.data: name for name, v in all_parameters().items()}
    used = _read(ys, names, end=before)
    if used and used <= _read(xs, names, passes=lambda read: read <= used):
        warnings.warn(
            f"{who} is given an output of its own weights, {', '.join(sorted(names[v] for v in used))}: in one scope, layers "
            "and cells without a name share theirs. Give each of them a name=; the same one, if they are to share.",
            stacklevel=2,
        )


def _read(
    outputs: Iterable[nn.Variable],
    names: dict[nn.NdArray, str],
    end: Iterable[Any] = (),
    passes: Callable[[set[nn.NdArray]], bool] = lambda read: True,
) -> set[nn.NdArray]:
    """Finds the parameters that outputs are computed of, up to some functions, and up to those whose parameters do not pass."""
    read = {}

    def enters(v: nn.Variable) -> bool:
        function = v.parent
        if function in end:
            return False
        if function not in read:
            read[function] = {v.data for v in function.inputs if v.parent is None} & names.keys()
        return passes(read[function])

    return {parameter for function in functions_of(outputs, enters) for parameter in read[function]}
