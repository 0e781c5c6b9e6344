"""The best tokens of each row of logits, and what their probabilities are measured by."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any, NamedTuple

import numpy as np


class Best(NamedTuple):
    """The most likely tokens of N rows.

    Attributes:
        ids: `(N, k)`, from the most likely; of equals, the lowest id comes first.
        log_p: Their log probabilities, `(N, k)` in float64, never above 0. -inf where there are not so many tokens.
        log_sums: `(N,)`, log of the sum of exp(logits); NaN where a logit is NaN or inf, or all are -inf.
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
    kernel = _kernel()
    if kernel is None:
        logit, ids, log_sums = _by_numpy(logits, k, without)
    else:
        rows = len(logits)
        logit, ids, log_sums = np.empty((rows, k), np.float32), np.empty(rows * k, np.int64), np.empty(rows, np.float32)
        kernel(np.ascontiguousarray(logits), without, logit, ids, log_sums)
        ids = ids.reshape(rows, k)
    return Best(ids, log_probabilities(logit, log_sums[:, np.newaxis]), log_sums)


def log_probabilities(logits: np.ndarray, log_sums: np.ndarray) -> np.ndarray:
    """Log probabilities in float64; rounding lets none be above 0, so a text's never grows with its length."""
    return np.minimum(logits.astype(np.float64) - log_sums, 0)


def check_finite(log_sums: np.ndarray, needed: np.ndarray, t: int) -> None:
    """Raises ValueError where logits of a row that is needed are no distribution."""
    wrong = needed & ~np.isfinite(log_sums)
    if wrong.any():
        raise ValueError(
            f"step {t} gave logits with NaN or inf, or with -inf only, in the rows {np.flatnonzero(wrong)[:5].tolist()}; no "
            "token can be chosen by them. Check the weights and the initial state."
        )


@cache
def _kernel() -> Any:
    """The compiled function, in every context, since what it works on are arrays of NumPy; None without numba."""
    if importlib.util.find_spec("numba") is None:
        return None
    from ..kernels.top_k import top_k  # here, since numba takes half a second to import

    return top_k


def _by_numpy(logits: np.ndarray, k: int, without: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As often as asked, finds the largest and takes it away: for few this is faster than sorting, and it keeps the order."""
    with np.errstate(invalid="ignore"):
        largest = logits.max(axis=1)
        log_sums = largest + np.log(np.exp(logits - largest[:, np.newaxis]).sum(axis=1))
    left, rows = logits.copy(), np.arange(len(logits))
    if without >= 0:
        left[:, without] = -np.inf
    found, ids = np.empty((len(logits), k), np.float32), np.empty((len(logits), k), np.int64)
    for i in range(k):
        ids[:, i] = left.argmax(axis=1)
        found[:, i] = left[rows, ids[:, i]]
        left[rows, ids[:, i]] = -np.inf
    return found, ids, log_sums
