"""Functions from cell to cell: what they return is a cell again, so they nest freely."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF

from .checks import check_name
from .core import AbstractCell, StateSpec, Tree, check_cell, shapes, tree_leaves, tree_map
from .functions import activation as find_activation
from .functions import faster, reshape, stop_gradient, where, without_padding
from .owners import check_owners
from .parametric_functions import checking, embed
from .running.recurrence import Recurrence


class Passing(AbstractCell):
    """A cell made of others that does with whole sequences what it does with one step: it keeps their fast forms."""

    @abstractmethod
    def pass_on(self, run: Callable, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        """Computes the output and the state; `run(cell, x, state)` runs a part."""

    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        return self.pass_on(lambda cell, x, before: cell(x, before), x, state)

    def over(self, run: Recurrence) -> tuple[Tree, Tree] | None:
        """Part by part, each in its fastest way."""
        return self.pass_on(run.of, run.xs, run.state)


class Wrapper(AbstractCell):
    """A cell around one cell. It opens no parameter scope, so the weights keep their names, and with them their values."""

    cell: AbstractCell

    @property
    def state(self) -> Tree:
        return self.cell.state

    @property
    def name(self) -> str | None:
        return self.cell.name


class Delegate(Passing, Wrapper):
    """A wrapper that leaves the step to its cell, and says something else, such as how the state begins."""

    def pass_on(self, run: Callable, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        return run(self.cell, x, state)

    def over(self, run: Recurrence) -> tuple[Tree, Tree] | None:
        return self.pass_on(run.through, run.xs, run.state)


@dataclass(frozen=True, repr=False)
class Lifted(AbstractCell):
    """A function as a cell without state; see `lift`."""

    function: Callable
    arguments: tuple = ()
    options: tuple[tuple[str, Any], ...] = ()
    name: str | None = None
    rowwise: bool = False

    @property
    def state(self) -> Tree:
        return ()

    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        with nn.parameter_scope(self.name or ""):
            return checking(self.function)(x, *self.arguments, **dict(self.options)), state

    def over(self, run: Recurrence) -> tuple[Tree, Tree] | None:
        """One call for all steps, `(B * T, ...)`, where the function treats rows independently."""
        if not (self.rowwise or self.function in ROWWISE):
            return None
        steps = shapes(tree_leaves(run.xs)[0])[:2]
        rows = tree_map(lambda v: reshape(without_padding(run.mask, v), (steps[0] * steps[1], *v.shape[2:])), run.xs)
        y, _ = self(rows, run.state)
        return tree_map(lambda v: reshape(faster(v), (*steps, *v.shape[1:])), y), run.state


# Functions whose row b depends on row b of x only.
ROWWISE = (
    *(PF.affine, PF.embed, embed, F.dropout, F.tanh, F.sigmoid, F.relu, F.elu, F.selu, F.softplus, F.softsign, F.swish, F.gelu),
    *(F.leaky_relu, F.hard_sigmoid, F.hard_tanh, F.identity, F.exp, F.abs),
)


def lift(function: Callable, *arguments: Any, name: str | None = None, rowwise: bool = False, **options: Any) -> AbstractCell:
    """Makes a cell without state from any function of a Variable, such as a layer.

    Args:
        function: Called as `function(x, *arguments, **options)` at each step.
        name: A parameter scope for its weights.
        rowwise: The function treats the rows of `(B, ...)` independently, so one call may serve all steps at once, which is
            faster. It is known of NNabla's common layers and activations.

    Example:
        >>> cell = stack(nnshop.LSTMCell(8), lift(PF.affine, 5))
        >>> nnshop.output_shape(cell, nn.Variable((32, 3)))
        (5,)
    """
    check_name("lift", name)
    if not callable(function):
        raise TypeError(f"lift takes a function of a Variable; got {function!r}.")
    return Lifted(function, arguments, tuple(options.items()), name, rowwise)


@dataclass(frozen=True, repr=False)
class Stack(Passing):
    """Cells one after another; see `stack`."""

    cells: tuple[AbstractCell, ...]
    name: str | None = None

    def __post_init__(self) -> None:
        _check_names("stack", self.cells)

    @property
    def state(self) -> Tree:
        return tuple(cell.state for cell in self.cells)

    def pass_on(self, run: Callable, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        after = []
        with nn.parameter_scope(self.name or ""):
            for scope, cell, before in zip(child_scopes(self.cells), self.cells, state):
                with nn.parameter_scope(scope):
                    x, new = run(cell, x, before)
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
        ValueError: There is no cell, or two of them are cells of one layer that owns its weights.
        TypeError: A part is neither a cell nor a function.

    Example:
        >>> ys, state = nnshop.run(stack(nnshop.GRUCell(8), nnshop.GRUCell(4)), nn.Variable((2, 7, 3)))
        >>> ys.shape, list(nn.get_parameters())[0]
        ((2, 7, 4), '0/x2h/W')
    """
    return Stack(_as_cells("stack", cells, name), name)


