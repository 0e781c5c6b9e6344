"""The table of a user's cells that all rivals compute: their names, their weights, and the numbers that all start from.

Each rival's file has the steps themselves, under the same names, and names the weights in the same way. It needs NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MEMORY = 20  # positions that the attention decoder attends to
Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Entry:
    """A cell of H units, with inputs `(B, T, H)` and outputs `(B, T, H)`.

    Args:
        title: Its name in reports.
        shapes: Of its weights, from H and B. "memory" is what the attention decoder attends to.
        states: How many states `(B, H)` it has; mLSTM's are `(B, H, H)` and `(B, H)`.
        required: It has requirements, and is measured at all sizes.
    """

    title: str
    shapes: Callable[[int, int], Shapes]
    states: int = 2
    required: bool = False


def gated(gates: int, n: int, x: str = "x", h: str = "h") -> Shapes:
    """The weights of gates side by side: from the input, with biases, and from the state."""
    return {f"{x}/W": (n, gates * n), f"{x}/b": (gates * n,), f"{h}/W": (n, gates * n)}


def built_in(gates: int, n: int, inputs: int, scope: str = "") -> Shapes:
    """The weights of nnshop's own cells."""
    return {
        f"{scope}x2h/W": (inputs, gates * n),
        f"{scope}h2h/W": (n, gates * n),
        f"{scope}b": (gates * n,),
    }


def norm(name: str, size: int) -> Shapes:
    return {f"{name}/gamma": (size,), f"{name}/beta": (size,)}


CELLS: dict[str, Entry] = {
    "lstm": Entry("LSTM", lambda n, b: gated(4, n), required=True),
    "layer_norm_lstm": Entry(
        "layer-norm LSTM",
        lambda n, b: {**gated(4, n), **norm("norm_x", 4 * n), **norm("norm_h", 4 * n), **norm("norm_c", n)},
        required=True,
    ),
    "mgu": Entry("MGU", lambda n, b: {**gated(1, n, "xf", "hf"), **gated(1, n, "xn", "hn")}, 1, required=True),
    "two_lstms": Entry(
        "two LSTMs with readout", lambda n, b: {**built_in(4, n, n, "0/"), **built_in(4, n, n, "1/")}, 4, required=True
    ),
    "rs_lstm": Entry("RecurrentShop's LSTM", lambda n, b: built_in(4, n, n, "rs/"), required=True),
    "rs_gru": Entry("RecurrentShop's GRU", lambda n, b: built_in(3, n, n, "rs/"), 1, required=True),
    "attention": Entry(
        f"attention decoder, memory of {MEMORY}",
        lambda n, b: {
            **built_in(4, n, 2 * n),
            "memory": (b, MEMORY, n),
            "attention/query/W": (n, n),
            "attention/output/W": (2 * n, n),
        },
        3,
        required=True,
    ),
    "scan": Entry("scan of tanh(Wh + x)", lambda n, b: {"h/W": (n, n)}, 1, required=True),
    "cornn": Entry("coRNN", lambda n, b: {**gated(1, n), "c/W": (n, n)}),
    "minimal_rnn": Entry("minimal RNN", lambda n, b: {**gated(1, n), "h/b": (n,), "z/W": (n, n)}, 1),
    "mlstm": Entry("mLSTM", lambda n, b: {**{f"{k}/W": (n, n) for k in "qkvo"}, "gates/W": (n, 2), "gates/b": (2,)}),
    "peephole_lstm": Entry("peephole LSTM", lambda n, b: {**gated(4, n), "peephole": (3 * n,)}),
    "nested_lstm": Entry("nested LSTM", lambda n, b: {**gated(4, n), **gated(4, n, "inner_x", "inner_h")}, 3),
    "sru": Entry("SRU", lambda n, b: {"x/W": (n, 3 * n), "x/b": (3 * n,)}, 1),
}


def start(cell: str, units: int, zeros: Callable[[tuple[int, ...]], Any]) -> Any:
    """Makes the first state from shapes without B: a tuple, or the only one."""
    shapes = [(units, units), (units,)] if cell == "mlstm" else [(units,)] * CELLS[cell].states
    return zeros(shapes[0]) if len(shapes) == 1 else tuple(map(zeros, shapes))


def draw(cell: str, batch: int, steps: int, units: int) -> tuple[Arrays, np.ndarray, np.ndarray]:
    """Draws the weights, the input `(B, T, H)` and the gradient of the output `(B, T, H)`, for all rivals the same.

    Weights are uniform within `1 / sqrt(H)`, as in PyTorch's layers, and a norm's gamma is near 1/2: with them rounding errors
    do not grow over time. With a gamma near 1 a layer-norm LSTM is chaotic, and 1e-7 has become 1e-3 after 100 steps.
    """
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in CELLS[cell].shapes(units, batch).items():
        drawn = 2 * rng.random(shape, np.float32) - 1
        weights[name] = drawn if name == "memory" else drawn * np.float32(units**-0.5)
        if name.endswith("/gamma"):
            weights[name] += np.float32(0.5)
    shape = (batch, steps, units)
    return weights, rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)


def difference(ours: Arrays, theirs: Arrays) -> float:
    """The largest difference in any array, as a part of the largest number in it; infinity where something is missing."""
    if ours.keys() != theirs.keys():
        return np.inf
    return max(_difference(ours[name], theirs[name]) for name in ours)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.inf
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
