"""Initializers by their Keras names, for weights and for states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import numpy as np
from nnabla.initializer import (
    ConstantInitializer,
    NormalInitializer,
    OrthogonalInitializer,
    UniformInitializer,
    calc_uniform_lim_glorot,
)

from ..core import zeros
from .config import TABLE

Initializer = Callable[[tuple[int, ...]], Any]


def glorot_uniform(shape: tuple[int, ...]) -> np.ndarray:
    """Draws a matrix as Keras' `glorot_uniform` does: U(-a, a) with a = sqrt(6 / (rows + columns))."""
    return UniformInitializer(calc_uniform_lim_glorot(*shape))(shape)


def variance_scaling(factor: float, share_of_columns: float, normal: bool) -> Initializer:
    """Makes an initializer of Keras' family of the variance `factor / n`; n is the rows, or a mean with the columns."""

    def initialize(shape: tuple[int, ...]) -> np.ndarray:
        rows, columns = shape
        deviation = np.sqrt(factor / (rows * (1 - share_of_columns) + columns * share_of_columns))
        if not normal:
            return UniformInitializer((-np.sqrt(3) * deviation, np.sqrt(3) * deviation))(shape)
        return truncated_normal(shape, deviation / 0.8796256610342398)  # what truncation takes off

    return initialize


def truncated_normal(shape: tuple[int, ...], deviation: float = 0.05) -> np.ndarray:
    """Draws from a normal distribution, again where it is more than two deviations off."""
    draws = nn.random.prng.randn(*shape)
    while (far := np.abs(draws) > 2).any():
        draws[far] = nn.random.prng.randn(int(far.sum()))
    return (deviation * draws).astype(np.float32)


def identity(shape: tuple[int, ...]) -> np.ndarray:
    """Returns the identity matrix."""
    rows, columns = shape
    return np.eye(rows, columns, dtype=np.float32)


def orthogonal(shape: tuple[int, ...]) -> np.ndarray:
    """Draws a matrix with orthogonal rows or columns, as Keras' `orthogonal` does."""
    return OrthogonalInitializer()(shape)


INITIALIZERS: dict[str, Initializer] = {
    "zeros": zeros,
    "ones": ConstantInitializer(1),
    "glorot_uniform": glorot_uniform,
    "orthogonal": orthogonal,
    "identity": identity,
    # Made at each call: NNabla's initializers keep the random numbers of their making, and would not follow nn.seed.
    "random_uniform": lambda shape: UniformInitializer((-0.05, 0.05))(shape),
    "random_normal": lambda shape: NormalInitializer(0.05)(shape),
    "truncated_normal": truncated_normal,
    "glorot_normal": variance_scaling(1, 0.5, normal=True),
    "he_uniform": variance_scaling(2, 0, normal=False),
    "he_normal": variance_scaling(2, 0, normal=True),
    "lecun_uniform": variance_scaling(1, 0, normal=False),
    "lecun_normal": variance_scaling(1, 0, normal=True),
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
