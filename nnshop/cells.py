"""The cells: a parametric function of one step, and the state that it needs.

Each is a value of settings that prints and compares; the options are those of its function in `parametric_functions`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import nnabla as nn
import nnabla.functions as F

from .checks import check_name, check_sizes
from .core import AbstractCell, StateSpec, Tree, tree_leaves, tree_like
from .functions import activation as find_activation
from .functions import faster, without_padding
from .parametric_functions import (
    GateWeights,
    check_input,
    gate_weights,
    gru_cell,
    gru_h2h_bias,
    gru_recurrence,
    lstm_cell,
    lstm_recurrence,
    simple_rnn_cell,
    simple_rnn_recurrence,
    with_forget_bias,
)
from .running.fused import fused, why_not_cudnn
from .running.recurrence import Recurrence
from .running.ways import Auto

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
            if field.name == "name":
                check_name(type(self).__name__, value)
            if field.name.endswith("activation"):
                find_activation(value)
            if field.name == "units" or (field.name == "projection_size" and value is not None):
                check_sizes(type(self).__name__, **{field.name: value})

    def _options(self, x: nn.Variable) -> dict[str, Any]:
        check_input(repr(self), x)
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @abstractmethod
    def _kind(self) -> str:
        """The kind of its fused form, one of `fused.KINDS`; empty where these settings have none."""

    @abstractmethod
    def _weights(self, inputs: int) -> GateWeights:
        """Makes or finds the weights, in the open scope."""

    @abstractmethod
    def _recur(self, x2h: nn.Variable, state: State, weights: GateWeights) -> tuple[nn.Variable, State]:
        """Computes a step of what x gives to the gates, in the open scope."""

    def _h2h_bias(self) -> nn.Variable | None:
        return None

    def _gate_weights(self, inputs: int, gates: int, outputs: int | None, b_init: Any) -> GateWeights:
        options = (self.w_init, self.recurrent_w_init, b_init, self.fix_parameters, self.rng, self.with_bias)
        return gate_weights(inputs, self.units, gates, outputs, *options)

    def over(self, run: Recurrence) -> tuple[Tree, Tree] | None:
        kind, xs = self._kind(), run.xs
        is_fused = kind and not why_not_cudnn(kind, run.mask)
        if not isinstance(xs, nn.Variable) or not (is_fused or isinstance(run.way, Auto)):
            return None
        check_input(repr(self), run.one_step())
        xs = without_padding(run.mask, xs)
        with nn.parameter_scope(self.name or ""):
            weights = self._weights(xs.shape[2])
            if is_fused:
                y, after = fused(kind, xs, weights, tree_leaves(run.state), run.reverse, self._h2h_bias())
                return y, tree_like(run.state, after)
        x2h = faster(F.affine(xs, weights.x2h, weights.b, base_axis=2))
        return run.through(_Recurrent(self, weights), x2h, run.state)


@dataclass(frozen=True, repr=False)
class _Recurrent(AbstractCell):
    """What is left of a cell when what the inputs give to its gates is there; that is done for all steps at once."""

    cell: _ParametricCell
    weights: GateWeights

    @property
    def state(self) -> State:
        return self.cell.state

    def step(self, x2h: nn.Variable, state: State) -> tuple[nn.Variable, State]:
        with nn.parameter_scope(self.cell.name or ""):
            return self.cell._recur(x2h, state, self.weights)


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

    def _weights(self, inputs: int) -> GateWeights:
        return self._gate_weights(inputs, 1, None, self.b_init)

    def _recur(self, x2h: nn.Variable, state: State, weights: GateWeights) -> tuple[nn.Variable, State]:
        h = simple_rnn_recurrence(x2h, state, weights, self.activation)
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

    def _kind(self) -> str:
        return "lstm" if _has_the_usual_gates(self) and not self.peephole and not self.projection_size else ""

    def _weights(self, inputs: int) -> GateWeights:
        b_init = with_forget_bias(self.b_init, self.units, self.forget_bias)
        return self._gate_weights(inputs, 4, self.projection_size, b_init)

    def _recur(self, x2h: nn.Variable, state: State, weights: GateWeights) -> tuple[nn.Variable, State]:
        h, c = state
        h, c = lstm_recurrence(
            x2h,
            h,
            c,
            weights,
            activation=self.activation,
            recurrent_activation=self.recurrent_activation,
            peephole=self.peephole,
            projection_size=self.projection_size,
            fix_parameters=self.fix_parameters,
            rng=self.rng,
        )
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

    def _kind(self) -> str:
        return ("gru" if self.reset_after else "gru_before") if _has_the_usual_gates(self) else ""

    def _weights(self, inputs: int) -> GateWeights:
        return self._gate_weights(inputs, 3, None, self.b_init)

    def _h2h_bias(self) -> nn.Variable | None:
        return gru_h2h_bias(self.units, self.fix_parameters) if self.reset_after and self.with_bias else None

    def _recur(self, x2h: nn.Variable, state: State, weights: GateWeights) -> tuple[nn.Variable, State]:
        options = (self.activation, self.recurrent_activation, self.reset_after, self.fix_parameters, self.with_bias)
        h = gru_recurrence(x2h, state, weights, *options)
        return h, h


def _name_of(activation: str | Callable) -> str:
    """The name of an activation that is given as NNabla's own function, too."""
    return (
        activation
        if isinstance(activation, str)
        else {F.tanh: "tanh", F.relu: "relu", F.sigmoid: "sigmoid"}.get(activation, "")
    )


def _has_the_usual_gates(cell: LSTMCell | GRUCell) -> bool:
    return (_name_of(cell.activation), _name_of(cell.recurrent_activation)) == ("tanh", "sigmoid")
