"""Initializers by their Keras names, for weights and for states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from nnabla.initializer import ConstantInitializer, OrthogonalInitializer, UniformInitializer, calc_uniform_lim_glorot

from ..core import zeros
from .config import TABLE

Initializer = Callable[[tuple[int, ...]], Any]


def glorot_uniform(shape: tuple[int, ...]) -> np.ndarray:
    """Draws a matrix as Keras' `glorot_uniform` does: U(-a, a) with a = sqrt(6 / (rows + columns))."""
    return UniformInitializer(calc_uniform_lim_glorot(*shape))(shape)


def orthogonal(shape: tuple[int, ...]) -> np.ndarray:
    """Draws a matrix with orthogonal rows or columns, as Keras' `orthogonal` does."""
    return OrthogonalInitializer()(shape)


INITIALIZERS: dict[str, Initializer] = {
    "zeros": zeros,
    "ones": ConstantInitializer(1),
    "glorot_uniform": glorot_uniform,
    "orthogonal": orthogonal,
    "random_uniform": UniformInitializer((-0.05, 0.05)),
}


def find_initializer(initializer: str | Initializer | np.ndarray) -> Any:
    """Finds an initializer by its name; functions and arrays pass through.

    Raises:
        ValueError: It is none of these, or the name is not one of `INITIALIZERS`.
    """
    if isinstance(initializer, np.ndarray):
        return initializer
    if callable(initializer):
        return lambda shape: initializer(shape)  # NNabla passes it by this name, which a function of yours need not have
    if not isinstance(initializer, str) or initializer not in INITIALIZERS:
        names = ", ".join(INITIALIZERS)
        raise ValueError(f"an initializer is a function of the shape, an array, or one of {names}; got {initializer!r}.")
    return INITIALIZERS[initializer]


TABLE.update({f"initializers.{function.__name__}": function for function in (zeros, glorot_uniform, orthogonal)})
