"""The base of every function that nnshop computes itself, in Python, on the arrays of Variables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import nnabla as nn
import numpy as np
from nnabla.function import PythonFunction

from . import inside
from .refusing import own_name, refuse_gradient_graphs

Shape = tuple[int, ...]
Variables = Sequence[nn.Variable]
_FLOAT = np.dtype(np.float32)


inside.install()


class ArrayFunction(PythonFunction):
    """A function of NNabla whose subclass defines `output_shapes`, `compute` and `compute_gradients`.

    Shapes are checked whenever they have changed, so what computes may trust them. The gradient needs the data of all inputs
    and of no output; a subclass that needs less, or more, says so.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_gradient_graphs(own_name(cls))

    ctx: nn.Context = None  # in place of NNabla's property, as it is asked for at each question
    _checked: list[Shape] | None = None  # the shapes that the last set-up has found good

    def __init__(self) -> None:
        super().__init__()
        self.ctx = nn.get_current_context()

    @property
    def name(self) -> str:
        return own_name(type(self))

    def min_outputs(self) -> int:
        return 1

    def grad_depends_output_data(self, i: int, o: int) -> bool:
        return False

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return True

    def setup_impl(self, inputs: Variables, outputs: Variables) -> None:
        self.forget()
        self._checked = None
        for output, shape in zip(outputs, self.output_shapes(*(v.shape for v in inputs))):
            output.reset_shape(shape, True)
        self._checked = _shapes(inputs, outputs)

    def forward_impl(self, inputs: Variables, outputs: Variables) -> None:
        self._check(inputs, outputs)
        self.compute(inputs, outputs)

    def backward_impl(self, inputs: Variables, outputs: Variables, propagate_down: list[bool], accum: list[bool]) -> None:
        self._check(inputs, outputs)
        self.compute_gradients(inputs, outputs, propagate_down, accum)

    def _check(self, inputs: Variables, outputs: Variables) -> None:
        """Sets up again where NNabla does not: after a set-up that failed it goes on with the shapes that were refused."""
        if self._checked != _shapes(inputs, outputs):
            self.setup_impl(inputs, outputs)

    def forget(self) -> None:
        """Drops what was kept of the last arrays."""

    @abstractmethod
    def output_shapes(self, *given: Shape) -> Sequence[Shape]:
        """Returns the shapes of the outputs for those of the inputs; raises ValueError where these do not fit together."""

    @abstractmethod
    def compute(self, inputs: Variables, outputs: Variables) -> None:
        """Writes the outputs."""

    @abstractmethod
    def compute_gradients(self, inputs: Variables, outputs: Variables, propagate_down: list[bool], accum: list[bool]) -> None:
        """Writes, or where `accum` says so adds, the gradients of the inputs that `propagate_down` asks for."""


def _shapes(inputs: Variables, outputs: Variables) -> list[Shape]:
    return [v.shape for v in (*inputs, *outputs)]


def sizes_of(who: str, axes: Mapping[str, str], given: Sequence[Shape]) -> dict[str, int]:
    """Finds the size of each axis, after a check that all inputs agree on them.

    Args:
        who: Begins the message.
        axes: The inputs and the names of their axes, such as `{"x": "B D", "W": "D 4H"}`.
        given: Their shapes.

    Raises:
        ValueError: Two inputs do not agree on the size of an axis, or one is 0.

    Example:
        >>> sizes_of("affine", {"x": "B D", "W": "D 4H", "h": "B H"}, [(2, 3), (3, 20), (2, 5)])
        {'B': 2, 'D': 3, 'H': 5}
    """
    sizes: dict[str, int] = {}
    for name, shape in zip(axes.values(), given):
        sizes.update((axis, size) for axis, size in zip(name.split(), shape) if axis.isalpha() and axis not in sizes)
    wanted = [tuple(int(axis[:-1] or 1) * sizes.get(axis[-1], 1) for axis in name.split()) for name in axes.values()]
    check_shapes(who, dict(zip(axes, wanted)), given, f", since inputs have the axes {axes}")
    return sizes


def check_shapes(who: str, wanted: Mapping[str, Shape], given: Sequence[Shape], why: str = "") -> None:
    """Raises ValueError unless the inputs have these shapes, by their names, and none is empty."""
    if len(wanted) != len(given):
        raise ValueError(f"{who} needs {len(wanted)} inputs, {', '.join(wanted)}; got {len(given)}.")
    wrong = [f"{name} {right}, not {shape}" for (name, right), shape in zip(wanted.items(), given) if right != shape]
    if wrong or any(0 in shape for shape in given):
        raise ValueError(
            f"{who} needs the shapes {'; '.join(wrong) or 'without a 0'}{why}. Where a Variable has changed its shape since "
            "the graph was built, build it again."
        )


def array_of(x: nn.Variable) -> np.ndarray:
    """A Variable's data as a float32 array, to be read only; of other data it is a copy."""
    return x.data.get_data("r", _FLOAT)


def gradient_of(x: nn.Variable) -> np.ndarray:
    """The gradient that has arrived at a Variable, as a float32 array, to be read."""
    return x.grad.get_data("r", _FLOAT)


def rows_of(x: np.ndarray, width: int | None = None) -> np.ndarray:
    """`(..., n)` as a matrix of rows `(N, n)`, in the same memory; n is the last axis, or several of the last together."""
    return x.reshape(-1, width or x.shape[-1])


def gradient_to_write(x: nn.Variable, accumulate: bool) -> np.ndarray:
    """The array of a Variable's gradient: to add to it, or else to overwrite what it holds, which may be anything."""
    return x.grad.get_data("rw" if accumulate else "w", _FLOAT)


def array_to_write(x: nn.Variable) -> np.ndarray:
    """The array of a Variable's data, to overwrite what it holds, which may be anything."""
    return x.data.get_data("w", _FLOAT)


def give_gradient(x: nn.Variable, gradient: Any, accumulate: bool) -> None:
    """Writes a gradient to a Variable, or adds it to the one that is there."""
    if accumulate:
        present = gradient_to_write(x, True)
        present += gradient
    else:
        gradient_to_write(x, False)[...] = gradient
