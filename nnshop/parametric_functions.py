"""One time step of each cell, in the manner of `nnabla.parametric_functions`: the only place where weights are made.

All take `x (B, D)` and the state, and return the new state. Gates stand side by side in one matrix from x, one from h, and
one bias. Weights are drawn by Glorot's uniform rule for one gate (fan-in D or H, fan-out H), biases are zero.
"""

from __future__ import annotations

from typing import Any, Callable

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.initializer import ConstantInitializer, UniformInitializer, calc_uniform_lim_glorot
from nnabla.parameter import get_parameter_or_create
from nnabla.parametric_functions import parametric_function_api

from .functions import activation as find_activation
from .functions import reshape

_X2H = ("x2h/W", "Weights from the input, gates side by side", "(D, G * H)", True)
_H2H = ("h2h/W", "Weights from the last output, gates side by side", "(H, G * H)", True)
_B = ("b", "Biases, gates side by side", "(G * H,)", True)


def _check_step(who: str, units: int, x: nn.Variable, **states: tuple[nn.Variable, int]) -> None:
    """Raises ValueError unless units is positive, x is one step `(B, D)`, and each state is `(B, its width)`."""
    if units < 1:
        raise ValueError(f"{who} needs units >= 1; got {units}.")
    check_input(who, x)
    for name, (state, width) in states.items():
        if state.shape != (x.shape[0], width):
            raise ValueError(f"{who} needs {name} of shape {(x.shape[0], width)} for x {x.shape}; got {state.shape}.")


def check_input(who: str, x: nn.Variable) -> None:
    """Raises ValueError, in which `who` begins the message, unless x is one step `(B, D)`."""
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
    z = F.affine(
        x,
        _weight("x2h/W", (x.shape[1], units), 1, w_init, fix_parameters, rng),
        _optional_bias(with_bias, units, b_init, fix_parameters),
    )
    z = z + F.affine(h, _weight("h2h/W", (units, units), 1, recurrent_w_init, fix_parameters, rng))
    return find_activation(activation)(z)


def _optional_bias(with_bias: bool, size: int, init: Any, fix_parameters: bool) -> nn.Variable | None:
    return _bias("b", size, init, fix_parameters) if with_bias else None


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
    act, gate = find_activation(activation), find_activation(recurrent_activation)
    b_init = b_init if not forget_bias else _with_forget_bias(b_init, units, forget_bias)
    z = F.affine(
        x,
        _weight("x2h/W", (x.shape[1], 4 * units), 4, w_init, fix_parameters, rng),
        _optional_bias(with_bias, 4 * units, b_init, fix_parameters),
    )
    z = z + F.affine(h, _weight("h2h/W", (projection_size or units, 4 * units), 4, recurrent_w_init, fix_parameters, rng))
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


def _with_forget_bias(init: Any, units: int, forget_bias: float) -> Callable:
    def initialize(shape: tuple[int, ...]) -> np.ndarray:
        _check_array("b", shape, init)
        start = np.zeros(shape) if init is None else init(shape) if callable(init) else init
        b = np.array(np.broadcast_to(start, shape), np.float32)
        b[units : 2 * units] += forget_bias
        return b

    return initialize


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
    act, gate = find_activation(activation), find_activation(recurrent_activation)
    x2h = F.affine(
        x,
        _weight("x2h/W", (x.shape[1], 3 * units), 3, w_init, fix_parameters, rng),
        _optional_bias(with_bias, 3 * units, b_init, fix_parameters),
    )
    weight = _weight("h2h/W", (units, 3 * units), 3, recurrent_w_init, fix_parameters, rng)
    if reset_after:
        h2h = F.affine(h, weight)
        r, z = split_gates(gate(x2h[:, : 2 * units] + h2h[:, : 2 * units]), units)
        h_n = h2h[:, 2 * units :]
        if with_bias:
            h_n = h_n + reshape(_bias("h2h/b", units, None, fix_parameters), (1, units))
        n = act(x2h[:, 2 * units :] + r * h_n)
    else:
        r, z = split_gates(gate(x2h[:, : 2 * units] + F.affine(h, weight[:, : 2 * units])), units)
        n = act(x2h[:, 2 * units :] + F.affine(r * h, weight[:, 2 * units :]))
    return n + z * (h - n)


def split_gates(gates: nn.Variable, units: int) -> list[nn.Variable]:
    """Takes gates that stand side by side, `(B, G * H)`, apart: G times `(B, H)`."""
    return F.split(reshape(gates, (gates.shape[0], -1, units)), axis=1)


for _function in (simple_rnn_cell, lstm_cell, gru_cell):
    _function.__module__ = __name__  # NNabla's decorator says its own, where pickle would not find them
