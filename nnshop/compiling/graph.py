"""Makes the nodes of a step, each once, and finds simpler ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np

from .nodes import Node, View, Weight, aligned, all_of, collapse, indices, strides_of


class Graph:
    """Makes nodes, each once, and finds simpler ones."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.rules: dict[Node, Any] = {}  # how the gradient of a node goes to what it is made of, where that is shorter
        self.arrays: list[np.ndarray] = []  # constants that programs read as they read weights
        self._known: dict[Any, Node] = {}

    def make(self, op: str, args: Iterable[View] = (), shape: tuple[int, ...] = (1,), attribute: Any = None) -> Node:
        args = tuple(args)
        key = (op, tuple((a.node.index, *a[1:]) for a in args), shape, attribute)
        if key not in self._known:
            self._known[key] = Node(op, args, shape, attribute, len(self.nodes))
            self.nodes.append(self._known[key])
        return self._known[key]

    def leaf(self, kind: str, i: int, shape: Sequence[int]) -> View:
        return all_of(self.make("leaf", (), (max(prod(shape), 1),), (kind, i)), shape)

    def constant(self, number: float) -> View:
        return all_of(self.make("constant", (), (1,), float(number)), ())

    def array(self, values: Any) -> View:
        """A constant that is data: another value needs no other program."""
        values = np.array(values, np.float32, order="C")
        self.arrays.append(values)
        return self.leaf("array", len(self.arrays) - 1, values.shape)

    # Number by number

    def apply(self, op: str, *values: View | float) -> View:
        """An operation, number by number; values of other shapes are repeated."""
        given = [v if isinstance(v, View) else self.constant(v) for v in values]
        shape = np.broadcast_shapes(*(v.shape for v in given))
        same = _nothing_to_do(op, given, shape)
        if same is not None:
            return same
        return self._apply(op, [v.broadcast(shape) for v in given], shape)

    def _apply(self, op: str, given: list[View], shape: tuple[int, ...], attribute: Any = None) -> View:
        sizes, args = aligned(shape, [self._pushed(v) for v in given])
        return all_of(self.make(op, args, sizes, attribute), shape)

    def own(self, v: View) -> View:
        """A node of its own for what a view reads, with the numbers one after another."""
        return v if v.whole else self._apply("copy", [v], v.shape)

    def keep(self, v: View) -> View:
        """A node that is computed as a whole, whatever is read of it: what `rules` are made for."""
        return all_of(self.make("copy", [self.own(v)._replace(shape=(v.size,), strides=(1,))], (v.size,), "keep"), v.shape)

    def reshape(self, v: View, shape: Sequence[int]) -> View:
        made = v.reshape(shape)
        if made is None:
            made = self.own(v).reshape(shape)
        assert made is not None
        return made

    def _pushed(self, v: View) -> View:
        """Reads the arguments of an operation in place of its result where that is read in part or in another order."""
        node = v.node
        if not node.elementwise or node.attribute == "keep" or v.whole or v.size > node.size or node.size == 1:
            return v
        inner = [_through(v, arg) for arg in node.args]
        if any(arg is None for arg in inner):
            return v
        return self._apply(node.op, inner, v.shape, node.attribute)  # type: ignore[arg-type]

    def add_alone(self, a: View, b: View) -> View:
        """A sum of values that nothing else uses: a product is added up where another one lies.

        Biases go outwards, so that products meet.
        """
        shape = np.broadcast_shapes(a.shape, b.shape)
        a, b = a.broadcast(shape), b.broadcast(shape)
        for p, q in ((a, b), (b, a)):
            if p.whole and p.node.op == "add" and _shared(p.node.args[1].node) and not _shared(q.node):
                inner, bias = p.node.args
                if inner.whole and inner.size == p.size:
                    return self.apply("add", self.add_alone(all_of(inner.node, shape), q), self.reshape(bias, shape))
        first, last = sorted((a, b), key=_lateness)
        both = all(v.whole and v.node.op == "product" and v.node.shape == first.node.shape for v in (first, last))
        if both and len(last.node.args) == 1:
            made = self.make(
                "product", [*last.node.args, all_of(first.node, (first.size,))], last.node.shape, last.node.attribute
            )
            return all_of(made, shape)
        return self.apply("add", a, b)

    # Whole rows

    def reduce(self, how: str, v: View, axes: Iterable[int], keep: bool = False) -> View:
        """A "sum", "max" or "min" over these axes."""
        reduced = sorted({a % len(v.shape) for a in axes}) if v.shape else []
        kept = [a for a in range(len(v.shape)) if a not in reduced]
        outer = tuple(v.shape[a] for a in kept)
        inner = tuple(v.shape[a] for a in reduced)
        shape = tuple(1 if a in reduced else n for a, n in enumerate(v.shape)) if keep else outer
        if prod(inner) == 1:
            return self.reshape(v, shape)
        v = self._pushed(v.transpose([*kept, *reduced]))
        if v.node.op == "constant":
            total = v.node.attribute * (prod(inner) if how == "sum" else 1)
            return self.constant(total).broadcast(shape)
        outer_sizes, outer_steps = collapse(outer, [v.strides[: len(outer)]])
        inner_sizes, inner_steps = collapse(inner, [v.strides[len(outer) :]])
        sizes = (*outer_sizes, *inner_sizes)
        arg = View(v.node, sizes, tuple(s for (s,) in [*outer_steps, *inner_steps]), v.offset)
        return all_of(self.make("reduce", [arg], outer_sizes or (1,), (how, len(outer_sizes))), shape)

    def first_equal(self, v: View, value: View, kept: int) -> View:
        """Where v first has a value, counted over its axes from `kept` on; what has the value nowhere is 0 everywhere."""
        inner = v.shape[kept:]
        first = self.reshape(self.index_of(v, value, kept), (*v.shape[:kept], *(1,) * len(inner)))
        return self.apply("equal", self.array(np.arange(prod(inner)).reshape(inner)), first)

    def index_of(self, v: View, value: View, kept: int) -> View:
        """The first place at which v has a value, counted over its axes from `kept` on."""
        inner = v.shape[kept:]
        places = self.array(np.arange(prod(inner)).reshape(inner))
        found = self.apply("select", self.apply("equal", v, value), places, float(prod(inner)))
        return self.reduce("min", found, range(kept, len(v.shape)))

    def product(self, a: View, n: int, weight: Weight, added: View | None = None) -> View:
        """The rows of a `(P, K)` times a weight `(K, N)`; `added` `(P, N)` is added."""
        rows = a.shape[0]
        a = self._pushed(a)
        if not _varies(a.node):  # a product reads rows, of which what is shared has one only
            a = self._apply("copy", [a], a.shape)
        elif not _has_even_rows(a):
            a = self.own(a)
        more = [] if added is None else [self.own(added)._replace(shape=(rows * n,), strides=(1,))]
        return all_of(self.make("product", [a, *more], (rows, n), weight), (rows, n))

    def assemble(self, pieces: Sequence[tuple[View, View]]) -> View:
        """A sum of values, each put to the places that a view describes, with zeros elsewhere.

        Args:
            pieces: Pairs of a value, and a view of the shape of it; all of these views are of one node.
        """
        node = pieces[0][1].node
        places = tuple((at.shape, at.strides, at.offset) for _, at in pieces)
        made = self.make("assemble", [value.broadcast(at.shape) for value, at in pieces], (node.size,), places)
        return all_of(made, node.shape)

    def concatenate(self, values: Sequence[View], axis: int) -> View:
        shape = list(values[0].shape)
        shape[axis] = sum(v.shape[axis] for v in values)
        whole = View(Node("leaf", (), (prod(shape),), None, -1), tuple(shape), strides_of(shape))
        pieces, at = [], 0
        for v in values:
            pieces.append((v, whole.take(axis, at, v.shape[axis])))
            at += v.shape[axis]
        return values[0] if len(values) == 1 else _as(self.assemble(pieces), shape)


