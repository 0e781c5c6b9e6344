"""One time step of each cell, in the manner of `nnabla.parametric_functions`: the only place where weights are made.

All take `x (B, D)` and the state, and return the new state. Gates stand side by side in one matrix from x, one from h, and
one bias. Weights are drawn by Glorot's uniform rule for one gate (fan-in D or H, fan-out H), biases are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
from nnabla.initializer import ConstantInitializer, UniformInitializer, calc_uniform_lim_glorot
from nnabla.parameter import get_parameter_or_create
from nnabla.parametric_functions import parametric_function_api

from .building import building
from .checks import check_sizes, check_variable
from .functions import activation as find_activation
from .functions import check_loss, reshape
from .functions import linear_cross_entropy as linear_losses
from .ids import checked_ids

_X2H = ("x2h/W", "Weights from the input, gates side by side", "(D, G * H)", True)
_H2H = ("h2h/W", "Weights from the last output, gates side by side", "(H, G * H)", True)
_B = ("b", "Biases, gates side by side", "(G * H,)", True)


def _check_step(who: str, units: int, x: nn.Variable, **states: tuple[nn.Variable, int]) -> None:
    """Raises ValueError unless units is positive, x is one step `(B, D)`, and each state is `(B, its width)`."""
    check_sizes(who, units=units)
    check_input(who, x)
    for name, (state, width) in states.items():
        check_variable(f"{who}: {name}", state)
        if state.shape != (x.shape[0], width):
            raise ValueError(f"{who} needs {name} of shape {(x.shape[0], width)} for x {x.shape}; got {state.shape}.")


def check_input(who: str, x: nn.Variable) -> None:
    """Raises ValueError, in which `who` begins the message, unless x is one step `(B, D)`."""
    check_variable(f"{who}: x", x)
    if x.ndim != 2:
        raise ValueError(
            f"{who} takes one step of shape (B, D); got {x.shape}. "
            "Run a sequence (B, T, D) with nnshop.run, or flatten each step."
        )


def _weight(name: str, shape: tuple[int, int], gates: int, init: Any, fix_parameters: bool, rng: Any) -> nn.Variable:
    if init is None:
        init = UniformInitializer(calc_uniform_lim_glorot(shape[0], shape[1] // gates), rng=rng)
    _check_array(name, shape, init)
    return get_parameter_or_create(name, shape, init, True, not fix_parameters)


def _check_array(name: str, shape: tuple[int, ...], init: Any) -> None:
    if isinstance(init, np.ndarray) and init.shape != tuple(shape):
        raise ValueError(f"the array for {name} must have the shape {tuple(shape)}; got {init.shape}.")


def _bias(name: str, size: int, init: Any, fix_parameters: bool) -> nn.Variable:
    _check_array(name, (size,), init)
    return get_parameter_or_create(name, (size,), ConstantInitializer(0) if init is None else init, True, not fix_parameters)


@dataclass(frozen=True)
class GateWeights:
    """What every cell has: weights from the input, from the last output, and biases, with the gates side by side."""

    x2h: nn.Variable  # (D, G * H)
    h2h: nn.Variable  # (P, G * H); P is H but for a projection
    b: nn.Variable | None  # (G * H,)


def gate_weights(
    inputs: int,
    units: int,
    gates: int,
    outputs: int | None = None,
    w_init: Any = None,
    recurrent_w_init: Any = None,
    b_init: Any = None,
    fix_parameters: bool = False,
    rng: np.random.RandomState | None = None,
    with_bias: bool = True,
) -> GateWeights:
    """Makes the weights of a cell in the open scope, or finds them there.

    Args:
        inputs, units, gates: D, H and G.
        outputs: P, the width of h; H by default.
        w_init, recurrent_w_init, b_init, fix_parameters, rng, with_bias: As in the cells' functions.
    """
    x2h = _weight("x2h/W", (inputs, gates * units), gates, w_init, fix_parameters, rng)
    b = _bias("b", gates * units, b_init, fix_parameters) if with_bias else None
    h2h = _weight("h2h/W", (outputs or units, gates * units), gates, recurrent_w_init, fix_parameters, rng)
    return GateWeights(x2h, h2h, b)


@building()
@parametric_function_api("", [_X2H, _H2H, _B])
def simple_rnn_cell(
    x: nn.Variable,
    h: nn.Variable,
    units: int,
    activation: str | Callable = "tanh",
    w_init: Any = None,
    recurrent_w_init: Any = None,
    b_init: Any = None,
    fix_parameters: bool = False,
    rng: np.random.RandomState | None = None,
    with_bias: bool = True,
) -> nn.Variable:
    """Computes one step of the simple (Elman) recurrent network, `h' = activation(x W + h U + b)`.

    Args:
        x (~nnabla.Variable): Input `(B, D)`.
        h (~nnabla.Variable): Last output `(B, H)`.
        units (int): H.
        activation (str or callable): A name of `nnshop.functions.ACTIVATIONS`, or a function.
        w_init, recurrent_w_init, b_init (initializer or ~numpy.ndarray): For W, U and b.
        fix_parameters (bool): The weights get no gradient.
        rng (~numpy.random.RandomState): Draws the default weights.
        with_bias (bool): False leaves b out.

    Returns:
        ~nnabla.Variable: `h' (B, H)`.

    Raises:
        ValueError: x is not `(B, D)`, or the activation is not known.

    References:
        J. Elman, Finding structure in time, 1990. The step of `F.rnn`, see `nnshop.weights`.

    Example:
        >>> simple_rnn_cell(nn.Variable((4, 3)), nn.Variable((4, 8)), 8, name="a").shape
        (4, 8)
    """
    _check_step("simple_rnn_cell", units, x, h=(h, units))
    activation = find_activation(activation)  # a wrong name is found before there are weights
    w = gate_weights(x.shape[1], units, 1, None, w_init, recurrent_w_init, b_init, fix_parameters, rng, with_bias)
    return simple_rnn_recurrence(F.affine(x, w.x2h, w.b), h, w, activation)


def simple_rnn_recurrence(x2h: nn.Variable, h: nn.Variable, w: GateWeights, activation: str | Callable) -> nn.Variable:
    """What is left of the step when `x2h = x W + b` is there, for all steps at once."""
    return find_activation(activation)(x2h + F.affine(h, w.h2h))


@building()
@parametric_function_api(
    "",
    [
        _X2H,
        _H2H,
        _B,
        ("peephole/W", "With peephole: weights from c, one row for i, f and o", "(3, H)", True),
        ("projection/W", "With projection_size: weights from the gated cell to h", "(H, P)", True),
    ],
)
def lstm_cell(
    x: nn.Variable,
    h: nn.Variable,
    c: nn.Variable,
    units: int,
    activation: str | Callable = "tanh",
    recurrent_activation: str | Callable = "sigmoid",
    forget_bias: float = 0.0,
    peephole: bool = False,
    projection_size: int | None = None,
    w_init: Any = None,
    recurrent_w_init: Any = None,
    b_init: Any = None,
    fix_parameters: bool = False,
    rng: np.random.RandomState | None = None,
    with_bias: bool = True,
) -> tuple[nn.Variable, nn.Variable]:
    """Computes one step of the long short-term memory, with gates in the order i, f, g, o.

    .. code-block:: text

        i, f, o = s(x W_i + h U_i + b_i), s(x W_f + h U_f + b_f), s(x W_o + h U_o + b_o)
        g = tanh(x W_g + h U_g + b_g)
        c' = f * c + i * g
        h' = o * tanh(c')

    Args:
        x (~nnabla.Variable): Input `(B, D)`.
        h (~nnabla.Variable): Last output `(B, H)`, or `(B, P)` with a projection.
        c (~nnabla.Variable): Last cell state `(B, H)`.
        units (int): H.
        activation (str or callable): Of g and of c'; a name of `nnshop.functions.ACTIVATIONS`, or a function.
        recurrent_activation (str or callable): s, of the three gates.
        forget_bias (float): Added to the initial bias of f; 1 lets a new network remember.
        peephole (bool): i and f also see c, and o sees c', each through one weight per unit.
        projection_size (int, optional): P; `h' = (o * tanh(c')) W_p`.
        w_init, recurrent_w_init, b_init (initializer or ~numpy.ndarray): For W, U and b.
        fix_parameters (bool): The weights get no gradient.
        rng (~numpy.random.RandomState): Draws the default weights.
        with_bias (bool): False leaves b out.

    Returns:
        tuple of ~nnabla.Variable: `h'` of h's shape, and `c' (B, H)`.

    Raises:
        ValueError: x is not `(B, D)`, an activation is not known, or a forget bias is asked for without biases.

    References:
        S. Hochreiter, J. Schmidhuber, Long short-term memory, 1997, with the forget gate of F. Gers et al. 2000; peepholes:
        F. Gers et al. 2002; projection: H. Sak et al. 2014. The step of `F.lstm`, see `nnshop.weights`. `PF.lstm_cell` has
        the gates in the order i, o, f, g, and one matrix for x and h.

    Example:
        >>> h, c = lstm_cell(nn.Variable((4, 3)), nn.Variable((4, 8)), nn.Variable((4, 8)), 8, name="a")
        >>> h.shape, c.shape
        ((4, 8), (4, 8))
    """
    _check_step("lstm_cell", units, x, h=(h, projection_size or units), c=(c, units))
    if forget_bias and not with_bias:
        raise ValueError(f"forget_bias={forget_bias} needs biases; leave with_bias=True, or forget_bias=0.")
    activation, recurrent_activation = find_activation(activation), find_activation(recurrent_activation)
    b_init = with_forget_bias(b_init, units, forget_bias)
    options = (w_init, recurrent_w_init, b_init, fix_parameters, rng, with_bias)
    w = gate_weights(x.shape[1], units, 4, projection_size, *options)
    own = (activation, recurrent_activation, peephole, projection_size, fix_parameters, rng)
    return lstm_recurrence(F.affine(x, w.x2h, w.b), h, c, w, *own)


def lstm_recurrence(
    x2h: nn.Variable,
    h: nn.Variable,
    c: nn.Variable,
    w: GateWeights,
    activation: str | Callable,
    recurrent_activation: str | Callable,
    peephole: bool,
    projection_size: int | None,
    fix_parameters: bool,
    rng: np.random.RandomState | None,
) -> tuple[nn.Variable, nn.Variable]:
    """What is left of the step when `x2h = x W + b` is there, for all steps at once."""
    act, gate, units = find_activation(activation), find_activation(recurrent_activation), c.shape[1]
    z = x2h + F.affine(h, w.h2h)
    i, f, g, o = split_gates(z, units)  # (B, H) each
    if peephole:
        p_i, p_f, p_o = F.split(_weight("peephole/W", (3, units), 1, None, fix_parameters, rng), axis=0)  # (H,) each
        i, f = i + c * reshape(p_i, (1, units)), f + c * reshape(p_f, (1, units))
    c = gate(f) * c + gate(i) * act(g)
    if peephole:
        o = o + c * reshape(p_o, (1, units))
    h = gate(o) * act(c)
    if projection_size:
        h = F.affine(h, _weight("projection/W", (units, projection_size), 1, None, fix_parameters, rng))
    return h, c


def with_forget_bias(init: Any, units: int, forget_bias: float) -> Any:
    """The initializer of an LSTM's biases, plus forget_bias for those of f."""
    if not forget_bias:
        return init

    def initialize(shape: tuple[int, ...]) -> np.ndarray:
        _check_array("b", shape, init)
        start = np.zeros(shape) if init is None else init(shape) if callable(init) else init
        b = np.array(np.broadcast_to(start, shape), np.float32)
        b[units : 2 * units] += forget_bias
        return b

    return initialize


@building()
@parametric_function_api("", [_X2H, _H2H, _B, ("h2h/b", "With reset_after: the bias of n from the last output", "(H,)", True)])
def gru_cell(
    x: nn.Variable,
    h: nn.Variable,
    units: int,
    activation: str | Callable = "tanh",
    recurrent_activation: str | Callable = "sigmoid",
    reset_after: bool = True,
    w_init: Any = None,
    recurrent_w_init: Any = None,
    b_init: Any = None,
    fix_parameters: bool = False,
    rng: np.random.RandomState | None = None,
    with_bias: bool = True,
) -> nn.Variable:
    """Computes one step of the gated recurrent unit, with gates in the order r, z, n.

    .. code-block:: text

        r, z = s(x W_r + h U_r + b_r), s(x W_z + h U_z + b_z)
        n = tanh(x W_n + b_n + r * (h U_n + b_hn))      reset after (the default)
        n = tanh(x W_n + b_n + (r * h) U_n)             reset before
        h' = (1 - z) * n + z * h

    Args:
        x (~nnabla.Variable): Input `(B, D)`.
        h (~nnabla.Variable): Last output `(B, H)`.
        units (int): H.
        activation (str or callable): Of n; a name of `nnshop.functions.ACTIVATIONS`, or a function.
        recurrent_activation (str or callable): s, of the two gates.
        reset_after (bool): The reset gate acts after the product with U (`F.gru`, cuDNN), or before it (the paper).
        w_init, recurrent_w_init, b_init (initializer or ~numpy.ndarray): For W, U and b. b_hn starts at zero.
        fix_parameters (bool): The weights get no gradient.
        rng (~numpy.random.RandomState): Draws the default weights.
        with_bias (bool): False leaves all biases out.

    Returns:
        ~nnabla.Variable: `h' (B, H)`.

    Raises:
        ValueError: x is not `(B, D)`, or an activation is not known.

    References:
        K. Cho et al., Learning phrase representations using RNN encoder-decoder, 2014 (whose z is 1 - z here). The step of
        `F.gru`, see `nnshop.weights`.

    Example:
        >>> gru_cell(nn.Variable((4, 3)), nn.Variable((4, 8)), 8, name="a").shape
        (4, 8)
    """
    _check_step("gru_cell", units, x, h=(h, units))
    activation, recurrent_activation = find_activation(activation), find_activation(recurrent_activation)
    w = gate_weights(x.shape[1], units, 3, None, w_init, recurrent_w_init, b_init, fix_parameters, rng, with_bias)
    own = (activation, recurrent_activation, reset_after, fix_parameters, with_bias)
    return gru_recurrence(F.affine(x, w.x2h, w.b), h, w, *own)


def gru_recurrence(
    x2h: nn.Variable,
    h: nn.Variable,
    w: GateWeights,
    activation: str | Callable,
    recurrent_activation: str | Callable,
    reset_after: bool,
    fix_parameters: bool,
    with_bias: bool,
) -> nn.Variable:
    """What is left of the step when `x2h = x W + b` is there, for all steps at once."""
    act, gate, units = find_activation(activation), find_activation(recurrent_activation), h.shape[1]
    if reset_after:
        h2h = F.affine(h, w.h2h)
        gates = x2h[:, : 2 * units] + h2h[:, : 2 * units]
        h_n = h2h[:, 2 * units :]
        if with_bias:
            bias = gru_h2h_bias(units, fix_parameters)
            h_n = h_n + F.reshape(bias, (1, units), inplace=False)  # in place it would miss an array that replaces the bias's
        r, z = map(gate, split_gates(gates, units))
        n = act(x2h[:, 2 * units :] + r * h_n)
    else:
        # Not by slices of the weight, which read on beyond it after a change of its shape; and see above for "in place".
        for_r, for_z, for_n = F.split(F.reshape(w.h2h, (units, 3, units), inplace=False), axis=1)
        x2r, x2z, x2n = split_gates(x2h, units)
        r, z = gate(x2r + F.affine(h, for_r)), gate(x2z + F.affine(h, for_z))
        n = act(x2n + F.affine(r * h, for_n))
    return n + z * (h - n)


def gru_h2h_bias(units: int, fix_parameters: bool = False) -> nn.Variable:
    """Makes a reset-after GRU's bias of n from the last output, `(H,)`, or finds it."""
    return _bias("h2h/b", units, None, fix_parameters)


