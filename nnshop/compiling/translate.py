"""From the functions of NNabla that a step is made of to nodes.

`TRANSLATIONS` has one entry for each function, by the name of its type in NNabla. An entry may be added, also by a user::

    @translates("Swish")
    def swish(t, f):
        (x,) = t.inputs(f)
        return t.graph.apply("mul", x, t.graph.apply("sigmoid", x))

It gets the translation and the function, and returns the value of its output, or a list of values where there are several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import nnabla as nn

from .graph import Graph
from .nodes import Unsupported, View, Weight

TRANSLATIONS: dict[str, Callable[[Translation, Any], View | list[View]]] = {}


class Mixes(Unsupported):
    """A function that lets rows of the batch meet."""


def translates(*names: str) -> Callable[[Callable], Callable]:
    """Enters a function into the table, under these types of NNabla's functions."""

    def enter(function: Callable) -> Callable:
        for name in names:
            TRANSLATIONS[name] = function
        return function

    return enter


class Translation:
    """The nodes of a step.

    Rows are the samples of the batch if no function lets them meet; a value of the shape `(P * B, ...)` then is one of the
    shape `(P, ...)` in each row. Else the whole step is one row.

    Args:
        inputs: Leaves that the step starts from.
        kinds: Of each leaf "x", "state", "closure", or "drawn" for what is drawn anew at each step.
        functions: What it is made of, in the order of computation.
        outputs: What it computes.
        batch: How many rows there are; None where the step is one row.

    Attributes:
        graph: The nodes.
        leaves (dict): Of each input that is used, by kind and number, the leaf.
        results (list of View): The outputs.
    """

    def __init__(
        self,
        inputs: Sequence[nn.Variable],
        kinds: Sequence[str],
        functions: Sequence[Any],
        outputs: Sequence[nn.Variable],
        batch: int | None,
    ) -> None:
        self.graph, self.batch = Graph(), batch
        self.place = {v: i for i, v in enumerate(inputs)}
        self.kinds = kinds
        self.leaves: dict[tuple[str, int], View] = {}
        self.weights: dict[int, nn.Variable] = {}
        self._values: dict[nn.Variable, View] = {}
        self._uses = Counter(v for function in functions for v in function.inputs)
        self._uses.update(outputs)
        for function in functions:
            self._translate(function)
        self.results = [self.value(v) for v in outputs]

    def _translate(self, function: Any) -> None:
        kind = function.info.type_name
        if kind not in TRANSLATIONS:
            raise Unsupported(f"{kind} is not translated")
        made = TRANSLATIONS[kind](self, function)
        for v, value in zip(function.outputs, made if isinstance(made, list) else [made]):
            if value.shape != self.shape(v):
                raise AssertionError(f"the translation of {kind} gave the shape {value.shape}; NNabla's is {self.shape(v)}.")
            self._values[v] = self.graph.apply("stop", value) if function.need_grad and not v.need_grad else value

    # What translations ask for

    def inputs(self, function: Any) -> list[View]:
        """The values of a function's inputs."""
        return [self.value(v) for v in function.inputs]

    def add(self, a: nn.Variable, b: nn.Variable) -> View:
        """The sum of two Variables; where nothing else uses them, products are added up in one place."""
        alone = self._uses[a] == self._uses[b] == 1
        return (self.graph.add_alone if alone else partial(self.graph.apply, "add"))(self.value(a), self.value(b))

    def shape(self, v: nn.Variable) -> tuple[int, ...]:
        """The shape that a Variable has in each row."""
        if self.batch is None:
            return v.shape
        if not v.shape or v.shape[0] % self.batch:
            raise Mixes(f"a value of the shape {v.shape} belongs to no row of a batch of {self.batch}")
        return (v.shape[0] // self.batch, *v.shape[1:])

    def value(self, v: nn.Variable) -> View:
        """The value of a Variable: what was computed before, or a leaf."""
        if v not in self._values:
            self._values[v] = self._leaf(v)
        return self._values[v]

    def _leaf(self, v: nn.Variable) -> View:
        i = self.place[v]
        kind = self.kinds[i]
        if kind == "closure":
            kind = "sample" if self._has_rows(v) else "shared"
        return self._make_leaf(kind, i, v.shape if kind == "shared" else self.shape(v))

    def _has_rows(self, v: nn.Variable) -> bool:
        """Whether a Variable from outside has a part for each row, as an operation number by number takes it."""
        return self.batch is not None and v.ndim > 0 and v.shape[0] > 1 and v.shape[0] % self.batch == 0

    def _make_leaf(self, kind: str, i: int, shape: Sequence[int]) -> View:
        if (kind, i) not in self.leaves:
            self.leaves[kind, i] = self.graph.leaf(kind, i, shape)
        return self.leaves[kind, i]

    def whole(self, v: nn.Variable) -> View:
        """All of a Variable from outside, which all rows share, whatever its shape."""
        i = self._outside(v)
        return self._make_leaf("shared", i, v.shape)

    def weight(self, v: nn.Variable, columns: int, rows: int) -> Weight:
        """A matrix from outside, to multiply rows by."""
        i = self._outside(v)
        self.weights[i] = v
        return Weight(i, columns, 0, rows)

    def _outside(self, v: nn.Variable) -> int:
        if v not in self.place or self.kinds[self.place[v]] != "closure":
            raise Unsupported("a weight that the step computes of its inputs or states")
        return self.place[v]

    def is_outside(self, v: nn.Variable) -> bool:
        return v in self.place and self.kinds[self.place[v]] == "closure"

    def axis(self, v: nn.Variable, axis: int) -> int:
        """An axis along which numbers of one row are moved or meet, counted from the first one."""
        axis %= max(v.ndim, 1)
        if axis == 0 and self.batch is not None:
            raise Mixes("the axis of the batch")
        return axis

    def number(self, number: float) -> View | float:
        """A setting of a function: data, so that another value needs no other program, but for the simplest ones."""
        return number if number in (0, 1, -1, 2, 0.5) else self.graph.array(number)
