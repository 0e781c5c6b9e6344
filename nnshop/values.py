"""Values that a graph computes, and that code outside takes when it has run."""

from __future__ import annotations

from collections.abc import Iterable

import nnabla as nn
import nnabla.functions as F
import numpy as np

from .context import in_float32, on_host
from .functions import reshape, stop_gradient
from .graphs import in_place_of


def expect(variables: Iterable[nn.Variable]) -> None:
    """Lets NNabla keep these values, and marks them by NaN until they are computed."""
    variables = list(variables)
    for v in variables:
        v.persistent = True  # NNabla frees and reuses buffers during forward and backward
    if not nn.get_auto_forward():
        forget(v for v in variables if not v.data.modification_count)  # others have been computed already


def together(outputs: Iterable[nn.Variable], others: Iterable[nn.Variable]) -> list[nn.Variable]:
    """Returns the outputs so that whoever computes one of them computes the others too.

    Each has a zero added to it, made of the others, also where they are infinite or NaN; no gradient goes through it.
    """
    outputs, zeros = list(outputs), [F.sum(F.sign(v, alpha=0) * 0) for v in others]
    if not zeros:
        return outputs
    zero, made = stop_gradient(sum(zeros[1:], zeros[0])), []
    for v in outputs:
        with in_float32(v.ndim < 2):  # one number for each row may be an id
            made.append(v + reshape(zero, (1,) * v.ndim))
    return made


def forget(variables: Iterable[nn.Variable]) -> None:
    """Marks values as not yet computed."""
    for v in variables:
        if all(source.parent is not None for source in in_place_of(v)):  # else it is given, and lies in the array of that
            v.data.fill(np.nan)


def is_computed(v: nn.Variable) -> bool:
    """Whether a value is another than the mark; one number of it tells, unless that is NaN."""
    if v.size and not np.isnan(_first_number(v)):
        return True
    return not np.isnan(v.data.get_data("r")).all()


def _first_number(v: nn.Variable) -> float:
    if on_host(nn.get_current_context()):
        return v.data.get_data("r").item(0)
    return v.data.view((v.size,)).narrow(0, 0, 1).get_data("r").item(0)  # from a device no more than that is copied


def check_computed(variables: Iterable[nn.Variable], who: str, way_out: str) -> None:
    """Checks that values have been computed since `expect` or `forget`; `who` begins the message, and `way_out` ends it.

    Raises:
        ValueError: Some have not.
    """
    missing = [v.shape for v in variables if not is_computed(v)]
    if missing:
        raise ValueError(
            f"{who}: values of shapes {missing} have not been computed (or are NaN). Where the loss does not depend on them, "
            f"forward them with it: {way_out}."
        )


def copy(sources: Iterable[nn.Variable], targets: Iterable[nn.Variable]) -> None:
    """Copies values from Variables to others, which may be the same in another order; on a device they stay there."""
    if on_host(nn.get_current_context()):  # there NumPy takes a third of the time
        for target, array in zip(targets, [v.d.copy() for v in sources]):
            target.d = array
        return
    copies = [nn.NdArray(v.shape).copy_from(v.data, use_current_context=False) for v in sources]
    for target, value in zip(targets, copies):
        target.data.copy_from(value, use_current_context=False)
