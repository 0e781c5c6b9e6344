"""RecurrentShop's cells, with its equations and its defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nnabla as nn

from ..checks import check_sizes
from ..core import AbstractCell, StateSpec, Tree
from ..functions import activation as find_activation
from .config import TABLE
from .initializers import find_initializer
from .names import new_name
from .parametric_functions import gru_cell, lstm_cell, rhn_cell, side_by_side, simple_rnn_cell

# The weights of a cell in Keras' order: the parameter, and which of its gates, in their order there (None for all as they are).
Layout = list[tuple[str, "tuple[int, ...] | None"]]


@dataclass(frozen=True, repr=False)
class RNNCell(AbstractCell):
    """What RecurrentShop's cells have in common; a cell of your own derives from it and defines `state` and `call`.

    Args:
        units (int): H, the size of the output; `output_dim` is an older name for it.
        activation, recurrent_activation: Names of `nnshop.functions.ACTIVATIONS`, or functions.
        use_bias (bool): False leaves the biases out.
        kernel_initializer, recurrent_initializer, bias_initializer: Names of `INITIALIZERS`, functions of the shape, arrays.
        kernel_regularizer, recurrent_regularizer, bias_regularizer: Penalties such as `l2(0.01)`, that
            `regularization_losses` collects.
        kernel_constraint, recurrent_constraint, bias_constraint: Limits such as `MaxNorm(2)`, that `apply_constraints` puts
            the weights back to.
        input_dim, input_shape, batch_input_shape: What one step's input looks like; not needed, and checked where given.
        name (str): The scope of the weights; `lstm_cell`, `lstm_cell_1`, ... by default, in the order of construction.

    Raises:
        ValueError: There are no units, or an activation or an initializer is not known.

    Example:
        >>> from nnshop.recurrentshop import LSTMCell
        >>> ys = LSTMCell(8, input_dim=3).get_layer(return_sequences=True)(nn.Variable((4, 7, 3)))
        >>> ys.shape
        (4, 7, 8)
    """

    units: int | None = None
    activation: str | Callable = "tanh"
    recurrent_activation: str | Callable = "hard_sigmoid"
    use_bias: bool = True
    kernel_initializer: Any = "glorot_uniform"
    recurrent_initializer: Any = "orthogonal"
    bias_initializer: Any = "zeros"
    kernel_regularizer: Callable | None = None
    recurrent_regularizer: Callable | None = None
    bias_regularizer: Callable | None = None
    kernel_constraint: Callable | None = None
    recurrent_constraint: Callable | None = None
    bias_constraint: Callable | None = None
    output_dim: int | None = None
    input_dim: int | None = None
    input_shape: tuple[int, ...] | None = None
    batch_input_shape: tuple[int, ...] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        units = self.units if self.units is not None else self.output_dim
        check_sizes(type(self).__name__, units=units)
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "output_dim", None)
        if self.name is None:
            object.__setattr__(self, "name", new_name(type(self)))
        for activation in (self.activation, self.recurrent_activation):
            find_activation(activation)
        for initializer in (self.kernel_initializer, self.recurrent_initializer, self.bias_initializer):
            find_initializer(initializer)

    @property
    def state(self) -> Tree:
        """A tuple of StateSpec; one of the shape `(units,)` by default."""
        return (StateSpec((self.size,)),)

    @property
    def size(self) -> int:
        """The number of units."""
        assert self.units is not None
        return self.units

    @property
    def num_states(self) -> int:
        """How many states the cell has."""
        return len(self.state)

    def call(self, x: nn.Variable, *states: nn.Variable) -> tuple[nn.Variable, ...]:
        """Computes one step, `(x, s1, s2, ...) -> (y, s1', s2', ...)`."""
        raise NotImplementedError(f"{type(self).__name__} must define call(x, *states) -> (y, *states).")

    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        self._check_input(x)
        with nn.parameter_scope(self.name or ""):
            y, *after = self.call(x, *state)
        return y, tuple(after)

    def get_layer(self, **options: Any) -> Any:
        """Makes a layer that runs this cell over sequences; layers of one cell share its weights.

        Args:
            **options: Those of `RecurrentModel`, such as `return_sequences=True`.
        """
        from .engine import RecurrentModel  # the layer is made of cells

        return RecurrentModel(cell=self, **options)

    @property
    def initializers(self) -> tuple[Any, Any, Any]:
        """Those of the kernel, the recurrent kernel and the bias."""
        names = self.kernel_initializer, self.recurrent_initializer, self.bias_initializer
        kernel, recurrent, bias = map(find_initializer, names)
        return kernel, recurrent, bias

    def rules(self, kind: str) -> list[tuple[str, Callable]]:
        """The cell's parameters that have a rule of a kind, "regularizer" or "constraint", and the rules."""
        found = {}
        if not any(getattr(self, f"{share}_{kind}") for share in ("kernel", "recurrent", "bias")):
            return []
        for name, _ in self.layout:
            found[name] = getattr(self, f"{self.share_of(name)}_{kind}")
        return [(name, rule) for name, rule in found.items() if rule is not None]

    def share_of(self, name: str) -> str:
        """Whose rules a parameter has: those of the "kernel", the "recurrent" kernel or the "bias"."""
        return "bias" if name.split("/")[-1] == "b" else "kernel" if name == "x2h/W" else "recurrent"

    @property
    def layout(self) -> Layout:
        """The weights in Keras' order."""
        raise ValueError(
            f"{type(self).__name__} does not say which weights it has: define layout, a list of (name below its scope, None) "
            "in Keras' order; or give rules to single parameters by penalized(cell, ...)."
        )

    def _check_input(self, x: nn.Variable) -> None:
        expected = self.declared_input
        if expected is not None and x.shape[1:] != expected:
            raise ValueError(f"{self} was made for inputs of shape {expected} a step; got {x.shape[1:]}.")

    @property
    def declared_input(self) -> tuple[int, ...] | None:
        """The shape of one step's input without the batch axis, where the cell was made for one."""
        if self.input_dim:
            return (self.input_dim,)
        shape = self.batch_input_shape[1:] if self.batch_input_shape else self.input_shape
        return None if shape is None else tuple(shape)


