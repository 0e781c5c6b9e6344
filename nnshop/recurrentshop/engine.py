"""RecurrentSequential and RecurrentModel: RecurrentShop's words for what the core's wrappers do. No loop is in here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np

from ..building import building
from ..checks import check_variable
from ..combinators import MERGES, Delegate, Readout, Stack, Sync, Wrapper, lift, readout, teacher_forced
from ..core import AbstractCell, Cell, StateSpec, Tree, check_variables, output_shape, shapes, tree_leaves, tree_like, tree_map
from ..functions import activation as find_activation
from ..layers import last_output
from ..parameters import current_path, join
from ..running import run
from ..training import CarriedState
from ..values import expect, together
from .config import TABLE, Described, decode, encode
from .graph import WiredStep, without_dropout
from .initializers import find_initializer
from .names import new_name

READOUTS = {True: "add", "multiply": "mul", "average": "avg", "maximum": "max"}
READOUTS.update({word: word for word in MERGES})


@dataclass(frozen=True, repr=False)
class Owned(Delegate, Described):
    """A cell whose weights belong to a layer: they are found in that layer's scope, wherever the cell is used."""

    cell: AbstractCell
    layer: Any

    @property
    def name(self) -> str | None:
        return self.layer.name

    @property
    def owner(self) -> Any:
        return self.layer

    def pass_on(self, run: Callable, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        with self.layer.scope():
            return run(self.cell, x, state)

    def arguments(self) -> dict[str, Any]:
        return {"layer": self.layer}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Owned:
        return cls(arguments["layer"].cell(), arguments["layer"])


@dataclass(frozen=True, repr=False)
class Flat(Delegate):
    """A cell whose states stand in one tuple, as RecurrentShop lists them."""

    cell: AbstractCell

    @property
    def state(self) -> Tree:
        return tuple(tree_leaves(self.cell.state))

    def pass_on(self, run: Callable, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        y, after = run(self.cell, x, tree_like(self.cell.state, state))
        return y, tuple(tree_leaves(after))


@dataclass(frozen=True, repr=False)
class Given(Wrapper):
    """A cell whose input is made from the loop's input, such as a constant that it is given at every step."""

    cell: AbstractCell
    make_input: Callable[[Tree], Tree]

    def step(self, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        return self.cell(self.make_input(x), state)


@dataclass(frozen=True, repr=False)
class Initialized(Delegate):
    """A cell whose states, from the first, start by other initializers; those that are left over start at zero."""

    cell: AbstractCell
    initializers: tuple[Any, ...]

    @property
    def state(self) -> Tree:
        specs = tree_leaves(self.cell.state)
        rest = (None,) * (len(specs) - len(self.initializers))
        inits = [_of_shape("zeros" if init is None else init) for init in (*self.initializers, *rest)]
        return tree_like(self.cell.state, [StateSpec(spec.shape, init) for spec, init in zip(specs, inits)])


def _of_shape(initializer: Any) -> Callable:
    found = find_initializer(initializer)
    return (lambda shape: np.broadcast_to(found, shape)) if isinstance(found, np.ndarray) else found


def _with_all_states(y: Tree, final: Tree) -> tuple[Tree, Tree]:
    """The same outputs and states; whoever computes one of them computes all states, which are to be carried on.

    Else a state that is used no more, such as that of a step which is masked, or the readout, would not be computed.
    """
    leaves = tree_leaves(final)
    states = together(leaves, leaves)
    expect(states)  # they may be read when y has been computed
    return tree_like(y, together(tree_leaves(y), states)), tree_like(final, states)


def pair(x: Tree, last: Tree) -> Tree:
    """Gives a step its input and the last output, to do with them as it likes."""
    return x, last


class Layer(Described):
    """What owns weights, in a scope of its own: a recurrent layer, or a model made of several."""

    def __init__(self, name: str | None = None) -> None:
        self.name = new_name(type(self)) if name is None else name
        self._path: str | None = None

    def parts(self) -> Iterator[tuple[AbstractCell, str]]:
        """Yields what it is made of, each with the scope around its weights, in Keras' order of the weights."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Opens the scope of the layer's weights: that of its first call, also when it is called elsewhere later."""
        here = current_path()
        if here is None:  # a scratch scope, which leaves no trace
            with nn.parameter_scope(self.name):
                yield
            return
        if self._path is None:
            self._path = join(here, self.name)
        with nn.parameter_scope(self._path, scope=nn.parameter.root_scope):
            yield

    @property
    def path(self) -> str:
        """The scope of the layer's weights from the root; ValueError before the first call, which fixes it."""
        if self._path is None:
            raise ValueError(f"{self.name}: has no weights before its first call.")
        return self._path

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Layer:
        """Makes the layer again from `arguments()`."""
        return cls(**arguments)

    def get_config(self, custom_objects: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Describes the layer as plain JSON data, for `from_config`; weights are saved apart, by `nn.save_parameters`.

        Args:
            custom_objects: Your own functions and cells, by the names to give them.

        Raises:
            ValueError: A part cannot be described: a lambda, a graph, a Variable.
        """
        return encode(self, custom_objects)


class RecurrentLayer(Layer):
    """What RecurrentSequential and RecurrentModel have in common; see there."""

    def __init__(
        self,
        return_sequences: bool = False,
        return_states: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        teacher_force: bool = False,
        decode: bool = False,
        output_length: int | None = None,
        state_initializer: Any = None,
        sampling_probability: nn.Variable | None = None,
        name: str | None = None,
    ) -> None:
        if decode and (output_length is None or output_length < 1):
            raise ValueError(f"decode=True needs output_length >= 1, the number of steps; got {output_length!r}.")
        if output_length is not None and not decode:
            raise ValueError("output_length is for decode=True; elsewhere the input says how many steps there are.")
        if sampling_probability is not None and not teacher_force:
            raise ValueError("sampling_probability is for teacher_force=True.")
        self.return_sequences = return_sequences or decode
        self.return_states, self.go_backwards, self.stateful, self.unroll = return_states, go_backwards, stateful, unroll
        self.teacher_force, self.decode, self.output_length = teacher_force, decode, output_length
        self.state_initializer, self.sampling_probability = state_initializer, sampling_probability
        super().__init__(name)
        self._carried: list[CarriedState] = []

    # ------------------------------------------------------------------------------------------------ what a subclass says

    def cell(self) -> AbstractCell:
        """One step of the layer without its feedback."""
        raise NotImplementedError

    def feed_back(self, cell: AbstractCell, x: Tree) -> AbstractCell:
        """The cell with its readout, if the layer has one; x is one step's input."""
        raise NotImplementedError

    def parts(self) -> Iterator[tuple[AbstractCell, str]]:
        yield self.cell(), self.path

    # ----------------------------------------------------------------------------------------------------------------- call

    @building()
    def __call__(
        self,
        x: Tree,
        initial_state: Sequence[nn.Variable] | nn.Variable | None = None,
        initial_readout: nn.Variable | None = None,
        ground_truth: nn.Variable | None = None,
        mask: nn.Variable | None = None,
        training: bool = True,
    ) -> Any:
        """Runs the layer.

        Args:
            x: `(B, T, ...)`; with decode, what every step is given, `(B, ...)`.
            initial_state: All states, in the order of the cells; by default those of `state_initializer`, or zeros.
            initial_readout: `(B, ...)`, what is fed back at the first step; zeros by default.
            ground_truth: With teacher_force, the targets `(B, T, ...)`, in the order of the outputs: a step is fed those of the
                last step before it that counts.
            mask: `(B, T)`, 0 for steps that leave state and readout as they are and repeat the output. What the inputs and
                the targets hold there, NaN too, changes nothing.
            training: Whether dropout and teacher forcing act.

        Returns:
            The last output, or all with return_sequences; `[y, state, ...]` with return_states.

        Raises:
            ValueError: Arguments that do not fit the layer, or each other.
        """
        self._check_input(x)
        one = x if self.decode else tree_map(lambda v: nn.Variable((v.shape[0], *v.shape[2:])), x)
        cell = self.feed_back(self._owned(), one)
        feeds = isinstance(cell, Readout)
        self._check_call(feeds, initial_readout, ground_truth, mask, training)
        batch = tree_leaves(x)[0].shape[0]
        with self.scope():
            carried = CarriedState(cell, batch) if self.stateful else None
            start = carried.initial if carried else cell.initial_state(batch)
        state = self._start(cell, start, initial_state, initial_readout)
        if not training:
            cell = without_dropout(cell, one, state)
        forced = ground_truth if training else None
        xs, cell = self._inputs(cell, x, forced, state)
        if mask is not None and self.go_backwards:
            mask = F.flip(mask, axes=[1])
        ys, final = run(cell, xs, state, length=self.output_length, mask=mask, way="unrolled" if self.unroll else "auto")
        y = ys if self.return_sequences else last_output(ys)
        if carried:
            carried.follow(final)
            self._carried.append(carried)
            y, final = _with_all_states(y, final)
        inner = final[0] if feeds else final
        return [y, *tree_leaves(inner)] if self.return_states else y

    def _check_input(self, x: Tree) -> None:
        check_variables(x)
        least = 1 if self.decode else 3
        if not tree_leaves(x) or any(v.ndim < least for v in tree_leaves(x)):
            raise ValueError(
                f"{self.name}: needs sequences (B, T, ...); got {shapes(x)}. "
                "With decode=True one input (B, ...) is given to all steps."
            )

    def _check_call(self, feeds: bool, initial_readout: Any, ground_truth: Any, mask: Any, training: bool) -> None:
        who = self.name
        if not feeds and (self.teacher_force or initial_readout is not None or ground_truth is not None):
            given = "teacher_force" if self.teacher_force else "ground_truth" if ground_truth is not None else "initial_readout"
            raise ValueError(f"{who}: {given} is about what is fed back, and this layer feeds nothing back. Give it a readout.")
        if ground_truth is not None and not self.teacher_force:
            raise ValueError(f"{who}: ground_truth is for teacher_force=True, which this layer was not made with.")
        if self.teacher_force and training and ground_truth is None:
            raise ValueError(f"{who}: teacher forcing needs ground_truth in training; or call it with training=False.")
        if self.decode and mask is not None:
            raise ValueError(f"{who}: a mask is about the steps of the input; with decode there are none.")

    def _inputs(self, cell: AbstractCell, x: Tree, truth: nn.Variable | None, state: Tree) -> tuple[Tree, AbstractCell]:
        """The inputs of the loop, and the cell that takes them."""
        if truth is not None:
            steps = self.output_length if self.decode else tree_leaves(x)[0].shape[1]
            first = state[1]
            check_variables(truth)
            if truth.shape != (first.shape[0], steps, *first.shape[1:]):
                expected = (first.shape[0], steps, *first.shape[1:])
                raise ValueError(
                    f"{self.name}: ground_truth must have the shape of the outputs, {expected}; got {truth.shape}."
                )
            cell = teacher_forced(cell, self.sampling_probability)
        if self.decode:
            given = (lambda _: x) if truth is None else (lambda truth: (x, truth))
            return truth, Given(cell, given)
        xs = tree_map(lambda v: F.flip(v, axes=[1]), x) if self.go_backwards else x
        return (xs if truth is None else (xs, truth)), cell

    # --------------------------------------------------------------------------------------------------------------- config

    def arguments(self) -> dict[str, Any]:
        """What the layer was made with, and its name."""
        names = list(inspect.signature(RecurrentLayer.__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}

    # ---------------------------------------------------------------------------------------------------------------- state

    def _start(self, cell: AbstractCell, state: Tree, initial_state: Any, initial_readout: nn.Variable | None) -> Tree:
        """The state that the loop starts from: what is given in place of what the initializers gave."""
        inner: Tree
        last: Any
        inner, last = state if isinstance(cell, Readout) else (state, None)
        if self.stateful and (initial_state is not None or initial_readout is not None):
            raise ValueError(
                f"{self.name}: is stateful, and starts from the states it keeps; set them by reset_states(values)."
            )
        if initial_state is not None:
            given = _listed(initial_state)
            check_variables(tuple(given), f"{self.name}: a state")
            wanted = [leaf.shape for leaf in tree_leaves(inner)]
            if [v.shape for v in given] != wanted:
                got = [v.shape for v in given]
                raise ValueError(f"{self.name}: initial_state must list all states, of shapes {wanted}; got {got}.")
            inner = tree_like(inner, given)
        if initial_readout is not None:
            expected = last.shape
            check_variable(f"{self.name}: initial_readout", initial_readout)
            if initial_readout.shape != expected:
                raise ValueError(
                    f"{self.name}: initial_readout must have the shape of an output, {expected}; got {initial_readout.shape}."
                )
            last = initial_readout
        return (inner, last) if isinstance(cell, Readout) else inner

    def _owned(self) -> AbstractCell:
        """One step of the layer, in its scope, with its initializers."""
        cell = self.cell()
        states = tree_leaves(cell.state)
        init = self.state_initializer
        inits = tuple(init) if isinstance(init, (list, tuple)) else (init,) * len(states)
        if len(inits) > len(states):
            raise ValueError(f"{self.name}: state_initializer lists {len(inits)} initializers for {len(states)} states.")
        owned = Owned(cell, self)
        return owned if init is None else Initialized(owned, inits)

    def carry(self) -> None:
        """With stateful: the next batch of each graph goes on from the final states of the last; call it after a batch."""
        self._check_stateful("carry")
        ran = [state for state in self._carried if state.has_run]
        if not ran:
            raise ValueError(f"{self.name}: carry comes after a batch; no graph of this layer has computed its final states.")
        for state in ran:
            state.carry()

    def reset_states(self, values: Any = None, rows: Sequence[int] | None = None) -> None:
        """With stateful: sets the states that the next batch starts from.

        Args:
            values: One number or array for each state (the readout last); by default what the initializers give.
            rows: The samples to reset; all by default.

        Raises:
            ValueError: The layer is not stateful, has not been called, or the values do not fit.
        """
        self._check_stateful("reset_states")
        chosen = slice(None) if rows is None else list(rows)
        for state in self._carried:
            if rows is not None and not all(0 <= row < state.batch_size for row in rows):
                raise ValueError(f"{self.name}: rows must be from 0 to {state.batch_size - 1}; got {list(rows)}.")
        # All that can be wrong is found before the first state is changed.
        filled = [None if values is None else self._fill(state.get(), values) for state in self._carried]
        for state, given in zip(self._carried, filled):
            states = state.get()
            state.reset()
            for old, new in zip(states, state.get() if given is None else given):
                old[chosen] = new[chosen]
            state.set(states)

    def _fill(self, states: list[np.ndarray], values: Any) -> list[np.ndarray]:
        listed = list(values) if isinstance(values, (list, tuple)) else [values] * len(states)
        if len(listed) != len(states):
            raise ValueError(f"{self.name}: reset_states takes a value for each of {len(states)} states; got {len(listed)}.")
        try:
            return [np.broadcast_to(np.asarray(value, np.float32), state.shape) for value, state in zip(listed, states)]
        except ValueError as error:
            raise ValueError(f"{self.name}: reset_states takes values of {[s.shape for s in states]}: {error}.") from error

    def _check_stateful(self, what: str) -> None:
        if not self.stateful:
            raise ValueError(f"{self.name}: {what} is about states that are kept; make the layer with stateful=True.")
        if not self._carried:
            raise ValueError(f"{self.name}: {what} comes after the first call, which makes the states.")

    @property
    def num_states(self) -> int:
        """How many states the layer has, its readout not counted."""
        return len(tree_leaves(self.cell().state))


class RecurrentSequential(RecurrentLayer):
    """Cells and layers one after another, as one recurrent layer.

    Args:
        state_sync: All cells share one set of states, which runs through them within a step.
        readout: Feed the last output back: True or "add", "mul", "avg", "max" (merged with the input; of its width),
            "readout_only" (in place of the input), or a function of `(input, last output)`.
        readout_activation: Of what is fed back, before it is merged.
        **options: Those of every layer: `return_sequences, return_states, go_backwards, stateful, unroll, teacher_force,
            decode, output_length, state_initializer, sampling_probability, name`.

    Example:
        >>> from nnshop.recurrentshop import GRUCell, LSTMCell, RecurrentSequential
        >>> rnn = RecurrentSequential(return_sequences=True, return_states=True)
        >>> rnn.add(LSTMCell(8)); rnn.add(PF.affine, 5); rnn.add(GRUCell(4))
        >>> y, h1, c1, h2 = rnn(nn.Variable((2, 7, 3)))
        >>> y.shape, h1.shape, h2.shape
        ((2, 7, 4), (2, 8), (2, 4))
    """

    def __init__(
        self,
        state_sync: bool = False,
        readout: bool | str | Callable = False,
        readout_activation: str | Callable = "linear",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if readout is not False and not callable(readout) and readout not in READOUTS:
            names = ", ".join(repr(word) for word in READOUTS)
            raise ValueError(f"{self.name}: readout must be a function or one of False, {names}; got {readout!r}.")
        if self.teacher_force and readout is False:
            raise ValueError(f"{self.name}: teacher_force=True replaces what is fed back; give the layer a readout.")
        find_activation(readout_activation)
        self.state_sync, self.readout, self.readout_activation = state_sync, readout, readout_activation
        self.cells: list[AbstractCell] = []
        self._given = False  # to another layer

    def add(self, layer: AbstractCell | Callable, *arguments: Any, **options: Any) -> None:
        """Adds a cell, or any function of a Variable with its arguments: `add(PF.affine, 5)`, `add(F.dropout, 0.3)`.

        Raises:
            ValueError: The layer has been called already.
            TypeError: It is neither a cell nor a function, or a cell with arguments.
        """
        if self._path is not None or self._given:
            raise ValueError(f"{self.name}: add() comes before the first call, and before get_cell().")
        if isinstance(layer, AbstractCell):
            if arguments or options:
                raise TypeError(f"add(cell) takes no more arguments; got {arguments or options}.")
            self.cells.append(layer)
        elif callable(layer):
            self.cells.append(lift(layer, *arguments, **options))
        else:
            raise TypeError(f"add takes a cell or a function of a Variable; got {layer!r}.")

    def arguments(self) -> dict[str, Any]:
        own = {"state_sync": self.state_sync, "readout": self.readout, "readout_activation": self.readout_activation}
        return {**super().arguments(), **own, "cells": list(self.cells)}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> RecurrentLayer:
        cells = arguments.pop("cells")
        rnn = cls(**arguments)
        for cell in cells:
            rnn.add(cell)
        return rnn

    def cell(self) -> AbstractCell:
        if not any(cell.state != () for cell in self.cells):
            raise ValueError(f"{self.name}: has no cell with a state; add() one.")
        # Not by stack or sync: a cell that is added twice shares its weights, as in Keras.
        return Sync(tuple(map(Flat, self.cells))) if self.state_sync else Stack(tuple(self.cells))

    def feed_back(self, cell: AbstractCell, x: Tree) -> AbstractCell:
        if self.readout is False:
            return cell
        shape = output_shape(cell, x)
        if not callable(self.readout) and shape not in (x.shape[1:], (1,)):  # a width of one is broadcast
            raise ValueError(
                f"{self.name}: readout={self.readout!r} needs the output width to equal the input width; the output of a step "
                f"has the shape {shape}, the input {x.shape[1:]}. Add PF.affine({x.shape[-1]}), or use a RecurrentModel."
            )
        return self._with_readout(cell, shape)

    def _with_readout(self, cell: AbstractCell, shape: tuple[int, ...]) -> AbstractCell:
        merge = self.readout if callable(self.readout) else READOUTS[self.readout]
        return readout(cell, shape, merge, self.readout_activation)

    def get_cell(self) -> AbstractCell:
        """This layer as one cell, for another layer: it advances by one step for each of that one's, on shared weights."""
        self._given = True
        cell = self._owned()
        if self.readout is False:
            return Flat(cell)
        # How wide the output is does not depend on how wide the input is, which is not known yet.
        x = nn.Variable((1, *(_declared_input(cell) or (1,))))
        return Flat(self._with_readout(cell, output_shape(cell, x)))


def _declared_input(cell: AbstractCell) -> tuple[int, ...] | None:
    """The shape of one step's input, where the first cell in a cell was made for one."""
    if isinstance(cell, (Stack, Sync)):
        return _declared_input(cell.cells[0])
    if isinstance(cell, Wrapper):
        return _declared_input(cell.cell)
    return getattr(cell, "declared_input", None)


class RecurrentModel(RecurrentLayer):
    """One time step that you wire, as a recurrent layer for any batch size and length.

    The step is an ordinary NNabla graph, from Variables to Variables, or a function `(x, *states) -> (y, *states)`; with a
    readout the function takes the last output as its last argument. A graph holds its weights where it was built; those of a
    function are in the layer's own scope.

    Args:
        input: One step's input, a Variable or a list of them; or the function.
        output: What the step gives, a Variable or a list; not with a function.
        initial_states: The states before the step, Variables; with a function their shapes, without the batch axis.
        final_states: The states after it, in the same order; not with a function.
        readout_input: The Variable that stands for the last output; with a function its shape.
        cell: A cell, in place of all these.
        **options: As for `RecurrentSequential`.

    Raises:
        ValueError: The parts do not fit each other. When it is called, if a function of the graph does not carry over to
            another batch size; the message names it, and a function in place of the graph has no such limit.

    Example:
        >>> from nnshop.recurrentshop import RecurrentModel
        >>> x, h = nn.Variable((1, 3)), nn.Variable((1, 8))
        >>> after = F.tanh(PF.affine(x, 8, name="x") + PF.affine(h, 8, name="h", with_bias=False))
        >>> rnn = RecurrentModel(x, after, initial_states=[h], final_states=[after], return_sequences=True)
        >>> rnn(nn.Variable((4, 7, 3))).shape
        (4, 7, 8)
    """

    def __init__(
        self,
        input: Any = None,
        output: Any = None,
        initial_states: Any = None,
        final_states: Any = None,
        readout_input: Any = None,
        cell: AbstractCell | None = None,
        **options: Any,
    ) -> None:
        if cell is not None:
            options.setdefault("name", "")  # the cell has a scope of its own
        super().__init__(**options)
        self.readout_shape: tuple[int, ...] | None = None
        parts = {"input": input, "output": output, "initial_states": initial_states, "final_states": final_states}
        self._made_of = {**parts, "readout_input": readout_input, "cell": cell}
        if cell is not None:
            self._cell = cell
        elif callable(input):
            self._cell = self._from_function(input, initial_states, readout_input)
        else:
            self._cell = self._from_graph(input, output, initial_states, final_states, readout_input)
        if self.teacher_force and self.readout_shape is None:
            raise ValueError(f"{self.name}: teacher_force=True replaces what is fed back; give readout_input.")

    def _from_function(self, step: Callable, states: Any, last: Any) -> AbstractCell:
        if not states or not all(isinstance(shape, tuple) for shape in states):
            raise ValueError(
                f"{self.name}: a function needs the shapes of its states, initial_states=[(8,), ...]; got {states!r}."
            )
        if last is not None:
            self.readout_shape = tuple(last)
        feeds = last is not None

        def call(x: Tree, states: Tree) -> tuple[Tree, Tree]:
            y, *after = step(x[0], *states, x[1]) if feeds else step(x, *states)
            return y, tuple(after)

        return Cell(call, tuple(map(StateSpec, states)))

    def _from_graph(self, x: Any, y: Any, before: Any, after: Any, last: nn.Variable | None) -> AbstractCell:
        xs, ys, before, after = map(_listed, (x, y, before, after))
        if not xs or not ys or not before or [v.shape for v in before] != [v.shape for v in after]:
            raise ValueError(
                f"{self.name}: a step needs input, output, and as many final_states as initial_states, of the same shapes; got "
                f"{len(xs)} and {len(ys)}, {[v.shape for v in before]} and {[v.shape for v in after]}."
            )
        if last is not None:
            if len(ys) != 1 or ys[0].shape != last.shape:
                outputs = [v.shape for v in ys]
                raise ValueError(f"{self.name}: readout_input stands for the output, {outputs}; it has the shape {last.shape}.")
            self.readout_shape = last.shape[1:]
        step = WiredStep([*xs, *before, *([last] if last is not None else [])], [*ys, *after])
        step.check_that_all_is_used()

        def call(given: Tree, states: Tree) -> tuple[Tree, Tree]:
            given, fed = given if last is not None else (given, None)
            made = step(*tree_leaves(given), *states, *tree_leaves(fed))
            outputs = tuple(made[: len(ys)])
            return (outputs if isinstance(y, (list, tuple)) else outputs[0]), tuple(made[len(ys) :])

        return Cell(call, tuple(StateSpec(v.shape[1:]) for v in before))

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), **self._made_of}

    def cell(self) -> AbstractCell:
        return self._cell

    def feed_back(self, cell: AbstractCell, x: Tree) -> AbstractCell:
        # The step takes the last output as an input of its own.
        return cell if self.readout_shape is None else readout(cell, self.readout_shape, pair)

    def get_cell(self) -> AbstractCell:
        """This layer as one cell, for another layer, on shared weights."""
        return Flat(self.feed_back(self._owned(), None))


def _listed(variables: Any) -> list[nn.Variable]:
    if variables is None:
        return []
    return [variables] if isinstance(variables, nn.Variable) else list(variables)


def from_config(config: dict, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Makes a layer from what its `get_config()` gave; its weights are found by the names that it had.

    Args:
        config: JSON data.
        custom_objects: Your own functions and cells, by the names that they were given in `get_config`.

    Raises:
        ValueError: It is no config of a layer, or names what is in no table.

    Example:
        >>> from nnshop.recurrentshop import LSTMCell, RecurrentSequential, from_config
        >>> rnn = RecurrentSequential(return_sequences=True); rnn.add(LSTMCell(8)); rnn.add(PF.affine, 5)
        >>> from_config(rnn.get_config()).get_config() == rnn.get_config()
        True
    """
    made = decode(config, custom_objects)
    if not isinstance(made, Layer):
        raise ValueError(f"this config is of {type(made).__name__}, not of a layer.")
    return made


TABLE.update({kind.__name__: kind for kind in (RecurrentSequential, RecurrentModel, Owned, Flat, Initialized)})
TABLE["pair"] = pair