def _as_cells(who: str, parts: tuple, name: str | None) -> tuple[AbstractCell, ...]:
    if not parts:
        raise ValueError(f"{who} needs at least one cell.")
    for part in parts:
        if not callable(part):
            raise TypeError(f"{who} takes cells and functions of a Variable; got {part!r}.")
    check_name(who, name)
    cells = tuple(part if isinstance(part, AbstractCell) else lift(part) for part in parts)
    check_owners(who, cells)
    return cells


def _check_names(who: str, cells: tuple[AbstractCell, ...]) -> None:
    unnamed = {str(position) for position, cell in enumerate(cells) if cell.name is None}
    for cell in cells:
        if cell.name == "" or cell.name in unnamed:
            raise ValueError(
                f"{who}: the name {cell.name!r} of {cell} is empty, or the scope of an unnamed part at that position; they "
                "would share weights. Choose another name."
            )


def child_scopes(cells: tuple[AbstractCell, ...]) -> list[str]:
    """A container's scope for each child: none where it opens one by its own name, else its position."""
    return [str(position) if cell.name is None else "" for position, cell in enumerate(cells)]


@dataclass(frozen=True, repr=False)
class Sync(AbstractCell):
    """Cells one after another on one state; see `sync`."""

    cells: tuple[AbstractCell, ...]
    name: str | None = None

    def __post_init__(self) -> None:
        _check_names("sync", self.cells)
        for cell in self.cells:
            if cell.state != () and shapes(cell.state) != shapes(self.state):
                raise ValueError(
                    f"sync needs cells of equal states; {cell} has {shapes(cell.state)}, the first one {shapes(self.state)}. "
                    "Use stack, which gives each cell a state of its own."
                )

    @property
    def state(self) -> Tree:
        return next((cell.state for cell in self.cells if cell.state != ()), ())

    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        with nn.parameter_scope(self.name or ""):
            for scope, cell in zip(child_scopes(self.cells), self.cells):
                with nn.parameter_scope(scope):
                    x, after = cell(x, state if cell.state != () else ())
                state = after if cell.state != () else state
        return x, state


def sync(*cells: AbstractCell | Callable, name: str | None = None) -> AbstractCell:
    """Puts cells one after another on one state: each takes the state that the one before it leaves, within the same step.

    RecurrentShop's `state_sync`. Scopes are those of `stack`; parts without state, such as functions, do not touch it.

    Args:
        cells: At least one cell or function.
        name: A parameter scope around all of them.

    Returns:
        A cell whose state is that of its first cell that has one.

    Raises:
        ValueError: There is no cell, the states differ in structure or shapes, or two are cells of one layer that owns its
            weights.
        TypeError: A part is neither a cell nor a function.

    Example:
        >>> ys, (h, c) = nnshop.run(sync(nnshop.LSTMCell(8), nnshop.LSTMCell(8)), nn.Variable((2, 7, 3)))
        >>> ys.shape, h.shape
        ((2, 7, 8), (2, 8))
    """
    return Sync(_as_cells("sync", cells, name), name)


