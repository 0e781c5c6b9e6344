"""The fused way on a GPU: NNabla's functions of cuDNN, each for a whole sequence."""

from __future__ import annotations

from collections.abc import Sequence

import nnabla as nn
import nnabla.functions as F

from ..functions import reshape, swap_time
from ..kernels import why_not_arrays
from ..parametric_functions import GateWeights
from ..portable import is_portable
from . import explaining

KINDS = ("lstm", "gru", "gru_before", "rnn", "rnn_relu")


def is_on_cudnn() -> bool:
    """Whether the context's functions are cuDNN's."""
    return nn.get_current_context().backend[0].startswith("cudnn")


def why_not_cudnn(kind: str, mask: nn.Variable | None) -> str:
    """Tells why cuDNN's functions cannot run a cell of this kind here; empty where they can."""
    if is_portable() or not is_on_cudnn():
        return why_not_arrays() or "the context is for the CPU"
    if mask is not None:
        return "cuDNN's functions take no mask"
    return "cuDNN has no GRU that resets before" if kind == "gru_before" else ""


def fused(
    kind: str,
    x: nn.Variable,
    weights: GateWeights,
    states: Sequence[nn.Variable],
    reverse: bool,
    h2h_bias: nn.Variable | None = None,
) -> tuple[nn.Variable, list[nn.Variable]]:
    """Runs a layer over whole sequences. The functions compute on the CPU too, slowly, which is how tests reach this.

    Args:
        kind: One of KINDS.
        x: `(B, T, D)`.
        weights: The cell's, with the gates in its order.
        states: h `(B, H)`, and c for "lstm".
        reverse: From the last step to the first; `y[:, t]` is still the output of step t.
        h2h_bias: `(H,)`, for "gru" with biases.

    Returns:
        y `(B, T, H)`, and the final states.
    """
    explaining.take("cudnn")
    biases = [b for b in (weights.b, h2h_bias) if b is not None]
    units = weights.h2h.shape[0]
    gates = weights.h2h.shape[1] // units
    both = F.transpose(F.concatenate(weights.x2h, weights.h2h, axis=0), (1, 0))  # (G * H, D + H)
    axes = () if kind.startswith("rnn") else (gates,)
    weight = reshape(both, (1, *axes, units, both.shape[1]))
    bias = None
    if biases:
        joined = biases[0] if len(biases) == 1 else F.concatenate(*biases, axis=0)
        bias = reshape(joined, (1, 1, *(() if kind.startswith("rnn") else (joined.shape[0] // units,)), units))
    x = swap_time(x)
    x = F.flip(x, axes=[0]) if reverse else x
    # Never the leaves themselves: cuDNN's form in NNabla adds to the gradient of c as if it had the size of the weights.
    starts = [reshape(state, (1, 1, *state.shape)) for state in states]
    if kind == "lstm":
        y, *after = F.lstm(x, *starts, weight, None, bias)
    elif kind == "gru":
        y, *after = F.gru(x, *starts, weight, None, bias)
    else:
        y, *after = F.rnn(x, *starts, weight, None, bias, nonlinearity="relu" if kind == "rnn_relu" else "tanh")
    y = F.flip(y, axes=[0]) if reverse else y
    return swap_time(y), [reshape(state, states[0].shape) for state in after]
