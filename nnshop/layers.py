"""Functions from sequence to sequence, in the manner of NNabla's own layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

import nnabla as nn
import nnabla.functions as F

from .building import building
from .cells import GRUCell, LSTMCell, SimpleRNNCell
from .checks import check_flag, check_variable
from .core import AbstractCell, Tree, batch_size_of, check_cell, check_state, output_shape, shapes, tree_leaves, tree_map
from .functions import faster, reshape
from .owners import check_owners
from .parametric_functions import checking
from .running import Way, iterate, run
from .running.ways import sequence_length
from .sharing import sharing_is_meant


def lstm(
    x: nn.Variable,
    units: int,
    return_sequences: bool = False,
    return_state: bool = False,
    initial_state: Tree = None,
    go_backwards: bool = False,
    mask: nn.Variable | None = None,
    lengths: Any = None,
    way: str | Way = "auto",
    name: str | None = None,
    **options: Any,
) -> Any:
    """Runs a long short-term memory layer over sequences; its weights are below the scope `lstm`.

    Args:
        x (~nnabla.Variable): Input sequences `(B, T, D)`.
        units (int): H, the size of the output.
        return_sequences (bool): Return the outputs of all steps, `(B, T, H)`; else that of the last, `(B, H)`.
        return_state (bool): Return the final state too, `(h, c)`, each `(B, H)`.
        initial_state: `(h, c)` to start from; zeros by default.
        go_backwards (bool): Run from the last step to the first. As in Keras, outputs come in the order of computation:
            `y[:, 0]` belongs to the last step. `nnshop.run(..., reverse=True)` keeps the order of the input.
        mask (~nnabla.Variable): `(B, T)`, 0 for padding: masked steps leave the state as it was.
        lengths: `(B,)`, instead of a mask.
        way: How to run over time, see `nnshop.run`.
        name (str): Parameter scope around the layer's own.
        **options: Those of `nnshop.LSTMCell`, such as `forget_bias=1.0`.

    Returns:
        y, or `(y, state)` with return_state.

    Raises:
        ValueError: x is not `(B, T, D)` or has no step, units < 1, or a state, mask or lengths that do not fit.
        TypeError: An option that the cell does not have.

    Example:
        >>> y = lstm(nn.Variable((4, 7, 3)), 8, return_sequences=True)
        >>> y.shape, list(nn.get_parameters())
        ((4, 7, 8), ['lstm/x2h/W', 'lstm/b', 'lstm/h2h/W'])
    """
    cell = LSTMCell(units, **options)
    return _layer("lstm", cell, x, return_sequences, return_state, initial_state, go_backwards, mask, lengths, way, name)


def gru(
    x: nn.Variable,
    units: int,
    return_sequences: bool = False,
    return_state: bool = False,
    initial_state: Tree = None,
    go_backwards: bool = False,
    mask: nn.Variable | None = None,
    lengths: Any = None,
    way: str | Way = "auto",
    name: str | None = None,
    **options: Any,
) -> Any:
    """Runs a gated recurrent layer over sequences; its weights are below the scope `gru`.

    All is as in `lstm`, but the state is h alone, and **options are those of `nnshop.GRUCell`.

    Example:
        >>> y, h = gru(nn.Variable((4, 7, 3)), 8, return_state=True)
        >>> y.shape, h.shape
        ((4, 8), (4, 8))
    """
    cell = GRUCell(units, **options)
    return _layer("gru", cell, x, return_sequences, return_state, initial_state, go_backwards, mask, lengths, way, name)


def simple_rnn(
    x: nn.Variable,
    units: int,
    return_sequences: bool = False,
    return_state: bool = False,
    initial_state: Tree = None,
    go_backwards: bool = False,
    mask: nn.Variable | None = None,
    lengths: Any = None,
    way: str | Way = "auto",
    name: str | None = None,
    **options: Any,
) -> Any:
    """Runs a simple (Elman) recurrent layer over sequences; its weights are below the scope `simple_rnn`.

    All is as in `lstm`, but the state is h alone, and **options are those of `nnshop.SimpleRNNCell`.

    Example:
        >>> simple_rnn(nn.Variable((4, 7, 3)), 8, lengths=[7, 2, 5, 0]).shape
        (4, 8)
    """
    cell = SimpleRNNCell(units, **options)
    return _layer("simple_rnn", cell, x, return_sequences, return_state, initial_state, go_backwards, mask, lengths, way, name)


SimpleRNN, LSTM, GRU = simple_rnn, lstm, gru  # the spellings of Keras, and of the posts that brought them to NNabla


@building()
def _layer(
    scope: str,
    cell: AbstractCell,
    x: nn.Variable,
    return_sequences: bool,
    return_state: bool,
    initial_state: Tree,
    go_backwards: bool,
    mask: nn.Variable | None,
    lengths: Any,
    way: str | Way,
    name: str | None,
) -> Any:
    _check_sequence(scope, x)
    flags = {"return_sequences": return_sequences, "return_state": return_state, "go_backwards": go_backwards}
    for flag, value in flags.items():
        check_flag(flag, value)
    with nn.parameter_scope(f"{name}/{scope}" if name else scope), sharing_is_meant(bool(name)):
        ys, state = run(cell, x, initial_state, mask=mask, lengths=lengths, reverse=go_backwards, way=way)
    if not return_sequences:
        y = last_output(ys, go_backwards)
    else:
        y = F.flip(ys, axes=[1]) if go_backwards else ys
    return (y, state) if return_state else y


def _check_sequence(who: str, x: nn.Variable) -> None:
    check_variable(f"{who}: the sequence", x)
    if x.ndim != 3:
        hint = "Embed ids first, with nnshop.embed." if x.ndim == 2 else "Flatten each step first."
        raise ValueError(f"{who} takes sequences of shape (B, T, D); got {x.shape}. {hint}")


def last_output(ys: Tree, reverse: bool = False) -> Tree:
    """The output that was computed last: that of step 0 where the run was backwards."""
    step = slice(0, 1) if reverse else slice(-1, None)
    return tree_map(lambda y: reshape(y[:, step], (y.shape[0], *y.shape[2:])), ys)


MERGES: dict[str, Callable[[nn.Variable, nn.Variable], nn.Variable]] = {
    "concat": lambda forward, backward: F.concatenate(forward, backward, axis=forward.ndim - 1),
    "sum": lambda forward, backward: forward + backward,
    "mul": lambda forward, backward: forward * backward,
    "ave": lambda forward, backward: (forward + backward) * 0.5,
}


@building()
def bidirectional(
    x: Tree,
    cell: AbstractCell,
    backward_cell: AbstractCell | None = None,
    merge_mode: str | None = "concat",
    return_sequences: bool = True,
    return_state: bool = False,
    initial_state: Tree = None,
    mask: nn.Variable | None = None,
    lengths: Any = None,
    way: str | Way = "auto",
    name: str | None = None,
) -> Any:
    """Runs one cell forwards and one backwards over sequences, and merges what they say of each step.

    With a mask or lengths each sequence is reversed within its own length. The weights are below the scopes `forward` and
    `backward`, so the two never share them.

    Args:
        x: Input sequences, a Variable `(B, T, D)` or what else the cells take.
        cell: The cell that runs forwards.
        backward_cell: The one that runs backwards; by default one with the same settings.
        merge_mode: "concat" on the last axis, "sum", "mul", "ave", or "none" (or None) for the pair.
        return_sequences: The outputs of all steps, in the order of the input; else the last output of each direction.
        return_state: Return `(forward state, backward state)` too.
        initial_state: A pair of initial states; zeros by default.
        mask: `(B, T)`, 0 for padding.
        lengths: `(B,)`, instead of a mask.
        way: How to run over time, see `nnshop.run`.
        name: Parameter scope around all.

    Returns:
        y, or `(y, states)` with return_state.

    Raises:
        ValueError: The merge mode is not known, outputs of two widths are to be merged other than by "concat" or "none",
            initial_state is no pair, both directions are of one layer that owns its weights, or what `nnshop.run` raises.

    References:
        M. Schuster, K. Paliwal, Bidirectional recurrent neural networks, 1997.

    Example:
        >>> y = bidirectional(nn.Variable((4, 7, 3)), nnshop.LSTMCell(8), lengths=[7, 2, 5, 0])
        >>> y.shape
        (4, 7, 16)
    """
    merge = _find_merge(merge_mode)
    cells = (cell, cell if backward_cell is None else backward_cell)
    for part in cells:
        check_cell(part)
    check_owners("bidirectional", cells)
    if backward_cell is not None and merge_mode in MERGES and merge_mode != "concat":
        _check_widths(merge_mode, x, *cells)
    if initial_state is None:
        initial_state = (None, None)
    if not isinstance(initial_state, tuple) or len(initial_state) != 2:
        raise ValueError("bidirectional needs initial_state=(forward state, backward state).")
    for part, state in zip(cells, initial_state):
        if state is not None:
            check_state(part, "needs", state, batch_size_of(x))
    ys, states = [], []
    with nn.parameter_scope(name or ""), sharing_is_meant(bool(name)):
        for scope, one, state, reverse in zip(("forward", "backward"), cells, initial_state, (False, True)):
            with nn.parameter_scope(scope):
                y, after = run(one, x, state, mask=mask, lengths=lengths, reverse=reverse, way=way)
            ys.append(y if return_sequences else last_output(y, reverse))
            states.append(after)
    y = merge(*ys)
    return (y, tuple(states)) if return_state else y


def _check_widths(merge_mode: str, x: Tree, *cells: AbstractCell) -> None:
    sequence_length(x, None, axis=1)
    step = tree_map(lambda v: nn.Variable((v.shape[0], *v.shape[2:])), x)
    widths = [output_shape(cell, step) for cell in cells]
    if widths[0] != widths[1]:
        raise ValueError(
            f"merge_mode={merge_mode!r} needs outputs of one shape; {cells[0]} gives {widths[0]}, "
            f"{cells[1]} gives {widths[1]}. Use merge_mode='concat', or equal widths."
        )


def _find_merge(mode: str | None) -> Callable[[Tree, Tree], Tree]:
    if mode is None or mode == "none":
        return lambda forward, backward: (forward, backward)
    if mode not in MERGES:
        raise ValueError(f"merge_mode must be one of {', '.join(MERGES)}, none; got {mode!r}.")
    return partial(tree_map, MERGES[mode])


@dataclass(frozen=True)
class each:
    """Marks an argument of a `TimeDistributed` function as a sequence too: it is given step by step.

    Example:
        >>> x, z = nn.Variable((4, 7, 3)), nn.Variable((4, 7, 3))
        >>> TimeDistributed(F.add2)(x, each(z)).shape
        (4, 7, 3)
    """

    sequence: nn.Variable


class TimeDistributed:
    """Applies a function of one step to every step of a sequence: a decorator, and a plain call.

    Args:
        function: Maps `(B, ...)`, and what else it is given, to a Variable, or a tuple or list of them, of the same batch
            size. Parametric functions use the same weights at all steps.
        fold: True makes one call on `(B * T, ...)`, which needs a function that treats rows independently. False calls the
            function T times, exact for all: batch normalisation, say, or noise that is shared by the rows.

    The result is called as `layer(x, *arguments, **options)`: x is a sequence `(B, T, ...)`, and so is what is wrapped in
    `each`; all else is passed as it is. It returns sequences `(B, T, ...)`, in a tuple where the function has several.

    Raises:
        TypeError: The function is not callable, or x is no Variable.
        ValueError: x has no time axis, sequences differ in `(B, T)`, or the function changes the batch size.

    Example:
        >>> TimeDistributed(PF.affine)(nn.Variable((4, 7, 3)), 10).shape
        (4, 7, 10)
        >>> @TimeDistributed
        ... def halves(x):
        ...     return x[:, :2], x[:, 2:]
        >>> [y.shape for y in halves(nn.Variable((4, 7, 4)))]
        [(4, 7, 2), (4, 7, 2)]
        >>> @TimeDistributed(fold=False)
        ... def normalize(x):
        ...     return PF.batch_normalization(x)
        >>> normalize(nn.Variable((4, 7, 3))).shape
        (4, 7, 3)
    """

    def __new__(cls, function: Callable | None = None, fold: bool = True) -> Any:
        return partial(cls, fold=fold) if function is None else super().__new__(cls)

    def __init__(self, function: Callable, fold: bool = True) -> None:
        if not callable(function):
            raise TypeError(f"TimeDistributed takes a function of one step; got {function!r}.")
        if not isinstance(fold, bool):
            raise TypeError(
                f"fold is True or False; got {fold!r}. Arguments for the function go to the call, after the sequence."
            )
        update_wrapper(self, function, updated=())  # its name and text; what else it has is not this one's
        self.function, self.fold = function, fold

    def __reduce__(self) -> tuple:
        return TimeDistributed, (self.function, self.fold)

    @building()
    def __call__(self, x: nn.Variable, *arguments: Any, **options: Any) -> Any:
        arguments = (each(x), *arguments)
        marked = [v for v in (*arguments, *options.values()) if isinstance(v, each)]
        sequences = tuple(v.sequence for v in marked)
        for sequence in sequences:
            check_variable("TimeDistributed: a sequence", sequence)
        steps = _common_steps(sequences)

        def call(values: Tree) -> Tree:
            """Calls the function with one step's values in the places of the marked arguments."""
            value = iter(values)
            put = lambda v: next(value) if isinstance(v, each) else v  # noqa: E731
            # A list: of a lazy map Python would take the values only after those of the options.
            y = checking(self.function)(*[put(v) for v in arguments], **{key: put(v) for key, v in options.items()})
            y = tuple(y) if isinstance(y, list) else y
            _check_rows(self.function, values[0].shape[0], y)
            return y

        return _folded(call, sequences, steps) if self.fold else _repeated(call, sequences)