MERGES: dict[str, Callable[[Tree, Tree], Tree]] = {
    "add": lambda x, last: x + last,
    "mul": lambda x, last: x * last,
    "avg": lambda x, last: (x + last) * 0.5,
    "max": lambda x, last: F.maximum2(x, last),
    "readout_only": lambda x, last: last,
}


@dataclass(frozen=True, repr=False)
class Readout(Wrapper):
    """A cell whose last output comes back with its input; see `readout`."""

    cell: AbstractCell
    shape: tuple[int, ...]
    merge: str | Callable[[Tree, Tree], Tree] = "add"
    activation: str | Callable = "linear"
    feed: Callable[[Tree], nn.Variable] | None = None

    @property
    def state(self) -> Tree:
        return self.cell.state, StateSpec(self.shape)

    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        inner, last = state
        if isinstance(self.merge, str):
            self._check_width(x)
        merge = self.merge if callable(self.merge) else MERGES[self.merge]
        y, inner = self.cell(merge(x, find_activation(self.activation)(last)), inner)
        return y, (inner, y if self.feed is None else self.feed(y))

    def _check_width(self, x: Tree) -> None:
        if self.merge != "readout_only" and self.shape != (1,) and shapes(x)[1:] != self.shape:  # a width of one is broadcast
            raise ValueError(
                f"readout {self.merge!r} needs the output width to equal the input width; the output of a step has the shape "
                f"{self.shape}, the input {shapes(x)[1:]}. Add a PF.affine of the input's width, or merge by a function."
            )


def readout(
    cell: AbstractCell,
    shape: tuple[int, ...],
    merge: str | Callable[[Tree, Tree], Tree] = "add",
    activation: str | Callable = "linear",
    feed: Callable[[Tree], nn.Variable] | None = None,
) -> AbstractCell:
    """Feeds a cell's last output back into its input: the last output is one more state.

    .. code-block:: text

        y[t] = cell(merge(x[t], activation(feed(y[t - 1])))), feed(y[-1]) = the initial readout, zeros by default

    RecurrentShop's `readout`; there the state of the readout is not returned.

    Args:
        cell: Any cell.
        shape: That of what is fed back, without the batch axis: of the output, `output_shape(cell, x)` tells it.
        merge: "add", "mul", "avg", "max", "readout_only" (x counts for nothing), or a function of `(x, what is fed back)`.
        activation: Of what is fed back before it is merged, a name or a function.
        feed: What is fed back of the output, such as the most likely id `(B,)`, of shape `()`, of logits. It is what the state
            holds and what `teacher_forced` replaces. By default it is the output itself.

    Returns:
        A cell with the state `(the cell's state, what is fed back)`.

    Raises:
        ValueError: The merge, the activation or feed is not known; when it runs, if what is fed back has another shape.

    Example:
        >>> cell = readout(nnshop.LSTMCell(3), shape=(3,))
        >>> ys, (state, last) = nnshop.run(cell, nn.Variable((2, 7, 3)))
        >>> ys.shape, last.shape
        ((2, 7, 3), (2, 3))
    """
    if not callable(merge) and merge not in MERGES:
        raise ValueError(f"merge must be a function or one of {', '.join(MERGES)}; got {merge!r}.")
    if feed is not None and not callable(feed):
        raise ValueError(f"feed must be a function of a step's output; got {feed!r}.")
    find_activation(activation)
    check_cell(cell)
    return Readout(cell, shape, merge, activation, feed)


