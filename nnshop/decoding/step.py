"""One step of a cell that says something, on a graph that is built once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.function import PythonFunction

from ..building import building
from ..checks import check_count, check_variable
from ..context import in_float32
from ..core import AbstractCell, Tree, check_state, is_whole, tree_leaves, tree_map
from ..execution import run
from ..execution.running import check_cell
from ..execution.step_graph import NotRepeatable, StepGraph
from ..execution.tracing import noting_python_functions, trace
from ..functions import functions_of, reshape
from ..ids import known_ids
from ..kernels import why_not_arrays, why_not_compiled
from ..kernels.array_function import array_of
from ..parameters import no_new_parameters

LONGEST = 1000  # steps, where only an end token is given: a cell that is not trained may never say it


class Decoded(NamedTuple):
    """What was said; with `n_best` of `beam_search` each array has an axis N of hypotheses after B.

    Attributes:
        ids: `(B, L)`, whole numbers; from `lengths[b]` on, the end token. L is as long as the longest needs, with its end
            token, so `lengths[b] < L` says that row b has ended, and was not cut off.
        lengths: `(B,)`, how many tokens stand before the end token. `ids[b, :lengths[b]]` is the text.
        scores: `(B,)`, the sum of the log probabilities of all tokens, that of the end token among them, in float64.
        alignments: `(B, L, S)`, what each step looked at, that of the end token too, zeros after it; None of a cell that does
            not tell.
    """

    ids: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    alignments: np.ndarray | None = None


def tile(x: nn.Variable, width: int) -> nn.Variable:
    """Repeats each row, as beam search needs it of what a cell holds: `(B, ...)` becomes `(B * width, ...)`.

    Example:
        >>> y = tile(nn.Variable.from_numpy_array(np.array([[1, 2], [3, 4]])), 2)
        >>> y.forward(); y.d
        array([[1., 2.],
               [1., 2.],
               [3., 4.],
               [3., 4.]], dtype=float32)
    """
    check_variable("tile: x", x)
    if not x.ndim:
        raise ValueError("tile needs rows (B, ...); got the shape ().")
    check_count("width", width)
    if width == 1:
        return x
    one = reshape(x, (x.shape[0], 1, *x.shape[1:]))
    return reshape(F.broadcast(one, (x.shape[0], width, *x.shape[1:])), (x.shape[0] * width, *x.shape[1:]))


class Step:
    """One step of a cell from ids to logits, on arrays. It keeps a graph for many calls of `greedy`, `sample`, `beam_search`.

    The weights that the cell names must exist. Their values are read at the beginning of each call, and what the cell holds,
    such as the memory of an attention and what is computed of it, is computed there, once. One call at a time may use it.

    Args:
        cell: Any cell whose step takes ids `(B,)` and gives logits `(B, V)`, or the pair (logits, alignments `(B, S)`). It must
            draw no random numbers: decode by a cell without dropout, whose weights have the same names.
        batch_size: B; for a beam search B * width.

    Attributes:
        classes (int): V.
        inputs (int): How many ids the cell takes: the size of its embedding, where that is seen in the graph, else V.
        positions (int or None): S.
        closures: Variables from outside that the step takes: weights, and what is computed once.

    Raises:
        TypeError: The cell is no cell.
        ValueError: The weights are not there; the cell draws random numbers, collects statistics or is not the same at each
            step; its output is none of logits; its embedding has fewer rows than there are classes.

    Example:
        >>> cell = nnshop.stack(nnshop.lift(PF.embed, 10, 4), nnshop.GRUCell(8), nnshop.lift(PF.affine, 10))
        >>> y, state = cell(nn.Variable((3,)), cell.initial_state(3))  # makes the weights, as training does
        >>> step = nnshop.decoding.Step(cell, batch_size=3)
        >>> nnshop.decoding.greedy(step, 0, max_length=5).ids.shape
        (3, 5)
    """

    @building()
    def __init__(self, cell: AbstractCell, batch_size: int) -> None:
        check_cell(cell)
        check_count("batch_size", batch_size)
        self.cell, self.batch_size = cell, int(batch_size)
        graph, self.closures, self._packed = self._graph()
        states, said = len(tree_leaves(cell.state)), len(graph.outputs) - len(tree_leaves(cell.state))
        self._ids, self._before, self._leaves = graph.inputs[0], graph.inputs[1 : 1 + states], graph.inputs[1 + states :]
        self._said, self._after = graph.outputs[:said], graph.outputs[said:]
        with nn.auto_forward(False):
            self._sink = F.sink(*graph.outputs)
        self._states = (_Gathered if self._before and why_not_arrays() else _Taken)(self._before, self._after)
        self._fresh = True
        self.classes: int = self._said[0].shape[1]
        self.positions: int | None = self._said[1].shape[1] if said == 2 else None
        self.inputs = self._embedded() or self.classes
        if self.inputs < self.classes:
            raise ValueError(
                f"{cell}: the embedding has {self.inputs} rows, but the cell says one of {self.classes} ids, which it is fed "
                "with. Give both the same size."
            )

    # ------------------------------------------------------------------------------------------------------------- the graph

    def _graph(self) -> tuple[StepGraph, list[nn.Variable], list[Any]]:
        """Traces the cell; returns the graph, what it takes from outside, and those functions in it that remember a weight."""
        ids = nn.Variable((self.batch_size,))
        state = tree_map(lambda spec: nn.Variable((self.batch_size, *spec.shape)), self.cell.state)
        python: dict[Any, PythonFunction] = {}
        with no_new_parameters(), nn.no_grad(), known_ids(), noting_python_functions(python):
            try:
                graph, *_ = trace(self._say, ids, state)
            except NotRepeatable as error:
                raise ValueError(
                    f"{self.cell} cannot be decoded, as its step cannot be computed again and again: {error}"
                ) from None
            self._check_repeatable(graph)
            constant = 1 + len(tree_leaves(state))
            made: StepGraph = graph if why_not_compiled() else _PackedGraph(graph, python, constant)
        for leaf in made.inputs:
            leaf.need_grad = False  # else NNabla would ask each Python function, at each step, what its gradients depend on
        return made, graph.closures, made.packed if isinstance(made, _PackedGraph) else []

    def _say(self, ids: nn.Variable, state: Tree) -> tuple[Tree, Tree]:
        """A sequence of one step, so that the cell runs in its fastest form."""
        y, state = run(self.cell, reshape(ids, (self.batch_size, 1)), state)
        parts = y if isinstance(y, tuple) else (y,)
        if len(parts) > 2 or any(not isinstance(v, nn.Variable) or v.ndim != 3 for v in parts):
            said = tree_map(lambda v: (v.shape[0], *v.shape[2:]), y)
            raise ValueError(
                "decoding needs a cell that gives logits (B, V), or the pair (logits, alignments (B, S)); "
                f"{self.cell} gives {said}."
            )
        if any(v.shape[0] != self.batch_size for v in parts):
            raise ValueError(
                f"{self.cell} gives outputs of {parts[0].shape[0]} rows for a batch of {self.batch_size}: what it holds is of "
                "another batch. Give batch_size; for a beam search repeat the rows of what it holds by tile(memory, width)."
            )
        return tuple(reshape(v, (v.shape[0], v.shape[2])) for v in parts), state

    def _check_repeatable(self, graph: StepGraph) -> None:
        if graph.drawing:
            raise ValueError(
                f"{self.cell} draws random numbers, as dropout does; what it says would be another network's at each step. "
                "Make the cell without dropout for decoding: the names of its weights stay."
            )
        if graph.written:
            raise ValueError(f"{self.cell} collects statistics, as batch normalization does in training; use batch_stat=False.")

    def _embedded(self) -> int | None:
        """How many rows the embedding of the ids has, where they go right into one."""
        functions: list[Any] = []
        self._sink.visit(functions.append)
        same, sizes = {self._ids}, []
        for function in functions:
            if function.inputs and function.inputs[0] in same:
                if function.info.type_name in ("Reshape", "Identity"):
                    same.update(function.outputs)
                if function.info.type_name == "Embed":
                    sizes.append(function.inputs[1].shape[0])
        return min(sizes, default=None)

    # --------------------------------------------------------------------------------------------------------------- running

    def begin(self, state: Tree, width: int = 1) -> None:
        """Computes what is computed once, and takes the state, each row of it `width` times."""
        given = tree_leaves(state)
        _compute([*self.closures, *given])
        for leaf, closure in zip(self._leaves, self.closures):
            leaf.data = closure.data
        self._states.begin(given, width)
        for function in self._packed:
            function.forget()
        self._fresh = True

    def __call__(self, ids: np.ndarray, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Goes one step on.

        Args:
            ids: `(B,)`, what is said to the cell.
            rows: `(B,)`, the row of the last step that each row goes on from; each from itself by default.

        Returns:
            Logits `(B, V)`, and alignments `(B, S)` or None; both are overwritten by the next step.

        Raises:
            ValueError: Ids that the cell does not take, or rows that are not there.
        """
        self._check_among("ids", ids, self.inputs)
        if rows is not None:
            self._check_among("rows", rows, self.batch_size)
        return self.go_on(ids, rows)

    def _check_among(self, name: str, numbers: Any, size: int) -> None:
        array = np.asarray(numbers)
        whole = np.issubdtype(array.dtype, np.integer) and array.shape == (self.batch_size,)
        if not whole or array.min() < 0 or array.max() >= size:
            raise ValueError(f"{name} must be {self.batch_size} whole numbers from 0 to {size - 1}; got {numbers!r}.")

    def go_on(self, ids: np.ndarray, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Goes one step on, with ids that are known to be right."""
        if not self._fresh:
            self._states.go_on(rows)
        self._fresh = False
        self._ids.data.cast(np.int32)[...] = ids
        self._sink.forward()
        logits, *alignments = map(array_of, self._said)
        return logits, alignments[0] if alignments else None


class _Taken:
    """Brings states to where a step begins from: the given ones, then those of the last step, by rows; in NumPy."""

    def __init__(self, before: list[nn.Variable], after: list[nn.Variable]) -> None:
        self._before, self._after = before, after

    def begin(self, given: list[nn.Variable], width: int) -> None:
        for leaf, v in zip(self._before, given):
            leaf.data.cast(np.float32)[...] = np.repeat(array_of(v), width, axis=0)

    def go_on(self, rows: np.ndarray | None) -> None:
        for leaf, after in zip(self._before, self._after):
            source, target = array_of(after), leaf.data.cast(np.float32)
            if rows is None:
                target[...] = source
            else:
                np.take(source, rows, axis=0, out=target, mode="clip")  # which needs no copy in between, as "raise" does


class _Gathered:
    """The same by functions of NNabla: on a device the states stay there."""

    def __init__(self, before: list[nn.Variable], after: list[nn.Variable]) -> None:
        self._before, self._after = before, after
        self._each, self._rows = np.arange(before[0].shape[0]), nn.Variable(before[0].shape[:1])
        self._sources = [nn.Variable(leaf.shape) for leaf in before]
        with nn.auto_forward(False), in_float32():  # a state may be ids
            self._taken = [F.gather(v, self._rows, axis=0) for v in self._sources]

    def begin(self, given: list[nn.Variable], width: int) -> None:
        rows = nn.Variable.from_numpy_array(self._each // width)
        with nn.auto_forward(False), in_float32():
            repeated = [F.gather(v.get_unlinked_variable(need_grad=False), rows, axis=0) for v in given]
        nn.forward_all(repeated)
        for leaf, v in zip(self._before, repeated):
            leaf.data = v.data

    def go_on(self, rows: np.ndarray | None) -> None:
        self._rows.data.cast(np.int32)[...] = self._each if rows is None else rows
        for source, after in zip(self._sources, self._after):
            source.data = after.data
        nn.forward_all(self._taken)
        for leaf, v in zip(self._before, self._taken):
            leaf.data = v.data


def _compute(variables: Iterable[nn.Variable]) -> None:
    """Computes what has a graph; in auto-forward mode that is done, and the arrays between are freed."""
    eager = nn.get_auto_forward()
    graphs = [v for v in variables if v.parent is not None and not (eager and v.data.modification_count)]
    if graphs:
        nn.forward_all(graphs)


# From so many multiplications on a kernel in Python takes less time than NNabla's function.
_WORTH_A_KERNEL = 100_000


class _PackedGraph(StepGraph):
    """A step whose larger products with what is the same at each step are made for that.

    Args:
        graph: The step.
        python: The Python objects in it.
        constant: From which input on they are the same at each step.
    """

    def __init__(self, graph: StepGraph, python: dict[Any, PythonFunction], constant: int) -> None:
        self.packed: list[Any] = []
        self.constant = constant
        with nn.auto_forward(False):
            super().__init__(graph.inputs, graph.outputs, functions_of(graph.outputs), python, hoist=False)

    def _apply(
        self, function: Any, computed: PythonFunction | None, given: list[nn.Variable], old: list[nn.Variable]
    ) -> list[nn.Variable]:
        from ..kernels.dense import Affine  # here, since llvmlite takes time to import
        from ..kernels.packed import PackedAffine

        is_affine = isinstance(computed, Affine) or function.info.type_name == "Affine"
        if not is_affine or not self._is_packable(given[0], given[1], old[0]):
            return super()._apply(function, computed, given, old)
        self.packed.append(PackedAffine())
        return [self.packed[-1](*given)]

    def _is_packable(self, x: nn.Variable, weight: nn.Variable, y: nn.Variable) -> bool:
        if not x.ndim == weight.ndim == y.ndim == 2 or weight not in self.inputs[self.constant :]:
            return False
        return x.shape[0] * weight.shape[0] * weight.shape[1] >= _WORTH_A_KERNEL


# ------------------------------------------------------------------------------------------------------------- arguments


class Ready(NamedTuple):
    """What decoding starts from: the step, ids `(B,)`, the state, and how often each of its rows is taken."""

    step: Step
    ids: np.ndarray
    state: Tree
    width: int

    def begin(self) -> None:
        self.step.begin(self.state, self.width)


def prepare(
    cell: AbstractCell | Step, start: Any, state: Tree, end: int | None, batch_size: int | None, width: int = 1
) -> Ready:
    """Checks what all functions take, and makes the step."""
    ids = np.asarray(start)
    if ids.ndim > 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"start must be an id, or ids (B,), whole numbers; got {start!r}.")
    state = tree_map(lambda v: nn.Variable.from_numpy_array(v) if isinstance(v, np.ndarray) else v, state)
    batch = _batch_size(cell, ids, state, batch_size, width)
    step = cell if isinstance(cell, Step) else Step(cell, batch * width)
    if ids.min() < 0 or ids.max() >= step.inputs:
        raise ValueError(f"start must be among the {step.inputs} ids that the cell takes, from 0; got {start!r}.")
    if end is not None and not 0 <= end < step.classes:
        raise ValueError(f"end must be among the {step.classes} ids that the cell says, from 0; got {end}.")
    ids = np.broadcast_to(ids, (batch,)).astype(np.int64)
    if state is None:
        with no_new_parameters():
            return Ready(step, ids, step.cell.initial_state(batch * width), 1)
    check_state(step.cell, "needs", state, batch)
    return Ready(step, ids, state, width)


def _batch_size(cell: AbstractCell | Step, ids: np.ndarray, state: Tree, batch_size: int | None, width: int) -> int:
    """The number of rows that all that is given agrees in; 1 where nothing tells."""
    found: dict[str, int] = {}
    if isinstance(cell, Step):
        if cell.batch_size % width:
            raise ValueError(
                f"a beam search of width {width} needs a Step for B * {width} rows; this one is for {cell.batch_size}."
            )
        found[f"the Step for {cell.batch_size} rows"] = cell.batch_size // width
    if batch_size is not None:
        check_count("batch_size", batch_size)
        found["batch_size"] = int(batch_size)
    if ids.ndim:
        found["start"] = len(ids)
    rows = [leaf.shape[0] for leaf in tree_leaves(state) if isinstance(leaf, nn.Variable) and leaf.ndim]
    if rows:
        found["state"] = rows[0]
    if len(set(found.values())) > 1:
        told = ", ".join(f"{rows} by {name}" for name, rows in found.items())
        raise ValueError(
            f"decoding needs one batch size B; it is {told}. The state has B rows too: beam_search itself repeats it."
        )
    return next(iter(found.values()), 1)


def check_limit(end: Any, max_length: int | None) -> int:
    """Returns how many steps are done at most."""
    if end is None and max_length is None:
        raise ValueError("decoding needs an end token or max_length, or it would never end; give end=... or max_length=....")
    if end is not None and not is_whole(end):
        raise ValueError(f"end must be an id, a whole number; got {end!r}.")
    if max_length is None:
        return LONGEST
    check_count("max_length", max_length)
    return int(max_length)
