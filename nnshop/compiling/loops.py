"""The loops over the numbers of a row: a vector of them at a time along one axis, and one by one along the others."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from .arithmetic import OPERATIONS
from .nodes import Node, View
from .schedule import At, Root, computed_in_loops
from .text import hexadecimal, suffix, vector

ProgramText = Any  # of the module `program`, which imports this one

_START = {"sum": 0.0, "max": float("-inf"), "min": float("inf")}
_COMBINE = {"sum": "fadd", "max": "maximum", "min": "minimum"}


class Index(NamedTuple):
    """Where a loop stands: a number for each axis, and along one axis so many numbers from there on.

    Fewer than a vector has are the last ones of a row.
    """

    numbers: tuple[str, ...]
    axis: int
    wide: int

    def move(self, axis: int, number: str, count: int = 1) -> Index:
        numbers = (*self.numbers[:axis], number, *self.numbers[axis + 1 :])
        return Index(numbers, self.axis, count if axis == self.axis else self.wide)


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


class _Body:
    """What loops and single numbers have in common: the values of nodes at one index."""

    def __init__(self, program: ProgramText, at: At) -> None:
        self.program, self.at, self.text = program, at, program.text
        self.lanes, self.schedule = program.lanes, program.schedule
        self.known: dict[View, str] = {}  # at this index
        self.fixed: dict[View, str] = {}  # the same for all indices along the vector's axis

    def value(self, view: View, index: Index) -> str:
        """The numbers of a view at an index, as a vector."""
        if view in self.fixed:
            return self.fixed[view]
        if view not in self.known:
            self.known[view] = self._value(view, index)
        return self.known[view]

    def _value(self, view: View, index: Index) -> str:
        node, kind = view.node, self.kind(index)
        if node.op == "constant":
            return self.text.constant(kind, node.attribute)
        if self.schedule.is_scalar(node, self.at.phase):
            return self.text.splat(kind, self.scalar(node))
        if not self.schedule.in_registers(view, self.at):
            return self.load(view, index)
        return self.compute(node, index)

    def compute(self, node: Node, index: Index) -> str:
        if node.op == "gather":
            table, places = node.args
            return self.load(table, index, (places, *node.attribute))
        return OPERATIONS[node.op](self.text, self.kind(index), *(self.value(arg, index) for arg in node.args))

    def kind(self, index: Index) -> str:
        return vector(self.lanes if index.wide else 1)

    def scalar(self, node: Node) -> str:
        """The only number of a node, computed once in each row."""
        scalars = self.program.scalars
        if node.op == "constant":
            return hexadecimal(node.attribute)
        if node not in scalars:
            scalars[node] = _Scalars(self.program, self.at).compute(node, ONE)
        return scalars[node]

    # Memory

    def element(self, target: Node, view: View, index: Index, moved: str | None = None) -> str:
        """The address of what a view has at an index."""
        return self.address(self.program.pointer(target, view), view.strides, view.offset, index, moved)

    def address(self, pointer: str, strides: Sequence[int], offset: int, index: Index, moved: str | None = None) -> str:
        text, place = self.text, str(offset)
        terms = [(number, stride) for number, stride in zip(index.numbers, strides) if stride and number != "0"]
        for number, stride in terms:
            step = number if stride == 1 else text.new(f"mul i64 {number}, {stride}")
            place = step if place == "0" else text.new(f"add i64 {place}, {step}")
        if moved is not None:
            place = text.new(f"add i64 {place}, {moved}")
        return pointer if place == "0" else text.new(f"getelementptr float, ptr {pointer}, i64 {place}")

    def load(self, view: View, index: Index, by: tuple[View, int, int] | None = None) -> str:
        """Reads a vector, as one where the numbers lie side by side; `by` moves the place on by a computed number."""
        text, kind = self.text, self.kind(index)
        stride = view.strides[index.axis] if index.wide else 0
        if by is not None and index.wide and by[0].strides[index.axis] and by[0].size > 1:
            return self._each(kind, index, lambda at: self.load(view, at, by))
        moved = None if by is None else self._moved(by, index)
        if index.wide and stride not in (0, 1):
            return self._each(kind, index, lambda at: self.load(view, at, by))
        pointer = self.element(view.node, view, index, moved)
        if stride == 0:
            return text.splat(kind, text.new(f"load float, ptr {pointer}, align 4"))
        if index.wide == self.lanes:
            return text.new(f"load {kind}, ptr {pointer}, align 4")
        return self._masked_load(pointer, index)

    def _each(self, kind: str, index: Index, load) -> str:
        """A vector, of numbers that are read one by one."""
        text, made = self.text, "zeroinitializer"
        for lane in range(index.wide):
            number = load(self.lane(index, lane))
            made = text.new(f"insertelement {kind} {made}, float {number}, i32 {lane}")
        return made

    def lane(self, index: Index, lane: int) -> Index:
        """One number of a vector's index."""
        number = index.numbers[index.axis]
        if lane:
            number = self.text.new(f"add i64 {number}, {lane}")
        return Index(index.move(index.axis, number).numbers, index.axis, 0)

    def _moved(self, by: tuple[View, int, int], index: Index) -> str:
        """How far a computed number moves a place; kept within the axis, whatever the number is."""
        view, stride, count = by
        text = self.text
        single = Index(index.numbers, index.axis, 0)
        number = _Body(self.program, self.at)._value(view, single) if index.wide else self._value(view, single)
        text.declared.add("declare i64 @llvm.fptosi.sat.i64.f32(float)")
        text.declared |= {f"declare i64 @llvm.{name}.i64(i64, i64)" for name in ("smax", "smin")}
        place = text.new(f"call i64 @llvm.fptosi.sat.i64.f32(float {number})")
        place = text.new(f"call i64 @llvm.smax.i64(i64 {place}, i64 0)")
        place = text.new(f"call i64 @llvm.smin.i64(i64 {place}, i64 {count - 1})")
        return text.new(f"mul i64 {place}, {stride}")

    def _mask(self, count: int) -> str:
        return "<" + ", ".join(f"i1 {int(lane < count)}" for lane in range(self.lanes)) + ">"

    def _masked_load(self, pointer: str, index: Index) -> str:
        text, kind, mask = self.text, vector(self.lanes), f"<{self.lanes} x i1>"
        name = f"@llvm.masked.load.{suffix(kind)}.p0"
        text.declared.add(f"declare {kind} {name}(ptr, i32, {mask}, {kind})")
        return text.new(f"call {kind} {name}(ptr {pointer}, i32 4, {mask} {self._mask(index.wide)}, {kind} zeroinitializer)")

    def store(self, root: Root, value: str, index: Index) -> None:
        """Writes a vector, or adds it to what is there."""
        stride = root.strides[index.axis] if index.wide else 0
        spread = root.by is not None and index.wide and root.by[0].size > 1 and root.by[0].strides[index.axis]
        if index.wide and (stride != 1 or spread):
            for lane in range(index.wide):
                number = self.text.new(f"extractelement {self.kind(index)} {value}, i32 {lane}")
                self.store(root, number, self.lane(index, lane))
            return
        text, kind = self.text, self.kind(index)
        moved = None if root.by is None else self._moved(root.by, index)
        node = root.value.node
        reach = View(node, root.value.shape, root.strides, root.offset)
        pointer = self.address(self.program.pointer(root.target, reach), root.strides, root.offset, index, moved)
        if root.kind == "add":
            there = (
                self._masked_load(pointer, index)
                if 0 < index.wide < self.lanes
                else text.new(f"load {kind}, ptr {pointer}, align 4")
            )
            value = text.operate("fadd", kind, there, value)
        if 0 < index.wide < self.lanes:
            mask, name = f"<{self.lanes} x i1>", f"@llvm.masked.store.{suffix(kind)}.p0"
            text.declared.add(f"declare void {name}({kind}, ptr, i32, {mask})")
            text.put(f"call void {name}({kind} {value}, ptr {pointer}, i32 4, {mask} {self._mask(index.wide)})")
        else:
            text.put(f"store {kind} {value}, ptr {pointer}, align 4")


