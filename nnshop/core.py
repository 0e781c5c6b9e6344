"""The contract of a cell: one step, and the state it needs.

Everything else in nnshop is a cell, a function from cell to cell, or a way to run a cell over time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any

import nnabla as nn
import numpy as np

from .building import building
from .checks import check_count, check_name, check_variable, is_whole
from .options import check_options
from .parameters import scratch

Tree = Any  # a leaf, None, or a tuple (a NamedTuple as well) of trees


def tree_map(function: Callable, tree: Tree, *rest: Tree) -> Tree:
    """Applies a function to the leaves of one tree, or of several trees of the same structure.

    A tuple is a node, a NamedTuple keeps its type, None is an empty tree, everything else is a leaf.

    Example:
        >>> tree_map(lambda a, b: a + b, (1, (2, None)), (10, (20, None)))
        (11, (22, None))
    """
    if tree is None:
        return None
    if not isinstance(tree, tuple):
        return function(tree, *rest)
    make = getattr(type(tree), "_make", tuple)
    return make(tree_map(function, *branches) for branches in zip(tree, *rest))


def tree_leaves(tree: Tree) -> list:
    """Lists the leaves of a tree, from left to right.

    Example:
        >>> tree_leaves((1, (2, None), 3))
        [1, 2, 3]
    """
    if tree is None:
        return []
    return [leaf for branch in tree for leaf in tree_leaves(branch)] if isinstance(tree, tuple) else [tree]


def tree_like(tree: Tree, leaves: Iterable) -> Tree:
    """Puts leaves in the places of those of a tree, from left to right; the inverse of `tree_leaves`.

    Example:
        >>> tree_like((1, (2, None), 3), "abc")
        ('a', ('b', None), 'c')
    """
    remaining = iter(leaves)
    return tree_map(lambda _: next(remaining), tree)


def check_variables(xs: Tree, what: str = "a sequence") -> None:
    """Raises TypeError unless all leaves are Variables, and ValueError where one is empty."""
    for leaf in tree_leaves(xs):
        check_variable(what, leaf)


def shapes(tree: Tree) -> Tree:
    """Returns the tree of the shapes of a tree of Variables or StateSpecs; of any other leaf the name of its type."""
    if isinstance(tree, tuple):
        return tuple(map(shapes, tree))
    if tree is None:
        return None
    return tree.shape if isinstance(tree, (nn.Variable, StateSpec)) else type(tree).__name__


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Initializes with zeros; unlike NNabla's initializers it equals itself after pickling."""
    return np.zeros(shape, np.float32)


@dataclass(frozen=True)
class StateSpec:
    """One state of a cell: its shape without the batch axis, and how it begins.

    Args:
        shape (tuple of int): Shape of one sample's state, such as `(units,)`.
        initializer (callable): Maps the shape `(B, ...)` to the initial value, an array or a Variable; any NNabla
            initializer. Zero by default.

    Raises:
        ValueError: A size is not a positive integer.

    Example:
        >>> StateSpec((64,)).shape
        (64,)
    """

    shape: tuple[int, ...]
    initializer: Callable = zeros

    def __post_init__(self) -> None:
        if not isinstance(self.shape, tuple) or not all(is_whole(n) and n > 0 for n in self.shape):
            raise ValueError(
                f"StateSpec needs a tuple of positive sizes without the batch axis, such as (64,); got {self.shape!r}."
            )


