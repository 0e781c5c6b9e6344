"""Beam search: the best few hypotheses of each row, side by side in one batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_count, is_number
from ..core import AbstractCell, Tree
from .best import best_of, check_finite, log_probabilities
from .step import Decoded, Step, check_limit, prepare

_NEVER = np.finfo(np.float32).tiny  # of a position that was never looked at: the logarithm needs something above 0


def beam_search(
    cell: AbstractCell | Step,
    start: Any,
    state: Tree = None,
    *,
    end: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    width: int = 5,
    min_length: int = 0,
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
    n_best: int | None = None,
) -> Decoded:
    """Keeps the best `width` hypotheses of each row at each step, and returns the best of them in the end.

    .. code-block:: text

        rank = score / ((5 + length) / 6) ** length_penalty
               + coverage_penalty * sum over positions of log(min(sum over steps of alignments, 1))

    The score is the sum of log probabilities, the length is that without the end token. A hypothesis that has ended stays among
    the others, with its score as it is, as long as it is better. It stops when nothing can change the result, at most after
    max_length steps; hypotheses that have not ended then count as they are. With a width of 1
    it is `greedy`, but for a length penalty, by which it may go on where greedy ends: it ranks what a token leads to.

    Args:
        cell, start, state, end, max_length, batch_size: As in `greedy`; the batch size is that of the rows, not of all
            hypotheses, also for start and state. What the cell itself holds of a batch, such as the memory of an attention,
            must have its rows repeated by `tile(memory, width)`, and a `Step` must be made for B * width.
        width: W, at most V.
        min_length: The end token is not said before so many others.
        length_penalty: 0 or more; above 0 long hypotheses are worth more.
        coverage_penalty: 0 or more; above 0 they are to look at everything. It needs a cell that gives alignments. That of the
            step that says the end token counts too. Padding, which is never looked at, lowers all ranks alike.
        n_best: N, at most W: so many hypotheses are returned, from the best on, along an axis of their own.

    Returns:
        A `Decoded`; with n_best of the shapes `(B, N, L)`, `(B, N)`, `(B, N)` and `(B, N, L, S)`. Its scores are log
        probabilities, without penalties. Where fewer hypotheses are possible, the rest have the score -inf.

    Raises:
        TypeError, ValueError: As `greedy`; options out of range; a coverage penalty without alignments.

    References:
        Y. Wu et al., Google's neural machine translation system, 2016, section 7, for the penalties. That hypotheses that have
        ended compete by their rank, and what the length is, is as in TensorFlow Addons' `BeamSearchDecoder`; there the
        coverage penalty is not applied before the end.

    Example:
        >>> cell = nnshop.stack(nnshop.lift(PF.embed, 10, 4), nnshop.GRUCell(8), nnshop.lift(PF.affine, 10))
        >>> y, state = cell(nn.Variable((3,)), cell.initial_state(3))  # makes the weights, as training does
        >>> best = nnshop.decoding.beam_search(cell, 0, end=1, max_length=7, batch_size=3, width=4, n_best=2)
        >>> best.ids.shape[:2], bool((best.scores[:, 0] >= best.scores[:, 1]).all())
        ((3, 2), True)
    """
    limit = check_limit(end, max_length)
    check_count("width", width)
    wanted = 1 if n_best is None else n_best
    _check_options(width, wanted, end, limit, min_length, length_penalty, coverage_penalty)
    ready = prepare(cell, start, state, end, batch_size, width)
    step = ready.step
    if width > step.classes:
        raise ValueError(f"width must be at most V={step.classes}, the number of ids that the cell says; got {width}.")
    if coverage_penalty and step.positions is None:
        raise ValueError(
            f"coverage_penalty={coverage_penalty} needs a cell that gives (logits, alignments), as one does with "
            f"attend(..., alignments=True); {step.cell} gives logits only."
        )
    ready.begin()
    search = _Search(step, ready.ids, width, end, limit, min_length, float(length_penalty), float(coverage_penalty))
    for t in range(limit):
        search.go_on(t)
        if search.is_decided(wanted):
            break
    best = search.best(wanted)
    if n_best is not None:
        return best
    alignments = None if best.alignments is None else best.alignments[:, 0]
    return Decoded(best.ids[:, 0], best.lengths[:, 0], best.scores[:, 0], alignments)


def _check_options(
    width: int, wanted: int, end: int | None, limit: int, min_length: int, length_penalty: float, coverage_penalty: float
) -> None:
    check_count("n_best", wanted)
    if wanted > width:
        raise ValueError(f"n_best must be at most width={width}, as no more hypotheses are kept; got {wanted}.")
    check_count("min_length", min_length, 0)
    if min_length and (end is None or min_length >= limit):
        raise ValueError(f"min_length={min_length} needs an end token, and a max_length above it; got {end} and {limit}.")
    for name, penalty in {"length_penalty": length_penalty, "coverage_penalty": coverage_penalty}.items():
        if not is_number(penalty) or not 0 <= penalty <= np.finfo(np.float64).max:
            raise ValueError(f"{name} must be a number, 0 or more; got {penalty!r}.")
    with np.errstate(over="ignore"):
        if not np.isfinite(np.power((5 + limit) / 6, float(length_penalty))):
            raise ValueError(f"length_penalty={length_penalty} is too large for {limit} steps; lower one of them.")


class _Search:
    """W hypotheses of each of B rows, from the best on.

    Attributes:
        scores, ranks, lengths, finished: `(B, W)`.
        covered: `(B, W, S)`, the sums of alignments; None where nothing asks for them.
        history: By step, the tokens, which hypotheses they follow `(B, W)`, and the alignments of these `(B, W, S)` or None.
    """

    def __init__(
        self,
        step: Step,
        ids: np.ndarray,
        width: int,
        end: int | None,
        limit: int,
        min_length: int,
        length_penalty: float,
        coverage_penalty: float,
    ) -> None:
        self.step, self.end, self.limit, self.min_length = step, end, limit, min_length
        self.length_penalty, self.coverage_penalty = length_penalty, coverage_penalty
        shape = (len(ids), width)
        self.ids, self.rows = np.repeat(ids, width), None
        self.scores = np.full(shape, -np.inf)
        self.scores[:, 0] = 0  # in the beginning all hypotheses are the same; one of them counts
        self.ranks, self.lengths, self.finished = self.scores, np.zeros(shape, np.int64), np.zeros(shape, bool)
        self.covered = np.zeros((*shape, step.positions or 0)) if coverage_penalty else None
        self.history: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []

    # ---------------------------------------------------------------------------------------------------------------- a step

    def go_on(self, t: int) -> None:
        """Keeps the best of all that the hypotheses may become by one more token."""
        logits, look = self.step.go_on(self.ids, self.rows)
        if look is not None:
            look = np.where(self.finished[..., np.newaxis], 0, look.reshape(*self.finished.shape, -1))
        tokens, scores, lengths = self._candidates(logits, t)
        ranks = scores / self._divisors(lengths)
        covered = self.covered
        if covered is not None and look is not None:
            covered = covered + look
            seen = np.log(np.clip(covered, _NEVER, 1)).sum(axis=2)
            ranks += self.coverage_penalty * seen[..., np.newaxis]
        self._keep(tokens, scores, lengths, ranks, covered, look)

    def _candidates(self, logits: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, scores and lengths, `(B, W, W + 1)`: of each hypothesis the W best that go on, and the one that ends.

        No other can be among the W best of a row, since those that go on from one hypothesis have the same penalties.
        """
        batch, width = self.scores.shape
        best = best_of(logits, width, -1 if self.end is None else self.end)
        check_finite(best.log_sums, ~self.finished.ravel(), t)
        finished, scores, lengths = (v[..., np.newaxis] for v in (self.finished, self.scores, self.lengths))
        tokens = best.ids.reshape(batch, width, width)
        going_on = np.where(finished, -np.inf, scores + best.log_p.reshape(batch, width, width))
        longer = np.broadcast_to(lengths + 1, tokens.shape)
        if self.end is None:
            return tokens, going_on, longer
        log_p = log_probabilities(logits[:, self.end], best.log_sums).reshape(scores.shape)
        ending = np.where(finished, scores, scores + log_p if t >= self.min_length else -np.inf)
        ends = np.full(scores.shape, self.end)
        return tuple(np.concatenate(pair, axis=2) for pair in ((tokens, ends), (going_on, ending), (longer, lengths)))

    def _divisors(self, lengths: np.ndarray | int) -> np.ndarray | float:
        return ((5 + lengths) / 6) ** self.length_penalty

    def _keep(
        self,
        tokens: np.ndarray,
        scores: np.ndarray,
        lengths: np.ndarray,
        ranks: np.ndarray,
        covered: np.ndarray | None,
        look: np.ndarray | None,
    ) -> None:
        batch, width, each = tokens.shape
        # Of equals the first hypothesis goes on, by the lowest id, as in greedy decoding.
        places = np.arange(width)[:, np.newaxis] * self.step.classes + tokens
        order = np.lexsort((places.reshape(batch, -1), -ranks.reshape(batch, -1)), axis=1)[:, :width]
        parents = order // each

        def chosen(candidates: np.ndarray) -> np.ndarray:
            return np.take_along_axis(candidates.reshape(batch, -1), order, axis=1)

        tokens, self.scores, self.lengths, self.ranks = map(chosen, (tokens, scores, lengths, ranks))
        if self.end is not None:
            self.finished = tokens == self.end
        if covered is not None:
            self.covered = np.take_along_axis(covered, parents[..., np.newaxis], axis=1)
        self.history.append((tokens, parents, look))
        self.ids, self.rows = tokens.ravel(), (parents + np.arange(batch)[:, np.newaxis] * width).ravel()

    def is_decided(self, wanted: int) -> bool:
        """Whether nothing can change the best hypotheses of any row.

        A score never grows, and is never above 0. So what an open hypothesis becomes has at most the rank of its score by the
        largest divisor, that of the longest length, and with a coverage of 0, the largest. Finished ones stay as they are.
        Where as many as are wanted rank above that bound of all open ones, they stay among the W best, in their order, and
        nothing comes before them. An equal rank is not enough: then the order of candidates decides.
        """
        is_open = ~self.finished & (self.scores > -np.inf)
        hope = np.where(is_open, self.scores / self._divisors(self.limit), -np.inf).max(axis=1)
        last = np.sort(np.where(self.finished, self.ranks, -np.inf), axis=1)[:, -wanted]
        return bool(((last > hope) | ~is_open.any(axis=1)).all())

    # --------------------------------------------------------------------------------------------------------------- the end

    def best(self, wanted: int) -> Decoded:
        """Follows the best hypotheses back."""
        lengths, scores = self.lengths[:, :wanted], self.scores[:, :wanted]
        steps = int((lengths + self.finished[:, :wanted]).max())
        batch = len(scores)
        ids, rows = np.empty((batch, wanted, len(self.history)), np.int64), np.arange(batch)[:, np.newaxis]
        at = np.broadcast_to(np.arange(wanted), (batch, wanted))
        looks: list[np.ndarray] = []
        for t in reversed(range(len(self.history))):
            tokens, parents, look = self.history[t]
            ids[:, :, t] = tokens[rows, at]
            at = parents[rows, at]
            if look is not None:
                looks.insert(0, look[rows, at])
        alignments = np.stack(looks, axis=2)[:, :, :steps] if looks else None
        return Decoded(ids[:, :, :steps], lengths, scores, alignments)