@dataclass(frozen=True, repr=False)
class TeacherForced(Wrapper):
    """A readout that is told what it should have said; see `teacher_forced`."""

    cell: Readout
    sampling_probability: nn.Variable | None = None

    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        x, truth = self._pair(x)
        y, (inner, own) = self.cell(x, state)
        if self.sampling_probability is not None:
            chosen = F.less(
                F.rand(shape=truth.shape[:1]), F.broadcast(stop_gradient(self.sampling_probability), truth.shape[:1])
            )
            truth = where(chosen, own, truth)
        return y, (inner, truth)

    def _pair(self, x: Tree) -> tuple[Tree, nn.Variable]:
        truth = x[1] if isinstance(x, tuple) and len(x) == 2 else None
        if not isinstance(truth, nn.Variable) or truth.shape[1:] != self.cell.shape:
            raise ValueError(
                f"teacher_forced takes pairs (x, truth), with the truth of the shape {self.cell.shape} for each row and step, "
                f"as what is fed back; at a step it got {shapes(x)}."
            )
        return x


def teacher_forced(cell: AbstractCell, sampling_probability: nn.Variable | None = None) -> AbstractCell:
    """Feeds the truth back in place of a cell's own last output, as in training a decoder.

    .. code-block:: text

        y[t] = cell(merge(x[t], activation(truth[t - 1]))), truth[-1] = the initial readout, zeros by default

    It takes pairs `(x, truth)`, both of step t: the truth goes into the state that the step leaves, where `readout` puts the
    output. So step t does not see its own truth; a masked step leaves the last truth that counted; a run in reverse feeds the
    truth of step t + 1; and a state that is carried on holds the truth of the batch before. The same `readout` cell without
    this wrapper runs free, on the same weights.

    Args:
        cell: What `readout` returns.
        sampling_probability: A Variable `(1,)` that training may change: so often, for each sample and step, the own output
            is fed back after all (scheduled sampling, S. Bengio et al. 2015). No gradient goes through an output that the
            truth replaced; through one that was fed back it does.

    Raises:
        TypeError: The cell is no readout.
        ValueError: sampling_probability has another shape than `(1,)`; when it runs, if the input is no such pair.

    Example:
        >>> cell = readout(nnshop.GRUCell(3), shape=(3,))
        >>> x, targets = nn.Variable((2, 7, 3)), nn.Variable((2, 7, 3))
        >>> ys, state = nnshop.run(teacher_forced(cell), (x, targets))
        >>> free, state = nnshop.run(cell, x)
        >>> ys.shape, free.shape
        ((2, 7, 3), (2, 7, 3))
    """
    if not isinstance(cell, Readout):
        raise TypeError(f"teacher_forced needs what readout(cell, shape) returns; got {cell!r}, which feeds nothing back.")
    if sampling_probability is not None and not isinstance(sampling_probability, nn.Variable):
        raise TypeError(f"sampling_probability must be a Variable of shape (1,); got {sampling_probability!r}.")
    if sampling_probability is not None and sampling_probability.shape != (1,):
        raise ValueError(f"sampling_probability must be a Variable of shape (1,); got {sampling_probability.shape}.")
    return TeacherForced(cell, sampling_probability)


@dataclass(frozen=True, repr=False)
class Residual(Wrapper):
    """A cell plus its input; see `residual`."""

    cell: AbstractCell

    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        y, state = self.cell(x, state)
        return self._add(x, y), state

    def over(self, run: Recurrence) -> tuple[Tree, Tree] | None:
        ys, state = run.of(self.cell, run.xs, run.state)
        return self._add(tree_map(partial(without_padding, run.mask), run.xs), ys), state

    def _add(self, x: Tree, y: Tree) -> Tree:
        if shapes(y) != shapes(x):
            raise ValueError(f"residual needs an output of the input's shape {shapes(x)}; {self.cell} gives {shapes(y)}.")
        return tree_map(lambda a, b: a + b, x, y)


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
    check_cell(cell)
    return Residual(cell)