@building()
@parametric_function_api(
    "affine", [("W", "Weights of the output layer", "(D, V)", True), ("b", "Biases of the classes", "(V,)", True)]
)
def linear_cross_entropy(
    h: nn.Variable,
    targets: nn.Variable,
    n_classes: int,
    weights: nn.Variable | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    w_init: Any = None,
    b_init: Any = None,
    fix_parameters: bool = False,
    rng: np.random.RandomState | None = None,
    with_bias: bool = True,
) -> nn.Variable:
    """Computes an output layer and its softmax cross entropy in one; the weights are those of `PF.affine` of the same name.

    So a graph that generates takes its logits from `PF.affine(h, n_classes, base_axis=2, name=...)`. What is computed, and
    how fast: `nnshop.functions.linear_cross_entropy`.

    Args:
        h (~nnabla.Variable): `(B, T, D)`, or any `(..., D)`.
        targets (~nnabla.Variable): Class ids, `(B, T)` or `(B, T, 1)`.
        n_classes (int): V.
        weights (~nnabla.Variable): `(B, T)`, by what each loss is multiplied, such as a mask.
        reduction (str): "mean", "time_mean", "batch_mean", "sum" or "none", see `nnshop.sequence_loss`.
        ignore_index (int), label_smoothing (float): As in `nnshop.sequence_loss`.
        w_init, b_init (initializer or ~numpy.ndarray): As in `PF.affine`.
        fix_parameters (bool): The weights get no gradient.
        rng (~numpy.random.RandomState): Draws the default weights.
        with_bias (bool): False leaves b out.

    Returns:
        ~nnabla.Variable: A scalar `()`, `(B,)` for "time_mean", or `(B, T)` for "none".

    Example:
        >>> h, targets = nn.Variable((2, 3, 5)), nn.Variable((2, 3))
        >>> linear_cross_entropy(h, targets, 10, name="output").shape, list(nn.get_parameters())
        ((), ['output/affine/W', 'output/affine/b'])
    """
    check_sizes("linear_cross_entropy", n_classes=n_classes)
    check_loss("linear_cross_entropy", "h", h, targets, weights, reduction, label_smoothing)
    w = _weight("W", (h.shape[-1], n_classes), 1, w_init, fix_parameters, rng)
    b = _bias("b", n_classes, b_init, fix_parameters) if with_bias else None
    options: dict[str, Any] = {"reduction": reduction, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    return linear_losses(h, w, b, targets, weights, **options)


def embed(
    x: nn.Variable,
    n_inputs: int,
    n_features: int,
    initializer: Any = None,
    fix_parameters: bool = False,
    apply_w: Callable | None = None,
    name: str | None = None,
) -> nn.Variable:
    """Looks ids up in a table: `PF.embed`, on the same weights, which checks the ids.

    `nnshop.lift`, `TimeDistributed` and RecurrentShop's `add` take this one where they are given `PF.embed`. On the CPU ids are
    checked when the graph runs; on a device, and in `portable()`, they are not, and NNabla reads foreign memory.

    Args:
        x (~nnabla.Variable): Ids from 0 to n_inputs - 1, any shape.
        n_inputs (int): How many ids there are.
        n_features (int): The width of the table.
        initializer, fix_parameters, apply_w, name: As in `PF.embed`.

    Returns:
        ~nnabla.Variable: The shape of x, and one more axis of the table's width.

    Raises:
        ValueError: A size is no positive number, or x is empty.
        SystemError: When it runs, by NNabla, with a ValueError as its cause: a number that is no id.

    Example:
        >>> embed(nn.Variable((4, 7)), 10, 3).shape, list(nn.get_parameters())
        ((4, 7, 3), ['embed/W'])
    """
    check_variable("embed: x", x)
    check_sizes("embed", n_inputs=n_inputs, n_features=n_features)
    ids = checked_ids(x, n_inputs, "embed: an id")
    return PF.embed(ids, n_inputs, n_features, initializer, fix_parameters, apply_w, name=name)


def checking(function: Callable) -> Callable:
    """Our own function in place of NNabla's, where there is one that checks what it is fed."""
    return embed if function is PF.embed else function


def split_gates(gates: nn.Variable, units: int) -> list[nn.Variable]:
    """Takes gates that stand side by side, `(B, G * H)`, apart: G times `(B, H)`."""
    return F.split(reshape(gates, (gates.shape[0], -1, units)), axis=1)


for _function in (simple_rnn_cell, lstm_cell, gru_cell, linear_cross_entropy):
    _function.__module__ = __name__  # NNabla's decorator says its own, where pickle would not find them
