"""One time step of each of RecurrentShop's cells, by its equations, which are not the textbook's.

Weights are named and laid out as in `nnshop.parametric_functions`: gates side by side, LSTM's in the order i, f, g, o, GRU's
r, z, n. The order that Keras has them in is known to `weights.py` only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.parameter import get_parameter_or_create

from ..parametric_functions import check_input, split_gates

Activation = Callable[[nn.Variable], nn.Variable]


def side_by_side(init: Any, blocks: Sequence[int]) -> Any:
    """Draws a matrix as several, one for each share of its columns: the original has them as layers of their own."""
    if isinstance(init, np.ndarray):
        return init

    def initialize(shape: tuple[int, ...]) -> np.ndarray:
        unit = shape[-1] // sum(blocks)
        return np.concatenate(
            [np.broadcast_to(init((*shape[:-1], n * unit)), (*shape[:-1], n * unit)) for n in blocks], axis=-1
        )

    return initialize


def linear(x: nn.Variable, name: str, size: int, w_init: Any, bias: str | None, b_init: Any) -> nn.Variable:
    """Computes `x W (+ b)`; W is the parameter `name/W (D, size)`, b the one that `bias` names."""
    check_input(f"{name} of a cell", x)
    weight = get_parameter_or_create(f"{name}/W", (x.shape[1], size), w_init)
    return F.affine(x, weight, get_parameter_or_create(bias, (size,), b_init) if bias else None)


def simple_rnn_cell(
    x: nn.Variable, h: nn.Variable, units: int, act: Activation, w: Any, u: Any, b: Any, use_bias: bool = True
) -> nn.Variable:
    """Computes `h' = act(x W + b + h U)`; x `(B, D)`, h `(B, H)`; w, u, b are initializers."""
    return act(linear(x, "x2h", units, w, "b" if use_bias else None, b) + linear(h, "h2h", units, u, None, None))


def lstm_cell(
    x: nn.Variable,
    h: nn.Variable,
    c: nn.Variable,
    units: int,
    act: Activation,
    gate: Activation,
    w: Any,
    u: Any,
    b: Any,
    use_bias: bool = True,
) -> tuple[nn.Variable, nn.Variable]:
    """Computes `c' = act(f * c + i * g)`, `h' = o * c'`: the cell state is carried squashed, and not squashed again."""
    z = linear(x, "x2h", 4 * units, w, "b" if use_bias else None, b) + linear(h, "h2h", 4 * units, u, None, None)
    i, f, g, o = split_gates(z, units)
    c = act(gate(f) * c + gate(i) * act(g))
    return gate(o) * c, c


def gru_cell(
    x: nn.Variable, h: nn.Variable, units: int, act: Activation, gate: Activation, w: Any, u: Any, b: Any, use_bias: bool = True
) -> nn.Variable:
    """Computes `h' = z * n + (1 - z) * h` with `n = act(x W_n + b_n + (r * h) U_n)`: z lets the new value in, not the old."""
    x_r, x_z, x_n = split_gates(linear(x, "x2h", 3 * units, w, "b" if use_bias else None, b), units)
    weight = get_parameter_or_create("h2h/W", (units, 3 * units), u)
    h_r, h_z = split_gates(F.affine(h, weight[:, : 2 * units]), units)
    r, z = gate(x_r + h_r), gate(x_z + h_z)
    n = act(x_n + F.affine(r * h, weight[:, 2 * units :]))
    return h + z * (n - h)


def rhn_cell(
    x: nn.Variable,
    h: nn.Variable,
    units: int,
    depth: int,
    act: Activation,
    gate: Activation,
    w: Any,
    u: Any,
    b: Any,
    use_bias: bool = True,
) -> nn.Variable:
    """Computes a recurrent highway step of some depth; each layer is `h' = n * t + h * sigmoid(1 - t)`.

    J. Zilly et al., Recurrent highway networks, 2017, where the carry gate is `1 - t`.
    """
    bias = (lambda name: name) if use_bias else (lambda name: None)
    z = linear(x, "x2h", 2 * units, w, bias("b"), b) + linear(h, "h2h", 2 * units, u, bias("h2h/b"), b)
    for layer in range(1, depth + 1):
        n, t = split_gates(z, units)
        t = gate(t)
        h = act(n) * t + h * F.sigmoid(1 - t)
        if layer < depth:
            z = linear(h, f"depth{layer}", 2 * units, u, bias(f"depth{layer}/b"), b)
    return h
