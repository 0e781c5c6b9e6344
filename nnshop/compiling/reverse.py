"""Reverse mode: of the gradients of some values, those of others, as nodes of the same graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .derivatives import DERIVATIVES
from .graph import Graph
from .nodes import Node, View, Weight, all_of


class WeightProduct(NamedTuple):
    """A part of the gradient of a weight: the sum of the outer products of the rows of two values."""

    weight: Weight
    input: View
    gradient: View


class _Pending(NamedTuple):
    """The gradient of a product's input: a product, to be added to what else there is."""

    gradient: View
    weight: Weight


class Reverse:
    """Gradients of nodes.

    Args:
        graph: Gets the new nodes.
        seeds: Pairs of a value and its gradient.
        wanted: The leaves whose gradients are asked for.
        weights: The inputs that are weights, and whose gradients are asked for.

    Attributes:
        gradients (dict of Node to View): Of those leaves that have one.
        products (list of WeightProduct): What the gradients of weights are made of.
    """

    def __init__(
        self, graph: Graph, seeds: Iterable[tuple[View, View]], wanted: Iterable[Node], weights: Iterable[int]
    ) -> None:
        self.graph, self.wanted, self.weights = graph, set(wanted), set(weights)
        self.products: list[WeightProduct] = []
        self._parts: dict[Node, list[tuple[View, View | _Pending]]] = {}
        nodes = list(graph.nodes)
        self._active = self._find_active(nodes)
        for value, gradient in seeds:
            self._give(value, gradient)
        for node in reversed(nodes):
            if node in self._parts and node.op != "leaf":
                self._go_back(node, self._total(node, self._parts.pop(node)))
        self.gradients = {node: self._total(node, parts) for node, parts in self._parts.items()}

    def _find_active(self, nodes: Sequence[Node]) -> set[Node]:
        """What depends on something that is asked for, in a way that has a gradient."""
        active: set[Node] = set()
        for node in nodes:
            own = node in self.wanted or (node.op == "product" and node.attribute.input in self.weights)
            if own or (node.op not in STOPS and any(arg.node in active for arg in node.args)):
                active.add(node)
        return active

    def _give(self, to: View, gradient: View | _Pending | None) -> None:
        if gradient is not None and to.node in self._active:
            self._parts.setdefault(to.node, []).append((to, gradient))

    def _go_back(self, node: Node, d: View) -> None:
        """Gives the gradient of a node to its arguments."""
        if node in self.graph.rules:
            for to, gradient in self.graph.rules[node](d):
                self._give(to, gradient)
            return
        rule = _RULES.get(node.op)
        if rule is not None:
            rule(self, node, d)
            return
        d = self.graph.reshape(d, node.shape)
        for arg, gradient in zip(node.args, DERIVATIVES[node.op](self.graph, all_of(node, node.shape), node.args, d)):
            if arg.node in self._active and gradient is not None:
                self._give(arg, gradient().broadcast(node.shape))

    # Whole rows

    def _reduce(self, node: Node, d: View) -> None:
        graph, (arg,), (how, kept) = self.graph, node.args, node.attribute
        shape = (*arg.shape[:kept], *(1,) * (len(arg.shape) - kept))
        d = graph.reshape(d, shape)
        if how != "sum":
            y = graph.reshape(all_of(node, node.shape), shape)
            d = graph.apply("select", graph.first_equal(arg, y, kept), d, 0.0)
        self._give(arg, d.broadcast(arg.shape))

    def _product(self, node: Node, d: View) -> None:
        a, *added = node.args
        d = self.graph.own(self.graph.reshape(d, node.shape))
        for arg in added:
            self._give(arg, self.graph.reshape(d, arg.shape))
        weight = node.attribute
        if weight.input in self.weights:
            self.products.append(WeightProduct(weight, a, d))
        self._give(a, _Pending(d, weight._replace(transposed=not weight.transposed)))

    def _assemble(self, node: Node, d: View) -> None:
        d = self.graph.own(d)
        for arg, place in zip(node.args, node.attribute):
            self._give(arg, View(d.node, *place))

    def _gather(self, node: Node, d: View) -> None:
        table, places = node.args
        if table.node in self._active:
            d = self.graph.own(self.graph.reshape(d, node.shape))
            made = self.graph.make(
                "scatter", [d, places], (table.node.size,), (node.attribute, table.shape, table.strides, table.offset)
            )
            self._give(all_of(table.node, (table.node.size,)), all_of(made, (made.size,)))

    # Sums

    def _total(self, node: Node, parts: list[tuple[View, View | _Pending]]) -> View:
        """Adds up the gradients that a node was given, of all of it or of what views read."""
        graph = self.graph
        whole: list[View] = []
        pieces: dict[tuple, list[View]] = {}
        pending: list[_Pending] = []
        for at, d in parts:
            if isinstance(d, _Pending):
                if at.whole:
                    pending.append(d)
                    continue
                d = graph.product(d.gradient, at.shape[1], d.weight)
            at, d = self._without_repeats(at, d)
            if at.whole:
                whole.append(graph.reshape(d, node.shape))
            else:
                pieces.setdefault((at.shape, at.strides, at.offset), []).append(d)
        if pieces:
            whole.append(
                graph.assemble([(self._sum(ds), View(node, *place)) for place, ds in sorted(pieces.items(), key=_start)])
            )
            whole[-1] = graph.reshape(whole[-1], node.shape)
        total = self._sum(whole) if whole else None
        for d in pending:
            n = d.weight.rows if d.weight.transposed else d.weight.columns
            if total is None or _carried(total) <= _carried(d.gradient):
                added = None if total is None else graph.reshape(total, (d.gradient.shape[0], n))
                total = graph.product(d.gradient, n, d.weight, added)
            else:  # the product may be there before, for all times at once
                total = graph.apply("add", total, graph.reshape(graph.product(d.gradient, n, d.weight), node.shape))
        assert total is not None
        return total

    def _without_repeats(self, at: View, d: View) -> tuple[View, View]:
        """Adds up over what a view repeats; puts what it reads in another order into the node's own."""
        repeated = [axis for axis, (n, stride) in enumerate(zip(at.shape, at.strides)) if n > 1 and stride == 0]
        if repeated:
            d = self.graph.reduce("sum", d, repeated)
            at = at.transpose([axis for axis in range(len(at.shape)) if axis not in repeated])
        order = sorted(range(len(at.shape)), key=lambda axis: -at.strides[axis])
        return at.transpose(order), d.transpose(order)

    def _sum(self, ds: Sequence[View]) -> View:
        total = ds[0]
        for d in ds[1:]:
            total = self.graph.apply("add", total, d)
        return total


def _carried(v: View) -> set:
    """Which gradients of states a value depends on."""
    return {leaf for leaf in v.node.states if leaf[0] == "carry"}


def _start(piece: tuple) -> int:
    return piece[0][2]


_RULES: dict[str, Callable[[Reverse, Node, View], None]] = {
    "reduce": Reverse._reduce,
    "product": Reverse._product,
    "assemble": Reverse._assemble,
    "gather": Reverse._gather,
}
# What no gradient goes through. Of these, comparisons, NNabla has no gradient either.
STOPS = frozenset(
    "constant stop equal not_equal less less_equal greater greater_equal logical_and logical_or logical_xor logical_not isnan "
    "isinf scatter".split()
)
