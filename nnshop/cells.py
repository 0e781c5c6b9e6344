"""The cells: a parametric function of one step, and the state that it needs.

Each is a value of settings that prints and compares; the options are those of its function in `parametric_functions`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Callable

import nnabla as nn
import numpy as np

from .core import AbstractCell, StateSpec
from .functions import activation as find_activation
from .parametric_functions import check_input, gru_cell, lstm_cell, simple_rnn_cell

State = Any


class _ParametricCell(AbstractCell):
    """What the built-in cells share: their settings are checked when they are made, and passed on to their function."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, field.name)
            if field.name.endswith("activation"):
                find_activation(value)
            sized = field.name == "units" or (field.name == "projection_size" and value is not None)
            if sized and not (isinstance(value, (int, np.integer)) and value > 0):
                raise ValueError(f"{type(self).__name__} needs {field.name} >= 1, a whole number; got {value!r}.")

    def _options(self, x: nn.Variable) -> dict[str, Any]:
        check_input(repr(self), x)
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True, repr=False)
class SimpleRNNCell(_ParametricCell):
    """The simple (Elman) cell, `h' = tanh(x W + h U + b)`; its output and its only state `(units,)` are h'.

    Options and equations: `nnshop.parametric_functions.simple_rnn_cell`.

    Example:
        >>> SimpleRNNCell(8, activation="relu")
        SimpleRNNCell(8, activation='relu')
    """

    units: int
    activation: str | Callable = "tanh"
    w_init: Any = None
    recurrent_w_init: Any = None
    b_init: Any = None
    fix_parameters: bool = False
    rng: Any = None
    with_bias: bool = True
    name: str | None = None

    @property
    def state(self) -> State:
        return StateSpec((self.units,))

    def step(self, x: nn.Variable, state: State) -> tuple[nn.Variable, State]:
        h = simple_rnn_cell(x, state, **self._options(x))
        return h, h


@dataclass(frozen=True, repr=False)
class LSTMCell(_ParametricCell):
    """The long short-term memory; its output is h', its state `(h, c)`.

    Options and equations: `nnshop.parametric_functions.lstm_cell`.

    Example:
        >>> LSTMCell(8, forget_bias=1.0)
        LSTMCell(8, forget_bias=1.0)
    """

    units: int
    activation: str | Callable = "tanh"
    recurrent_activation: str | Callable = "sigmoid"
    forget_bias: float = 0.0
    peephole: bool = False
    projection_size: int | None = None
    w_init: Any = None
    recurrent_w_init: Any = None
    b_init: Any = None
    fix_parameters: bool = False
    rng: Any = None
    with_bias: bool = True
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.forget_bias and not self.with_bias:
            raise ValueError(
                f"LSTMCell with forget_bias={self.forget_bias} needs biases; leave with_bias=True, or forget_bias=0."
            )

    @property
    def state(self) -> State:
        return StateSpec((self.projection_size or self.units,)), StateSpec((self.units,))

    def step(self, x: nn.Variable, state: State) -> tuple[nn.Variable, State]:
        h, c = lstm_cell(x, *state, **self._options(x))
        return h, (h, c)


@dataclass(frozen=True, repr=False)
class GRUCell(_ParametricCell):
    """The gated recurrent unit; its output and its only state `(units,)` are h'.

    Options and equations: `nnshop.parametric_functions.gru_cell`.

    Example:
        >>> GRUCell(8, reset_after=False)
        GRUCell(8, reset_after=False)
    """

    units: int
    activation: str | Callable = "tanh"
    recurrent_activation: str | Callable = "sigmoid"
    reset_after: bool = True
    w_init: Any = None
    recurrent_w_init: Any = None
    b_init: Any = None
    fix_parameters: bool = False
    rng: Any = None
    with_bias: bool = True
    name: str | None = None

    @property
    def state(self) -> State:
        return StateSpec((self.units,))

    def step(self, x: nn.Variable, state: State) -> tuple[nn.Variable, State]:
        h = gru_cell(x, state, **self._options(x))
        return h, h
