"""Penalties on weights, and limits that they are put back to after an update, as in Keras."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import nnabla as nn
import nnabla.functions as F
import numpy as np

from ..checks import is_number
from ..combinators import Delegate
from ..core import AbstractCell
from ..parameters import all_parameters, join
from .cells import RNNCell
from .config import TABLE
from .engine import Layer
from .walk import layer_nodes

Regularizer = Callable[[nn.Variable], nn.Variable]
Constraint = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class L1L2:
    """The penalty `l1 * sum |w| + l2 * sum w^2` of a weight."""

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for factor in (self.l1, self.l2):
            if not is_number(factor):
                raise TypeError(f"a penalty needs a number as its factor; got {factor!r}.")

    def __call__(self, w: nn.Variable) -> nn.Variable:
        return self.l1 * F.sum(F.abs(w)) + self.l2 * F.sum(w**2)


def l1(factor: float = 0.01) -> L1L2:
    """Returns the penalty `factor * sum |w|`."""
    return L1L2(l1=factor)


def l2(factor: float = 0.01) -> L1L2:
    """Returns the penalty `factor * sum w^2`."""
    return L1L2(l2=factor)


@dataclass(frozen=True)
class MaxNorm:
    """Scales down each column of a weight (what goes into one unit) that is longer than `largest`."""

    largest: float = 2.0

    def __post_init__(self) -> None:
        if not is_number(self.largest) or not self.largest > 0:
            raise ValueError(f"MaxNorm needs a number above 0; got {self.largest!r}.")

    def __call__(self, w: np.ndarray) -> np.ndarray:
        norms = np.sqrt(np.sum(np.square(w), axis=0, keepdims=True))
        return w * (np.clip(norms, 0, float(self.largest)) / np.maximum(norms, 1e-7))


@dataclass(frozen=True)
class UnitNorm:
    """Scales each column of a weight (what goes into one unit) to length 1."""

    def __call__(self, w: np.ndarray) -> np.ndarray:
        return w / np.maximum(np.sqrt(np.sum(np.square(w), axis=0, keepdims=True)), 1e-7)


@dataclass(frozen=True)
class NonNegative:
    """Sets the negative entries of a weight to zero."""

    def __call__(self, w: np.ndarray) -> np.ndarray:
        return np.maximum(w, 0)


@dataclass(frozen=True, repr=False)
class Penalized(Delegate):
    """A cell with regularizers and constraints for parameters that it makes, by their names below its scope."""

    cell: AbstractCell
    regularizers: tuple[tuple[str, Regularizer], ...] = ()
    constraints: tuple[tuple[str, Constraint], ...] = ()


def penalized(cell: AbstractCell, regularizers: dict | None = None, constraints: dict | None = None) -> AbstractCell:
    """Gives the parameters of any cell regularizers and constraints, by their names.

    Example:
        >>> from nnshop.recurrentshop import l2, penalized
        >>> cell = penalized(nnshop.lift(PF.affine, 5), regularizers={"affine/W": l2(0.05)})
    """
    return Penalized(cell, tuple((regularizers or {}).items()), tuple((constraints or {}).items()))


def regularization_losses(rnn: Layer) -> dict[str, nn.Variable]:
    """Collects the penalties of a layer's weights, each weight once, however many steps it serves.

    Args:
        rnn: A layer that has been called.

    Returns:
        By the name of the parameter, its penalty, a scalar; add their sum to the loss.

    Raises:
        ValueError: The layer has not been called, or a parameter that has a regularizer does not exist.

    Example:
        >>> from nnshop.recurrentshop import LSTMCell, RecurrentSequential, l2, regularization_losses
        >>> rnn = RecurrentSequential(name="rnn"); rnn.add(LSTMCell(8, kernel_regularizer=l2(0.01), name="lstm"))
        >>> loss = F.mean(rnn(nn.Variable((2, 5, 3)))) + sum(regularization_losses(rnn).values())
        >>> list(regularization_losses(rnn))
        ['rnn/lstm/x2h/W']
    """
    return {name: rule(w) for name, w, rule in _ruled(rnn, "regularizer")}


def apply_constraints(rnn: Layer) -> None:
    """Puts the weights of a layer back to their constraints; call it after a solver's update.

    Raises:
        ValueError: The layer has not been called, or a parameter that has a constraint does not exist.
    """
    for _, w, rule in _ruled(rnn, "constraint"):
        w.d = rule(w.d)


def _ruled(rnn: Layer, kind: str) -> Iterator[tuple[str, nn.Variable, Callable]]:
    """Yields the parameters that have a rule of this kind, each once."""
    parameters, seen = all_parameters(), set()
    for cell, path in layer_nodes(rnn):
        for name, rule in _rules(cell, kind):
            full = join(path, cell.name, name)
            if full not in parameters:
                raise ValueError(f"{rnn.name}: there is no parameter {full} for the {kind} of {cell}.")
            if full not in seen:
                seen.add(full)
                yield full, parameters[full], rule


def _rules(cell: AbstractCell, kind: str) -> list[tuple[str, Callable]]:
    if isinstance(cell, Penalized):
        return list(cell.regularizers if kind == "regularizer" else cell.constraints)
    return cell.rules(kind) if isinstance(cell, RNNCell) else []


TABLE.update({kind.__name__: kind for kind in (L1L2, MaxNorm, UnitNorm, NonNegative, Penalized)})
