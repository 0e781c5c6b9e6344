"""Walks through graphs: the order, where they end, and how deep they may go."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF

from nnshop import LSTMCell, run
from nnshop.graphs import functions_of, in_place_of


def test_the_order_is_nnablas() -> None:
    ys, (h, c) = run(LSTMCell(4), nn.Variable((2, 3, 4)), lengths=[3, 1], way="unrolled")
    loss = F.sum(PF.affine(ys, 2)) + F.sum(h * c)
    expected: list = []
    loss.visit(expected.append)
    assert len(expected) > 50
    assert functions_of([loss]) == expected


def test_all_outputs_are_walked_from_in_their_order() -> None:
    x = nn.Variable((2,))
    a, b = F.tanh(x), F.sin(x)
    assert [f.name for f in functions_of([b, a, b, x])] == ["Sin", "Tanh"]
    assert functions_of([]) == []


def test_a_walk_ends_where_it_is_not_to_enter() -> None:
    x = nn.Variable((2,))
    y = F.exp(F.sin(x))
    z = F.tanh(y) + y
    assert [f.name for f in functions_of([z], enters=lambda v: v != y)] == ["Tanh", "Add2"]


def test_no_graph_is_too_deep() -> None:
    """NNabla's own visit calls itself, and ends the process."""
    y = nn.Variable((1,))
    for _ in range(150_000):
        y = F.tanh(y)
    functions = functions_of([y])
    assert len(functions) == 150_000
    y = None
    while functions:  # at once, NNabla would free each within the next, and end the process too
        functions.pop()


def test_what_lies_in_one_array() -> None:
    x = nn.Variable((2, 3))
    a = F.reshape(x, (6,))
    b = F.reshape(a, (3, 2))
    assert in_place_of(b) == {x, a, b}
    assert in_place_of(F.tanh(b)) != in_place_of(b)
    y = x
    for _ in range(5000):
        y = F.reshape(y, (2, 3))
    assert len(in_place_of(y)) == 5001
