"""A cell that hears what it says, inside of a static graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np

from ..combinators import Readout
from ..context import in_float32
from ..core import AbstractCell, StateSpec, Tree
from ..functions import reshape, stop_gradient
from ..running.sequences import check_cell
from .writing import check_temperature

CHOICES = ("greedy", "sample")


@dataclass(frozen=True)
class Choice:
    """From a step's output, logits `(B, V)` or a pair that begins with them, to ids `(B,)`, without a gradient."""

    choose: str = "greedy"
    temperature: float = 1.0

    def __call__(self, y: Tree) -> nn.Variable:
        with in_float32():  # ids
            return self._chosen(y[0] if isinstance(y, tuple) else y)

    def _chosen(self, logits: nn.Variable) -> nn.Variable:
        batch, classes = logits.shape
        if self.choose == "greedy":
            return stop_gradient(F.max(logits, axis=1, only_index=True))
        logits = stop_gradient(logits)
        below = logits - F.max(logits, axis=1, keepdims=True)  # so that no temperature makes an infinity above 0
        p = F.softmax(below * (1 / self.temperature), axis=1)
        ids = F.broadcast(reshape(F.arange(0, classes), (1, classes)), (batch, classes))
        return stop_gradient(reshape(F.random_choice(ids, p, shape=(1,)), (batch,)))


@dataclass(frozen=True, repr=False)
class Speaking(Readout):
    """A cell that is fed with the ids that it chooses; see `decode`."""

    shape: tuple[int, ...] = ()
    merge: str | Callable[[Tree, Tree], Tree] = "readout_only"
    feed: Callable[[Tree], nn.Variable] | None = Choice()
    start: Any = 0

    @property
    def state(self) -> Tree:
        return self.cell.state, StateSpec((), self._first)

    def _first(self, shape: tuple[int, ...]) -> np.ndarray:
        if np.shape(self.start) not in ((), shape):
            raise ValueError(
                f"decode: start has the shape {np.shape(self.start)}, for a batch of {shape[0]}; give one id, or B."
            )
        return np.broadcast_to(np.asarray(self.start, np.float32), shape)


def decode(cell: AbstractCell, start: Any, choose: str = "greedy", temperature: float = 1.0) -> AbstractCell:
    """Makes a cell without input that is fed with the ids that it chooses: decoding inside of a static graph.

    It is a `readout`, whose state is `(the cell's, the last id (B,))`, so `teacher_forced` of it, which takes the pairs
    `(None, ids)`, is scheduled sampling over ids. No gradient goes through an id. It does not end: run it for as many steps as
    are needed, and mask what comes after an end token.

    Args:
        cell: A cell from ids `(B,)` to logits `(B, V)`, or to the pair (logits, alignments).
        start: The first id, or ids `(B,)`.
        choose: "greedy", the most likely id, or "sample", one that is drawn by its probability.
        temperature: For "sample", by what the logits are divided, as in `nnshop.decoding.sample`.

    Returns:
        A cell with the output of the given one.

    Raises:
        TypeError: The cell is no cell.
        ValueError: An unknown choice, a start that is no id, a temperature that is out of range, or for "greedy" is not 1.

    References:
        S. Bengio et al., Scheduled sampling for sequence prediction with recurrent neural networks, 2015.

    Example:
        >>> speaker = nnshop.stack(nnshop.lift(PF.embed, 10, 4), nnshop.GRUCell(8), nnshop.lift(PF.affine, 10))
        >>> cell = nnshop.decoding.decode(speaker, start=0)
        >>> logits, (state, last) = nnshop.run(cell, None, cell.initial_state(3), length=5)
        >>> logits.shape, last.shape
        ((3, 5, 10), (3,))
        >>> probability = nn.Variable.from_numpy_array(np.array([0.25]))
        >>> logits, _ = nnshop.run(nnshop.teacher_forced(cell, probability), (None, nn.Variable((3, 5))))
        >>> logits.shape
        (3, 5, 10)
    """
    check_cell(cell)
    if choose not in CHOICES:
        raise ValueError(f"choose must be one of {', '.join(map(repr, CHOICES))}; got {choose!r}.")
    check_temperature(temperature)
    if choose == "greedy" and temperature != 1:
        raise ValueError(f"temperature={temperature} changes nothing of choose='greedy'; use choose='sample'.")
    ids = np.asarray(start)
    if ids.ndim > 1 or not np.issubdtype(ids.dtype, np.integer) or ids.min(initial=0) < 0:
        raise ValueError(f"start must be an id, or ids (B,), whole numbers from 0; got {start!r}.")
    return Speaking(cell, feed=Choice(choose, temperature), start=start)
