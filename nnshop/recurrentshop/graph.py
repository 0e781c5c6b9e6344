"""A step that was wired once, at one batch size, becomes a function for any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nnabla as nn

from ..core import AbstractCell, Cell, Tree, tree_leaves, tree_like, tree_map
from ..graphs import Rule, Traced, again, functions_of, rewrite
from ..ids import checked_ids, is_check

WAY_OUT = "Pass a function (x, *states) -> (y, *states) in place of the graph: it is called at the batch size that is run."


class WiredStep:
    """A graph of NNabla functions, to be applied again to other inputs.

    What depends on the inputs is applied anew, and random functions are, so that each step draws its own noise; parameters and
    all else that the graph uses are used as they are. Arguments that hold the batch size (of Reshape, Broadcast, Slice and
    constants) are rewritten.

    Args:
        inputs: The Variables that other ones will stand for, all `(B0, ...)`.
        outputs: What is computed of them.
        dropout: False leaves dropout out, where the graph is applied.

    Raises:
        ValueError: Inputs of several batch sizes.
    """

    def __init__(self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable], dropout: bool = True) -> None:
        self.inputs, self.outputs, self.dropout = list(inputs), list(outputs), dropout
        sizes = {v.shape[0] if v.ndim else None for v in self.inputs}
        if len(sizes) != 1 or None in sizes:
            raise ValueError(
                f"the inputs and states of a step need one batch size; they have shapes {[v.shape for v in inputs]}."
            )
        self.batch = self.inputs[0].shape[0]
        self._find_dependent()

    def _find_dependent(self) -> None:
        """Keeps the functions to apply anew; the others are closures."""
        self.dependent, self.used, chosen = set(self.inputs), set(self.outputs), []
        for function in functions_of(self.outputs):
            self.used.update(function.inputs)
            weight_dropout = function.info.type_name == "Dropout" and not self.dropout and function.inputs[0].parent is None
            if _is_source(function) or weight_dropout or any(v in self.dependent for v in function.inputs):
                self.dependent.update(function.outputs)
                chosen.append(function)
        self.traced = Traced(self.inputs, self.outputs, chosen, {})

    def check_that_all_is_used(self) -> None:
        """Raises ValueError for an input that is used for nothing, and for an output that depends on none."""
        for v in self.inputs:
            if v not in self.used:
                raise ValueError(f"an input or state of shape {v.shape} is used for nothing in this graph.")
        for v in self.outputs:
            if v not in self.dependent:
                raise ValueError(f"an output or state of shape {v.shape} does not depend on the inputs of this graph.")

    def __call__(self, *inputs: nn.Variable) -> list[nn.Variable]:
        """Applies the graph; inputs `(B, ...)` for any B.

        Raises:
            ValueError: A function does not carry over to this batch size, or inputs have other shapes than those traced.
        """
        for old, new in zip(self.inputs, inputs):
            if new.shape[1:] != old.shape[1:]:
                raise ValueError(f"this step was wired for an input of shape {old.shape[1:]} a sample; got {new.shape[1:]}.")
        return rewrite(self.traced, dict(zip(self.inputs, inputs)), _Applying(self, inputs[0].shape[0]))


class _Applying(Rule):
    """Applies a wired step at another batch size."""

    def __init__(self, step: WiredStep, batch: int) -> None:
        self.dropout, self.wired, self.batch = step.dropout, step.batch, batch

    def wants(self, function: Any, depends: bool) -> bool:
        return True

    def leaf(self, v: nn.Variable) -> nn.Variable:
        if nn.get_auto_forward() and v.parent is not None:
            v.forward()  # nobody else computes it
        return v

    def apply(self, function: Any, given: list[nn.Variable]) -> list[nn.Variable]:
        kind = function.info.type_name
        if is_check(function) or (kind == "Dropout" and not self.dropout):  # checks are made anew for each table, below
            return given
        if kind == "Embed":
            given = [checked_ids(given[0], given[1].shape[0], "embed: an id"), given[1]]
        if function.name == "Callback":
            raise ValueError(f"{kind} is no function of NNabla's own, and cannot be applied again. {WAY_OUT}")
        arguments = self._arguments(kind, function, given)
        try:
            made = again(function, given, arguments=arguments, context=nn.get_current_context())
        except RuntimeError as error:
            raise ValueError(self._refusal(kind, "it raised " + str(error).splitlines()[-1])) from error
        for old, new in zip(function.outputs, made):
            if not self._carries(old.shape, new.shape):
                raise ValueError(self._refusal(kind, f"{old.shape} became {new.shape}"))
        return made

    def _arguments(self, kind: str, function: Any, given: list[nn.Variable]) -> dict[str, Any]:
        """Those of the function, at the other batch size."""
        arguments = dict(function.info.args)
        if arguments.get("inplace") and nn.get_auto_forward():
            arguments["inplace"] = False  # see nnshop.functions.reshape
        if self.batch == self.wired:
            return arguments
        if _is_source(function):
            if arguments["shape"] and arguments["shape"][0] == self.wired:
                arguments["shape"] = [self.batch, *arguments["shape"][1:]]
        elif kind == "Reshape":
            first, *rest = arguments["shape"]
            if function.inputs[0].shape[0] * self.batch != given[0].shape[0] * self.wired:
                raise ValueError(self._refusal(kind, "the batch is not its first axis"))
            arguments["shape"] = [first if first < 0 else first * self.batch // self.wired, *rest]
        elif kind in ("Broadcast", "Slice"):
            key, old, new = ("shape" if kind == "Broadcast" else "stop"), function.inputs[0].shape, given[0].shape
            pairs = zip(arguments[key], old, new)
            arguments[key] = [n if entry == o != n else entry for entry, o, n in pairs]
        return arguments

    def _refusal(self, kind: str, why: str) -> str:
        return f"{kind}, wired at batch size {self.wired}, cannot be applied at batch size {self.batch}: {why}. {WAY_OUT}"

    def _carries(self, old: tuple, new: tuple) -> bool:
        """Whether a shape is the traced one with its batch swapped, in one axis."""
        if self.wired == self.batch or len(old) != len(new):
            return old == new
        changed = [(o, n) for o, n in zip(old, new) if o != n]
        return len(changed) == 1 and changed[0][0] * self.batch == changed[0][1] * self.wired


def without_dropout(cell: AbstractCell, x: Tree, state: Tree) -> AbstractCell:
    """Makes a cell of one that drops nothing, whatever it is made of; all weights keep their names.

    Args:
        cell: Any cell.
        x, state: A step's input and state; only their shapes are used.
    """
    stand_ins = tree_map(lambda v: nn.Variable(v.shape), (x, state))
    with nn.auto_forward(False):
        traced = cell(*stand_ins)
    step = WiredStep(tree_leaves(stand_ins), tree_leaves(traced), dropout=False)
    if all(function.info.type_name != "Dropout" for function in step.traced.functions):
        return cell
    return Cell(lambda x, state: tree_like(traced, step(*tree_leaves((x, state)))), cell.state)


def _is_source(function: Any) -> bool:
    """Whether a function makes its output from nothing, such as noise or a constant."""
    return not function.inputs and "shape" in function.info.args
