"""Sums and other reductions over axes of a row, and what is made of them."""

from __future__ import annotations

from math import prod
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


@translates("Prod")
def prod_(t: Translation, f: Any) -> View:
    """Halves the numbers until one is left."""
    g, x, axes = t.graph, t.value(f.inputs[0]), sorted(set(_axes(t, f)))
    kept = [a for a in range(len(x.shape)) if a not in axes]
    moved = x.transpose([*kept, *axes])
    x = g.reshape(moved, (*moved.shape[: len(kept)], prod(moved.shape[len(kept) :])))
    axis = len(kept)
    while x.shape[axis] > 1:
        half, odd = divmod(x.shape[axis], 2)
        y = g.apply("mul", x.take(axis, 0, half), x.take(axis, half, half))
        x = g.concatenate([y, x.take(axis, 2 * half, 1)], axis) if odd else y
    return g.reshape(x, t.shape(f.outputs[0]))


@translates("CumProd")
def cumprod(t: Translation, f: Any) -> View:
    """Multiplies by what lies 1, 2, 4, ... before."""
    g, arguments, x = t.graph, f.info.args, t.value(f.inputs[0])
    axis, shape = t.axis(f.inputs[0], arguments["axis"]), x.shape
    n, shift = shape[axis], 1

    def turned(v: View) -> View:
        at = [(n - 1, -1) if a == axis and arguments["reverse"] else (0, 1) for a in range(len(shape))]
        return v.slice([start for start, _ in at], [step for _, step in at], shape)

    x = turned(x)
    while shift < n:
        later = g.apply("mul", x.take(axis, shift, n - shift), x.take(axis, 0, n - shift))
        x = g.concatenate([x.take(axis, 0, shift), later], axis)
        shift *= 2
    if arguments["exclusive"]:
        one = g.constant(1.0).broadcast((*shape[:axis], 1, *shape[axis + 1 :]))
        x = g.concatenate([one, x.take(axis, 0, n - 1)], axis) if n > 1 else one
    return turned(x)


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