class AbstractCell(ABC):
    """What every cell is: `y, new_state = cell(x, state)`.

    A subclass is a frozen dataclass that defines `state` and `step`; its options are fields. A cell holds settings, never
    weights and never a current state: weights are found by name (`nn.parameter_scope`), state comes in and goes out.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, repr=False)
        ... class Decay(AbstractCell):
        ...     units: int
        ...     rate: float = 0.5
        ...
        ...     @property
        ...     def state(self):
        ...         return StateSpec((self.units,))
        ...
        ...     def step(self, x, state):
        ...         h = self.rate * state + PF.affine(x, self.units)
        ...         return h, h
        >>> Decay(8, rate=0.9)
        Decay(8, rate=0.9)
    """

    @property
    @abstractmethod
    def state(self) -> Tree:
        """The tree of StateSpec that the cell needs; `()` where it needs none."""

    @abstractmethod
    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        """Computes one time step: `(x, state) -> (y, new_state)`."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        check_options(cls)
        return super().__new__(cls)

    @property
    def owner(self) -> Any:
        """What owns the weights, and fixes their scope wherever the cell is used; None where the open scope says it."""
        return None

    @property
    def name(self) -> str | None:
        """The parameter scope that the cell opens for its weights; None where it opens none."""
        return None

    @building()
    def __call__(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        """Runs one time step.

        Args:
            x: A tree of Variables `(B, ...)`, or None for a cell without input.
            state: A tree of Variables of the structure of `self.state`, each `(B,) + spec.shape`.

        Returns:
            `(y, new_state)`; new_state has exactly the structure and shapes of state.

        Raises:
            ValueError: The state, or what the step returned as state, has another structure, shape or batch size; x is empty.
            TypeError: x holds what is no Variable.
        """
        check_variables(x, f"{self}: the input of a step")
        batch = batch_size_of(x, state)
        check_state(self, "needs", state, batch)
        y, after = self.step(x, state)
        check_state(self, "must return", after, batch)
        return y, after

    def over(self, run: Any) -> tuple[Tree, Tree] | None:
        """Runs over whole sequences in a faster form than step by step, where the cell has one.

        Args:
            run: A `nnshop.running.recurrence.Recurrence` of this cell, with sequences `(B, T, ...)`; `run.of` runs a part.

        Returns:
            `(ys, state)`, or None where there is no such form; then the steps are run one by one.
        """
        return None

    def initial_state(self, batch_size: int) -> Tree:
        """Makes the tree of Variables that the cell starts from, by the initializers of its specs.

        Example:
            >>> nnshop.LSTMCell(8).initial_state(4)[0].shape
            (4, 8)
        """
        check_count("batch_size", batch_size)

        def start(spec: StateSpec) -> nn.Variable:
            shape = (batch_size, *spec.shape)
            value = spec.initializer(shape)
            if isinstance(value, nn.Variable):  # such as a learned state
                return value
            return nn.Variable.from_numpy_array(np.broadcast_to(np.asarray(value, np.float32), shape))

        return tree_map(start, self.state)

    def __repr__(self) -> str:
        """Shows the settings that differ from their defaults: `LSTMCell(8, forget_bias=1.0)`."""
        words = []
        for field in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, field.name)
            if field.default is MISSING:
                words += [repr(value)]
            elif value is not field.default and repr(value) != repr(field.default):
                words += [f"{field.name}={value!r}"]
        return f"{type(self).__name__}({', '.join(words)})"


@dataclass(frozen=True, repr=False)
class Cell(AbstractCell):
    """A cell made from a function: the shortest way to a new cell.

    Args:
        function (callable): `(x, state) -> (y, new_state)` on trees of Variables.
        state: The tree of StateSpec that it needs; `()` where it needs none.
        name (str, optional): The parameter scope for the weights that the function makes.

    Example:
        >>> counter = Cell(lambda x, total: (total + x, total + x), StateSpec((1,)))
        >>> y, total = counter(nn.Variable.from_numpy_array(np.ones((2, 1))), counter.initial_state(2))
        >>> y.forward(); y.d.ravel()
        array([1., 1.], dtype=float32)
    """

    function: Callable[[Tree, Tree], tuple[Tree, Tree]]
    state: Tree = ()
    name: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"Cell takes a function (x, state) -> (y, new_state); got {self.function!r}.")
        check_name("Cell", self.name)
        for leaf in tree_leaves(self.state):
            if not isinstance(leaf, StateSpec):
                raise TypeError(f"the state of a Cell is StateSpec((units,)), or a tuple of them; got {leaf!r} in it.")

    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        with nn.parameter_scope(self.name or ""):
            made = self.function(x, state)
        if not isinstance(made, tuple) or len(made) != 2:
            raise TypeError(f"{self}: the function must return (y, new_state); it returned {type(made).__name__}.")
        return made


def check_cell(cell: Any) -> None:
    """Raises TypeError unless this is a cell."""
    if not isinstance(cell, AbstractCell):
        raise TypeError(f"a cell is what LSTMCell(8), stack(...) or lift(function) returns; got {cell!r}.")


def batch_size_of(*trees: Tree) -> int | None:
    """Returns the batch size that the first leaf of the trees has; None where there is no leaf."""
    sizes = [leaf.shape[0] for tree in trees for leaf in tree_leaves(tree) if getattr(leaf, "shape", ())]
    return sizes[0] if sizes else None


def check_state(cell: AbstractCell, verb: str, state: Tree, batch: int | None) -> None:
    """Raises ValueError, "cell verb a state ...", unless state has the structure and shapes of the cell's, and this batch."""
    expected = tree_map(lambda spec: (batch, *spec.shape), cell.state)
    if shapes(state) != expected:
        raise ValueError(
            f"{cell} {verb} a state of shapes {expected}; got {shapes(state)}. "
            f"A state is nested tuples of Variables; cell.initial_state(batch_size) makes one."
        )


@building()
def output_shape(cell: AbstractCell, x: Tree) -> Tree:
    """Tells the shape of a cell's output without the batch axis, by one discarded step.

    NNabla's random numbers are as before; an `rng` that a cell holds is drawn from.

    Args:
        cell: Any cell.
        x: A tree of Variables `(B, ...)`, one step's input; only their shapes are used.

    Returns:
        The tree of shapes of y, each without the batch axis.

    Example:
        >>> output_shape(nnshop.LSTMCell(8), nn.Variable((32, 5)))
        (8,)
    """
    check_cell(cell)
    check_variables(x, "output_shape: x")
    with scratch():
        y, _ = cell(tree_map(lambda v: nn.Variable(v.shape), x), cell.initial_state(batch_size_of(x) or 1))
    return tree_map(lambda v: v.shape[1:], y)
