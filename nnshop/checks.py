"""What callers give, checked before a graph is built of it."""

from __future__ import annotations

from typing import Any

import nnabla as nn
import numpy as np


def is_whole(number: Any) -> bool:
    """Whether it is a whole number, of Python or of NumPy; a bool is none."""
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def check_sizes(who: str, **sizes: Any) -> None:
    """Raises ValueError, "who needs ...", unless each size is a positive number that an axis may have."""
    for name, size in sizes.items():
        if not is_whole(size) or size < 1:
            raise ValueError(f"{who} needs {name} >= 1, a whole number; got {size!r}.")
        if size >= 2**31:
            raise ValueError(f"{who} needs {name} < 2 ** 31, what NNabla can count; got {size}.")


def check_given_sizes(who: str, **sizes: Any) -> None:
    """`check_sizes` of those that are not None."""
    check_sizes(who, **{name: size for name, size in sizes.items() if size is not None})


def check_count(name: str, number: Any, least: int = 1) -> None:
    """Raises ValueError unless this is a whole number that is neither too small nor too large."""
    if not is_whole(number) or number < least:
        raise ValueError(f"{name} must be a whole number, {least} or more; got {number!r}.")
    if number >= 2**31:
        raise ValueError(f"{name} must be below 2 ** 31, what NNabla can count; got {number}.")


def check_name(who: str, name: Any) -> None:
    """Raises TypeError unless this may name a parameter scope; None is no scope."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"{who} needs a str as its name; got {name!r}.")


def is_number(value: Any) -> bool:
    """Whether it is a real number, of Python or of NumPy; a bool is none."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError unless this is True or False: a word, such as "no", would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is True or False; got {value!r}.")


def check_variable(what: str, v: Any) -> None:
    """Raises TypeError unless this is a Variable, and ValueError where it is empty: NNabla divides by its sizes."""
    if not isinstance(v, nn.Variable):
        raise TypeError(f"{what} must be a Variable; got {type(v).__name__}. Wrap an array in nn.Variable.from_numpy_array.")
    if 0 in v.shape:
        raise ValueError(f"{what} must not be empty: each size must be at least 1; got the shape {v.shape}.")
