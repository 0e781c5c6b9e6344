"""Limits how far one step goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np

from ..context import in_float32, on_host


def clip_grad_by_global_norm(solver: Any, max_norm: float) -> float:
    """Scales all gradients of a solver by one factor, so that their common norm is at most `max_norm`.

    `solver.clip_grad_by_norm` clips each parameter by itself, which changes the direction of the step.

    Args:
        solver: An NNabla solver, after `backward`.
        max_norm: The largest norm allowed, > 0.

    Returns:
        The norm before clipping, `sqrt(sum of squares over all parameters)`. Where it is NaN or infinite nothing is
        scaled: test it, and leave the update out.

    Raises:
        ValueError: max_norm is not positive.

    References:
        R. Pascanu, T. Mikolov, Y. Bengio, On the difficulty of training recurrent neural networks, 2013.

    Example:
        >>> import nnabla.solvers as S
        >>> w = nn.parameter.get_parameter_or_create("w", (2,), np.zeros(2))
        >>> solver = S.Sgd(); solver.set_parameters(nn.get_parameters()); w.g = [3, 4]
        >>> clip_grad_by_global_norm(solver, 1.0), w.g
        (5.0, array([0.6, 0.8], dtype=float32))
    """
    if not hasattr(solver, "get_parameters"):
        raise TypeError(f"clip_grad_by_global_norm takes one of NNabla's solvers; got {solver!r}.")
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive; got {max_norm}.")
    gradients = [p.grad for p in solver.get_parameters().values()]
    sum_of_squares = _sum_of_squares if on_host(nn.get_current_context()) else _sum_of_squares_on_device
    norm = float(np.sqrt(sum_of_squares(gradients)))
    if np.isfinite(norm) and norm > max_norm:
        solver.scale_grad(max_norm / norm)
    return norm


def _sum_of_squares(arrays: Sequence[nn.NdArray]) -> float:
    views = (array.get_data("r", np.float32) for array in arrays)
    return sum(float(np.vdot(a, a)) for a in views)


def _sum_of_squares_on_device(arrays: Sequence[nn.NdArray]) -> float:
    """The same, of which one number is copied from the device."""
    with in_float32():
        sums = [F.sum(F.pow_scalar(array, 2)) for array in arrays]
        return float(F.add_n(*sums).data) if sums else 0.0
