"""One text for each row: the most likely token at each step, or one that is drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import nnabla as nn
import numpy as np

from ..checks import check_count, is_number, is_whole
from ..core import AbstractCell, Tree
from .best import best_of, check_finite, log_probabilities
from .step import Decoded, Ready, Step, check_limit, prepare

# From logits (B, V) to ids (B,), their log probabilities, and the logarithm of the sum of exp(logits).
Choose = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def greedy(
    cell: AbstractCell | Step,
    start: Any,
    state: Tree = None,
    *,
    end: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
) -> Decoded:
    """Says the most likely token at each step, of equals the one with the lowest id.

    It stops when each row has said the end token, at most after max_length steps. A row that has ended says nothing more, and
    its score stays.

    Args:
        cell: A cell from ids `(B,)` to logits `(B, V)`, or to the pair (logits, alignments `(B, S)`), on weights that exist; or
            a `Step`, for many calls with one batch size.
        start: What is said to the cell first: an id, or ids `(B,)`.
        state: The state that it starts from: a tree of Variables, which may be computed, such as the final state of an encoder,
            or of arrays. The cell's initial state by default.
        end: The end token.
        max_length: How many tokens are said at most, the end token among them. With an end token alone it is 1000.
        batch_size: B, where neither start nor state tells; 1 by default.

    Returns:
        A `Decoded`.

    Raises:
        TypeError: The cell is no cell.
        ValueError: Neither end nor max_length; ids that the cell does not know; batch sizes that differ; a state of wrong
            shapes; logits that are NaN; and what `Step` raises.

    Example:
        >>> cell = nnshop.stack(nnshop.lift(PF.embed, 10, 4), nnshop.GRUCell(8), nnshop.lift(PF.affine, 10))
        >>> y, state = cell(nn.Variable((3,)), cell.initial_state(3))  # makes the weights, as training does
        >>> said = nnshop.decoding.greedy(cell, 0, max_length=5, batch_size=3)
        >>> said.ids.shape, said.lengths
        ((3, 5), array([5, 5, 5]))
    """
    limit = check_limit(end, max_length)
    return _write(prepare(cell, start, state, end, batch_size), end, limit, _likeliest)


def sample(
    cell: AbstractCell | Step,
    start: Any,
    state: Tree = None,
    *,
    end: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | np.random.RandomState | None = None,
) -> Decoded:
    """Draws a token at each step, by its probability; all else is as in `greedy`.

    Args:
        cell, start, state, end, max_length, batch_size: As in `greedy`.
        temperature: By what the logits are divided: below 1 safer, above 1 wilder; from 1.2e-38 to 3.4e38, what 32 bits hold.
        top_k: Only the k most likely tokens are drawn.
        top_p: Only the most likely tokens are drawn, as few as have this probability together, after temperature and top_k.
            Among equals the lowest ids come first, as for top_k.
        seed: A number, for the same texts at each call, or a generator. By default it is NNabla's, `nn.random.prng`.

    Returns:
        A `Decoded`. Its scores are log probabilities by the cell itself, whatever temperature, top_k and top_p were, so they
        compare with those of `greedy` and `beam_search`.

    Raises:
        TypeError, ValueError: As `greedy`; a temperature, top_k or top_p out of range.

    References:
        A. Fan et al., Hierarchical neural story generation, 2018 (top-k); A. Holtzman et al., The curious case of neural text
        degeneration, 2020 (top-p).

    Example:
        >>> cell = nnshop.stack(nnshop.lift(PF.embed, 10, 4), nnshop.GRUCell(8), nnshop.lift(PF.affine, 10))
        >>> y, state = cell(nn.Variable((3,)), cell.initial_state(3))  # makes the weights, as training does
        >>> said = nnshop.decoding.sample(cell, [0, 1, 2], max_length=5, temperature=0.8, top_k=4, seed=1)
        >>> said.ids.shape, said.scores.shape
        ((3, 5), (3,))
    """
    limit = check_limit(end, max_length)
    _check_distribution(temperature, top_k, top_p)
    ready = prepare(cell, start, state, end, batch_size)
    if top_k is not None and top_k > ready.step.classes:
        raise ValueError(f"top_k must be at most V={ready.step.classes}, the number of ids that the cell says; got {top_k}.")
    rng = _generator(seed)
    return _write(ready, end, limit, partial(_draw, temperature=temperature, top_k=top_k, top_p=top_p, rng=rng))


def _check_distribution(temperature: float, top_k: int | None, top_p: float | None) -> None:
    check_temperature(temperature)
    if top_k is not None:
        check_count("top_k", top_k)
    if top_p is not None and not (is_number(top_p) and 0 < top_p <= 1):
        raise ValueError(f"top_p is a probability above 0, 1 at most; got {top_p}.")


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless 32 bits hold a temperature in full precision."""
    limits = np.finfo(np.float32)
    if not is_number(temperature) or not limits.tiny <= temperature <= limits.max:
        raise ValueError(
            f"temperature must be a number above 0; got {temperature!r}. 32 bits hold those from {limits.tiny:.2g} to "
            f"{limits.max:.2g}. For the most likely tokens use greedy."
        )


