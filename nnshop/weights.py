"""Weights of nnshop's cells to and from those of NNabla's whole-sequence functions `F.lstm`, `F.gru` and `F.rnn`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Weights = Mapping[str, np.ndarray]

_GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def to_fused(kind: str, layers: Sequence[Sequence[Weights]]) -> dict[str, np.ndarray]:
    """Packs cells' weights in the form that `F.lstm`, `F.gru` and `F.rnn` take.

    Args:
        kind: "lstm" (of `LSTMCell`), "gru" (of `GRUCell` with `reset_after`) or "rnn" (of `SimpleRNNCell`).
        layers: For each layer its directions (forward, and backward where there is one), each the arrays "x2h/W", "h2h/W",
            "b" and for "gru" "h2h/b"; without biases they are zero.

    Returns:
        "weight_l0" `(directions, gates, H, D + H)`, "weight" `(layers - 1, directions, gates, H, directions * H + H)` where
        there is more than one layer, and "bias" `(layers, directions, biases, H)`. For "rnn" no gate axis. These are the
        names of `PF.lstm`, `PF.gru` and `PF.rnn`.

    Raises:
        ValueError: The kind is not known, or an array is missing or has a shape that does not fit.

    Example:
        >>> cell = {"x2h/W": np.zeros((3, 32)), "h2h/W": np.zeros((8, 32)), "b": np.zeros(32)}
        >>> {name: array.shape for name, array in to_fused("lstm", [[cell]]).items()}
        {'weight_l0': (1, 4, 8, 11), 'bias': (1, 1, 4, 8)}
    """
    gates = _gates(kind)
    if (
        not isinstance(layers, (list, tuple))
        or not layers
        or not all(isinstance(layer, (list, tuple)) and layer for layer in layers)
    ):
        raise ValueError("to_fused needs at least one layer, a list of at least one direction.")
    layers = [[_arrays(cell) for cell in layer] for layer in layers]
    weights = [np.stack([_pack_weight(cell, gates) for cell in layer]) for layer in layers]
    fused = {"weight_l0": weights[0]}
    if len(weights) > 1:
        fused["weight"] = np.stack(weights[1:])
    fused["bias"] = np.stack([np.stack([_pack_bias(kind, cell, gates) for cell in layer]) for layer in layers])
    if kind == "rnn":  # the one gate has no axis
        fused = {name: np.squeeze(array, axis=-3 if name != "bias" else -2) for name, array in fused.items()}
    return fused


def from_fused(kind: str, fused: Weights) -> list[list[dict[str, np.ndarray]]]:
    """Unpacks weights of `F.lstm`, `F.gru` or `F.rnn` into those of cells; the inverse of `to_fused`.

    Args:
        kind: "lstm", "gru" or "rnn".
        fused: "weight_l0", "weight" where there is more than one layer, and "bias" where there is one.

    Returns:
        For each layer its directions, each a dict of arrays by the names of the cell's parameters.

    Raises:
        ValueError: The kind is not known, or the arrays do not fit.

    Example:
        >>> cell = {"x2h/W": np.ones((3, 8)), "h2h/W": np.ones((8, 8)), "b": np.ones(8)}
        >>> [[back]] = from_fused("rnn", to_fused("rnn", [[cell]]))
        >>> sorted(back)
        ['b', 'h2h/W', 'x2h/W']
    """
    gates, fused = _gates(kind), _arrays(fused)
    if "weight_l0" not in fused:
        raise ValueError(f"from_fused needs weight_l0, the weights of the first layer; got {sorted(fused)}.")
    expand = (lambda array, axis: np.expand_dims(array, axis)) if kind == "rnn" else (lambda array, axis: np.asarray(array))
    layers = [expand(fused["weight_l0"], -3), *(expand(layer, -3) for layer in fused.get("weight", ()))]
    for layer in layers:
        if layer.ndim != 4 or layer.shape[1] != gates:
            raise ValueError(
                f"from_fused({kind!r}) needs {gates} gates: weights (directions, gates, H, D + H); got {layer.shape}."
            )
    if "bias" not in fused:
        return [[_unpack_weight(cell) for cell in layer] for layer in layers]
    biases = expand(fused["bias"], -2)
    expected = (len(layers), layers[0].shape[0], gates + (kind == "gru"), layers[0].shape[2])
    if biases.shape != expected:
        raise ValueError(f"from_fused({kind!r}) needs a bias of shape {expected}; got {biases.shape}.")
    return [[{**_unpack_weight(cell), **_unpack_bias(kind, bias)} for cell, bias in zip(*pair)] for pair in zip(layers, biases)]


def _gates(kind: str) -> int:
    if kind not in _GATES:
        raise ValueError(f"kind must be one of {', '.join(_GATES)}; got {kind!r}.")
    return _GATES[kind]


def _arrays(weights: Weights) -> dict[str, np.ndarray]:
    """What was given by name, as arrays of numbers."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights are arrays by their names; got {type(weights).__name__}.")
    arrays = {}
    for name, value in weights.items():
        arrays[name] = value if isinstance(value, np.ndarray) else np.asarray(None)
        if arrays[name].dtype.kind not in "fiu" or not arrays[name].ndim:
            raise ValueError(f"{name} must be an array of numbers; got {type(value).__name__}.")
    return arrays


def _pack_weight(cell: Weights, gates: int) -> np.ndarray:
    missing = {"x2h/W", "h2h/W"} - set(cell)
    if missing:
        raise ValueError(f"a cell's weights need {sorted(missing)}; got {sorted(cell)}.")
    unknown = set(cell) - {"x2h/W", "h2h/W", "b", "h2h/b"}
    if unknown:
        raise ValueError(f"NNabla's functions have no counterpart of {sorted(unknown)} (peepholes, projections).")
    units = cell["h2h/W"].shape[0]
    if cell["h2h/W"].shape != (units, gates * units) or cell["x2h/W"].shape[1:] != (gates * units,):
        shapes = {name: array.shape for name, array in cell.items()}
        raise ValueError(f"weights of {gates} gates are x2h/W (D, {gates} H) and h2h/W (H, {gates} H); got {shapes}.")
    both = np.concatenate([cell["x2h/W"], cell["h2h/W"]])  # (D + H, G * H)
    return both.T.reshape(gates, units, -1)


def _unpack_weight(weight: np.ndarray) -> dict[str, np.ndarray]:
    gates, units, inputs = weight.shape  # inputs = D + H
    both = weight.reshape(gates * units, inputs).T
    return {"x2h/W": both[: inputs - units].copy(), "h2h/W": both[inputs - units :].copy()}


def _pack_bias(kind: str, cell: Weights, gates: int) -> np.ndarray:
    units = cell["h2h/W"].shape[0]
    if kind == "gru" and ("b" in cell) != ("h2h/b" in cell):
        raise ValueError(f"a GRU with reset_after=True has both b and h2h/b; got {sorted(cell)}. F.gru has no reset before.")
    bias = np.asarray(cell.get("b", np.zeros(gates * units))).reshape(gates, units)
    if kind != "gru":
        return bias
    return np.concatenate([bias, np.asarray(cell.get("h2h/b", np.zeros(units))).reshape(1, units)])


def _unpack_bias(kind: str, bias: np.ndarray) -> dict[str, np.ndarray]:
    if kind != "gru":
        return {"b": bias.ravel().copy()}
    return {"b": bias[:3].ravel().copy(), "h2h/b": bias[3].copy()}
