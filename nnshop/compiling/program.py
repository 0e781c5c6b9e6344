"""The text of a program: a function of LLVM that runs over all steps of time, and in each over the rows of the batch.

Its arguments: the table of the buffers' addresses, the number of steps, the number of rows of the batch, whether time runs
backwards, how many rows a group has, and the range of rows that this call does: of whole groups, so that several threads can
share the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import loops
from .nodes import Node, View, all_of
from .places import Place
from .products import WIDTH
from .roots import At, Product
from .schedule import Schedule
from .text import Text

ARGUMENTS = "ptr %table, i64 %T, i64 %B, i64 %backwards, i64 %group, i64 %b0, i64 %b1"
MULTIPLY = "declare void @nnshop_multiply(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64)"


class ProgramText:
    """Writes a schedule down.

    Args:
        schedule: What to do when.
        text: Gets the lines.
        lanes: How many numbers a vector has.
    """

    def __init__(self, schedule: Schedule, text: Text, lanes: int) -> None:
        self.schedule, self.text, self.lanes = schedule, text, lanes
        self.entry: list[str] = []  # what comes before all loops
        self._buffers: set[int] = set()
        self._strides: set[int] = set()  # of buffers that are spread

    def function(self, name: str) -> str:
        """The text of the whole function."""
        text = self.text
        with self.loop("0", "%T") as step:
            text.put(f"%s = add i64 {step}, 0")
            text.put("%left = sub i64 %T, %s")
            text.put("%last = sub i64 %left, 1")
            text.put("%isback = icmp ne i64 %backwards, 0")
            text.put("%t = select i1 %isback, i64 %last, i64 %s")
            text.put("%rowt = mul i64 %t, %B")
            text.put("%half = and i64 %s, 1")
            text.put("%other = xor i64 %half, 1")
            text.put("%rowp = mul i64 %half, %B")
            text.put("%rowq = mul i64 %other, %B")
            for phase in range(self._phases()):
                self._phase(phase)
                for product in sorted(self.schedule.products.get(phase, []), key=lambda p: p.node.index):
                    self._multiply(product)
        addresses = []
        for i in sorted(self._buffers):
            addresses.append(f"  %at{i} = getelementptr i64, ptr %table, i64 {i}")
            addresses.append(f"  %P{i} = load ptr, ptr %at{i}")
        for i in sorted(self._strides):
            for n, of in enumerate(("step", "row"), 1):
                place = i + n * len(self.schedule.buffers.all)
                addresses.append(f"  %at_{of}{i} = getelementptr i64, ptr %table, i64 {place}")
                addresses.append(f"  %{of}{i} = load i64, ptr %at_{of}{i}")
        lines = [f"define void @{name}({ARGUMENTS}) {{", "entry:", *addresses, *self.entry, *text.lines, "  ret void", "}"]
        return "\n".join(lines)

    def _phases(self) -> int:
        schedule = self.schedule
        found = [at.phase for at in schedule.roots] + [phase for phase, _ in schedule.zeros] + [*schedule.products]
        return max(found, default=-1) + 1

    @contextmanager
    def loop(self, start: str, stop: str, by: int = 1) -> Iterator[str]:
        """Writes a loop that runs at least once; gives the name of its number."""
        text, name = self.text, self.text.fresh("loop")
        text.put(f"br label %{name}.in")
        text.label(f"{name}.in")
        text.put(f"br label %{name}")
        text.label(name)
        text.put(f"%{name}.i = phi i64 [{start}, %{name}.in], [%{name}.next, %{name}.end]")
        yield f"%{name}.i"
        text.put(f"br label %{name}.end")
        text.label(f"{name}.end")
        text.put(f"%{name}.next = add i64 %{name}.i, {by}")
        text.put(f"%{name}.more = icmp slt i64 %{name}.next, {stop}")
        text.put(f"br i1 %{name}.more, label %{name}, label %{name}.out")
        text.label(f"{name}.out")

    # Rows

    def _phase(self, phase: int) -> None:
        """What is done for each row by itself."""
        schedule = self.schedule
        times = {at[:2] for at in schedule.roots if at.phase == phase} | {time for time in schedule.zeros if time[0] == phase}
        if not times:
            return
        with self.loop("%b0", "%b1") as row:
            self.row = row
            self.pointers: dict[Place, str] = {}
            self.scalars: dict[Node | View, str] = {}
            mark = len(self.text.lines)
            self.head: list[str] = []
            for time in sorted(times):
                for node in schedule.zeros.get(time, []):
                    self._fill_with_zeros(node)
                for at in sorted((at for at in schedule.roots if at[:2] == time), key=_scalars_first):
                    loops.write(self, at, schedule.roots[at])
            self.text.lines[mark:mark] = self.head

    def pointer(self, target: Node | Place, view: View) -> str:
        """The address of the numbers of a node in this row; what the view reads of them must be there."""
        place = target if isinstance(target, Place) else self.schedule.place(target)
        place = self.schedule.buffers.check(place, view)
        if place not in self.pointers:
            lines, self.text.lines = self.text.lines, self.head
            self.pointers[place] = self.address(place, self.row)
            self.text.lines = lines
        return self.pointers[place]

    def address(self, place: Place, row: str) -> str:
        """The address of a place in a row of the batch."""
        text = self.text
        self._buffers.add(place.buffer)
        if place.rows == "0":
            return text.new(f"getelementptr float, ptr %P{place.buffer}, i64 {place.offset}")
        if self.schedule.buffers.is_spread(place):
            step, row = (text.new(f"mul i64 {n}, {s}") for n, s in zip(("%t", row), self._apart(place)))
            start = text.new(f"add i64 {text.new(f'add i64 {step}, {row}')}, {place.offset}")
            return text.new(f"getelementptr float, ptr %P{place.buffer}, i64 {start}")
        if place.rows == "g":
            row = text.new(f"udiv i64 {row}, %group")
        elif place.rows != "b":
            row = text.new(f"add i64 %row{place.rows}, {row}")
        start = text.new(f"mul i64 {row}, {place.width}")
        return text.new(f"getelementptr float, ptr %P{place.buffer}, i64 {text.new(f'add i64 {start}, {place.offset}')}")

    def _apart(self, place: Place) -> tuple[str, str]:
        """How far steps, and rows, of a spread buffer are apart."""
        self._strides.add(place.buffer)
        return f"%step{place.buffer}", f"%row{place.buffer}"

    def stack(self, kind: str) -> str:
        """Room for one value of this type, which LLVM turns into a register."""
        name = f"%{self.text.fresh('room')}"
        self.entry.append(f"  {name} = alloca {kind}")
        return name

    def _fill_with_zeros(self, node: Node) -> None:
        pointer = self.pointer(node, all_of(node, (node.size,)))
        self.text.declared.add("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        self.text.put(f"call void @llvm.memset.p0.i64(ptr {pointer}, i8 0, i64 {4 * node.size}, i1 false)")

    # Products

    def _multiply(self, product: Product) -> None:
        """Multiplies all rows at once where they lie at even distances, else one by one."""
        node, (a, *_) = product.node, product.node.args
        buffers, text = self.schedule.buffers, self.text
        given, result = (buffers.check(self.schedule.place(v.node), v) for v in (a, all_of(node, node.shape)))
        rows, n = node.shape
        spread = buffers.is_spread(given)
        a_row = a.strides[0] if rows > 1 else self._apart(given)[1] if spread else given.width
        even = rows == 1 or (not spread and given.width == rows * a_row and result.width == rows * n)
        c_row = n if rows > 1 else result.width
        if even:
            count = text.new(f"mul i64 {text.new('sub i64 %b1, %b0')}, {rows}")
            self._call(product, count, self.address(given, "%b0"), a_row, self.address(result, "%b0"), c_row)
        else:
            with self.loop("%b0", "%b1") as row:
                self._call(product, str(rows), self.address(given, row), a_row, self.address(result, row), c_row)

    def _call(self, product: Product, rows: str, from_a: str, a_row: int | str, to_c: str, c_row: int) -> None:
        text, node, a = self.text, product.node, product.node.args[0]
        text.declared.add(MULTIPLY)
        packed = self.schedule.weight(node.attribute)
        self._buffers.add(packed.buffer)
        k, a_column = a.shape[1], a.strides[1] if a.shape[1] > 1 else 1
        start = text.new(f"getelementptr float, ptr {from_a}, i64 {a.offset}")
        at_a, at_b, at_c = (text.new(f"ptrtoint ptr {p} to i64") for p in (start, f"%P{packed.buffer}", to_c))
        numbers = [rows, node.shape[1], k, at_a, a_row, a_column, at_b, k * WIDTH, at_c, c_row, int(product.adds)]
        text.put(f"call void @nnshop_multiply({', '.join(f'i64 {n}' for n in numbers)})")


def _scalars_first(at: At) -> tuple:
    return (at.space != (1,), at.space)
