"""The derivatives of what is computed number by number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .graph import Graph
from .nodes import View

Gradients = Sequence[Callable[[], View] | None]  # of each argument, made only where it is asked for


def _add(g: Graph, y: View, a: Sequence[View], d: View) -> Gradients:
    return [lambda: d, lambda: d]


def _sub(g: Graph, y: View, a: Sequence[View], d: View) -> Gradients:
    return [lambda: d, lambda: g.apply("neg", d)]


def _mul(g: Graph, y: View, a: Sequence[View], d: View) -> Gradients:
    return [lambda: g.apply("mul", d, a[1]), lambda: g.apply("mul", d, a[0])]


def _div(g: Graph, y: View, a: Sequence[View], d: View) -> Gradients:
    return [lambda: g.apply("div", d, a[1]), lambda: g.apply("neg", g.apply("mul", d, g.apply("div", y, a[1])))]


def _pow(g: Graph, y: View, a: Sequence[View], d: View) -> Gradients:
    base, exponent = a

    def of_base() -> View:
        return g.apply("mul", d, g.apply("mul", exponent, g.apply("pow", base, g.apply("sub", exponent, 1.0))))

    return [of_base, lambda: g.apply("mul", d, g.apply("mul", y, g.apply("log", base)))]


def _select(g: Graph, y: View, a: Sequence[View], d: View) -> Gradients:
    return [None, lambda: g.apply("select", a[0], d, 0.0), lambda: g.apply("select", a[0], 0.0, d)]


def _larger(test: str) -> Callable:
    """Of two numbers the gradient goes to the one that was taken; the second where they are equal, as in NNabla."""

    def rule(g: Graph, y: View, a: Sequence[View], d: View) -> Gradients:
        def first() -> View:
            return g.apply("select", g.apply(test, a[0], a[1]), d, 0.0)

        return [first, lambda: g.apply("select", g.apply(test, a[0], a[1]), 0.0, d)]

    return rule


def _atan2(g: Graph, y: View, a: Sequence[View], d: View) -> Gradients:
    square = g.apply("add", g.apply("mul", a[0], a[0]), g.apply("mul", a[1], a[1]))
    return [
        lambda: g.apply("div", g.apply("mul", d, a[1]), square),
        lambda: g.apply("neg", g.apply("div", g.apply("mul", d, a[0]), square)),
    ]


def _of_result(slope: Callable[[Graph, View], View]) -> Callable:
    """A function of one number whose derivative is simplest in its result."""
    return lambda g, y, a, d: [lambda: g.apply("mul", d, slope(g, y))]


def _of_argument(slope: Callable[[Graph, View], View]) -> Callable:
    return lambda g, y, a, d: [lambda: g.apply("mul", d, slope(g, a[0]))]


def _square(g: Graph, v: View) -> View:
    return g.apply("mul", v, v)


def _reciprocal_root(g: Graph, v: View) -> View:
    return g.apply("rsqrt", v)


def _straight(g: Graph, y: View, a: Sequence[View], d: View) -> Gradients:
    """NNabla passes the gradient of a function in steps as if it were the identity."""
    return [lambda: d]


DERIVATIVES: dict[str, Callable[[Graph, View, Sequence[View], View], Gradients]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "select": _select,
    "maximum": _larger("greater"),
    "minimum": _larger("less"),
    "atan2": _atan2,
    "copy": _straight,
    "floor": _straight,
    "ceil": _straight,
    "round": _straight,
    "trunc": _straight,
    "straight_sign": _straight,
    "neg": lambda g, y, a, d: [lambda: g.apply("neg", d)],
    "sigmoid": _of_result(lambda g, y: g.apply("sub", y, _square(g, y))),
    "tanh": _of_result(lambda g, y: g.apply("sub", 1.0, _square(g, y))),
    "exp": _of_result(lambda g, y: y),
    "expm1": _of_result(lambda g, y: g.apply("add", y, 1.0)),
    "sqrt": lambda g, y, a, d: [lambda: g.apply("div", g.apply("mul", d, 0.5), y)],
    "rsqrt": _of_result(lambda g, y: g.apply("mul", -0.5, g.apply("mul", y, _square(g, y)))),
    "log": lambda g, y, a, d: [lambda: g.apply("div", d, a[0])],
    "log1p": lambda g, y, a, d: [lambda: g.apply("div", d, g.apply("add", a[0], 1.0))],
    "abs": lambda g, y, a, d: [lambda: g.apply("select", g.apply("less", a[0], 0.0), g.apply("neg", d), d)],
    "softplus": _of_argument(lambda g, x: g.apply("sigmoid", x)),
    "logsigmoid": _of_argument(lambda g, x: g.apply("sigmoid", g.apply("neg", x))),
    "erf": _of_argument(lambda g, x: g.apply("mul", 1.1283791670955126, g.apply("exp", g.apply("neg", _square(g, x))))),
    "sin": _of_argument(lambda g, x: g.apply("cos", x)),
    "cos": _of_argument(lambda g, x: g.apply("neg", g.apply("sin", x))),
    "tan": _of_result(lambda g, y: g.apply("add", 1.0, _square(g, y))),
    "sinh": _of_argument(lambda g, x: g.apply("cosh", x)),
    "cosh": _of_argument(lambda g, x: g.apply("sinh", x)),
    "asin": _of_argument(lambda g, x: _reciprocal_root(g, g.apply("sub", 1.0, _square(g, x)))),
    "acos": _of_argument(lambda g, x: g.apply("neg", _reciprocal_root(g, g.apply("sub", 1.0, _square(g, x))))),
    "atan": lambda g, y, a, d: [lambda: g.apply("div", d, g.apply("add", 1.0, _square(g, a[0])))],
    "asinh": _of_argument(lambda g, x: _reciprocal_root(g, g.apply("add", _square(g, x), 1.0))),
    "acosh": _of_argument(lambda g, x: _reciprocal_root(g, g.apply("sub", _square(g, x), 1.0))),
    "atanh": lambda g, y, a, d: [lambda: g.apply("div", d, g.apply("sub", 1.0, _square(g, a[0])))],
}
