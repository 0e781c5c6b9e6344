"""Sums and other reductions over axes of a row, and what is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..nodes import View
from ..translate import Translation, translates


def _axes(t: Translation, f: Any) -> list[int]:
    axes = f.info.args["axes"]
    return [t.axis(f.inputs[0], a) for a in (range(f.inputs[0].ndim) if axes is None else axes)]


@translates("Sum")
def sum_(t: Translation, f: Any) -> View:
    return t.graph.reduce("sum", t.value(f.inputs[0]), _axes(t, f), f.info.args["keep_dims"])


@translates("Mean")
def mean(t: Translation, f: Any) -> View:
    x, axes = t.value(f.inputs[0]), _axes(t, f)
    total = t.graph.reduce("sum", x, axes, f.info.args["keep_dims"])
    return t.graph.apply("mul", total, 1 / np.prod([x.shape[a] for a in set(axes)], dtype=float))


@translates("Max", "Min")
def largest(t: Translation, f: Any) -> View | list[View]:
    """With an index it is that of the first one, counted over the axes that are reduced."""
    g, x, arguments, axes = t.graph, t.value(f.inputs[0]), f.info.args, _axes(t, f)
    value = g.reduce(f.info.type_name.lower(), x, axes, arguments["keep_dims"])
    if not (arguments["with_index"] or arguments["only_index"]):
        return value
    kept = [a for a in range(len(x.shape)) if a not in axes]
    moved = x.transpose([*kept, *sorted(set(axes))])
    spread = g.reshape(value, (*moved.shape[: len(kept)], *(1,) * (len(x.shape) - len(kept))))
    index = g.apply("stop", g.reshape(g.index_of(moved, spread, len(kept)), value.shape))
    return index if arguments["only_index"] else [value, index]


@translates("Norm")
def norm(t: Translation, f: Any) -> View:
    g, x, p = t.graph, t.value(f.inputs[0]), float(f.info.args["p"])
    if p == 2:
        return g.apply("sqrt", g.reduce("sum", g.apply("mul", x, x), _axes(t, f), f.info.args["keep_dims"]))
    if p == 1:
        return g.reduce("sum", g.apply("abs", x), _axes(t, f), f.info.args["keep_dims"])
    powers = g.reduce("sum", g.apply("pow", g.apply("abs", x), t.number(p)), _axes(t, f), f.info.args["keep_dims"])
    return g.apply("pow", powers, t.number(1 / p))


@translates("CumSum")
def cumsum(t: Translation, f: Any) -> View:
    """A sum over what a triangle of ones selects."""
    arguments, x = f.info.args, t.value(f.inputs[0])
    axis = t.axis(f.inputs[0], arguments["axis"])
    n = x.shape[axis]
    ones = np.tril(np.ones((n, n), np.float32), -1 if arguments["exclusive"] else 0)
    triangle = t.graph.array(ones.T if arguments["reverse"] else ones)
    rest = [a for a in range(len(x.shape)) if a != axis]
    moved = x.transpose([*rest, axis])
    spread = t.graph.reshape(moved, (*moved.shape[:-1], 1, n))
    total = t.graph.reduce("sum", t.graph.apply("mul", spread, triangle), [-1])
    return total.transpose([sorted([*rest]).index(a) if a != axis else len(rest) for a in range(len(x.shape))])


@translates("Softmax")
def softmax(t: Translation, f: Any) -> View:
    g, x = t.graph, t.value(f.inputs[0])
    axis = t.axis(f.inputs[0], f.info.args["axis"])
    e = g.apply("exp", g.apply("sub", x, g.reduce("max", x, [axis], keep=True)))
    y = g.keep(g.apply("mul", e, g.apply("div", 1.0, g.reduce("sum", e, [axis], keep=True))))

    def rule(d: View) -> list[tuple[View, View]]:
        d = g.reshape(d, y.shape)
        common = g.reduce("sum", g.apply("mul", d, y), [axis], keep=True)
        return [(x, g.apply("mul", y, g.apply("sub", d, common)))]

    g.rules[y.node] = rule
    return y


@translates("LogSoftmax")
def log_softmax(t: Translation, f: Any) -> View:
    g, x = t.graph, t.value(f.inputs[0])
    axis = t.axis(f.inputs[0], f.info.args["axis"])
    moved = g.apply("sub", x, g.reduce("max", x, [axis], keep=True))
    y = g.keep(g.apply("sub", moved, g.apply("log", g.reduce("sum", g.apply("exp", moved), [axis], keep=True))))

    def rule(d: View) -> list[tuple[View, View]]:
        d = g.reshape(d, y.shape)
        common = g.reduce("sum", d, [axis], keep=True)
        return [(x, g.apply("sub", d, g.apply("mul", g.apply("exp", y), common)))]

    g.rules[y.node] = rule
    return y
