"""What `scan` is used for most, under the names that functional languages have for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .scan import scan
from .updates import Updates


def map(fn: Callable, sequences: Any, non_sequences: Any = None, **options: Any) -> tuple[Any, Updates]:
    """Applies a function to each step of sequences; each result is by itself.

    Args:
        fn: `(entries..., non_sequences...) -> outputs`.
        sequences, non_sequences: As in `nnshop.scan`.
        **options: Its others, such as `go_backwards=True`.

    Returns:
        `(outputs, updates)`, as of `nnshop.scan`.

    Example:
        >>> y, _ = nnshop.map(lambda x, a: x * x + a, [1., 2., 3.], 10.)
        >>> y.forward(); y.d
        array([11., 14., 19.], dtype=float32)
    """
    return scan(fn, sequences, None, non_sequences, **options)


def reduce(fn: Callable, sequences: Any, outputs_info: Any, non_sequences: Any = None, **options: Any) -> tuple[Any, Updates]:
    """Combines the steps of sequences into one value, from the first to the last.

    Args:
        fn: `(entries..., last results..., non_sequences...) -> results`: the sequences come first.
        sequences, outputs_info, non_sequences: As in `nnshop.scan`; outputs_info has the initial values.
        **options: Its others, such as `name`.

    Returns:
        `(results, updates)`: the values after the last step, one or a list as in `nnshop.scan`.

    Example:
        >>> total, _ = nnshop.reduce(lambda x, total: total + x, [1., 2., 3.], 0.)
        >>> total.forward(); float(total.d)
        6.0
    """
    time_axis = options.get("time_axis", 0)
    outputs, updates = scan(fn, sequences, outputs_info, non_sequences, **options)

    def last(y: Any) -> Any:
        if y is None:  # the function has updates only
            return None
        return y[:, -1] if time_axis else y[-1]

    return ([last(y) for y in outputs] if isinstance(outputs, list) else last(outputs)), updates


def foldl(fn: Callable, sequences: Any, outputs_info: Any, non_sequences: Any = None, **options: Any) -> tuple[Any, Updates]:
    """Is `nnshop.reduce`, from the first step to the last.

    Example:
        >>> number, _ = nnshop.foldl(lambda digit, number: number * 10 + digit, [1., 2., 3.], 0.)
        >>> number.forward(); float(number.d)
        123.0
    """
    return reduce(fn, sequences, outputs_info, non_sequences, **options)


def foldr(fn: Callable, sequences: Any, outputs_info: Any, non_sequences: Any = None, **options: Any) -> tuple[Any, Updates]:
    """Is `nnshop.reduce`, from the last step to the first.

    Example:
        >>> number, _ = nnshop.foldr(lambda digit, number: number * 10 + digit, [1., 2., 3.], 0.)
        >>> number.forward(); float(number.d)
        321.0
    """
    return reduce(fn, sequences, outputs_info, non_sequences, go_backwards=True, **options)
