"""Ids that a graph is fed, such as words and classes, checked each time it runs.

NNabla takes any number for an id. What lies outside of a table it reads, and in the backward pass writes, all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import nnabla as nn
import numpy as np

from .context import in_float32, on_host
from .kernels.array_function import ArrayFunction, Shape, Variables
from .kernels.refusing import own_name
from .portable import is_portable

_KNOWN: ContextVar[bool] = ContextVar("known", default=False)


class CheckedIds(ArrayFunction):
    """`ids -> ids`, whole numbers below a size, and -1 for all that are negative.

    Args:
        size: How many ids there are, from 0.
        who: What begins the message.
        negative: They may be negative.
    """

    def __init__(self, size: int, who: str, negative: bool) -> None:
        super().__init__()
        self.size, self.who, self.negative = size, who, negative

    def output_shapes(self, *given: Shape) -> Sequence[Shape]:
        return given

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return False

    def compute(self, inputs: Variables, outputs: Variables) -> None:
        given = inputs[0].data.data  # of any type, as it was fed
        ids, right = self._compare(given)
        # NNabla computes what follows even after an error, so that must not meet a wrong id.
        outputs[0].data.cast(np.int32)[...] = np.where(right, np.maximum(ids, -1), 0)
        self._refuse(given[~right])

    def check(self, given: np.ndarray) -> None:
        """Raises ValueError where an id is wrong."""
        self._refuse(given[~self._compare(given)[1]])

    def _compare(self, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids, and which are right."""
        with np.errstate(invalid="ignore"):
            ids = given.astype(np.int64)
        return ids, (ids == given) & (ids >= (-(2**31) if self.negative else 0)) & (ids < self.size)

    def _refuse(self, wrong: np.ndarray) -> None:
        if wrong.size:
            raise ValueError(
                f"{self.who} must be a whole number from 0 to {self.size - 1}"
                f"{', or a negative one for no class' if self.negative else ''}; got {wrong[:5].tolist()}."
            )

    def compute_gradients(self, inputs: Variables, outputs: Variables, propagate_down: list[bool], accum: list[bool]) -> None:
        """Ids have no gradient."""


def is_check(function: Any) -> bool:
    """Whether a function of a graph is such a check."""
    return function.info.type_name == own_name(CheckedIds)


def checked_ids(ids: nn.Variable, size: int, who: str, negative: bool = False) -> nn.Variable:
    """Returns the same ids; when the graph runs, wrong ones are an error.

    That is so on the CPU. On a device the check would wait for the copy of all ids, and `portable()` allows NNabla's own
    functions only: there nothing is checked.

    Args:
        ids: Any shape.
        size: How many ids there are, from 0.
        who: What begins the message.
        negative: They may be negative, which means no class.

    Raises:
        SystemError: When it runs, by NNabla, with a ValueError that names the ids as its cause.
    """
    with in_float32():
        if _KNOWN.get() or is_portable() or not on_host(nn.get_current_context()):
            return ids
        checked = CheckedIds(size, who, negative)(ids)
    checked.need_grad = False
    return checked


@contextmanager
def known_ids() -> Iterator[None]:
    """Leaves checks out in this block, where ids are known to be right."""
    token = _KNOWN.set(True)
    try:
        yield
    finally:
        _KNOWN.reset(token)
