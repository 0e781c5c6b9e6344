"""Functions from cell to cell: what they return is a cell again, so they nest freely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import nnabla as nn

from .core import AbstractCell, Tree, shapes, tree_map


class Wrapper(AbstractCell):
    """A cell around one cell. It opens no parameter scope, so the weights keep their names, and with them their values."""

    cell: AbstractCell

    @property
    def state(self) -> Tree:
        return self.cell.state

    @property
    def name(self) -> str | None:
        return self.cell.name


@dataclass(frozen=True, repr=False)
class Lifted(AbstractCell):
    """A function as a cell without state; see `lift`."""

    function: Callable
    arguments: tuple = ()
    options: tuple[tuple[str, Any], ...] = ()
    name: str | None = None

    @property
    def state(self) -> Tree:
        return ()

    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        with nn.parameter_scope(self.name or ""):
            return self.function(x, *self.arguments, **dict(self.options)), state


def lift(function: Callable, *arguments: Any, name: str | None = None, **options: Any) -> AbstractCell:
    """Makes a cell without state from any function of a Variable, such as a layer.

    Args:
        function: Called as `function(x, *arguments, **options)` at each step.
        name: A parameter scope for its weights.

    Example:
        >>> cell = stack(nnshop.LSTMCell(8), lift(PF.affine, 5))
        >>> nnshop.output_shape(cell, nn.Variable((32, 3)))
        (5,)
    """
    return Lifted(function, arguments, tuple(options.items()), name)


@dataclass(frozen=True, repr=False)
class Stack(AbstractCell):
    """Cells one after another; see `stack`."""

    cells: tuple[AbstractCell, ...]
    name: str | None = None

    @property
    def state(self) -> Tree:
        return tuple(cell.state for cell in self.cells)

    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        after = []
        with nn.parameter_scope(self.name or ""):
            for position, (cell, before) in enumerate(zip(self.cells, state)):
                with nn.parameter_scope(str(position) if cell.name is None else ""):
                    x, new = cell(x, before)
                after.append(new)
        return x, tuple(after)


def stack(*cells: AbstractCell | Callable, name: str | None = None) -> AbstractCell:
    """Puts cells one after another: each takes the output of the one before, and keeps a state of its own.

    Weights are below one parameter scope for each child: its `name`, else its position. Children of the same name share
    weights. A bare function, such as `F.tanh`, is lifted.

    Args:
        cells: At least one cell or function.
        name: A parameter scope around all of them.

    Returns:
        A cell whose state is the tuple of the cells' states.

    Raises:
        ValueError: There is no cell.
        TypeError: A part is neither a cell nor a function.

    Example:
        >>> ys, state = nnshop.run(stack(nnshop.GRUCell(8), nnshop.GRUCell(4)), nn.Variable((2, 7, 3)))
        >>> ys.shape, list(nn.get_parameters())[0]
        ((2, 7, 4), '0/x2h/W')
    """
    if not cells:
        raise ValueError("stack needs at least one cell.")
    for cell in cells:
        if not callable(cell):
            raise TypeError(f"stack takes cells and functions of a Variable; got {cell!r}.")
    return Stack(tuple(cell if isinstance(cell, AbstractCell) else lift(cell) for cell in cells), name)


@dataclass(frozen=True, repr=False)
class Residual(Wrapper):
    """A cell plus its input; see `residual`."""

    cell: AbstractCell

    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        y, state = self.cell(x, state)
        if shapes(y) != shapes(x):
            raise ValueError(f"residual needs an output of the input's shape {shapes(x)}; {self.cell} gives {shapes(y)}.")
        return tree_map(lambda a, b: a + b, x, y), state


def residual(cell: AbstractCell) -> AbstractCell:
    """Adds the input to the output of a cell: `y = x + cell(x)`.

    Raises:
        ValueError: When it runs, if input and output differ in shape.

    References:
        Y. Wu et al., Google's neural machine translation system, 2016, section 3.1.

    Example:
        >>> residual(nnshop.LSTMCell(8))
        Residual(LSTMCell(8))
    """
    return Residual(cell)
