"""A text with what C has: functions, whole numbers, loops, addresses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .text import Text


class Round:
    """One round of a loop.

    `values` are what the last round left, and after the loop what the very last one left; `after` is what this round leaves.
    """

    def __init__(self, name: str, count: int) -> None:
        self.index = f"%{name}.i"
        self.values = [f"%{name}.v{n}" for n in range(count)]
        self.after = list(self.values)


class Writer(Text):
    """A text with whole numbers, addresses and loops."""

    def __init__(self) -> None:
        super().__init__()
        self.result = "void"

    def function(self, name: str, parameters: str, linkage: str = "internal") -> str:
        """The text of a function, such as `writer.function("f", "ptr %a, i64 %n")`."""
        end = "ret void" if self.result == "void" else f"ret {self.result} 1"
        return "\n".join([f"define {linkage} {self.result} @{name}({parameters}) {{", "begin:", *self.lines, f"  {end}", "}"])

    def require(self, condition: str) -> None:
        """Returns 0 where a truth value is not true; a function that requires something returns 1 at its end."""
        self.result, name = "i64", self.fresh("right")
        self.put(f"br i1 {condition}, label %{name}, label %{name}.not")
        self.label(f"{name}.not")
        self.put("ret i64 0")
        self.label(name)

    def whole(self, operation: str, a: str, b: str | int) -> str:
        """An i64: add, sub, mul, sdiv, srem ..."""
        return self.new(f"{operation} i64 {a}, {b}")

    def least(self, a: str, b: str | int) -> str:
        return self._choice("smin", a, b)

    def largest(self, a: str, b: str | int) -> str:
        return self._choice("smax", a, b)

    def _choice(self, name: str, a: str, b: str | int) -> str:
        self.declared.add(f"declare i64 @llvm.{name}.i64(i64, i64)")
        return self.new(f"call i64 @llvm.{name}.i64(i64 {a}, i64 {b})")

    def round_up(self, a: str, b: str | int) -> str:
        """`a / b`, rounded up; both are positive, or a is 0."""
        return self.whole("udiv", self.whole("add", a, self.whole("sub", str(b), 1)), b)

    def is_true(self, test: str, a: str, b: str | int) -> str:
        """Such as "slt" (signed, less than)."""
        return self.new(f"icmp {test} i64 {a}, {b}")

    def at(self, base: str, index: str | int, stride: str | int = 1) -> str:
        """The address of a float32, so many strides behind another."""
        offset = index if stride == 1 else self.whole("mul", str(index), stride)
        return self.new(f"getelementptr float, ptr {base}, i64 {offset}")

    def load(self, kind: str, address: str) -> str:
        return self.new(f"load {kind}, ptr {address}, align 4")

    def store(self, kind: str, value: str, address: str) -> None:
        self.put(f"store {kind} {value}, ptr {address}, align 4")

    def prefetch(self, address: str, write: bool = False) -> None:
        """Asks for the cache line, which need not exist."""
        self.declared.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.put(f"call void @llvm.prefetch.p0(ptr {address}, i32 {int(write)}, i32 3, i32 1)")

    @contextmanager
    def where(self, condition: str) -> Iterator[None]:
        """Does something only where a truth value is true."""
        name = self.fresh("if")
        self.put(f"br i1 {condition}, label %{name}, label %{name}.end")
        self.label(name)
        yield
        self.put(f"br label %{name}.end")
        self.label(f"{name}.end")

    @contextmanager
    def loop(
        self, stop: str | int, step: str | int = 1, start: str = "0", kind: str = "", values: Sequence[str] = ()
    ) -> Iterator[Round]:
        """Runs over `range(start, stop, step)`, with values of a type that each round hands on to the next."""
        name = self.fresh("loop")
        this = Round(name, len(values))
        self.put(f"br label %{name}.before")
        self.label(f"{name}.before")
        self.put(f"br label %{name}")
        self.label(name)
        head = len(self.lines)
        self.put(f"br i1 {self.is_true('slt', this.index, stop)}, label %{name}.body, label %{name}.end")
        self.label(f"{name}.body")
        yield this
        self.put(f"br label %{name}.next")
        self.label(f"{name}.next")
        following = self.whole("add nsw", this.index, step)
        self.put(f"br label %{name}")
        self.label(f"{name}.end")
        rows = [("i64", this.index, start, following), *((kind, *row) for row in zip(this.values, values, this.after))]
        self.lines[head:head] = [
            f"  {v} = phi {of} [{first}, %{name}.before], [{then}, %{name}.next]" for of, v, first, then in rows
        ]
