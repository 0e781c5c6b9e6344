"""The values of one step as a graph: nodes that compute the numbers of a row, and views that say how they are read.

A row is what one sample of the batch holds. No node knows how many rows there are, and no two rows meet in a node. The output
of a node lies in memory as one run of numbers; what only moves numbers (slices, transposes, broadcasts, reshapes) is no node,
but a view: strides over such a run.

The operations:

- `leaf`: what comes from outside; its attribute says what.
- `constant`: one number, its attribute.
- those of `arithmetic.OPERATIONS`, number by number.
- `reduce`: a sum, maximum or minimum over the last axes of its argument; the attribute is (which, how many axes are kept).
- `product`: rows of its argument `(P, K)` times a weight; the attribute is a `Weight`. A second argument is added.
- `assemble`: the sum of its arguments, each put to its place among zeros; the attribute holds the places.
- `gather`: numbers at computed places of its first argument; the attribute is (stride, number) of the axis that is indexed.
- `scatter`: its reverse, a sum of what is put to computed places; the attribute is that of the gather, with the table's view.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

# What costs about as much as a load: it is computed again rather than kept.
CHEAP = frozenset("add sub mul neg copy select maximum minimum abs greater less greater_equal less_equal stop".split())
STRUCTURAL = frozenset("leaf constant reduce product assemble gather scatter".split())


class Unsupported(ValueError):
    """A step, or a function in it, that cannot be compiled; the message says which, and why."""


class Node:
    """One value of a step; equal ones are the same object, see `Graph.make`."""

    __slots__ = ("args", "attribute", "index", "op", "shape", "size", "states")

    def __init__(self, op: str, args: tuple[View, ...], shape: tuple[int, ...], attribute: Any, index: int) -> None:
        self.op, self.args, self.shape, self.attribute, self.index = op, args, shape, attribute, index
        self.size = prod(shape)
        own = [attribute] if op == "leaf" and attribute and attribute[0] in ("state", "carry") else []
        self.states: frozenset = frozenset(own).union(
            *(arg.node.states for arg in args)
        )  # which it depends on, or gradients of which

    @property
    def elementwise(self) -> bool:
        return self.op not in STRUCTURAL

    def __repr__(self) -> str:
        given = ", ".join(map(repr, self.args)) + ("" if self.attribute is None else f"; {self.attribute}")
        return f"%{self.index} = {self.op}{list(self.shape)}({given})"


class Weight(NamedTuple):
    """A part of a weight matrix: rows `row` to `row + rows` of an input that is a matrix of so many columns.

    `transposed` says that a product is with its transpose: it takes `columns` numbers, and gives `rows`.
    """

    input: int
    columns: int
    row: int
    rows: int
    transposed: bool = False


class View(NamedTuple):
    """How the numbers of a node are read: the number at index i of `shape` lies at `offset + sum(i * strides)`."""

    node: Node
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def __repr__(self) -> str:
        plain = "" if self.whole else f"[{self.offset}:{'x'.join(map(str, self.shape))}/{','.join(map(str, self.strides))}]"
        return f"%{self.node.index}{plain}"

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether it is all numbers of the node, as they lie."""
        return self.offset == 0 and self.size == self.node.size and self.contiguous

    @property
    def contiguous(self) -> bool:
        return squeezed(self.shape, self.strides) == squeezed(self.shape, strides_of(self.shape))

    def slice(self, starts: Sequence[int], steps: Sequence[int], sizes: Sequence[int]) -> View:
        """The numbers at `start + step * i` along each axis."""
        offset = self.offset + sum(start * stride for start, stride in zip(starts, self.strides))
        return View(self.node, tuple(sizes), tuple(a * b for a, b in zip(steps, self.strides)), offset)

    def take(self, axis: int, start: int, size: int) -> View:
        """A range of one axis."""
        starts = [start if a == axis else 0 for a in range(len(self.shape))]
        return self.slice(starts, [1] * len(starts), [size if a == axis else n for a, n in enumerate(self.shape)])

    def transpose(self, axes: Sequence[int]) -> View:
        return self._replace(shape=tuple(self.shape[a] for a in axes), strides=tuple(self.strides[a] for a in axes))

    def broadcast(self, shape: Sequence[int]) -> View:
        """Repeats what has one number along an axis; axes that are missing come first."""
        more = len(shape) - len(self.shape)
        own = (1,) * more + self.shape
        strides = [0 if n == 1 else s for n, s in zip(own, (0,) * more + self.strides)]
        if any(n not in (1, m) for n, m in zip(own, shape)):
            raise Unsupported(f"shapes {self.shape} and {tuple(shape)} that do not fit each other")
        return View(self.node, tuple(shape), tuple(strides), self.offset)

    def reshape(self, shape: Sequence[int]) -> View | None:
        """The same numbers in another shape; None where no strides describe that."""
        laid = np.lib.stride_tricks.as_strided(np.empty((), np.int8), self.shape, self.strides)
        try:
            laid.shape = tuple(shape)
        except AttributeError:
            return None
        return View(self.node, tuple(shape), laid.strides, self.offset)


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of numbers that lie one after another."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def squeezed(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Sizes and strides without the axes of one number, as few as possible."""
    return [(n, each[0]) for n, each in zip(*collapse(shape, [strides]))]


def collapse(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Joins neighbouring axes where every one of these strides allows it.

    Returns:
        The shape, without axes of one number, and for each axis of it the strides.
    """
    sizes: list[int] = []
    steps: list[tuple[int, ...]] = []
    for n, each in zip(shape, zip(*strides) if strides else [()] * len(shape)):
        if n == 1:
            continue
        if sizes and all(outer == inner * n for outer, inner in zip(steps[-1], each)):
            sizes[-1] *= n
            steps[-1] = tuple(each)
        else:
            sizes.append(n)
            steps.append(tuple(each))
    return tuple(sizes), steps


def aligned(shape: Sequence[int], views: Sequence[View]) -> tuple[tuple[int, ...], list[View]]:
    """The views, all of this shape, with as few axes as possible, at least one."""
    sizes, steps = collapse(shape, [v.strides for v in views])
    if not sizes:
        sizes, steps = (1,), [(0,) * len(views)]
    return sizes, [View(v.node, sizes, tuple(step[i] for step in steps), v.offset) for i, v in enumerate(views)]


def all_of(node: Node, shape: Sequence[int]) -> View:
    """All numbers of a node, in a shape."""
    return View(node, tuple(shape), strides_of(shape))


def indices(v: View) -> np.ndarray:
    """Where each number of a view lies in its node."""
    places = np.full((1,) * len(v.shape), v.offset)
    for axis, (n, stride) in enumerate(zip(v.shape, v.strides)):
        places = places + (np.arange(n) * stride).reshape([-1 if a == axis else 1 for a in range(len(v.shape))])
    return places
