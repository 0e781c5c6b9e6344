"""Cells over batches of sequences `(B, T, ...)`, with masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F

from ..building import building
from ..checks import check_flag, check_variable
from ..core import AbstractCell, Tree, batch_size_of, check_cell, check_state, shapes, tree_leaves, tree_map
from ..functions import length_mask, where
from ..kernels import why_not_arrays
from ..kernels.hold import Hold
from ..sharing import sharing_is_meant, warn_of_sharing
from . import explaining
from .recurrence import Recurrence
from .ways import Unrolled, Way, find_way, sequence_length


@building()
def run(
    cell: AbstractCell,
    xs: Tree,
    state: Tree = None,
    *,
    length: int | None = None,
    mask: nn.Variable | None = None,
    lengths: Any = None,
    reverse: bool = False,
    way: str | Way = "auto",
) -> tuple[Tree, Tree]:
    """Runs a cell over a batch of sequences.

    Without mask and reverse it is the loop that you would write by hand::

        for t in range(T):
            ys[:, t], state = cell(xs[:, t], state)

    Args:
        cell: Any cell.
        xs: A tree of Variables `(B, T, ...)`; None for a cell without input, which then needs `length` and `state`.
        state: The initial state, a tree of Variables as `cell.state`; `cell.initial_state(B)` by default.
        length: T, where xs is None.
        mask: `(B, T)`, 0 for padding. A masked step leaves the state as it was and repeats the last output; before the first
            step that counts, the output is zero. What the padding holds, NaN too, changes neither values nor gradients.
        lengths: `(B,)`, instead of a mask: row b counts up to `lengths[b]`. Numbers are checked; a Variable cannot be.
        reverse: From the last step to the first; `ys[:, t]` is still the output at step t. With lengths, each row is run
            backwards within its own length.
        way: "compiled", "loop" or "unrolled", see `iterate`; "fused", one function for the whole sequence, which is compiled on
            the CPU and cuDNN's on a GPU; "auto" for the fastest that fits; or with options a value, such as
            `nnshop.running.Loop(checkpoint_every=32)`. They are equal in values and gradients.

    Returns:
        `(ys, state)`: a tree of Variables `(B, T, ...)`, and the state after the last step (with a mask, the last valid one).

    Raises:
        ValueError: Shapes that do not fit: batch sizes, numbers of steps, the state, the mask; lengths outside 0 to T;
            a way that this cell cannot go.

    Example:
        >>> ys, (h, c) = run(nnshop.LSTMCell(8), nn.Variable((4, 7, 3)), lengths=[7, 2, 5, 0])
        >>> ys.shape, h.shape
        ((4, 7, 8), (4, 8))
    """
    found = find_way(way)
    check_cell(cell)
    check_flag("reverse", reverse)
    length = sequence_length(xs, length, axis=1)
    batch = batch_size_of(xs, state)
    if batch is None:
        raise ValueError("without inputs the batch size must be given: state=cell.initial_state(batch_size).")
    if any(leaf.shape[0] != batch for leaf in tree_leaves(xs)):
        raise ValueError(f"all inputs must have one batch size; they have shapes {shapes(xs)}.")
    anew, inputs = state is None and cell.name is None, tree_leaves(xs)
    if state is None:
        state = cell.initial_state(batch)
    check_state(cell, "needs", state, batch)
    mask = _find_mask(mask, lengths, batch, length)
    explaining.begin(cell, length)
    with sharing_is_meant():  # among steps
        ys, state = Recurrence(found, cell, xs, state, length, reverse, mask=mask, batch_major=True).run()
    if anew:
        warn_of_sharing(cell, inputs, tree_leaves(ys))
    return (ys, state) if mask is None else (tree_map(lambda y: _hold(y, mask, reverse, found), ys), state)


def explain(what: AbstractCell | Callable | nn.Variable, *inputs: Tree, **options: Any) -> None:
    """Prints which way each sequence of a model takes, and why not a better one.

    Nothing is computed, and no parameter is made.

    Args:
        what: A cell, which is run over the inputs; any function that builds a graph, such as a layer or a whole model; or the
            output of a graph, of which only the kinds of functions are told.
        inputs: What the function, or `run`, is called with: Variables.
        options: Likewise, such as `units` of a layer or `lengths`.

    Example:
        >>> explain(nnshop.lstm, nn.Variable((4, 20, 3)), 8)
        LSTMCell(8), 20 steps: compiled
        >>> explain(nnshop.SimpleRNNCell(8), nn.Variable((4, 3, 3)))
        SimpleRNNCell(8), 3 steps: unrolled
          not compiled: 3 steps of this size are too few to pay for the call
          not loop: a sequence of 3 steps is unrolled; from 500 on it is run in a loop
    """
    print(explaining.explain(what, *inputs, run=run, **options))


def _find_mask(mask: nn.Variable | None, lengths: Any, batch: int, length: int) -> nn.Variable | None:
    if mask is not None and lengths is not None:
        raise ValueError("give a mask or lengths, not both.")
    if lengths is not None:
        mask = length_mask(lengths, length)
    if mask is not None:
        check_variable("the mask", mask)
        if mask.shape != (batch, length):
            raise ValueError(f"a mask must have the shape (B, T) of the inputs, {(batch, length)}; got {mask.shape}.")
    return mask


def _hold(ys: nn.Variable, mask: nn.Variable, reverse: bool, way: Way) -> nn.Variable:
    """Repeats the last output that counts at masked steps; before the first one it is zero."""
    if not isinstance(way, Unrolled) and not why_not_arrays():
        return Hold(reverse)(ys, mask)

    def step(y_keep: Tree, last: Tree) -> tuple[Tree, Tree]:
        y = where(y_keep[1], y_keep[0], last)
        return y, y

    start = F.constant(0, (ys.shape[0], *ys.shape[2:]))
    held, _ = Recurrence(way, step, (ys, mask), start, ys.shape[1], reverse, batch_major=True).run()
    return held
