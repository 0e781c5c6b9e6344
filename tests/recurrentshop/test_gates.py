"""An activation of several units is applied to each gate alone, in the cells of RecurrentShop and of seq2seq."""

from __future__ import annotations

from collections.abc import Callable

import nnabla as nn
import nnabla.functions as F
import pytest

import nnshop.recurrentshop as rs
from nnshop import seq2seq
from nnshop.recurrentshop import basic_cells

CELLS: dict[str, tuple[Callable, int]] = {  # and how many gates it has
    "lstm": (rs.LSTMCell, 3),
    "gru": (rs.GRUCell, 2),
    "rhn": (rs.RHNCell, 1),
    "basic_lstm": (basic_cells.LSTMCell, 3),
    "basic_gru": (basic_cells.GRUCell, 2),
    "decoder": (lambda units, **options: seq2seq.LSTMDecoderCell(3, hidden_dim=units, **options), 3),
}


@pytest.mark.parametrize("kind", CELLS)
def test_each_gate_is_given_alone(kind: str) -> None:
    seen = []

    def gate(z: nn.Variable) -> nn.Variable:
        seen.append(z.shape)
        return F.softmax(z)

    make, gates = CELLS[kind]
    cell = make(4, recurrent_activation=gate)
    cell(nn.Variable((2, 4)), cell.initial_state(2))
    assert seen == [(2, 4)] * gates
