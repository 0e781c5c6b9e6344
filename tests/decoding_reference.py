"""Decoding in plain Python: distributions, penalties, all texts that there are, and a beam search by lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

# From the ids that were said so far to logits (V,), and to what the step looks at, (S,).
Speak = Callable[[tuple[int, ...]], tuple[np.ndarray, np.ndarray]]


class Hypothesis(NamedTuple):
    ids: tuple[int, ...]  # the end token among them
    score: float
    length: int  # without it
    finished: bool
    looks: tuple[np.ndarray, ...]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - np.max(logits)
    return shifted - np.log(np.exp(shifted).sum())


def distribution(
    logits: np.ndarray, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    """What is drawn from: temperature, then the k most likely, then the fewest of these whose share is top_p."""
    p = np.exp(log_softmax(logits / temperature))
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    kept = order[:top_k]
    if top_p is not None:
        whole, share, fewest = sum(p[i] for i in kept), 0.0, []
        for i in kept:
            if share >= top_p:
                break
            fewest.append(i)
            share += p[i] / whole
        kept = fewest
    only = np.zeros_like(p)
    only[kept] = p[kept]
    return only / only.sum()


def rank(hypothesis: Hypothesis, length_penalty: float, coverage_penalty: float) -> float:
    """Wu et al. 2016, equation 14, with the length of what stands before the end token."""
    found = hypothesis.score / ((5 + hypothesis.length) ** length_penalty / (5 + 1) ** length_penalty)
    if coverage_penalty:
        for position in zip(*hypothesis.looks):
            found += coverage_penalty * math.log(min(max(sum(map(float, position)), 1.2e-38), 1.0))
    return found


def followers(
    hypothesis: Hypothesis, speak: Speak, vocabulary: range, end: int | None, min_length: int
) -> Iterator[Hypothesis]:
    """All that a hypothesis may become by one more token."""
    if hypothesis.finished:
        yield hypothesis
        return
    logits, look = speak(hypothesis.ids)
    log_p = log_softmax(logits)
    for token in vocabulary:
        ends = token == end
        if ends and hypothesis.length < min_length:
            continue
        length = hypothesis.length + (not ends)
        looks = (*hypothesis.looks, look)
        yield Hypothesis((*hypothesis.ids, token), hypothesis.score + log_p[token], length, ends, looks)


NOTHING = Hypothesis((), 0.0, 0, False, ())


def beam_search(
    speak: Speak,
    vocabulary: range,
    end: int | None,
    max_length: int,
    width: int,
    min_length: int = 0,
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
) -> list[Hypothesis]:
    """The hypotheses of a beam, from the best on; it stops early where all have ended only."""
    beam = [NOTHING]
    for _ in range(max_length):
        candidates = [f for hypothesis in beam for f in followers(hypothesis, speak, vocabulary, end, min_length)]
        candidates.sort(key=lambda h: -rank(h, length_penalty, coverage_penalty))
        beam = candidates[:width]
    return beam


def all_texts(vocabulary: range, end: int, max_length: int) -> Iterator[tuple[int, ...]]:
    """Each text that ends by the end token, or that is cut off."""
    others = [token for token in vocabulary if token != end]
    for length in range(max_length):
        for text in product(others, repeat=length):
            yield (*text, end)
    yield from product(others, repeat=max_length)


def brute_force(
    speak: Speak,
    vocabulary: range,
    end: int,
    max_length: int,
    min_length: int = 0,
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
) -> list[Hypothesis]:
    """All hypotheses, from the best on."""
    found = []
    for ids in all_texts(vocabulary, end, max_length):
        finished = ids[-1] == end
        if finished and len(ids) <= min_length:
            continue
        score, looks = 0.0, []
        for t, token in enumerate(ids):
            logits, look = speak(ids[:t])
            score += log_softmax(logits)[token]
            looks.append(look)
        found.append(Hypothesis(ids, score, len(ids) - finished, finished, tuple(looks)))
    return sorted(found, key=lambda h: -rank(h, length_penalty, coverage_penalty))
