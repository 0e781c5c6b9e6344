"""Functions that work number by number."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from ..graph import Graph
from ..nodes import Unsupported, View
from ..translate import TRANSLATIONS, Translation, translates

_SAME = {
    "Sub2": "sub", "Mul2": "mul", "Div2": "div", "Pow2": "pow", "Maximum2": "maximum", "Minimum2": "minimum",
    "ATan2": "atan2", "Abs": "abs", "Exp": "exp", "Log": "log", "Sigmoid": "sigmoid", "Tanh": "tanh", "Sin": "sin",
    "Cos": "cos", "Tan": "tan", "Sinh": "sinh", "Cosh": "cosh", "ASin": "asin", "ACos": "acos", "ATan": "atan",
    "ASinh": "asinh", "ACosh": "acosh", "ATanh": "atanh", "Erf": "erf", "Floor": "floor", "Ceil": "ceil", "Round": "round",
    "LogSigmoid": "logsigmoid", "Equal": "equal", "NotEqual": "not_equal", "Less": "less", "LessEqual": "less_equal",
    "Greater": "greater", "GreaterEqual": "greater_equal", "LogicalAnd": "logical_and", "LogicalOr": "logical_or",
    "LogicalXor": "logical_xor", "LogicalNot": "logical_not", "IsNaN": "isnan", "IsInf": "isinf",
}  # fmt: skip
_WITH_SCALAR = {
    "AddScalar": "add", "MulScalar": "mul", "MaximumScalar": "maximum", "MinimumScalar": "minimum", "EqualScalar": "equal",
    "NotEqualScalar": "not_equal", "LessScalar": "less", "LessEqualScalar": "less_equal", "GreaterScalar": "greater",
    "GreaterEqualScalar": "greater_equal", "LogicalAndScalar": "logical_and", "LogicalOrScalar": "logical_or",
    "LogicalXorScalar": "logical_xor",
}  # fmt: skip
_SCALAR_FIRST = {"RSubScalar": "sub", "RDivScalar": "div", "RPowScalar": "pow"}


def _same(op: str) -> Callable[[Translation, Any], View]:
    return lambda t, f: t.graph.apply(op, *t.inputs(f))


def _with_scalar(op: str) -> Callable[[Translation, Any], View]:
    return lambda t, f: t.graph.apply(op, t.value(f.inputs[0]), t.number(float(f.info.args["val"])))


def _scalar_first(op: str) -> Callable[[Translation, Any], View]:
    return lambda t, f: t.graph.apply(op, t.number(float(f.info.args["val"])), t.value(f.inputs[0]))


TRANSLATIONS.update({name: _same(op) for name, op in _SAME.items()})
TRANSLATIONS.update({name: _with_scalar(op) for name, op in _WITH_SCALAR.items()})
TRANSLATIONS.update({name: _scalar_first(op) for name, op in _SCALAR_FIRST.items()})


@translates("Add2", "BcAdd2")
def add2(t: Translation, f: Any) -> View:
    return t.add(*f.inputs)


@translates("AddN")
def add_n(t: Translation, f: Any) -> View:
    return reduce(lambda a, b: t.graph.apply("add", a, b), t.inputs(f))


@translates("MulN")
def mul_n(t: Translation, f: Any) -> View:
    return reduce(lambda a, b: t.graph.apply("mul", a, b), t.inputs(f))


@translates("Identity", "nnshop.CheckedIds")
def identity(t: Translation, f: Any) -> View:
    return t.value(f.inputs[0])


@translates("Unlink")
def unlink(t: Translation, f: Any) -> View:
    return t.graph.apply("stop", t.value(f.inputs[0]))


@translates("ResetNaN", "ResetInf")
def reset(t: Translation, f: Any) -> View:
    x = t.value(f.inputs[0])
    bad = t.graph.apply(f.info.type_name.replace("Reset", "Is").lower(), x)
    return t.graph.apply("select", bad, t.number(f.info.args["val"]), x)


@translates("PowScalar")
def pow_scalar(t: Translation, f: Any) -> View:
    x, exponent = t.value(f.inputs[0]), float(f.info.args["val"])
    simple: dict[float, Callable[[], View]] = {
        1: lambda: x,
        2: lambda: t.graph.apply("mul", x, x),
        0.5: lambda: t.graph.apply("sqrt", x),
        -0.5: lambda: t.graph.apply("rsqrt", x),
        -1: lambda: t.graph.apply("div", 1.0, x),
    }
    return simple[exponent]() if exponent in simple else t.graph.apply("pow", x, t.number(exponent))


@translates("Where")
def where(t: Translation, f: Any) -> View:
    condition, yes, no = t.inputs(f)
    missing = len(yes.shape) - len(condition.shape)
    if missing:  # NNabla's condition may lack the last axes
        condition = t.graph.reshape(condition, condition.shape + (1,) * missing)
    return t.graph.apply("select", condition, yes, no)


@translates("ReLU")
def relu(t: Translation, f: Any) -> View:
    return _relu(t.graph, t.value(f.inputs[0]))


def _relu(g: Graph, x: View) -> View:
    return g.apply("select", g.apply("greater", x, 0.0), x, 0.0)


def _if_positive(g: Graph, x: View, yes: View | float, no: View | float) -> View:
    return g.apply("select", g.apply("greater", x, 0.0), yes, no)


@translates("LeakyReLU")
def leaky_relu(t: Translation, f: Any) -> View:
    x = t.value(f.inputs[0])
    return _if_positive(t.graph, x, x, t.graph.apply("mul", x, t.number(f.info.args["alpha"])))


@translates("ReLU6")
def relu6(t: Translation, f: Any) -> View:
    return _clipped(t.graph, t.value(f.inputs[0]), 0.0, 6.0)


def _clipped(g: Graph, x: View, low: float, high: float, ends: str = "_equal") -> View:
    """x within bounds; NaN stays. No gradient goes through where x is at a bound, but with `ends=""`."""
    above = g.apply("select", g.apply(f"less{ends}", x, low), low, x)
    return g.apply("select", g.apply(f"greater{ends}", x, high), high, above)


@translates("PReLU")
def prelu(t: Translation, f: Any) -> View:
    x, slope = t.value(f.inputs[0]), t.whole(f.inputs[1])
    axis = t.axis(f.inputs[0], f.info.args["base_axis"])
    shape = tuple(n if a == axis and slope.size > 1 else 1 for a, n in enumerate(x.shape))
    return _if_positive(t.graph, x, x, t.graph.apply("mul", x, t.graph.reshape(slope, shape)))


def _expm1_times(t: Translation, x: View, alpha: View | float) -> View:
    return t.graph.apply("mul", alpha, t.graph.apply("expm1", t.graph.apply("minimum", 0.0, x)))  # in this order NaN stays


@translates("ELU")
def elu(t: Translation, f: Any) -> View:
    x = t.value(f.inputs[0])
    return _if_positive(t.graph, x, x, _expm1_times(t, x, t.number(f.info.args["alpha"])))


@translates("SELU")
def selu(t: Translation, f: Any) -> View:
    x, scale = t.value(f.inputs[0]), t.number(f.info.args["scale"])
    return t.graph.apply("mul", scale, _if_positive(t.graph, x, x, _expm1_times(t, x, t.number(f.info.args["alpha"]))))


@translates("HardSigmoid")
def hard_sigmoid(t: Translation, f: Any) -> View:
    g = t.graph
    line = g.apply("add", g.apply("mul", t.value(f.inputs[0]), t.number(0.2)), 0.5)
    return _clipped(g, line, 0.0, 1.0)


@translates("HardTanh")
def hard_tanh(t: Translation, f: Any) -> View:
    return _clipped(t.graph, t.value(f.inputs[0]), -1.0, 1.0, ends="")


@translates("Swish")
def swish(t: Translation, f: Any) -> View:
    x = t.value(f.inputs[0])
    return t.graph.apply("mul", x, t.graph.apply("sigmoid", x))


@translates("Mish")
def mish(t: Translation, f: Any) -> View:
    x = t.value(f.inputs[0])
    return t.graph.apply("mul", x, t.graph.apply("tanh", t.graph.apply("softplus", x)))


@translates("GELU")
def gelu(t: Translation, f: Any) -> View:
    """The approximation by a tanh, as in NNabla."""
    g, x = t.graph, t.value(f.inputs[0])
    cube = g.apply("mul", x, g.apply("mul", x, x))
    inner = g.apply("mul", t.number(0.7978845608028654), g.apply("add", x, g.apply("mul", t.number(0.044715), cube)))
    return g.apply("mul", g.apply("mul", 0.5, x), g.apply("add", 1.0, g.apply("tanh", inner)))


@translates("SoftPlus")
def softplus(t: Translation, f: Any) -> View:
    x, beta = t.value(f.inputs[0]), float(f.info.args["beta"])
    if beta == 1:
        return t.graph.apply("softplus", x)
    return t.graph.apply("div", t.graph.apply("softplus", t.graph.apply("mul", x, t.number(beta))), t.number(beta))


@translates("SoftSign")
def softsign(t: Translation, f: Any) -> View:
    x = t.value(f.inputs[0])
    return t.graph.apply("div", x, t.graph.apply("add", 1.0, t.graph.apply("abs", x)))


@translates("TanhShrink")
def tanh_shrink(t: Translation, f: Any) -> View:
    x = t.value(f.inputs[0])
    return t.graph.apply("sub", x, t.graph.apply("tanh", x))


@translates("Sinc")
def sinc(t: Translation, f: Any) -> View:
    g, x = t.graph, t.value(f.inputs[0])
    zero = g.apply("equal", x, 0.0)
    safe = g.apply("select", zero, 1.0, x)
    return g.apply("select", zero, 1.0, g.apply("div", g.apply("sin", safe), safe))


@translates("Sign")
def sign(t: Translation, f: Any) -> View:
    """-1, alpha at 0, or 1; NNabla passes its gradient as if it were the identity."""
    g, x = t.graph, t.value(f.inputs[0])
    return g.apply("straight_sign", x, t.number(float(f.info.args["alpha"])))


@translates("CReLU", "CELU")
def doubled(t: Translation, f: Any) -> View:
    """Both signs of x, side by side, each through a rectifier."""
    g, x, arguments = t.graph, t.value(f.inputs[0]), f.info.args
    both = [x, g.apply("neg", x)]
    if f.info.type_name == "CReLU":
        parts = [_relu(g, v) for v in both]
    else:
        parts = [_if_positive(g, v, v, _expm1_times(t, v, t.number(arguments["alpha"]))) for v in both]
    return g.concatenate(parts, t.axis(f.inputs[0], arguments["axis"]))


@translates("Dropout")
def dropout(t: Translation, f: Any) -> View:
    raise Unsupported("Dropout outside of a step graph, which replaces it by a mask")


@translates("BinaryTanh", "BinarySigmoid")
def binary(t: Translation, f: Any) -> View:
    """1, or -1 or 0; NNabla passes the gradient as if it were a line from -1 to 1."""
    g, x = t.graph, t.value(f.inputs[0])
    low, slope = (-1.0, 1.0) if f.info.type_name == "BinaryTanh" else (0.0, 0.5)
    line = g.apply("mul", _clipped(g, x, -1.0, 1.0), slope)
    return g.apply("add", _if_positive(g, x, 1.0, low), g.apply("sub", line, g.apply("stop", line)))


@translates("ClipGradByValue")
def clip_gradient(t: Translation, f: Any) -> View:
    """The same; its gradient is kept between two bounds."""
    g = t.graph
    x, low, high = t.inputs(f)
    y = g.keep(x)
    g.rules[y.node] = lambda d: [(x, g.apply("minimum", g.apply("maximum", g.reshape(d, x.shape), low), high))]
    return y