def _as(v: View, shape: Sequence[int]) -> View:
    """A view of all of a node in another shape."""
    return all_of(v.node, shape)


def _lateness(v: View) -> tuple[bool, int]:
    """Of two products that are added up, the one of a state itself comes last: the other may be there before."""
    node = v.node
    of_state = node.op == "product" and node.args[0].node.op == "leaf" and bool(node.states)
    return of_state, len(node.states)


def _shared(node: Node) -> bool:
    """Whether a value is the same for all rows and times: a bias."""
    return node.op == "constant" or (node.op == "leaf" and node.attribute[0] in ("shared", "array"))


def _varies(node: Node) -> bool:
    """Whether a value has rows of its own at each time."""
    return node.op != "constant" and (node.op != "leaf" or node.attribute[0] in ("x", "state", "drawn", "dy", "carry"))


def _nothing_to_do(op: str, given: list[View], shape: tuple[int, ...]) -> View | None:
    numbers = [v.node.attribute if v.node.op == "constant" else None for v in given]
    if op == "mul" and 1.0 in numbers:
        return given[1 - numbers.index(1.0)].broadcast(shape)
    if op in ("add", "sub") and numbers[1] == 0:
        return given[0].broadcast(shape)
    if op == "add" and numbers[0] == 0:
        return given[1].broadcast(shape)
    return None


def _through(v: View, arg: View) -> View | None:
    """What a view of an elementwise node reads of an argument of the node; None where no strides describe that."""
    if all(s == 0 for s, n in zip(arg.strides, arg.shape) if n > 1):
        return View(arg.node, v.shape, (0,) * len(v.shape), arg.offset)
    if arg.contiguous:
        return View(arg.node, v.shape, v.strides, v.offset + arg.offset)
    wanted = indices(arg).reshape(-1)[indices(v)]
    strides = []
    for axis, n in enumerate(v.shape):
        at = [0] * len(v.shape)
        at[axis] = min(1, n - 1)
        strides.append(int(wanted[tuple(at)] - wanted.flat[0]))
    found = View(arg.node, v.shape, tuple(strides), int(wanted.flat[0]))
    return found if np.array_equal(indices(found), wanted) else None


def _has_even_rows(a: View) -> bool:
    """Whether the rows of a, over all rows of the batch, lie at even distances."""
    return a.shape[0] == 1 or a.strides[0] * a.shape[0] == a.node.size
