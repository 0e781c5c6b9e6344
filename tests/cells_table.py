"""One table of cells, a row each, that every law in test_laws.py walks.

A new built-in cell, option or wrapper is a row here: an id, a function that makes the cell, the width of its input, and
where there is one its step in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
import reference
from attention_reference import SCORES, Score, attending
from nnabla.initializer import ConstantInitializer
from nnabla.parameter import get_parameter_or_create

from nnshop import (
    AbstractCell,
    Cell,
    GRUCell,
    LSTMCell,
    SimpleRNNCell,
    StateSpec,
    attend,
    lift,
    readout,
    residual,
    stack,
    sync,
    tree_map,
)
from nnshop.combinators import Wrapper
from nnshop.scores import Location


@dataclass(frozen=True)
class Row:
    """A cell and what is known of it.

    `plain`: it holds no function, so its repr makes it again. `weightless`: it makes no parameters.
    """

    id: str
    make: Callable[[], AbstractCell]
    width: int
    step: Callable | None = None
    plain: bool = True
    weightless: bool = False


def echo(x: Any, h: Any) -> tuple[Any, Any]:
    """A user's cell: leaky, with parametric functions of NNabla."""
    h = 0.9 * h + 0.1 * F.tanh(PF.affine(x, 4, name="in") + PF.affine(h, 4, with_bias=False, name="back"))
    return h, h


