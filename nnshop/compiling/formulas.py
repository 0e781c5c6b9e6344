"""Formulas as Python writes them, which write LLVM's language: `1 - y * y` is two lines of text."""

from __future__ import annotations

from dataclasses import dataclass

from .text import Text, truth, whole


@dataclass(frozen=True)
class Number:
    """A number, or a vector of them, in the text of a function.

    Attributes:
        text: Where operations are written to.
        kind: "float" or a vector's type.
        name: What the text calls it.
    """

    text: Text
    kind: str
    name: str

    def _new(self, name: str) -> Number:
        return Number(self.text, self.kind, name)

    def _name(self, other: Number | float) -> str:
        return other.name if isinstance(other, Number) else self.text.constant(self.kind, other)

    def like(self, other: Number | float) -> Number:
        """A constant of the same type; what is a Number already stays."""
        return self._new(self._name(other))

    def _operate(self, operation: str, other: Number | float) -> Number:
        return self._new(self.text.operate(operation, self.kind, self.name, self._name(other)))

    def __add__(self, other: Number | float) -> Number:
        return self._operate("fadd", other)

    def __sub__(self, other: Number | float) -> Number:
        return self._operate("fsub", other)

    def __rsub__(self, other: float) -> Number:
        return self.like(other) - self

    def __mul__(self, other: Number | float) -> Number:
        return self._operate("fmul", other)

    def __truediv__(self, other: Number | float) -> Number:
        """Without flags, as the sign of a zero decides between infinities."""
        return self._new(self.text.new(f"fdiv {self.kind} {self.name}, {self._name(other)}"))

    def __rtruediv__(self, other: float) -> Number:
        return self.like(other) / self

    def __neg__(self) -> Number:
        return self._new(self.text.new(f"fneg {self.kind} {self.name}"))

    def __abs__(self) -> Number:
        return self.call("fabs")

    def fma(self, factor: Number | float, term: Number | float) -> Number:
        """This times a factor, plus a term."""
        return self._new(self.text.fma(self.kind, self.name, self._name(factor), self._name(term)))

    def call(self, name: str, *others: Number | float) -> Number:
        """One of LLVM's functions, such as "sqrt"."""
        return self._new(self.text.call(name, self.kind, self.name, *(self._name(v) for v in others)))

    def each(self, function: str, *others: Number | float) -> Number:
        """A function of the C library, such as "tanf", lane by lane."""
        return self._new(self.text.each(function, self.kind, self.name, *(self._name(v) for v in others)))

    def where(self, test: str, other: Number | float, yes: Number | float, no: Number | float) -> Number:
        """One of two numbers, by a test such as "olt" of this and another one."""
        condition = self.text.compare(test, self.kind, self.name, self._name(other))
        return self._new(self.text.choose(self.kind, condition, self._name(yes), self._name(no)))

    def test(self, test: str, other: Number | float) -> Number:
        """1 where a test holds, else 0."""
        return self.where(test, other, 1, 0)

    def at_most(self, limit: float) -> Number:
        """The smaller one of this and a limit; NaN stays."""
        return self.where("ogt", limit, limit, self)

    def at_least(self, limit: float) -> Number:
        """The larger one of this and a limit; NaN stays."""
        return self.where("olt", limit, limit, self)

    def bits(self) -> Bits:
        return Bits(self, self.text.new(f"bitcast {self.kind} {self.name} to {whole(self.kind)}"))

    def truth(self) -> str:
        """The truth value, which is true where this is not 0, so that NaN is true."""
        return self.text.compare("une", self.kind, self.name, self._name(0))

    def of_truth(self, operation: str, other: Number) -> Number:
        """ "and", "or" or "xor" of this and another number as truth values."""
        both = self.text.new(f"{operation} {truth(self.kind)} {self.truth()}, {other.truth()}")
        return self._new(self.text.choose(self.kind, both, self._name(1), self._name(0)))


@dataclass(frozen=True)
class Bits:
    """The whole numbers, of 32 bits, that stand for the numbers of a vector."""

    of: Number
    name: str

    def _operate(self, operation: str, other: Bits | int) -> Bits:
        text, kind = self.of.text, self.of.kind
        name = other.name if isinstance(other, Bits) else text.whole_constant(kind, other)
        return Bits(self.of, text.new(f"{operation} {whole(kind)} {self.name}, {name}"))

    def __sub__(self, other: Bits | int) -> Bits:
        return self._operate("sub", other)

    def __rsub__(self, other: int) -> Bits:
        return Bits(self.of, self.of.text.whole_constant(self.of.kind, other)) - self

    def __lshift__(self, places: int) -> Bits:
        return self._operate("shl", places)

    def __rshift__(self, places: int) -> Bits:
        """Keeps the sign."""
        return self._operate("ashr", places)

    def number(self) -> Number:
        """The numbers that have these bits."""
        return self._cast("bitcast")

    def value(self) -> Number:
        """The whole numbers as numbers."""
        return self._cast("sitofp")

    def _cast(self, operation: str) -> Number:
        text, kind = self.of.text, self.of.kind
        return Number(text, kind, text.new(f"{operation} {whole(kind)} {self.name} to {kind}"))
