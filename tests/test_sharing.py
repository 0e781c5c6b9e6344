"""A warning where another layer is surely meant, and none where weights are shared on purpose."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import pytest

import nnshop
from nnshop import (
    Cell,
    GRUCell,
    LSTMCell,
    SimpleRNNCell,
    bidirectional,
    gru,
    lift,
    lstm,
    readout,
    residual,
    run,
    simple_rnn,
    stack,
)
from nnshop.recurrentshop import RecurrentSequential

x = nn.Variable((2, 5, 8))
ALL = {"return_sequences": True}


def unknown(way: str) -> Any:
    """A cell of a user's."""
    return run(Cell(lambda x, s: (F.tanh(PF.affine(x, 8)), s)), run(Cell(lambda x, s: (F.tanh(PF.affine(x, 8)), s)), x)[0])


@pytest.mark.parametrize("way", ["auto", "loop", "unrolled"])
@pytest.mark.parametrize(
    "build",
    [
        lambda way: lstm(lstm(x, 8, way=way, **ALL), 8, way=way),
        lambda way: gru(F.dropout(gru(x, 8, way=way, **ALL), 0.5), 8, way=way),
        lambda way: simple_rnn(x + simple_rnn(x, 8, way=way, **ALL), 8, way=way),
        lambda way: run(GRUCell(8), run(GRUCell(8), x, way=way)[0], way=way),
        lambda way: run(stack(LSTMCell(4), GRUCell(8)), run(stack(LSTMCell(4), GRUCell(8)), x, way=way)[0], way=way),
        lambda way: bidirectional(bidirectional(x, GRUCell(4), way=way), GRUCell(4), way=way),
        unknown,
    ],
)
def test_an_upper_layer_without_a_name_is_warned_of(build: Callable, way: str) -> None:
    with nn.parameter_scope("outer"), pytest.warns(UserWarning, match=r"own weights, outer/.*Give each of them a name="):
        build(way)


def test_it_is_warned_of_in_auto_forward_mode() -> None:
    with nn.auto_forward(), pytest.warns(UserWarning, match="own weights, lstm/b, lstm/h2h/W, lstm/x2h/W"):
        lstm(lstm(nn.Variable((2, 5, 8)), 8, **ALL), 8)


def two_graphs() -> None:
    """Of training and of inference, on one input."""
    embedded = PF.embed(nn.Variable((2, 5)), 10, 8)
    for _ in range(2):
        lstm(embedded, 8)


def pieces() -> None:
    """A sequence in two pieces, fed with its own output by hand."""
    y, state = lstm(x, 8, return_state=True, **ALL)
    lstm(y, 8, initial_state=state)


def cycle() -> None:
    """Back from another part of the network."""
    encode = lambda x: lstm(x, 8, **ALL)  # noqa: E731
    encode(gru(encode(x), 8, **ALL))


def two_passes() -> None:
    """A decoder that is given its own choices."""
    for_ids = lambda ids: lstm(PF.embed(ids, 10, 8, name="e"), 10, **ALL)  # noqa: E731
    for_ids(F.max(for_ids(nn.Variable((2, 5))), axis=2, only_index=True))


def inner(x: nn.Variable, h: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
    """A step that runs a layer over a sequence that depends on the last step."""
    y = lstm(F.reshape(x + h, (2, 1, 8), inplace=False), 8)
    return y, y


def tied() -> None:
    """An output layer that has the weights of the embedding below."""
    e = nn.parameter.get_parameter_or_create("e", (8, 8))
    say = lambda x, s: (F.affine(PF.affine(x, 8), e), s)  # noqa: E731
    run(Cell(say), F.embed(nn.Variable((2, 5)), e))


def owned() -> None:
    rnn = RecurrentSequential(return_sequences=True)
    rnn.add(LSTMCell(8))
    rnn(rnn(x))


@pytest.mark.parametrize(
    "build",
    [
        two_graphs,
        pieces,
        cycle,
        two_passes,
        tied,
        owned,
        lambda: run(Cell(inner, nnshop.StateSpec((8,))), x, way="unrolled"),
        lambda: run(Cell(inner, nnshop.StateSpec((8,))), x, way="loop"),
        lambda: nnshop.scan(lambda x, h: inner(x, h)[0], nn.Variable((5, 2, 8)), nn.Variable((2, 8)), way="unrolled"),
        lambda: run(readout(SimpleRNNCell(8), (8,)), x),
        lambda: lstm(lstm(x, 8, name="same", **ALL), 8, name="same"),
        lambda: run(GRUCell(8, name="same"), run(GRUCell(8, name="same"), x)[0]),
        lambda: bidirectional(bidirectional(x, GRUCell(4), name="same"), GRUCell(4), name="same"),
        lambda: lstm(lstm(x, 8, name="lower", **ALL), 8, name="upper"),
        lambda: run(stack(residual(GRUCell(8)), residual(GRUCell(8)), lift(PF.affine, 8)), x),
    ],
)
def test_what_is_meant_passes(build: Callable) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()
