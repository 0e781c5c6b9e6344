"""Limits how far one step goes."""

from __future__ import annotations

from typing import Any

import numpy as np


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
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive; got {max_norm}.")
    norm = float(np.sqrt(sum(float(np.vdot(p.g, p.g)) for p in solver.get_parameters().values())))
    if np.isfinite(norm) and norm > max_norm:
        solver.scale_grad(max_norm / norm)
    return norm