def _common_steps(sequences: tuple[nn.Variable, ...]) -> tuple[int, int]:
    if any(v.ndim < 2 for v in sequences) or len({v.shape[:2] for v in sequences}) > 1:
        raise ValueError(f"TimeDistributed needs sequences (B, T, ...) of one (B, T); got {shapes(sequences)}.")
    return sequences[0].shape[:2]


def _check_rows(function: Callable, rows: int, y: Tree) -> None:
    for leaf in tree_leaves(y) or [None]:
        if not isinstance(leaf, nn.Variable) or leaf.ndim < 1 or leaf.shape[0] != rows:
            name = getattr(function, "__name__", repr(function))
            raise ValueError(
                f"TimeDistributed needs a function that keeps the batch size, {rows} rows here; {name} returned {shapes(y)}."
            )


def _folded(call: Callable, sequences: tuple[nn.Variable, ...], steps: tuple[int, int]) -> Tree:
    rows = steps[0] * steps[1]
    y = call(tuple(reshape(v, (rows, *v.shape[2:])) for v in sequences))
    return tree_map(lambda v: reshape(faster(v), (*steps, *v.shape[1:])), y)


def _repeated(call: Callable, sequences: tuple[nn.Variable, ...]) -> Tree:
    return iterate(lambda values, _: (call(values), ()), sequences, (), way="unrolled", time_axis=1)[0]
