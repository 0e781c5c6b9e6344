"""The original's weights, in Keras' order and layout, into the port."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.parametric_functions as PF
import numpy as np

from ..archive import ArchiveError, check_numbers
from ..combinators import Lifted, Stack, Sync, Wrapper
from ..core import AbstractCell
from ..parameters import all_parameters, join
from .cells import RNNCell
from .engine import Layer
from .keras_files import read_keras
from .walk import layer_nodes


@dataclass(frozen=True)
class Place:
    """Where an array of Keras belongs: a parameter, or some of its gates in their order there."""

    name: str
    gates: tuple[int, ...] | None
    units: int

    def columns(self) -> Any:
        """The columns of the parameter that the array's columns are."""
        if self.gates is None:
            return slice(None)
        return np.concatenate([np.arange(gate * self.units, (gate + 1) * self.units) for gate in self.gates])

    def fill(self, parameter: nn.Variable, array: np.ndarray) -> None:
        """Copies an array of Keras to its place in the parameter."""
        value = parameter.d.copy()
        value[..., self.columns()] = array
        parameter.d = value


def places(rnn: Layer) -> list[Place]:
    """Lists where each array of Keras' `get_weights()` belongs, in its order; each weight once."""
    return list(dict.fromkeys(place for cell, path in layer_nodes(rnn) for place in places_of(cell, path)))


def places_of(cell: AbstractCell, path: str) -> Iterator[Place]:
    """Yields the places of one cell's own weights, below a scope."""
    if isinstance(cell, RNNCell):
        for name, gates in cell.layout:
            yield Place(join(path, cell.name, name), gates, cell.size)
    elif isinstance(cell, Lifted) and cell.function is PF.affine:
        options = dict(cell.options)
        for name in ("W", "b") if options.get("with_bias", True) else ("W",):
            yield Place(join(path, cell.name, options.get("name"), "affine", name), None, 0)
    elif not isinstance(cell, (Lifted, Stack, Sync, Wrapper)):
        raise ValueError(f"{cell} has no order of weights in Keras; give the names of its parameters, order=[...].")


def load_recurrentshop_weights(
    rnn: Layer, weights: Sequence[np.ndarray] | str | Path, order: Sequence[str | RNNCell] | None = None
) -> None:
    """Loads weights of the original, as its `get_weights()` gives them, or from a file that its `save_weights` wrote.

    Args:
        rnn: A layer that has been called, so that its weights are there.
        weights: Arrays in Keras' order; or a Keras `.h5` file, whose arrays are taken in the file's order.
        order: For a `RecurrentModel`, whose order cannot be known: in that order, the cells that its step calls (their gates
            are put right), and the full names of other parameters, whose arrays are taken as they are.

    Raises:
        ValueError: They are of another architecture; the message lists what is missing, superfluous and misshapen. Or the layer
            has not been called. Nothing is changed then.
        nnshop.archive.ArchiveError: So it is for a file, a ValueError too; also where the file is missing, damaged, or leads
            into others. Nothing is changed then.
        TypeError: Arrays that are no real numbers. Nothing is changed then.
    """
    parameters = all_parameters()
    wanted = _ordered(rnn, order) if order is not None else places(rnn)
    unknown = [place.name for place in wanted if place.name not in parameters]
    if unknown:
        raise ValueError(f"{rnn.name}: there are no parameters {', '.join(unknown)}; there are {', '.join(parameters)}.")
    expected = [parameters[place.name].d[..., place.columns()].shape for place in wanted]
    whose, kind = rnn.name, ValueError
    if isinstance(weights, (str, Path)):
        whose, kind = f"{weights}: {rnn.name}", ArchiveError
        shapes, arrays = read_keras(Path(weights), expected)
    else:
        arrays = [np.asarray(array) for array in weights]
        shapes = [array.shape for array in arrays]
    wrong = [f"{place.name} is missing" for place in wanted[len(shapes) :]]
    wrong += [f"array {i} of shape {shapes[i]} is superfluous" for i in range(len(wanted), len(shapes))]
    for i, (place, shape, fits) in enumerate(zip(wanted, shapes, expected)):
        if shape != fits:
            wrong += [f"array {i} for {place.name} has the shape {shape}, not {fits}"]
    if wrong:
        raise kind(f"{whose}: these weights are of another architecture: {'; '.join(wrong)}.")
    check_numbers({f"array {i} for {place.name}": array for i, (place, array) in enumerate(zip(wanted, arrays))})
    for place, array in zip(wanted, arrays):
        place.fill(parameters[place.name], array)


def _ordered(rnn: Layer, order: Sequence[str | RNNCell]) -> list[Place]:
    """The places of the weights of a model, in the order that the caller says."""
    found: list[Place] = []
    for item in order:
        if isinstance(item, str):
            found += [Place(item, None, 0)]
            continue
        # A function's weights are in the layer's scope, those of a graph where it was built.
        inside = list(places_of(item, rnn.path))
        found += inside if inside[0].name in all_parameters() else list(places_of(item, ""))
    return found