def _generator(seed: int | np.random.RandomState | None) -> np.random.RandomState:
    if seed is None:
        return nn.random.prng
    if isinstance(seed, np.random.RandomState):
        return seed
    if not is_whole(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0, below 2 ** 32, or a RandomState; got {seed!r}.")
    return np.random.RandomState(seed)


def _write(ready: Ready, end: int | None, limit: int, choose: Choose) -> Decoded:
    step, ids = ready.step, ready.ids
    ready.begin()
    finished, lengths, scores = np.zeros(len(ids), bool), np.zeros(len(ids), np.int64), np.zeros(len(ids))
    said, looks = [], []
    for t in range(limit):
        logits, look = step.go_on(ids)
        ids, log_p, log_sums = choose(logits)
        check_finite(log_sums, ~finished, t)
        scores += np.where(finished, 0, log_p)
        if look is not None:
            looks.append(np.where(finished[:, np.newaxis], 0, look))
        if end is not None:
            ids = np.where(finished, end, ids)
            finished = ids == end
        lengths += ~finished
        said.append(ids)
        if finished.all():
            break
    return Decoded(np.stack(said, axis=1), lengths, scores, np.stack(looks, axis=1) if looks else None)


def _likeliest(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    best = best_of(logits, 1)
    return best.ids[:, 0], best.log_p[:, 0], best.log_sums


def _draw(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws with one random number for each row, which says how far to go in the sum of the probabilities."""
    log_sums, rows = best_of(logits, 1).log_sums, np.arange(len(logits))
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found by log_sums
        p = np.exp((logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature))
    if top_k is not None or top_p is not None:
        p = np.where(_most_likely(p, top_k, top_p), p, 0)
    sums = np.cumsum(p, axis=1, dtype=np.float64)
    ids = np.sum(sums <= rng.random_sample(len(p))[:, np.newaxis] * sums[:, -1:], axis=1)
    ids = np.minimum(ids, p.shape[1] - 1)  # where p is NaN
    return ids, log_probabilities(logits[rows, ids], log_sums), log_sums


def _most_likely(p: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
    """Tells which of the weights p `(B, V)` are among the k largest, and among those that have the share top_p of these."""
    ordered = -np.sort(-p, axis=1)[:, :top_k]
    counts = np.full(len(p), ordered.shape[1])
    if top_p is not None:
        sums = np.cumsum(ordered, axis=1, dtype=np.float64)
        counts = np.minimum(counts, 1 + np.sum(sums < top_p * sums[:, -1:], axis=1))
    least = ordered[np.arange(len(p)), counts - 1][:, np.newaxis]
    above, equal = p > least, p == least
    room = counts - above.sum(axis=1)
    return above | (equal & (equal.cumsum(axis=1) <= room[:, np.newaxis]))
