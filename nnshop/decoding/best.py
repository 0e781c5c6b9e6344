"""The best tokens of each row of logits, and what their probabilities are measured by."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..kernels import why_no_compiler


class Best(NamedTuple):
    """The most likely tokens of N rows.

    Attributes:
        ids: `(N, k)`, from the most likely; of equals, the lowest id comes first.
        log_p: Their log probabilities, `(N, k)` in float64, never above 0. -inf where there are not so many tokens.
        log_sums: `(N,)`, log of the sum of exp(logits), in float64; NaN where a logit is NaN or inf, or all are -inf.
    """

    ids: np.ndarray
    log_p: np.ndarray
    log_sums: np.ndarray


def best_of(logits: np.ndarray, k: int, without: int = -1) -> Best:
    """Finds the k most likely tokens of each row of logits `(N, V)` in float32.

    Args:
        without: A token that does not count among them, or -1.

    Example:
        >>> best_of(np.log(np.array([[0.2, 0.5, 0.3]], np.float32)), 2).ids
        array([[1, 2]])
    """
    rows = _compiled_rows()
    if rows is None:
        logit, ids, largest, above = _by_numpy(logits, k, without)
    else:
        logits = np.ascontiguousarray(logits)
        logit, ids = rows.top_k(logits, k, without)
        largest, sums = rows.exponentials(logits)
        with np.errstate(invalid="ignore"):
            above = np.log(sums)
    log_sums = largest.astype(np.float64) + above  # in float32 a large logit would swallow what is above it
    return Best(ids, log_probabilities(logit, log_sums[:, np.newaxis]), log_sums)


def log_probabilities(logits: np.ndarray, log_sums: np.ndarray) -> np.ndarray:
    """Log probabilities in float64. None is above 0: a sum of exponentials beside the largest has a 1 in it."""
    return logits.astype(np.float64) - log_sums


def check_finite(log_sums: np.ndarray, needed: np.ndarray, t: int) -> None:
    """Raises ValueError where logits of a row that is needed are no distribution."""
    wrong = needed & ~np.isfinite(log_sums)
    if wrong.any():
        raise ValueError(
            f"step {t} gave logits with NaN or inf, or with -inf only, in the rows {np.flatnonzero(wrong)[:5].tolist()}; no "
            "token can be chosen by them. Check the weights and the initial state."
        )


@cache
def _compiled_rows() -> Any:
    """The module of compiled functions, in every context, since they work on arrays of NumPy; None without llvmlite."""
    if why_no_compiler():
        return None
    from ..kernels import rows  # here, since llvmlite takes time to import

    return rows


def _by_numpy(logits: np.ndarray, k: int, without: int) -> tuple[np.ndarray, ...]:
    """As often as asked, finds the largest and takes it away: for few this is faster than sorting, and it keeps the order."""
    with np.errstate(invalid="ignore"):
        largest = logits.max(axis=1)
        above = np.log(np.exp(logits - largest[:, np.newaxis]).sum(axis=1))
    left, rows = logits.copy(), np.arange(len(logits))
    if without >= 0:
        left[:, without] = -np.inf
    found, ids = np.empty((len(logits), k), np.float32), np.empty((len(logits), k), np.int64)
    for i in range(k):
        ids[:, i] = left.argmax(axis=1)
        found[:, i] = left[rows, ids[:, i]]
        left[rows, ids[:, i]] = -np.inf
    return found, ids, largest, above
