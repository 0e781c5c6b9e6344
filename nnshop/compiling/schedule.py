"""What a program does when: loops over the numbers of a row, between the products of all rows.

A time is a pair (phase, stage). A phase ends where a product needs all rows; within it each row is done by itself, and a stage
ends where what follows reads numbers that a loop of this row has yet to store. What one loop computes and uses stays in
registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .graph import Graph
from .nodes import CHEAP, Node, View, Weight, aligned, all_of, strides_of
from .places import Buffers, Place
from .roots import At, Product, Root, computed_in_loops, count_uses, cover, is_table

Time = tuple[int, int]
DEPTH = 3  # so many cheap operations in a row are done again rather than kept


class Schedule:
    """The loops and products of one program.

    Args:
        graph: Where the nodes are from; gets copies.
        buffers: Where values may lie; gets the program's own.
        sinks: What to store where. Each is all of a node.
        adds: What to add to what is there.
        loads: Nodes that are there already, and where.
        weight: Tells the place of a packed weight.
        keep: Nodes among them that must stay as they are.
        flat: Whether all times are rows of one step.
    """

    def __init__(
        self,
        graph: Graph,
        buffers: Buffers,
        sinks: Sequence[tuple[Node, Place]],
        adds: Sequence[tuple[Node, Place]],
        loads: dict[Node, Place],
        weight: Callable[[Weight], Place],
        keep: Iterable[Node] = (),
        flat: bool = False,
    ) -> None:
        self.graph, self.buffers, self.loads, self.weight, self.flat = graph, buffers, loads, weight, flat
        self.roots: dict[At, list[Root]] = {}
        self.zeros: dict[Time, list[Node]] = {}
        self.products: dict[int, list[Product]] = {}
        self.places: dict[Node, Place] = {}
        self._times: dict[Node, Time] = {}
        self._computed: dict[Node, None] = {}  # what is stored, or is a product or a reduction
        self._across: set[Node] = set()  # what is read in another phase than it is computed in, or by a product
        self._same: dict[Node, Node] = {}  # products that lie where another one is added to them
        self._uses = count_uses([node for node, _ in [*sinks, *adds]], loads)
        for node in keep:
            self._uses[node] = self._uses.get(node, 0) + 1
        self._stored = {node for node, _ in sinks}
        copied = [(node, place) for node, place in sinks if not self._lies_at(node, place)]
        for kind, pairs in (("store", copied), ("add", adds)):
            for node, place in pairs:
                value = all_of(node, node.shape)
                self._root(Root(kind, value, place, strides_of(value.shape)))
        for node in [*self.places]:
            self._compute(node)
        for node in self._computed:
            self._find_place(node)

    def _lies_at(self, node: Node, place: Place) -> bool:
        """Lets a node lie where it is to be stored, if it can."""
        if node in self.loads or node in self.places or node.op in ("leaf", "constant", "reduce"):
            return False
        self.places[node] = place
        return True

    def place(self, node: Node) -> Place:
        return self.loads[node] if node in self.loads else self.places[node]

    def _find_place(self, node: Node) -> Place | None:
        """Gives a place to what is stored and has none: one for each row where products or other phases read it."""
        if node not in self.places:
            if node in self._same:
                self.places[node] = self._find_place(self._same[node])  # type: ignore[assignment]
            elif node in self._across or node.op == "product":
                self.places[node] = self.buffers.new("wide" if self.flat else "sample", node.size, "b")
            elif node.op != "reduce" or node.size > 1:
                self.places[node] = self.buffers.new("single", node.size, "0")
        return self.places.get(node)

    def nodes(self) -> Iterable[Node]:
        """What is computed."""
        return (node for node in self._times if node not in self.loads and node.op != "constant")

    # Times

    def time(self, node: Node) -> Time:
        """When the loop runs that computes a node; for a product, when the result is there."""
        if node not in self._times:
            self._times[node] = self._find_time(node)
        return self._times[node]

    def _find_time(self, node: Node) -> Time:
        if node in self.loads or node.op == "constant":
            return 0, 0
        if node.op == "leaf":
            raise AssertionError(f"{node} is not there for this program")
        if node.op == "product":
            a, *added = node.args
            return max(self._gap(a.node), *(self._gap(v.node, not self._joins(v.node)) for v in added), 0) + 1, 0
        if node.op in ("assemble", "scatter"):
            return max(self._start(root) for root in self._pieces(node))
        if node.op == "reduce":
            return self._ready(node.args[0], node.args[0].shape)
        return max(self._ready(arg, node.shape, is_table(node, i)) for i, arg in enumerate(node.args))

    def _gap(self, node: Node, copied: bool = False) -> int:
        """The phase after which a product may read a node, or what a loop has copied of it."""
        return self.time(node)[0] - (node.op == "product" and node not in self.loads and not copied)

    def _joins(self, first: Node) -> bool:
        """Whether a product that another one is added to may lie in the same place."""
        return first.op == "product" and self._uses.get(first, 0) == 1 and first not in self._stored

    def _ready(self, view: View, space: tuple[int, ...], from_memory: bool = False) -> Time:
        """When a loop over this space may read a view."""
        node = view.node
        phase, stage = self.time(node)
        if node in self.loads or node.op in ("constant", "product"):
            return phase, stage
        together = node.size == 1 or (view.whole and view.shape == space == node.shape)
        return (phase, stage) if computed_in_loops(node) and together and not from_memory else (phase, stage + 1)

    def _start(self, root: Root) -> Time:
        """When the loop of a root runs."""
        space = root.value.shape
        times = [self._ready(root.value, space)]
        if root.by is not None:
            times.append(self._ready(root.by[0], space))
        return max(times)

    # What a loop reads

    def in_registers(self, view: View, at: At, depth: int = DEPTH) -> bool:
        """Whether a loop computes what it reads, in place of loading it."""
        node = view.node
        if node in self.loads or not computed_in_loops(node) or node.size == 1:
            return False
        if not (view.whole and view.shape == at.space == node.shape):
            return False
        if self.time(node) == at[:2]:
            return True
        cheap = node.op in CHEAP and node.attribute != "keep" and depth > 0
        return cheap and all(self._at_hand(arg, at, depth - 1) for arg in node.args)

    def _at_hand(self, view: View, at: At, depth: int) -> bool:
        node = view.node
        if node in self.loads or node.op in ("constant", "product", "assemble"):
            return True
        if node.size == 1:
            return self.time(node)[0] == at.phase
        return self.in_registers(view, at, depth)

    def is_scalar(self, node: Node, phase: int) -> bool:
        """Whether a node is one number of a row that is computed in this phase: it stays in a register."""
        if node.size > 1 or node in self.loads or node.op in ("product", "assemble", "scatter", "leaf"):
            return False
        return node.op == "constant" or self.time(node)[0] == phase

    # What is done

    def _root(self, root: Root) -> None:
        at = At(*self._start(root), root.value.shape)
        roots = self.roots.setdefault(at, [])
        if root not in roots:
            roots.append(root)
            self._demand(root.value, at)
            if root.by is not None:
                self._demand(root.by[0], at)

    def _demand(self, view: View, at: At, from_memory: bool = False) -> None:
        """Sees to it that a loop can have what it reads."""
        node = view.node
        if node in self.loads or node.op == "constant":
            return
        if not from_memory and self.is_scalar(node, at.phase):
            if node.op == "reduce":
                self._compute(node)
            else:
                self._demand_arguments(node, at._replace(space=(1,)))
        elif not from_memory and self.in_registers(view, at):
            self._demand_arguments(node, at)
        else:
            if self.time(node)[0] != at.phase:
                self._across.add(node)
            self._compute(node)

    def _demand_arguments(self, node: Node, at: At) -> None:
        for i, arg in enumerate(node.args):
            self._demand(arg, at, is_table(node, i))

    def _compute(self, node: Node) -> None:
        """Has a node computed, and stored."""
        if node in self.loads or node in self._computed:
            return
        self._computed[node] = None
        if node.op == "product":
            self._multiply(node)
        elif node.op in ("assemble", "scatter"):
            self._assemble(node)
        elif node.op == "reduce":
            self._root(Root("reduce", node.args[0], node, ()))
        else:
            self._root(Root("store", all_of(node, node.shape), node, strides_of(node.shape)))

    def _assemble(self, node: Node) -> None:
        pieces = self._pieces(node)
        if pieces[0].kind == "add" or not cover(node).all():
            self.zeros.setdefault(min(map(self._start, pieces)), []).append(node)
        if len({self._start(root)[0] for root in pieces}) > 1:
            self._across.add(node)
        for root in pieces:
            self._root(root)

    def _pieces(self, node: Node) -> list[Root]:
        """What is to be stored for an assembled node, one by one."""
        if node.op == "scatter":
            d, index = node.args
            (stride, count), _, strides, offset = node.attribute
            return [Root("add", d, node, strides, offset, (index, stride, count))]
        kind = "store" if cover(node).max() <= 1 else "add"
        roots = []
        for value, (shape, strides, offset) in zip(node.args, node.attribute):
            own = value.node
            target = View(node, shape, strides, offset)
            if own not in self.loads and computed_in_loops(own) and value.whole and target.contiguous:
                roots.append(Root(kind, all_of(own, own.shape), node, strides_of(own.shape), offset))
            else:
                _, (read, written) = aligned(shape, [value, target])
                roots.append(Root(kind, read, node, written.strides, offset))
        return roots

    def _multiply(self, node: Node) -> None:
        a, *added = node.args
        self.weight(node.attribute)
        self._across.add(a.node)
        self._compute(a.node)
        for view in added:
            self._start_with(node, view.node)
        self.products.setdefault(self.time(node)[0] - 1, []).append(Product(node, bool(added)))

    def _start_with(self, node: Node, first: Node) -> None:
        """Puts what is added to a product where the product will lie."""
        if self._joins(first) and first in self.loads and node not in self.places and node not in self._same:
            self.places[node] = self.loads[first]  # it was computed before for this alone
        elif self._joins(first) and first not in self.loads:
            self._same[first] = node
            self._compute(first)
        else:
            shape = first.shape if computed_in_loops(first) else (first.size,)
            self._root(Root("store", all_of(first, shape), node, strides_of(shape)))
