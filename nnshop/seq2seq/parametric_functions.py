"""One time step of each of seq2seq's decoder cells, by its equations.

Weights are named and laid out as in `nnshop.recurrentshop.parametric_functions`: gates side by side, in the order i, f, g, o,
which is also the original's.
"""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F
from nnabla.parameter import get_parameter_or_create

from ..functions import reshape
from ..parametric_functions import split_gates
from ..recurrentshop.parametric_functions import Activation, linear


def lstm_decoder_cell(
    x: nn.Variable,
    h: nn.Variable,
    c: nn.Variable,
    outputs: int,
    act: Activation,
    gate: Activation,
    w: Any,
    u: Any,
    b: Any,
    use_bias: bool = True,
) -> tuple[nn.Variable, nn.Variable, nn.Variable]:
    """Computes a long short-term memory step, and `y = act(h' W_y + b_y)`; x `(B, D)`, h and c `(B, H)`, y `(B, outputs)`."""
    units = h.shape[1]
    z = linear(x, "x2h", 4 * units, w, None, None) + linear(h, "h2h", 4 * units, u, "b" if use_bias else None, b)
    return _output(*_memory(z, c, act, gate), outputs, act, w, b, use_bias)


def attention_decoder_cell(
    xs: nn.Variable,
    h: nn.Variable,
    c: nn.Variable,
    outputs: int,
    act: Activation,
    gate: Activation,
    w: Any,
    u: Any,
    b: Any,
    use_bias: bool = True,
) -> tuple[nn.Variable, nn.Variable, nn.Variable]:
    """Computes the same on what it attends to of a sequence: `x = sum_t a_t xs_t`, `a = softmax_t([xs_t ; c] W_a + b_a)`.

    xs `(B, T, D)`, h and c `(B, H)`, y `(B, outputs)`. It is the cell state, not h, that asks.
    """
    units = h.shape[1]
    x = attended(xs, c, w, b, use_bias)
    z = linear(x, "x2h", 4 * units, w, "b" if use_bias else None, b)
    z = z + linear(h, "h2h", 4 * units, u, "h2h/b" if use_bias else None, b)
    return _output(*_memory(z, c, act, gate), outputs, act, w, b, use_bias)


def attended(xs: nn.Variable, c: nn.Variable, w: Any, b: Any, use_bias: bool) -> nn.Variable:
    """Computes the mean of the steps of xs `(B, T, D)`, `(B, D)`, each weighted by how well it fits c `(B, H)`."""
    batch, length, width = xs.shape
    weight = get_parameter_or_create("score/W", (width + c.shape[1], 1), w)
    bias = get_parameter_or_create("score/b", (1,), b) if use_bias else None
    # What the steps add to the scores is the same each time: the loop computes it once.
    of_steps = reshape(F.affine(xs, weight[:width], bias, base_axis=2), (batch, length))
    scores = of_steps + F.affine(c, weight[width:])
    weights = reshape(F.softmax(scores, axis=1), (batch, 1, length))
    return reshape(F.batch_matmul(weights, xs), (batch, width))


def _memory(z: nn.Variable, c: nn.Variable, act: Activation, gate: Activation) -> tuple[nn.Variable, nn.Variable]:
    """The textbook's step: `c' = f * c + i * g`, `h' = o * act(c')`; unlike RecurrentShop's LSTMCell, c is not squashed."""
    i, f, g, o = split_gates(z, c.shape[1])
    c = gate(f) * c + gate(i) * act(g)
    return gate(o) * act(c), c


def _output(
    h: nn.Variable, c: nn.Variable, outputs: int, act: Activation, w: Any, b: Any, use_bias: bool
) -> tuple[nn.Variable, nn.Variable, nn.Variable]:
    return act(linear(h, "h2y", outputs, w, "h2y/b" if use_bias else None, b)), h, c
