"""The readable cells of `recurrentshop.basic_cells`: the same cells with sigmoid gates, and one layer for each gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import cells
from .cells import Layout
from .config import TABLE
from .parametric_functions import side_by_side


@dataclass(frozen=True, repr=False)
class SimpleRNNCell(cells.SimpleRNNCell):
    """As `nnshop.recurrentshop.SimpleRNNCell`, with Glorot's rule for all weights."""

    recurrent_initializer: Any = "glorot_uniform"


@dataclass(frozen=True, repr=False)
class LSTMCell(cells.LSTMCell):
    """As `nnshop.recurrentshop.LSTMCell`, with sigmoid gates and Glorot's rule for the weights of each gate."""

    recurrent_activation: str | Callable = "sigmoid"
    recurrent_initializer: Any = "glorot_uniform"

    @property
    def initializers(self) -> tuple[Any, Any, Any]:
        kernel, recurrent, bias = super().initializers
        return side_by_side(kernel, (1, 1, 1, 1)), side_by_side(recurrent, (1, 1, 1, 1)), bias

    @property
    def layout(self) -> Layout:
        return [(name, (gate,)) for gate in (1, 0, 2, 3) for name in ("x2h/W", "b", "h2h/W")]  # f, i, g, o


@dataclass(frozen=True, repr=False)
class GRUCell(cells.GRUCell):
    """As `nnshop.recurrentshop.GRUCell`, with sigmoid gates and Glorot's rule for the weights of each gate."""

    recurrent_activation: str | Callable = "sigmoid"
    recurrent_initializer: Any = "glorot_uniform"

    @property
    def initializers(self) -> tuple[Any, Any, Any]:
        kernel, recurrent, bias = super(cells.GRUCell, self).initializers
        return side_by_side(kernel, (1, 1, 1)), side_by_side(recurrent, (1, 1, 1)), bias

    @property
    def layout(self) -> Layout:
        gates = [(name, (gate,)) for gate in (0, 1) for name in ("x2h/W", "b", "h2h/W")]  # r, then z
        return [*gates, ("h2h/W", (2,)), ("b", (2,)), ("x2h/W", (2,))]  # the bias of n is in the recurrent layer


TABLE.update({f"basic.{kind.__name__}": kind for kind in (SimpleRNNCell, LSTMCell, GRUCell)})
