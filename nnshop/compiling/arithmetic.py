from __future__ import annotations

from ..kernels.activations import _LIMIT, _P, _Q


def b(op):
    return lambda t, k, x, y: t.operate(op, k, x, y)


def c(test):
    return lambda t, k, x, y: t.choose(k, t.compare(test, k, x, y), t.constant(k, 1), t.constant(k, 0))


def un(name):
    return lambda t, k, x: t.call(name, k, x)


def tanh(t, ty, x):
    k = lambda v: t.constant(ty, v)
    x = t.choose(ty, t.compare("ogt", ty, x, k(_LIMIT)), k(_LIMIT), x)
    x = t.choose(ty, t.compare("olt", ty, x, k(-_LIMIT)), k(-_LIMIT), x)
    s = t.operate("fmul", ty, x, x)
    r = []
    for co in (_P, _Q):
        p = k(co[0])
        for v in co[1:]:
            p = t.call("fma", ty, p, s, k(v))
        r.append(p)
    return t.operate("fdiv", ty, t.operate("fmul", ty, x, r[0]), r[1])


def sigmoid(t, ty, x):
    return t.call(
        "fma", ty, t.constant(ty, 0.5), tanh(t, ty, t.operate("fmul", ty, t.constant(ty, 0.5), x)), t.constant(ty, 0.5)
    )


def cmp1(f):
    return f


OPERATIONS = {
    "add": b("fadd"),
    "sub": b("fsub"),
    "mul": b("fmul"),
    "div": b("fdiv"),
    "neg": lambda t, k, x: t.new(f"fneg {k} {x}"),
    "abs": un("fabs"),
    "sqrt": un("sqrt"),
    "rsqrt": lambda t, k, x: t.operate("fdiv", k, t.constant(k, 1), t.call("sqrt", k, x)),
    "exp": un("exp"),
    "log": un("log"),
    "sin": un("sin"),
    "cos": un("cos"),
    "tanh": tanh,
    "sigmoid": sigmoid,
    "floor": un("floor"),
    "ceil": un("ceil"),
    "round": un("round"),
    "copy": lambda t, k, x: x,
    "stop": lambda t, k, x: x,
    "pow": lambda t, k, x, y: t.call("pow", k, x, y),
    "maximum": lambda t, k, x, y: t.choose(k, t.compare("ogt", k, x, y), x, y),
    "minimum": lambda t, k, x, y: t.choose(k, t.compare("olt", k, x, y), x, y),
    "select": lambda t, k, x, y, z: t.choose(k, t.compare("une", k, x, t.constant(k, 0)), y, z),
    "greater": c("ogt"),
    "less": c("olt"),
    "greater_equal": c("oge"),
    "less_equal": c("ole"),
    "equal": c("oeq"),
    "not_equal": c("une"),
    "softplus": lambda t, k, x: t.call("log", k, t.operate("fadd", k, t.constant(k, 1), t.call("exp", k, x))),
    "expm1": lambda t, k, x: t.operate("fsub", k, t.call("exp", k, x), t.constant(k, 1)),
    "straight_sign": lambda t, k, x, a: t.choose(
        k,
        t.compare("ogt", k, x, t.constant(k, 0)),
        t.constant(k, 1),
        t.choose(k, t.compare("olt", k, x, t.constant(k, 0)), t.constant(k, -1), a),
    ),
}
