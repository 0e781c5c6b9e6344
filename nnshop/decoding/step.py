"""One step of a cell that says something, and what decoding takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from ..building import building
from ..checks import check_count, check_variable
from ..core import AbstractCell, Tree, check_cell, check_state, is_whole, shapes, tree_leaves, tree_map
from ..functions import reshape
from ..parameters import no_new_parameters
from ..running.stepping import Stepper

LONGEST = 1000  # steps, where only an end token is given: a cell that is not trained may never say it


class Decoded(NamedTuple):
    """What was said; with `n_best` of `beam_search` each array has an axis N of hypotheses after B.

    Attributes:
        ids: `(B, L)`, whole numbers; from `lengths[b]` on, the end token. L is as long as the longest needs, with its end
            token, so `lengths[b] < L` says that row b has ended, and was not cut off.
        lengths: `(B,)`, how many tokens stand before the end token. `ids[b, :lengths[b]]` is the text.
        scores: `(B,)`, the sum of the log probabilities of all tokens, that of the end token among them, in float64.
        alignments: `(B, L, S)`, what each step looked at, that of the end token too, zeros after it; None of a cell that does
            not tell.
    """

    ids: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    alignments: np.ndarray | None = None


def tile(x: nn.Variable, width: int) -> nn.Variable:
    """Repeats each row, as beam search needs it of what a cell holds: `(B, ...)` becomes `(B * width, ...)`.

    Example:
        >>> y = tile(nn.Variable.from_numpy_array(np.array([[1, 2], [3, 4]])), 2)
        >>> y.forward(); y.d
        array([[1., 2.],
               [1., 2.],
               [3., 4.],
               [3., 4.]], dtype=float32)
    """
    check_variable("tile: x", x)
    if not x.ndim:
        raise ValueError("tile needs rows (B, ...); got the shape ().")
    check_count("width", width)
    if width == 1:
        return x
    one = reshape(x, (x.shape[0], 1, x.size // x.shape[0]))  # NNabla broadcasts few axes only
    return reshape(F.broadcast(one, (x.shape[0], width, one.shape[2])), (x.shape[0] * width, *x.shape[1:]))


class Step:
    """One step of a cell from ids to logits, on arrays. It serves many calls of `greedy`, `sample`, `beam_search`.

    The weights that the cell names must exist. Their values are read at the beginning of each call, and what the cell holds,
    such as the memory of an attention and what is computed of it, is computed there, once. One call at a time may use it.

    Args:
        cell: Any cell whose step takes ids `(B,)` and gives logits `(B, V)`, or the pair (logits, alignments `(B, S)`). It must
            draw no random numbers: decode by a cell without dropout, whose weights have the same names.
        batch_size: B; for a beam search B * width.

    Attributes:
        classes (int): V.
        inputs (int): How many ids the cell takes: the size of its embedding, where that is seen in the graph, else V.
        positions (int or None): S.
        closures: Variables from outside that the step takes: weights, and what is computed once.

    Raises:
        TypeError: The cell is no cell.
        ValueError: The weights are not there; the cell draws random numbers, collects statistics or is not the same at each
            step; its output is none of logits; its embedding has fewer rows than there are classes.

    Example:
        >>> cell = nnshop.stack(nnshop.lift(PF.embed, 10, 4), nnshop.GRUCell(8), nnshop.lift(PF.affine, 10))
        >>> y, state = cell(nn.Variable((3,)), cell.initial_state(3))  # makes the weights, as training does
        >>> step = nnshop.decoding.Step(cell, batch_size=3)
        >>> nnshop.decoding.greedy(step, 0, max_length=5).ids.shape
        (3, 5)
    """

    @building()
    def __init__(self, cell: AbstractCell, batch_size: int) -> None:
        check_cell(cell)
        check_count("batch_size", batch_size)
        self.cell, self.batch_size = cell, int(batch_size)
        self._stepper = Stepper(cell, np.zeros(self.batch_size))
        self.closures = self._stepper.graph.closures
        self._check_drawing()
        said = self._check_said()
        self.classes: int = said[0].shape[1]
        self.positions: int | None = said[1].shape[1] if len(said) == 2 else None
        self.inputs = self._stepper.ids[0] or self.classes
        if self.inputs < self.classes:
            raise ValueError(
                f"{cell}: the embedding has {self.inputs} rows, but the cell says one of {self.classes} ids, which it is fed "
                "with. Give both the same size."
            )

    def _check_drawing(self) -> None:
        if self._stepper.graph.drawing:
            raise ValueError(
                f"{self.cell} draws random numbers, as dropout does; what it says would be another network's at each step. "
                "Make the cell without dropout for decoding: the names of its weights stay."
            )

    def _check_said(self) -> list[nn.Variable]:
        """The Variables of what it says."""
        y = self._stepper.output
        said = list(y) if isinstance(y, tuple) else [y]
        if len(said) > 2 or any(not isinstance(v, nn.Variable) or v.ndim != 2 for v in said):
            raise ValueError(
                "decoding needs a cell that gives logits (B, V), or the pair (logits, alignments (B, S)); "
                f"{self.cell} gives {shapes(y)}."
            )
        return said

    def begin(self, state: Tree, width: int = 1) -> None:
        """Computes what is computed once, and takes the state, each row of it `width` times."""
        self._stepper.begin(state, width)

    def __call__(self, ids: np.ndarray, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Goes one step on.

        Args:
            ids: `(B,)`, what is said to the cell.
            rows: `(B,)`, the row of the last step that each row goes on from; each from itself by default.

        Returns:
            Logits `(B, V)`, and alignments `(B, S)` or None; both are overwritten by the next step.

        Raises:
            ValueError: Ids that the cell does not take, or rows that are not there.
        """
        self._check_among("ids", ids, self.inputs)
        if rows is not None:
            self._check_among("rows", rows, self.batch_size)
        return self.go_on(ids, rows)

    def _check_among(self, name: str, numbers: Any, size: int) -> None:
        array = np.asarray(numbers)
        whole = np.issubdtype(array.dtype, np.integer) and array.shape == (self.batch_size,)
        if not whole or array.min() < 0 or array.max() >= size:
            raise ValueError(f"{name} must be {self.batch_size} whole numbers from 0 to {size - 1}; got {numbers!r}.")

    def go_on(self, ids: np.ndarray, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Goes one step on, with ids that are known to be right."""
        if rows is not None:
            self._stepper.gather(rows)
        y = self._stepper.step(ids, copy=False)
        logits, *alignments = y if isinstance(y, tuple) else (y,)
        return logits, alignments[0] if alignments else None


# ------------------------------------------------------------------------------------------------------------- arguments


class Ready(NamedTuple):
    """What decoding starts from: the step, ids `(B,)`, the state, and how often each of its rows is taken."""

    step: Step
    ids: np.ndarray
    state: Tree
    width: int

    def begin(self) -> None:
        self.step.begin(self.state, self.width)


def prepare(
    cell: AbstractCell | Step, start: Any, state: Tree, end: int | None, batch_size: int | None, width: int = 1
) -> Ready:
    """Checks what all functions take, and makes the step."""
    ids = np.asarray(start)
    if ids.ndim > 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"start must be an id, or ids (B,), whole numbers; got {start!r}.")
    state = tree_map(lambda v: nn.Variable.from_numpy_array(v) if isinstance(v, np.ndarray) else v, state)
    batch = _batch_size(cell, ids, state, batch_size, width)
    step = cell if isinstance(cell, Step) else Step(cell, batch * width)
    if ids.min() < 0 or ids.max() >= step.inputs:
        raise ValueError(f"start must be among the {step.inputs} ids that the cell takes, from 0; got {start!r}.")
    if end is not None and not 0 <= end < step.classes:
        raise ValueError(f"end must be among the {step.classes} ids that the cell says, from 0; got {end}.")
    ids = np.broadcast_to(ids, (batch,)).astype(np.int64)
    if state is None:
        with no_new_parameters():
            return Ready(step, ids, step.cell.initial_state(batch * width), 1)
    check_state(step.cell, "needs", state, batch)
    return Ready(step, ids, state, width)


def _batch_size(cell: AbstractCell | Step, ids: np.ndarray, state: Tree, batch_size: int | None, width: int) -> int:
    """The number of rows that all that is given agrees in; 1 where nothing tells."""
    found: dict[str, int] = {}
    if isinstance(cell, Step):
        if cell.batch_size % width:
            raise ValueError(
                f"a beam search of width {width} needs a Step for B * {width} rows; this one is for {cell.batch_size}."
            )
        found[f"the Step for {cell.batch_size} rows"] = cell.batch_size // width
    if batch_size is not None:
        check_count("batch_size", batch_size)
        found["batch_size"] = int(batch_size)
    if ids.ndim:
        found["start"] = len(ids)
    rows = [leaf.shape[0] for leaf in tree_leaves(state) if isinstance(leaf, nn.Variable) and leaf.ndim]
    if rows:
        found["state"] = rows[0]
    if len(set(found.values())) > 1:
        told = ", ".join(f"{rows} by {name}" for name, rows in found.items())
        raise ValueError(
            f"decoding needs one batch size B; it is {told}. The state has B rows too: beam_search itself repeats it."
        )
    return next(iter(found.values()), 1)


def check_limit(end: Any, max_length: int | None) -> int:
    """Returns how many steps are done at most."""
    if end is None and max_length is None:
        raise ValueError("decoding needs an end token or max_length, or it would never end; give end=... or max_length=....")
    if end is not None and not is_whole(end):
        raise ValueError(f"end must be an id, a whole number; got {end!r}.")
    if max_length is None:
        return LONGEST
    check_count("max_length", max_length)
    return int(max_length)
