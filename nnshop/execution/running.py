"""Cells over batches of sequences `(B, T, ...)`, with masks."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import nnabla as nn
import nnabla.functions as F

from ..checks import check_flag, check_variable
from ..core import AbstractCell, Tree, batch_size_of, check_cell, check_state, shapes, tree_leaves, tree_map
from ..functions import length_mask, swap_time, where, without_padding
from ..kernels import why_not_arrays
from ..kernels.hold import Hold
from ..parameters import clean_after_error
from .fused import why_not_fused
from .ways import WAYS, check_checkpoints, check_way, iterate, sequence_length


@clean_after_error()
def run(
    cell: AbstractCell,
    xs: Tree,
    state: Tree = None,
    *,
    length: int | None = None,
    mask: nn.Variable | None = None,
    lengths: Any = None,
    reverse: bool = False,
    way: str = "auto",
    checkpoint_every: int | None = None,
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
        way: "fused", one function for the whole sequence; "loop" or "unrolled", see `iterate`; "auto" for the fastest that
            fits. They are equal in values and gradients.
        checkpoint_every: For "loop": keeps each k-th state only, see `iterate`.

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
    check_way(way, ["fused", *WAYS])
    check_checkpoints(checkpoint_every, way)
    check_cell(cell)
    check_flag("reverse", reverse)
    length = sequence_length(xs, length, axis=1)
    batch = batch_size_of(xs, state)
    if batch is None:
        raise ValueError("without inputs the batch size must be given: state=cell.initial_state(batch_size).")
    if any(leaf.shape[0] != batch for leaf in tree_leaves(xs)):
        raise ValueError(f"all inputs must have one batch size; they have shapes {shapes(xs)}.")
    if state is None:
        state = cell.initial_state(batch)
    check_state(cell, "needs", state, batch)
    mask = _find_mask(mask, lengths, batch, length)
    options: dict[str, Any] = {"length": length, "reverse": reverse, "way": way}
    if checkpoint_every is None:
        ys, state = over(cell, xs, state, mask, **options)
    else:
        ys, state = _step_by_step(cell, xs, state, mask, **options, checkpoint_every=checkpoint_every)
    return (ys, state) if mask is None else (tree_map(lambda y: _hold(y, mask, reverse, way), ys), state)


def over(
    cell: AbstractCell,
    xs: Tree,
    state: Tree,
    mask: nn.Variable | None,
    *,
    length: int,
    reverse: bool,
    way: str,
) -> tuple[Tree, Tree]:
    """Runs a cell over sequences `(B, T, ...)`, as `run` does, but the outputs at masked steps mean nothing, and are finite."""
    if way in ("auto", "fused"):
        made = cell.over(xs, state, mask, length=length, reverse=reverse, way=way)
        if made is not None:
            return made
    if way == "fused":
        reason = (
            why_not_fused("lstm", mask)
            or "LSTMCell, GRUCell and SimpleRNNCell have one, with their own activations and no extras"
        )
        raise ValueError(f"{cell} has no fused form here: {reason}. Use way='auto'.")
    return _step_by_step(cell, xs, state, mask, length=length, reverse=reverse, way=way)


def _step_by_step(cell: AbstractCell, xs: Tree, state: Tree, mask: nn.Variable | None, **options: Any) -> tuple[Tree, Tree]:
    loop: Callable = partial(iterate, **options)
    xs = tree_map(swap_time, xs)
    ys, state = loop(cell, xs, state) if mask is None else loop(_masked(cell), (xs, swap_time(mask)), state)
    return tree_map(swap_time, ys), state


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


def _masked(cell: AbstractCell) -> Callable:
    """The step of a cell on `(x, keep)`, which leaves the state of the rows alone that are not to be kept."""

    def step(x_keep: Tree, state: Tree) -> tuple[Tree, Tree]:
        x, keep = x_keep
        y, after = cell(tree_map(partial(without_padding, keep), x), state)
        return y, tree_map(partial(where, keep), after, state)

    return step


def _hold(ys: nn.Variable, mask: nn.Variable, reverse: bool, way: str) -> nn.Variable:
    """Repeats the last output that counts at masked steps; before the first one it is zero."""
    if way in ("auto", "fused") and not why_not_arrays():
        return Hold(reverse)(ys, mask)

    def step(y_keep: Tree, last: Tree) -> tuple[Tree, Tree]:
        y = where(y_keep[1], y_keep[0], last)
        return y, y

    start = F.constant(0, (ys.shape[0], *ys.shape[2:]))
    held, _ = iterate(step, (swap_time(ys), swap_time(mask)), start, reverse=reverse, way=way)
    return swap_time(held)