def _without_bias(cell: RNNCell, layout: Layout) -> Layout:
    return [(name, gates) for name, gates in layout if cell.use_bias or name.split("/")[-1] != "b"]


@dataclass(frozen=True, repr=False)
class SimpleRNNCell(RNNCell):
    """`h' = act(x W + b + h U)`; one state. Arguments as for `RNNCell`."""

    def call(self, x: nn.Variable, *states: nn.Variable) -> tuple[nn.Variable, ...]:
        (h,) = states
        h = simple_rnn_cell(x, h, self.size, find_activation(self.activation), *self.initializers, self.use_bias)
        return h, h

    @property
    def layout(self) -> Layout:
        return _without_bias(self, [("x2h/W", None), ("b", None), ("h2h/W", None)])


@dataclass(frozen=True, repr=False)
class LSTMCell(RNNCell):
    """`c' = act(f * c + i * g)`, `h' = o * c'`; states h and c. Arguments as for `RNNCell`.

    Unlike the textbook's, the cell state is carried squashed, and the gates are hard sigmoids. `nnshop.LSTMCell` is the
    textbook's.
    """

    @property
    def state(self) -> Tree:
        return StateSpec((self.size,)), StateSpec((self.size,))

    def call(self, x: nn.Variable, *states: nn.Variable) -> tuple[nn.Variable, ...]:
        act, gate = find_activation(self.activation), find_activation(self.recurrent_activation)
        h, c = states
        h, c = lstm_cell(x, h, c, self.size, act, gate, *self.initializers, self.use_bias)
        return h, h, c

    @property
    def layout(self) -> Layout:
        order = (1, 0, 3, 2)  # Keras' f, i, o, g
        return _without_bias(self, [("x2h/W", order), ("b", order), ("h2h/W", order)])


@dataclass(frozen=True, repr=False)
class GRUCell(RNNCell):
    """`h' = z * n + (1 - z) * h`, reset before; one state. Arguments as for `RNNCell`.

    z lets the new value in; the textbook's, and that of `nnshop.GRUCell`, keeps the old one.
    """

    def call(self, x: nn.Variable, *states: nn.Variable) -> tuple[nn.Variable, ...]:
        (h,) = states
        act, gate = find_activation(self.activation), find_activation(self.recurrent_activation)
        h = gru_cell(x, h, self.size, act, gate, *self.initializers, self.use_bias)
        return h, h

    @property
    def initializers(self) -> tuple[Any, Any, Any]:
        kernel, recurrent, bias = super().initializers
        return kernel, side_by_side(recurrent, (2, 1)), bias

    @property
    def layout(self) -> Layout:
        order = (1, 0, 2)  # Keras' z, r, n
        return _without_bias(self, [("x2h/W", order), ("b", order), ("h2h/W", order[:2]), ("h2h/W", order[2:])])


@dataclass(frozen=True, repr=False)
class RHNCell(RNNCell):
    """A recurrent highway cell: `recurrence_depth` highway layers a step; one state.

    The carry gate is `sigmoid(1 - t)`, as in the original; the paper's is `1 - t`. The original ignores `activation` and
    `recurrent_activation`; here they are what they say, with the original's effect as defaults.

    Args:
        recurrence_depth (int): The number of layers, at least 1. The others are as for `RNNCell`.
    """

    recurrent_activation: str | Callable = "sigmoid"
    recurrence_depth: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes("RHNCell", recurrence_depth=self.recurrence_depth)

    def call(self, x: nn.Variable, *states: nn.Variable) -> tuple[nn.Variable, ...]:
        (h,) = states
        act, gate = find_activation(self.activation), find_activation(self.recurrent_activation)
        w, u, b = self.initializers
        w, u = side_by_side(w, (1, 1)), side_by_side(u, (1, 1))
        h = rhn_cell(x, h, self.size, self.recurrence_depth, act, gate, w, u, b, self.use_bias)
        return h, h

    @property
    def layout(self) -> Layout:
        pairs = [("x2h/W", "b"), ("h2h/W", "h2h/b")]
        first = [(name, (gate,)) for gate in (1, 0) for pair in pairs for name in pair]  # t, then n
        deeper = [
            (name, (gate,))
            for layer in range(1, self.recurrence_depth)
            for gate in (1, 0)
            for name in (f"depth{layer}/W", f"depth{layer}/b")
        ]
        return _without_bias(self, [*first, *deeper])


TABLE.update({kind.__name__: kind for kind in (SimpleRNNCell, LSTMCell, GRUCell, RHNCell)})
