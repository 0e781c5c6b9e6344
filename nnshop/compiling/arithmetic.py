"""What is computed number by number: the operations of NNabla's CPU functions on float32, as LLVM text.

`OPERATIONS` has a function for each one. It gets the text to write to, the type of the numbers ("float" or a vector), and what
the text calls the arguments; it returns what the text calls the result.

Truth values are 1 and 0. Every number but 0 is true, and so is NaN. A comparison with NaN is false, except "not_equal".

"maximum" and "minimum" take the second number where both are equal or one is NaN, as NNabla does, whose gradient goes to the
first number only where it is "greater" (or "less"). So NaN becomes 0 in `F.relu(x)`, which is maximum(x, 0), and the lower
limit in `F.clip_by_value`, which is minimum(maximum(x, low), high).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from . import transcendental
from .formulas import Number
from .text import Text

_Formula = Callable[..., Number]

_LIBRARY = "sin cos tan sinh cosh asin acos atan asinh acosh atanh atan2 erf log1p pow fmod"  # of C, called lane by lane
_LLVM = {"abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "round": "round", "trunc": "trunc"}
_TESTS = {"equal": "oeq", "not_equal": "une", "less": "olt", "less_equal": "ole", "greater": "ogt", "greater_equal": "oge"}


def sign(x: Number, at_zero: Number | float = 0) -> Number:
    """1, -1, or what is given for 0, which NNabla also gives for NaN."""
    return x.where("ogt", 0, 1, x.where("olt", 0, -1, at_zero))


def _library(name: str) -> _Formula:
    return lambda x, *others: x.each(f"{name}f", *others)


def _llvm(name: str) -> _Formula:
    return lambda x: x.call(name)


def _test(test: str) -> _Formula:
    return lambda a, b: a.test(test, b)


_FORMULAS: dict[str, _Formula] = {
    "copy": lambda x: x,
    "stop": lambda x: x,  # no gradient passes
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda x: -x,
    "rsqrt": lambda x: 1 / x.call("sqrt"),
    "maximum": lambda a, b: a.where("ogt", b, a, b),
    "minimum": lambda a, b: a.where("olt", b, a, b),
    "sign": sign,
    "straight_sign": sign,  # its gradient is that of the identity
    "greater_zero": lambda x: x.test("ogt", 0),
    "select": lambda condition, yes, no: condition.where("une", 0, yes, no),
    "logical_and": lambda a, b: a.of_truth("and", b),
    "logical_or": lambda a, b: a.of_truth("or", b),
    "logical_xor": lambda a, b: a.of_truth("xor", b),
    "logical_not": lambda x: x.test("oeq", 0),
    "isnan": lambda x: x.test("uno", x),
    "isinf": lambda x: abs(x).test("oeq", inf),
    "exp": transcendental.exp,
    "expm1": transcendental.expm1,
    "log": transcendental.log,
    "tanh": transcendental.tanh,
    "sigmoid": transcendental.sigmoid,
    "softplus": transcendental.softplus,
    "logsigmoid": transcendental.logsigmoid,
    **{name: _library(name) for name in _LIBRARY.split()},
    **{name: _llvm(function) for name, function in _LLVM.items()},
    **{name: _test(test) for name, test in _TESTS.items()},
}


def _on_names(formula: _Formula) -> Callable[..., str]:
    def operation(text: Text, kind: str, *arguments: str) -> str:
        return formula(*(Number(text, kind, a) for a in arguments)).name

    return operation


OPERATIONS: dict[str, Callable[..., str]] = {name: _on_names(formula) for name, formula in _FORMULAS.items()}
