"""Values that a graph computes, and that code outside takes when it has run."""

from __future__ import annotations

from collections.abc import Iterable

import nnabla as nn
import numpy as np


def expect(variables: Iterable[nn.Variable]) -> None:
    """Lets NNabla keep these values, and marks them by NaN until they are computed."""
    variables = list(variables)
    for v in variables:
        v.persistent = True  # NNabla frees and reuses buffers during forward and backward
    if not nn.get_auto_forward():
        forget(v for v in variables if not v.data.modification_count)  # others have been computed already


def forget(variables: Iterable[nn.Variable]) -> None:
    """Marks values as not yet computed."""
    for v in variables:
        if not _is_given(v):
            v.d = np.nan


def _is_given(v: nn.Variable) -> bool:
    """Whether it is computed of nothing, or lies in the array of such a one."""
    if v.parent is None:
        return True
    return any(v.parent.inplace_data(i) and _is_given(given) for i, given in enumerate(v.parent.inputs))


def computed(variables: Iterable[nn.Variable], who: str, way_out: str) -> list[np.ndarray]:
    """Copies the values; `who` begins the message, and `way_out` ends it.

    Raises:
        ValueError: Some have not been computed since `expect` or `forget`.
    """
    values = [np.array(v.d) for v in variables]
    missing = [value.shape for value in values if np.isnan(value).all()]
    if missing:
        raise ValueError(
            f"{who}: values of shapes {missing} have not been computed (or are NaN). Where the loss does not depend on them, "
            f"forward them with it: {way_out}."
        )
    return values