ONE = Index(("0",), 0, 0)


class _Scalars(_Body):
    """Single numbers of a row."""

    def write(self, roots: Sequence[Root]) -> None:
        for root in roots:
            if root.kind == "reduce":
                self.program.scalars[root.value.node] = self.value(root.value, ONE)  # of one number
            else:
                self.store(root, self.value(root.value, ONE), ONE)


class _Loop(_Body):
    """A nest of loops over a space."""

    def run_over_all(self, roots: Sequence[Root]) -> None:
        """Stores, adds and reduces values, number by number."""
        space = self.at.space
        axis = len(space) - 1
        self._prepare_scalars(roots)
        reduced = [root for root in roots if root.kind == "reduce"]
        rooms = {root: self._room(root.value.node if False else root) for root in reduced}

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
            self._store_kept(root, room, index, kept)

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
            self._put(root, node, number, index)

    def _put(self, root: Root, node: Node, number: str, index: Index) -> None:
        shape = node.shape
        whole = Root("store", View(node, shape, _contiguous(shape)), node, _contiguous(shape))
        self.store(whole, number, Index(index.numbers, 0, 0))

    def _store_kept(self, root: Root, room: str, index: Index, kept: int) -> None:
        node = root.target
        assert isinstance(node, Node)
        whole = Root("store", View(node, node.shape, _contiguous(node.shape)), node, _contiguous(node.shape))
        self.store(
            whole, self.text.new(f"load {vector(self.lanes)}, ptr {room}"), Index(index.numbers[:kept], index.axis, index.wide)
        )


def _how(root: Root) -> str:
    assert isinstance(root.target, Node)
    return root.target.attribute[0]


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


__all__ = ["computed_in_loops", "write"]
