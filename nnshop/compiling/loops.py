"""The loops over the numbers of a row: a vector of them at a time along one axis, and one by one along the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .body import ONE, Body, Index
from .nodes import Node, View, all_of, strides_of
from .roots import At, Root
from .text import suffix, vector

ProgramText = Any  # of the module `program`, which imports this one

_START = {"sum": 0.0, "max": float("-inf"), "min": float("inf")}
_COMBINE = {"sum": "fadd", "max": "maximum", "min": "minimum"}


def write(program: ProgramText, at: At, roots: Sequence[Root]) -> None:
    """Writes what is done at one time over one space."""
    if at.space == (1,):
        _Scalars(program, at).write(roots)
        return
    together = [root for root in roots if _is_plain(root, at.space)]
    if together:
        _Loop(program, at).run_over_all(together)
    for root in roots:
        if root not in together:
            if root.kind == "reduce":
                _Loop(program, at).reduce(root)
            else:
                _Loop(program, at).run_over_all([root])


def _is_plain(root: Root, space: tuple[int, ...]) -> bool:
    """Whether a root may share its loop with others."""
    return root.by is None and (root.kind != "reduce" or len(space) == 1)


class _Scalars(Body):
    """Single numbers of a row."""

    def write(self, roots: Sequence[Root]) -> None:
        for root in roots:
            self.store(root, self.value(root.value, ONE), ONE)


class _Loop(Body):
    """A nest of loops over a space."""

    def run_over_all(self, roots: Sequence[Root]) -> None:
        """Stores, adds and reduces values, number by number."""
        space = self.at.space
        axis = len(space) - 1
        self._prepare_scalars(roots)
        reduced = [root for root in roots if root.kind == "reduce"]
        rooms = {root: self._room(root) for root in reduced}

        def body(index: Index) -> None:
            self.known = {}
            values = [self.value(root.value, index) for root in roots]
            for root, value in zip(roots, values):
                if root.kind == "reduce":
                    self._combine(root, rooms[root], value, index)
                else:
                    self.store(root, value, index)

        self._nest(range(axis), Index(("0",) * len(space), axis, 0), lambda index: self._vectors(roots, index, body))
        for root in reduced:
            self._finish(root, rooms[root], Index(("0",), 0, 0))

    def reduce(self, root: Root) -> None:
        """A reduction of which some axes are kept, or which runs over several."""
        space, node = self.at.space, root.target
        assert isinstance(node, Node)
        kept = node.attribute[1]
        self._prepare_scalars([root])
        axis = len(space) - 1
        if kept and self._strides_of_one(root.value, kept - 1) > self._strides_of_one(root.value, axis):
            axis = kept - 1
        room = self._room(root)
        inner = [a for a in range(kept, len(space)) if a != axis]
        outer = [a for a in range(kept) if a != axis]

        def body(index: Index) -> None:
            self.known = {}
            self._combine(root, room, self.value(root.value, index), index)

        def across(index: Index) -> None:  # the vector's axis is reduced
            self._clear(root, room)
            self._nest(inner, index, lambda i: self._vectors([root], i, body))
            self._finish(root, room, Index(index.numbers[:kept] or ("0",), 0, 0))

        def along(index: Index) -> None:  # it is kept
            self._clear(root, room)
            self._nest(inner, index, body)
            total = self.text.new(f"load {vector(self.lanes)}, ptr {room}")
            self._put(node, total, Index(index.numbers[:kept], index.axis, index.wide))

        start = Index(("0",) * len(space), axis, 0)
        if axis >= kept:
            self._nest(outer, start, across)
        else:
            self._nest(outer, start, lambda i: self._vectors([], i, along))

    def _nest(self, axes, index: Index, body) -> None:
        """Loops over these axes."""
        if not axes:
            body(index)
            return
        first, *rest = axes
        with self.program.loop("0", str(self.at.space[first])) as number:
            self._nest(rest, index.move(first, number), body)

    def _vectors(self, roots: Sequence[Root], index: Index, body) -> None:
        """Loops over one axis, a vector at a time, and then over what is left."""
        n, axis = self.at.space[index.axis], index.axis
        self.fixed = {}
        for root in roots:
            self._fix(root.value, index)
        whole = n - n % self.lanes
        if whole:
            with self.program.loop("0", str(whole), self.lanes) as number:
                body(index.move(axis, number, self.lanes))
        if n > whole:
            body(index.move(axis, str(whole), n - whole))

    def _prepare_scalars(self, roots: Sequence[Root]) -> None:
        """Computes single numbers before the loops that use them."""
        for view in self._read(root.value for root in roots):
            if view.node.op != "constant" and self.schedule.is_scalar(view.node, self.at.phase):
                self.scalar(view.node)

    def _fix(self, value: View, index: Index) -> None:
        """Reads what is the same along the vector's axis before the loop."""
        for view in self._read([value]):
            scalar = self.schedule.is_scalar(view.node, self.at.phase)
            if view not in self.fixed and (scalar or view.strides[index.axis] == 0) and view.node.op != "gather":
                self.fixed[view] = self._value(view, Index(index.numbers, index.axis, self.lanes))

    def _read(self, values) -> list[View]:
        """The views that values are computed of in this loop, from memory or single numbers."""
        found: dict[View, None] = {}
        stack = list(values)
        seen = set()
        while stack:
            view = stack.pop()
            if view in seen:
                continue
            seen.add(view)
            if self.schedule.in_registers(view, self.at):
                stack += view.node.args[view.node.op == "gather" :]
            else:
                found[view] = None
        return list(found)

    def _strides_of_one(self, value: View, axis: int) -> int:
        """How much of what is read lies side by side along an axis."""
        return sum(view.strides[axis] == 1 for view in self._read([value]))

    # Reductions

    def _room(self, root: Root) -> str:
        room = self.program.stack(vector(self.lanes))
        self._clear(root, room)
        return room

    def _clear(self, root: Root, room: str) -> None:
        kind = vector(self.lanes)
        self.text.put(f"store {kind} {self.text.constant(kind, _START[_how(root)])}, ptr {room}")

    def _combine(self, root: Root, room: str, value: str, index: Index) -> None:
        text, kind, how = self.text, vector(self.lanes), _how(root)
        if index.wide < self.lanes:
            value = text.choose(kind, self._mask(index.wide), value, text.constant(kind, _START[how]))
        there = text.new(f"load {kind}, ptr {room}")
        made = text.operate("fadd", kind, there, value) if how == "sum" else text.call(_COMBINE[how], kind, there, value)
        text.put(f"store {kind} {made}, ptr {room}")

    def _finish(self, root: Root, room: str, index: Index) -> None:
        """Reduces a vector to one number."""
        text, kind, how, node = self.text, vector(self.lanes), _how(root), root.target
        assert isinstance(node, Node)
        total = text.new(f"load {kind}, ptr {room}")
        if how == "sum":
            text.declared.add(f"declare float @llvm.vector.reduce.fadd.{suffix(kind)}(float, {kind})")
            number = text.new(f"call reassoc float @llvm.vector.reduce.fadd.{suffix(kind)}(float 0.0, {kind} {total})")
        else:
            name = f"@llvm.vector.reduce.f{_COMBINE[how]}.{suffix(kind)}"
            text.declared.add(f"declare float {name}({kind})")
            number = text.new(f"call float {name}({kind} {total})")
        if node.size == 1:
            self.program.scalars[node] = number
        if node in self.schedule.places:
            self._put(node, number, Index(index.numbers, 0, 0))

    def _put(self, node: Node, value: str, index: Index) -> None:
        """Stores what a reduction gives."""
        strides = strides_of(node.shape)
        self.store(Root("store", all_of(node, node.shape), node, strides), value, index)


def _how(root: Root) -> str:
    assert isinstance(root.target, Node)
    return root.target.attribute[0]
