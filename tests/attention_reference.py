"""Attention in plain NumPy, float64, written from the equations; nothing of nnshop is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import reference
from reference import Tree, Weights

Score = Callable[[Weights, np.ndarray, np.ndarray, Any], np.ndarray]  # (weights, query, memory, cumulated) -> (B, S)


def dot(weights: Weights, query: np.ndarray, memory: np.ndarray, _: Any) -> np.ndarray:
    return np.einsum("bm,bsm->bs", query, memory)


def scaled_dot(weights: Weights, query: np.ndarray, memory: np.ndarray, _: Any) -> np.ndarray:
    return np.einsum("bm,bsm->bs", query, memory) / np.sqrt(memory.shape[2])


def general(weights: Weights, query: np.ndarray, memory: np.ndarray, _: Any) -> np.ndarray:
    return np.einsum("bq,qm,bsm->bs", query, weights["query/W"], memory)


def concat(weights: Weights, query: np.ndarray, memory: np.ndarray, _: Any, more: Any = 0) -> np.ndarray:
    z = (query @ weights["query/W"])[:, None] + memory @ weights["memory/W"] + weights["b"] + more
    return np.tanh(z) @ weights["v"][:, 0]


def normalized_concat(weights: Weights, query: np.ndarray, memory: np.ndarray, _: Any) -> np.ndarray:
    v = weights["v"]
    return concat({**weights, "v": weights["g"] * v / np.sqrt((v * v).sum())}, query, memory, None)


def location(weights: Weights, query: np.ndarray, memory: np.ndarray, cumulated: np.ndarray) -> np.ndarray:
    filters = weights["location/filters"][:, 0]  # (F, K)
    count, size = filters.shape
    features = np.zeros((*cumulated.shape, count))
    for s in range(cumulated.shape[1]):
        for k in range(size):
            at = s + k - size // 2
            if 0 <= at < cumulated.shape[1]:
                features[:, s] += cumulated[:, at, None] * filters[:, k]
    return concat(weights, query, memory, None, features @ weights["location/W"])


SCORES: dict[str, Score] = {
    "dot": dot,
    "scaled_dot": scaled_dot,
    "general": general,
    "concat": concat,
    "normalized_concat": normalized_concat,
    "location": location,
}


def softmax(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Over what counts; zeros where nothing does."""
    weights = np.zeros_like(scores)
    for b, keep in enumerate(mask.astype(bool)):
        if keep.any():
            e = np.exp(scores[b, keep] - scores[b, keep].max())
            weights[b, keep] = e / e.sum()
    return weights


def attending(
    cell: Callable,
    score: Score,
    memory: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    input_feeding: bool = True,
    scope: str = "attention",
) -> Callable:
    """The step of a cell that attends; with alignments they stand beside the output, `(B, ... + S)`.

    Without a memory, it is the weight "memory", `(1, S, M)`, for all rows. There are units where there is `output/W`.
    """

    def step(weights: Weights, x: np.ndarray, state: Tree) -> tuple[np.ndarray, Tree]:
        source = np.repeat(weights["memory"], len(x), axis=0) if memory is None else memory
        keep = np.ones(source.shape[:2]) if mask is None else np.broadcast_to(mask, source.shape[:2])
        own = reference.below(scope, weights)
        state, last = state if input_feeding else (state, None)
        state, cumulated = state if score is location else (state, None)
        y, state = cell(weights, np.concatenate([x, last], axis=1) if input_feeding else x, state)
        a = softmax(score(own, y, source, cumulated), keep)
        context = np.einsum("bs,bsm->bm", a, source)
        output, attention = np.concatenate([y, context], axis=1), context
        if "output/W" in own:
            output = attention = np.tanh(output @ own["output/W"])
        state = (state, cumulated + a) if score is location else state
        return output, (state, attention) if input_feeding else state

    return step
