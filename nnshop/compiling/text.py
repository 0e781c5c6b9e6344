"""Writes LLVM's language: the lines of one function, with vectors written down as such."""

from __future__ import annotations

import struct
from collections.abc import Iterable

# No "nnan" and "ninf": they would let LLVM assume that no NaN or infinity occurs. No "reassoc": what is written is computed.
FLAGS = "contract nsz"


class Text:
    """The lines of a function, and fresh names in it.

    A type is "float", or a vector of them such as "<16 x float>" (see `vector`); its whole numbers and its truth values have
    the types `whole(type)` and `truth(type)`.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.declared: set[str] = set()  # lines that declare the functions that are called
        self._count = 0

    def put(self, code: str) -> None:
        """Writes a line."""
        self.lines.append("  " + code)

    def new(self, code: str) -> str:
        """Writes a line that has a value, and returns the name of the value."""
        name = f"%v{self._next()}"
        self.put(f"{name} = {code}")
        return name

    def label(self, name: str) -> None:
        """Begins a block."""
        self.lines.append(f"{name}:")

    def fresh(self, stem: str) -> str:
        """A name for blocks that nothing has yet."""
        return f"{stem}{self._next()}"

    def _next(self) -> int:
        self._count += 1
        return self._count

    # Arithmetic

    def constant(self, kind: str, number: float) -> str:
        return _in_all_lanes(kind, "float", hexadecimal(number))

    def whole_constant(self, kind: str, number: int) -> str:
        """An i32 constant of as many lanes as the type `kind` has."""
        return _in_all_lanes(kind, "i32", str(number))

    def splat(self, kind: str, number: str) -> str:
        """A vector that holds a float in all lanes; the number itself where the type is "float"."""
        if kind == "float":
            return number
        first = self.new(f"insertelement {kind} poison, float {number}, i32 0")
        return self.new(f"shufflevector {kind} {first}, {kind} poison, <{lanes(kind)} x i32> zeroinitializer")

    def operate(self, operation: str, kind: str, a: str, b: str) -> str:
        """fadd, fsub, fmul, fdiv or frem."""
        return self.new(f"{operation} {FLAGS} {kind} {a}, {b}")

    def call(self, name: str, kind: str, *arguments: str) -> str:
        """Calls one of LLVM's functions on numbers of one type, such as "sqrt"."""
        function = f"@llvm.{name}.{suffix(kind)}"
        self.declared.add(f"declare {kind} {function}({', '.join([kind] * len(arguments))})")
        return self.new(f"call {kind} {function}({', '.join(f'{kind} {a}' for a in arguments)})")

    def fma(self, kind: str, a: str, b: str, c: str) -> str:
        """a b + c: rounded once where the processor can do that, else twice (LLVM's "fma" would call the C library then)."""
        return self.call("fmuladd", kind, a, b, c)

    def each(self, function: str, kind: str, *arguments: str) -> str:
        """Calls a function of the C library, such as "tanf", on each lane."""
        if kind == "float":
            self.declared.add(f"declare float @{function}({', '.join(['float'] * len(arguments))})")
            return self.new(f"call float @{function}({', '.join(f'float {a}' for a in arguments)})")
        made = "poison"
        for lane in range(lanes(kind)):
            numbers = [self.new(f"extractelement {kind} {a}, i32 {lane}") for a in arguments]
            made = self.new(f"insertelement {kind} {made}, float {self.each(function, 'float', *numbers)}, i32 {lane}")
        return made

    def compare(self, test: str, kind: str, a: str, b: str) -> str:
        """The truth value of a test such as "olt" (ordered, less than) or "une" (unordered or not equal)."""
        return self.new(f"fcmp {test} {kind} {a}, {b}")

    def choose(self, kind: str, condition: str, yes: str, no: str) -> str:
        return self.new(f"select {truth(kind)} {condition}, {kind} {yes}, {kind} {no}")


def vector(count: int) -> str:
    """The type of so many numbers; of one it is "float"."""
    return "float" if count == 1 else f"<{count} x float>"


def lanes(kind: str) -> int:
    return 1 if kind == "float" else int(kind[1:].split(" ")[0])


def whole(kind: str) -> str:
    return kind.replace("float", "i32")


def truth(kind: str) -> str:
    return kind.replace("float", "i1")


def suffix(kind: str) -> str:
    """How LLVM's functions of this type end."""
    return "f32" if kind == "float" else f"v{lanes(kind)}f32"


def hexadecimal(number: float) -> str:
    """A float32 as LLVM's language writes it, with all its bits."""
    (single,) = struct.unpack("f", struct.pack("f", number))
    return "0x" + struct.pack(">d", single).hex().upper()


def _in_all_lanes(kind: str, of: str, number: str) -> str:
    return number if kind == "float" else "<" + ", ".join([f"{of} {number}"] * lanes(kind)) + ">"


def module(functions: Iterable[str], declared: Iterable[str]) -> str:
    """The text of a module."""
    return "\n".join([*sorted(set(declared)), *functions, ""])
