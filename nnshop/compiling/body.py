"""The values of nodes at one place of a loop, and what is read from and written to memory there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .arithmetic import OPERATIONS
from .nodes import Node, View
from .roots import At, Root
from .text import hexadecimal, suffix, vector

ProgramText = Any  # of the module `program`, which imports this one


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


class Body:
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
            scalars[node] = Body(self.program, self.at).compute(node, ONE)
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
        number = Body(self.program, self.at)._value(view, single)  # this loop's own values may be vectors
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
