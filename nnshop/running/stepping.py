"""A cell one step at a time, on arrays: the weights are packed once, and the states stay between steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import nnabla as nn
import numpy as np

from ..building import building
from ..checks import check_count
from ..compiling.nodes import Unsupported
from ..core import AbstractCell, Tree, batch_size_of, check_cell, check_state, shapes, tree_leaves, tree_like, tree_map
from ..functions import reshape
from ..graphs import functions_of
from ..ids import known_ids
from ..kernels import why_not_compiled
from ..kernels.array_function import array_of
from ..parameters import no_new_parameters
from . import explaining
from .sequences import run
from .step_graph import NotRepeatable, StepGraph
from .stepped_functions import Functions
from .tracing import trace
from .unrolled import check_state_kept


class Stepper:
    """Feeds a cell one step and gets one step, on NumPy arrays: for serving, streams and games.

    The step is compiled where all its functions are translated, else it is a graph of NNabla's functions. Weights are copied,
    and what a cell holds, such as the memory of an attention, is computed, when a sequence begins: at the first step, by
    `begin`, by `reset` of all rows, and by `refresh`. A change of weights in between, as by a solver's update, shows only then.
    One thread at a time may use a stepper: give each thread its own.

    Args:
        cell: Any cell, on weights that exist.
        x: An example of its input: a tree of arrays or Variables `(B, ...)`, of which only the shapes are used; None for a cell
            without input.
        batch_size: B; by default that of x.

    Attributes:
        cell, batch_size: As given.
        compiled (bool): Whether the step is machine code.
        graph (StepGraph): The traced step.
        output: The tree of Variables that it gives.
        ids (list): Of each input how many ids it takes, where it goes right into an embedding, else None.

    Raises:
        TypeError: The cell is no cell.
        ValueError: No batch size, or two; the weights are not there; the cell collects statistics, is not the same at each
            step, or gives outputs of another batch size.

    Example:
        >>> cell = nnshop.GRUCell(4)
        >>> y, state = cell(nn.Variable((2, 3)), cell.initial_state(2))  # makes the weights, as training does
        >>> stepper = nnshop.Stepper(cell, np.zeros((2, 3)))
        >>> first, second = stepper.step(np.ones((2, 3))), stepper.step(np.ones((2, 3)))
        >>> bool(np.array_equal(second, stepper.state))  # a GRU's output is its state
        True
        >>> stepper.reset(rows=[1])  # another user takes the second row
        >>> stepper.state[1]
        array([0., 0., 0., 0.], dtype=float32)
    """

    @building()
    def __init__(self, cell: AbstractCell, x: Tree = None, batch_size: int | None = None) -> None:
        check_cell(cell)
        self.cell = cell
        self._xs = tree_map(lambda v: nn.Variable(v.shape if isinstance(v, nn.Variable) else np.shape(v)), x)
        if any(not v.ndim for v in tree_leaves(self._xs)):
            raise ValueError(f"Stepper needs an example of the input with a batch axis, (B, ...); got {shapes(self._xs)}.")
        batch_size = batch_size_of(self._xs) if batch_size is None else batch_size
        if batch_size is None:
            raise ValueError("Stepper needs a batch size: give an example of the input (B, ...), or batch_size=B.")
        check_count("batch_size", batch_size)
        if any(v.shape[0] != batch_size for v in tree_leaves(self._xs)):
            raise ValueError(f"Stepper needs one batch size; it is {batch_size}, and the input is {shapes(self._xs)}.")
        self.batch_size, self._begun = int(batch_size), False
        self._states = tree_map(lambda spec: nn.Variable((self.batch_size, *spec.shape)), self.cell.state)
        self._x_shapes = [v.shape for v in tree_leaves(self._xs)]
        self._engine: Any = self._compile()
        self.compiled = self._engine is not None
        if not self.compiled:
            self._trace(self._sequence_of_one)
            self._engine = Functions(self.graph, len(self._x_shapes))
        self.ids = [_embedded(self.graph, leaf) for leaf in self.graph.inputs[: len(self._x_shapes)]]

    # The engine

    def _compile(self) -> Any:
        """The programs of the step; None where it cannot be compiled."""
        explaining.begin(self.cell, 1)
        reason = why_not_compiled()
        if not reason:
            from .stepped_programs import Programs  # here: LLVM takes time to import, and may not be there

            self._trace(self.cell)
            try:
                made = Programs(self.graph, len(self._x_shapes), len(tree_leaves(self.output)))
                explaining.take("compiled")
                return made
            except Unsupported as error:
                reason = str(error)
        explaining.refuse("compiled", reason)
        explaining.take("unrolled")
        return None

    def _sequence_of_one(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        """Runs the cell over a sequence of one step, so that it takes the fastest form that NNabla has."""
        xs = tree_map(lambda v: reshape(v, (v.shape[0], 1, *v.shape[1:])), x)
        y, state = run(self.cell, xs, state, length=1)
        return tree_map(lambda v: reshape(v, (v.shape[0], *v.shape[2:])), y), state

    def _trace(self, step: Any) -> None:
        with no_new_parameters(), nn.no_grad(), known_ids():
            try:
                self.graph, self.output, after = trace(step, self._xs, self._states)
            except NotRepeatable as error:
                raise ValueError(
                    f"{self.cell} cannot run step by step, as its step cannot be computed again and again: {error}"
                ) from None
        check_state_kept(shapes(self._states), shapes(after))
        if self.graph.written:
            raise ValueError(f"{self.cell} collects statistics, as batch normalization does in training; use batch_stat=False.")
        for v in tree_leaves(self.output):
            if v.shape[:1] != (self.batch_size,):
                raise ValueError(
                    f"{self.cell} gives outputs of {(*v.shape, 1)[0]} rows for a batch of {self.batch_size}: what it holds is "
                    "of another batch. Give batch_size; for a beam search repeat the rows of what it holds by "
                    "tile(memory, width)."
                )

    # Running

    def step(self, x: Tree = None, *, copy: bool = True) -> Tree:
        """Goes one step on.

        Args:
            x: A tree of arrays `(B, ...)`, as the example.
            copy: Else the next step overwrites what is returned.

        Returns:
            A tree of arrays, the output of the cell.

        Raises:
            ValueError: x has other shapes than the example, or ids that an embedding does not have.
        """
        if not self._begun:
            self.reset()
        given = [np.asarray(leaf) for leaf in tree_leaves(x)]
        if [v.shape for v in given] != self._x_shapes:
            raise ValueError(
                f"{self.cell} is stepped with inputs of the shapes {shapes(self._xs)}; "
                f"got {tree_map(np.shape, x)}. For another batch size call reset(batch_size=...)."
            )
        for ids, size in zip(given, self.ids):
            if size is not None:
                _check_ids(ids, size)
        ys = self._engine.step(given)
        return tree_like(self.output, [y.copy() for y in ys] if copy else ys)

    def begin(self, state: Tree, width: int = 1) -> None:
        """Reads the weights, and begins from this state.

        Args:
            state: A tree of Variables as `cell.state`, which may be computed, such as the final state of an encoder, or of
                arrays.
            width: How often each of its rows is taken; it has B / width rows.
        """
        state = tree_map(_variable, state)
        check_state(self.cell, "begins with", state, self.batch_size // width)
        self._read([*self.graph.closures, *tree_leaves(state)])
        self._engine.start(tree_leaves(state), width)
        self._begun = True

    @building()
    def reset(self, batch_size: int | None = None, *, rows: Any = None) -> None:
        """Begins anew, from the initial state of the cell.

        Args:
            batch_size: Another B; the cell is traced again, in the current parameter scope and context.
            rows: Only these rows, by number or as a mask `(B,)`, for others go on; the weights are not read again.

        Raises:
            ValueError: Both are given; rows that are not there.
        """
        if batch_size is not None and rows is not None:
            raise ValueError("reset takes a batch_size, for all rows, or rows; got both.")
        rows = None if rows is None else self._check_rows(rows)
        if batch_size is not None and batch_size != self.batch_size:
            check_count("batch_size", batch_size)
            other = tree_map(lambda v: nn.Variable((batch_size, *v.shape[1:])), self._xs)
            vars(self).update(vars(Stepper(self.cell, other, batch_size)))  # nothing changes after an error
        with no_new_parameters():
            initial = self.cell.initial_state(self.batch_size)
        if rows is None or not self._begun:
            self.begin(initial)
        else:
            _compute(tree_leaves(initial))
            self.state = tree_map(lambda old, v: _replaced(old, rows, array_of(v)), self.state, initial)

    def refresh(self) -> None:
        """Reads the weights, and computes what the cell holds, again; the states stay."""
        if self._begun:  # else the first step does
            self._read(self.graph.closures)

    def _read(self, variables: Sequence[nn.Variable]) -> None:
        for function, given, made in self.graph.outside:
            function.setup(given, made)  # one in place has the array that its input had, and not the one that it has
        _compute(variables)
        self._engine.refresh()

    @property
    def state(self) -> Tree:
        """The state before the next step, a tree of arrays `(B, ...)`: copies, to be kept and set again."""
        if not self._begun:
            self.reset()
        return tree_like(self._states, [array.copy() for array in self._engine.states()])

    @state.setter
    def state(self, state: Tree) -> None:
        if not self._begun:
            self.reset()
        state = tree_map(_variable, state)
        check_state(self.cell, "goes on from", state, self.batch_size)
        _compute(tree_leaves(state))
        self._engine.start(tree_leaves(state), 1)

    def gather(self, rows: Any) -> None:
        """Lets each row go on from another one: row b from `rows[b]`, as a beam search orders its hypotheses.

        Raises:
            ValueError: Not B rows, or some that are not there.
        """
        rows = self._check_rows(rows)
        if len(rows) != self.batch_size:
            raise ValueError(f"gather needs a row for each of the {self.batch_size} rows; got {len(rows)}.")
        if not self._begun:
            self.reset()
        self._engine.gather(rows)

    def _check_rows(self, rows: Any) -> np.ndarray:
        found = np.asarray(rows)
        if found.dtype == bool and found.shape == (self.batch_size,):
            return np.flatnonzero(found)
        whole = found.ndim == 1 and (not found.size or np.issubdtype(found.dtype, np.integer))
        if not whole or (found.size and not 0 <= found.min() <= found.max() < self.batch_size):
            raise ValueError(f"rows are whole numbers from 0 to {self.batch_size - 1}, or a mask of so many; got {rows!r}.")
        return found.astype(np.int64, copy=False)


def _embedded(graph: StepGraph, leaf: nn.Variable) -> int | None:
    """How many rows the embedding of these ids has, where they go right into one."""
    same, sizes = {leaf}, []
    for function in functions_of(graph.outputs):
        if function.inputs and function.inputs[0] in same:
            if function.info.type_name in ("Reshape", "Identity"):
                same.update(function.outputs)
            if function.info.type_name == "Embed":
                sizes.append(function.inputs[1].shape[0])
    return min(sizes, default=None)


def _check_ids(ids: np.ndarray, size: int) -> None:
    with np.errstate(invalid="ignore"):
        wrong = (ids.astype(np.int64) != ids) | (ids < 0) | (ids >= size)
    if wrong.any():
        raise ValueError(f"ids must be whole numbers from 0 to {size - 1}; got {ids[wrong][:5].tolist()}.")


def _variable(leaf: Any) -> Any:
    return nn.Variable.from_numpy_array(leaf) if isinstance(leaf, np.ndarray) else leaf


def _replaced(old: np.ndarray, rows: np.ndarray, new: np.ndarray) -> np.ndarray:
    old[rows] = new[rows]
    return old


def _compute(variables: Iterable[nn.Variable]) -> None:
    """Computes what has a graph; in auto-forward mode that is done, and the arrays between are freed."""
    eager = nn.get_auto_forward()
    graphs = [v for v in variables if v.parent is not None and not (eager and v.data.modification_count)]
    if graphs:
        nn.forward_all(graphs)