def numpy_echo(weights: reference.Weights, x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = x @ weights["in/affine/W"] + weights["in/affine/b"] + h @ weights["back/affine/W"]
    h = 0.9 * h + 0.1 * np.tanh(z)
    return h, h


def memory(x: Any, state: Any) -> tuple[Any, Any]:
    """A user's cell whose state is a nested tree: a matrix `(2, 3)`, and a pair of a vector and an inner cell's state."""
    matrix, (trace, inner) = state
    y, inner = LSTMCell(3, name="inner")(x, inner)
    key = F.tanh(PF.affine(x, 2, name="key"))  # (B, 2)
    column, line = F.reshape(key, (key.shape[0], 2, 1), inplace=False), F.reshape(y, (y.shape[0], 1, 3), inplace=False)
    matrix = 0.5 * matrix + column * line
    trace = 0.5 * trace + F.sum(matrix, axis=1)
    return F.concatenate(trace, y, axis=1), (matrix, (trace, inner))


def numpy_memory(weights: reference.Weights, x: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
    matrix, (trace, inner) = state
    y, inner = reference.lstm()(reference.below("inner", weights), x, inner)
    key = np.tanh(x @ weights["key/affine/W"] + weights["key/affine/b"])
    matrix = 0.5 * matrix + key[:, :, None] * y[:, None, :]
    trace = 0.5 * trace + matrix.sum(axis=1)
    return np.concatenate([trace, y], axis=1), (matrix, (trace, inner))


MEMORY_STATE = (StateSpec((2, 3)), (StateSpec((3,), ConstantInitializer(0.5)), LSTMCell(3).state))


def total(x: Any, state: Any) -> tuple[Any, Any]:
    """A user's cell without weights: the running total."""
    return state + x, state + x


def looking(x: Any, state: Any, cell: AbstractCell, score: Any, length: int, **options: Any) -> tuple[Any, Any]:
    """A user's cell that attends to a weight `(1, 3, 4)`, the same for all rows: so it goes with batches of any size."""
    memory = F.broadcast(get_parameter_or_create("memory", (1, 3, 4)), (x.shape[0], 3, 4))
    return attend(cell, memory, score, lengths=[length] * x.shape[0], **options)(x, state)


def look(cell: AbstractCell, score: Any, *state: Any, length: int = 3, **options: Any) -> AbstractCell:
    specs = state[0] if len(state) == 1 else state
    return Cell(partial(looking, cell=cell, score=score, length=length, **options), specs)


def numpy_look(step: Callable, score: Score, length: int = 3, **options: Any) -> Callable:
    return attending(step, score, mask=np.arange(3) < length, **options)


@dataclass(frozen=True, repr=False)
class Louder(Wrapper):
    """A user's wrapper: the output times a factor."""

    cell: AbstractCell
    factor: float = 2.0

    def step(self, x: Any, state: Any) -> tuple[Any, Any]:
        y, state = self.cell(x, state)
        return tree_map(lambda leaf: leaf * self.factor, y), state


def numpy_louder(step: Callable, factor: float) -> Callable:
    def louder(weights: reference.Weights, x: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        y, state = step(weights, x, state)
        return y * factor, state

    return louder


def numpy_readout(step: Callable, merge: Callable = np.add, feed: Callable = lambda y: y) -> Callable:
    def fed_back(weights: reference.Weights, x: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        inner, last = state
        y, inner = step(weights, merge(x, last), inner)
        return y, (inner, feed(y))

    return fed_back


def total_of(y: Any) -> Any:
    """One number for each row, `(B,)`."""
    return F.sum(y, axis=1)


def plus_number(x: Any, number: Any) -> Any:
    return x + F.reshape(number, (x.shape[0], 1), inplace=False)


def numpy_sync(*steps: Callable) -> Callable:
    def one_state(weights: reference.Weights, x: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        for position, step in enumerate(steps):
            x, state = step(reference.below(str(position), weights), x, state)
        return x, state

    return one_state


R = reference

BUILT_IN = [
    Row("simple_rnn", lambda: SimpleRNNCell(4), 3, R.simple_rnn()),
    Row("simple_rnn-relu", lambda: SimpleRNNCell(4, activation="relu"), 3, R.simple_rnn(R.relu)),
    Row("simple_rnn-function", lambda: SimpleRNNCell(4, activation=F.softsign), 3, R.simple_rnn(R.softsign), plain=False),
    Row("simple_rnn-no_bias", lambda: SimpleRNNCell(4, with_bias=False), 3, R.simple_rnn()),
    Row("simple_rnn-one_unit", lambda: SimpleRNNCell(1), 1, R.simple_rnn()),
    Row("simple_rnn-name", lambda: SimpleRNNCell(4, name="elman"), 3, R.scoped("elman", R.simple_rnn())),
    Row("lstm", lambda: LSTMCell(4), 3, R.lstm()),
    Row("lstm-forget_bias", lambda: LSTMCell(4, forget_bias=1.0), 3, R.lstm()),
    Row("lstm-peephole", lambda: LSTMCell(4, peephole=True), 3, R.lstm()),
    Row("lstm-projection", lambda: LSTMCell(4, projection_size=2), 3, R.lstm()),
    Row("lstm-peephole-projection", lambda: LSTMCell(3, peephole=True, projection_size=5), 2, R.lstm()),
    Row("lstm-hard_sigmoid", lambda: LSTMCell(4, recurrent_activation="hard_sigmoid"), 3, R.lstm(gate=R.hard_sigmoid)),
    Row("lstm-linear", lambda: LSTMCell(4, activation="linear"), 3, R.lstm(R.linear)),
    Row("lstm-no_bias", lambda: LSTMCell(4, with_bias=False), 3, R.lstm()),
    Row("lstm-name", lambda: LSTMCell(4, name="lower/first"), 3, R.scoped("lower/first", R.lstm())),
    Row("gru", lambda: GRUCell(4), 3, R.gru()),
    Row("gru-before", lambda: GRUCell(4, reset_after=False), 3, R.gru(reset_after=False)),
    Row("gru-no_bias", lambda: GRUCell(4, with_bias=False), 3, R.gru()),
    Row("gru-before-no_bias", lambda: GRUCell(4, reset_after=False, with_bias=False), 3, R.gru(reset_after=False)),
    Row("gru-hard_sigmoid", lambda: GRUCell(4, recurrent_activation="hard_sigmoid"), 3, R.gru(gate=R.hard_sigmoid)),
    Row("gru-relu", lambda: GRUCell(4, activation="relu"), 3, R.gru(R.relu)),
    Row("gru-one_unit", lambda: GRUCell(1), 1, R.gru()),
    Row("gru-name", lambda: GRUCell(4, name="g"), 3, R.scoped("g", R.gru())),
]

USERS = [
    Row("function", lambda: Cell(echo, StateSpec((4,))), 3, numpy_echo, plain=False),
    Row("function-name", lambda: Cell(echo, StateSpec((4,)), "echo"), 3, R.scoped("echo", numpy_echo), plain=False),
    Row("function-nested", lambda: Cell(memory, MEMORY_STATE), 3, numpy_memory, plain=False),
    Row("function-no_weights", lambda: Cell(total, StateSpec((3,))), 3, lambda w, x, s: (s + x, s + x), False, True),
    Row("lift", lambda: lift(PF.affine, 5), 3, R.stateless(R.affine), plain=False),
    Row("lift-name", lambda: lift(PF.affine, 5, name="out"), 3, R.scoped("out", R.stateless(R.affine)), plain=False),
]

COMBINED = [
    Row("stack-one", lambda: stack(GRUCell(4)), 3, R.stacked(R.gru())),
    Row("stack", lambda: stack(LSTMCell(4), GRUCell(3), SimpleRNNCell(2)), 3, R.stacked(R.lstm(), R.gru(), R.simple_rnn())),
    Row(
        "stack-names",
        lambda: stack(LSTMCell(4, name="lower"), GRUCell(3, name="upper"), name="both"),
        3,
        R.scoped("both", R.stacked(("lower", R.lstm()), ("upper", R.gru()))),
    ),
    Row(
        "stack-shared",
        lambda: stack(GRUCell(3, name="same"), GRUCell(3, name="same")),
        3,
        R.stacked(("same", R.gru()), ("same", R.gru())),
    ),
    Row(
        "stack-lifted",
        lambda: stack(LSTMCell(4), lift(PF.affine, 3), F.tanh, GRUCell(2)),
        3,
        R.stacked(R.lstm(), R.stateless(R.affine), lambda w, x, s: (np.tanh(x), s), R.gru()),
        plain=False,
    ),
    Row(
        "stack-nested",
        lambda: stack(stack(GRUCell(3), LSTMCell(2)), stack(SimpleRNNCell(4))),
        3,
        R.stacked(R.stacked(R.gru(), R.lstm()), R.stacked(R.simple_rnn())),
    ),
    Row(
        "stack-nested-names",
        lambda: stack(stack(GRUCell(3, name="a"), LSTMCell(2), name="inner"), SimpleRNNCell(4, name="top")),
        3,
        R.stacked(("inner", R.stacked(("a", R.gru()), R.lstm())), ("top", R.simple_rnn())),
    ),
    Row(
        "stack-function",
        lambda: stack(Cell(memory, MEMORY_STATE), Cell(echo, StateSpec((4,)))),
        3,
        R.stacked(numpy_memory, numpy_echo),
        plain=False,
    ),
    Row("residual", lambda: residual(GRUCell(3)), 3, R.residual(R.gru())),
    Row("residual-name", lambda: residual(LSTMCell(3, name="deep")), 3, R.scoped("deep", R.residual(R.lstm()))),
    Row(
        "stack-residual",
        lambda: stack(GRUCell(4), residual(stack(LSTMCell(2), SimpleRNNCell(4)))),
        3,
        R.stacked(R.gru(), R.residual(R.stacked(R.lstm(), R.simple_rnn()))),
    ),
    Row("sync", lambda: sync(LSTMCell(4), LSTMCell(4)), 3, numpy_sync(R.lstm(), R.lstm())),
    Row("sync-name", lambda: sync(GRUCell(3), GRUCell(3), name="one"), 3, R.scoped("one", numpy_sync(R.gru(), R.gru()))),
    Row("readout", lambda: readout(GRUCell(3), (3,)), 3, numpy_readout(R.gru())),
    Row(
        "readout-of-stack",
        lambda: readout(stack(LSTMCell(4), GRUCell(3)), (3,)),
        3,
        numpy_readout(R.stacked(R.lstm(), R.gru())),
    ),
    Row(
        "readout-activation",
        lambda: stack(SimpleRNNCell(4), readout(LSTMCell(4, name="a"), (4,), "mul", "sigmoid")),
        3,
        R.stacked(R.simple_rnn(), ("a", numpy_readout(R.lstm(), lambda x, last: x * R.sigmoid(last)))),
    ),
    Row(
        "readout-feed",
        lambda: readout(GRUCell(3), (3,), feed=F.tanh),
        3,
        numpy_readout(R.gru(), feed=np.tanh),
        plain=False,
    ),
    Row(
        "readout-feed-number",
        lambda: readout(LSTMCell(4), (), plus_number, "tanh", feed=total_of),
        3,
        numpy_readout(R.lstm(), lambda x, last: x + np.tanh(last)[:, None], lambda y: y.sum(axis=1)),
        plain=False,
    ),
    Row(
        "attend",
        lambda: look(GRUCell(4), "dot", StateSpec((4,)), StateSpec((3,)), length=2, units=3),
        3,
        numpy_look(R.gru(), SCORES["dot"], length=2),
        plain=False,
    ),
    Row(
        "attend-concat",
        lambda: look(GRUCell(2), "concat", StateSpec((2,)), StateSpec((4,))),
        3,
        numpy_look(R.gru(), SCORES["concat"]),
        plain=False,
    ),
    Row(
        "attend-no_feeding",
        lambda: look(LSTMCell(2), "general", *LSTMCell(2).state, units=3, input_feeding=False),
        3,
        numpy_look(R.lstm(), SCORES["general"], input_feeding=False),
        plain=False,
    ),
    Row(
        "attend-location",
        lambda: look(GRUCell(2), Location(3, 2, 3), (StateSpec((2,)), StateSpec((3,))), StateSpec((4,)), length=2),
        3,
        numpy_look(R.gru(), SCORES["location"], length=2),
        plain=False,
    ),
    Row("wrapper", lambda: Louder(LSTMCell(4)), 3, numpy_louder(R.lstm(), 2.0)),
    Row(
        "wrapper-residual",
        lambda: Louder(residual(GRUCell(3, name="a")), factor=-0.5),
        3,
        numpy_louder(R.scoped("a", R.residual(R.gru())), -0.5),
    ),
]

ROWS = [*BUILT_IN, *USERS, *COMBINED]


def each_row(*rows: Row) -> pytest.MarkDecorator:
    """Parametrizes a test by `row`, over these rows or the whole table."""
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in rows or ROWS])
