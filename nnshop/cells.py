"""The cells: a parametric function of one step, and the state that it needs.

Each is a value of settings that prints and compares; the options are those of its function in `parametric_functions`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Callable

import nnabla as nn
import nnabla.functions as F
import numpy as np

from .core import AbstractCell, StateSpec, Tree, tree_leaves, tree_like
from .execution.fused import fused, why_not_fused
from .functions import activation as find_activation
from .functions import without_padding
from .parametric_functions import (
    GateWeights,
    check_input,
    gate_weights,
    gru_cell,
    gru_h2h_bias,
    lstm_cell,
    simple_rnn_cell,
    with_forget_bias,
)

State = Any


class _ParametricCell(AbstractCell):
    """What the built-in cells share: their settings are checked when they are made, and passed on to their function."""

    units: int
    w_init: Any
    recurrent_w_init: Any
    b_init: Any
    fix_parameters: bool
    rng: Any
    with_bias: bool

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

    @abstractmethod
    def _kind(self) -> str:
        """The kind of its fused form, one of `fused.KINDS`; empty where these settings have none."""

    @abstractmethod
    def _weights(self, inputs: int) -> dict[str, Any]:
        """Makes or finds the weights, in the open scope; the arguments of `fused` that hold them."""

    def _gate_weights(self, inputs: int, gates: int, b_init: Any) -> GateWeights:
        options = (self.w_init, self.recurrent_w_init, b_init, self.fix_parameters, self.rng, self.with_bias)
        return gate_weights(inputs, self.units, gates, None, *options)

    def over(
        self, xs: Tree, state: Tree, mask: nn.Variable | None, *, length: int, reverse: bool, way: str
    ) -> tuple[Tree, Tree] | None:
        kind = self._kind()
        if not kind or why_not_fused(kind, mask) or not isinstance(xs, nn.Variable):
            return None
        check_input(repr(self), nn.Variable((1, *xs.shape[2:])))
        with nn.parameter_scope(self.name or ""):
            weights = self._weights(xs.shape[2])
        y, after = fused(kind, without_padding(mask, xs), states=tree_leaves(state), mask=mask, reverse=reverse, **weights)
        return y, tree_like(state, after)


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

    def _kind(self) -> str:
        return {"tanh": "rnn", "relu": "rnn_relu"}.get(_name_of(self.activation), "")

    def _weights(self, inputs: int) -> dict[str, Any]:
        return {"weights": self._gate_weights(inputs, 1, self.b_init)}


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

    def _kind(self) -> str:
        return "lstm" if _has_the_usual_gates(self) and not self.peephole and not self.projection_size else ""

    def _weights(self, inputs: int) -> dict[str, Any]:
        return {"weights": self._gate_weights(inputs, 4, with_forget_bias(self.b_init, self.units, self.forget_bias))}


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

    def _kind(self) -> str:
        return ("gru" if self.reset_after else "gru_before") if _has_the_usual_gates(self) else ""

    def _weights(self, inputs: int) -> dict[str, Any]:
        weights = {"weights": self._gate_weights(inputs, 3, self.b_init)}
        if self.reset_after and self.with_bias:
            weights["h2h_bias"] = gru_h2h_bias(self.units, self.fix_parameters)
        return weights


def _name_of(activation: str | Callable) -> str:
    """The name of an activation that is given as NNabla's own function, too."""
    return (
        activation
        if isinstance(activation, str)
        else {F.tanh: "tanh", F.relu: "relu", F.sigmoid: "sigmoid"}.get(activation, "")
    )


def _has_the_usual_gates(cell: LSTMCell | GRUCell) -> bool:
    return (_name_of(cell.activation), _name_of(cell.recurrent_activation)) == ("tanh", "sigmoid")
