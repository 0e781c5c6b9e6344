"""Functions that move numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..nodes import Unsupported, View
from ..translate import Mixes, Translation, translates


@translates("Reshape")
def reshape(t: Translation, f: Any) -> View:
    return t.graph.reshape(t.value(f.inputs[0]), t.shape(f.outputs[0]))


@translates("Transpose")
def transpose(t: Translation, f: Any) -> View:
    axes = [a % f.inputs[0].ndim for a in f.info.args["axes"]]
    if t.batch is not None and axes[0] != 0:
        raise Mixes("Transpose moves the axis of the batch")
    return t.value(f.inputs[0]).transpose(axes)


@translates("Broadcast")
def broadcast(t: Translation, f: Any) -> View:
    return t.value(f.inputs[0]).broadcast(t.shape(f.outputs[0]))


@translates("BroadcastTo")
def broadcast_to(t: Translation, f: Any) -> View:
    """Repeats its second input in the shape of the first one, from an axis on."""
    (to, v), axis = f.inputs, f.info.args["axis"]
    axis = to.ndim - v.ndim if axis < 0 else axis
    if t.batch is not None and axis > 0 and not t.is_outside(v):
        raise Mixes("BroadcastTo moves the axis of the batch")
    value = t.whole(v) if t.batch is not None and axis > 0 else t.value(v)
    return t.graph.reshape(value, (*value.shape, *(1,) * (to.ndim - axis - v.ndim))).broadcast(t.shape(f.outputs[0]))


@translates("Tile")
def tile(t: Translation, f: Any) -> View:
    """Repeats x: each axis becomes two, the outer of which is the repetition."""
    x, shape = t.value(f.inputs[0]), t.shape(f.outputs[0])
    own = (1,) * (len(shape) - len(x.shape)) + x.shape
    if t.batch is not None and shape[0] != own[0]:
        raise Mixes("Tile repeats the axis of the batch")
    x = t.graph.reshape(x, [n for size in own for n in (1, size)])
    return t.graph.reshape(x.broadcast([n for size, m in zip(own, shape) for n in (m // size, size)]), shape)


@translates("Slice")
def slice_(t: Translation, f: Any) -> View:
    given, made, arguments = f.inputs[0].shape, f.outputs[0].shape, f.info.args
    starts, steps = [], []
    for axis, (n, m) in enumerate(zip(given, made)):
        start, step = (arguments[name][axis] for name in ("start", "step"))
        starts.append(start + n if start < 0 else min(start, n - 1))
        steps.append(step)
        if axis == 0 and t.batch is not None and (m != n or step != 1):
            raise Mixes("Slice takes a part of the batch")
    if t.batch is not None:
        starts[0] = 0
    return t.value(f.inputs[0]).slice(starts, steps, t.shape(f.outputs[0]))


@translates("Split")
def split(t: Translation, f: Any) -> list[View]:
    x, axis = t.value(f.inputs[0]), t.axis(f.inputs[0], f.info.args["axis"])
    return [_without_axis(x.take(axis, i, 1), axis) for i in range(x.shape[axis])]


def _without_axis(x: View, axis: int) -> View:
    return x._replace(shape=x.shape[:axis] + x.shape[axis + 1 :], strides=x.strides[:axis] + x.strides[axis + 1 :])


@translates("Concatenate")
def concatenate(t: Translation, f: Any) -> View:
    return t.graph.concatenate(t.inputs(f), t.axis(f.outputs[0], f.info.args["axis"]))


@translates("Stack")
def stack(t: Translation, f: Any) -> View:
    axis = t.axis(f.outputs[0], f.info.args["axis"])
    parts = [t.graph.reshape(v, (*v.shape[:axis], 1, *v.shape[axis:])) for v in t.inputs(f)]
    return t.graph.concatenate(parts, axis)


@translates("Flip")
def flip(t: Translation, f: Any) -> View:
    x = t.value(f.inputs[0])
    axes = {t.axis(f.inputs[0], a) for a in f.info.args["axes"]}
    starts = [n - 1 if a in axes else 0 for a, n in enumerate(x.shape)]
    return x.slice(starts, [-1 if a in axes else 1 for a in range(len(x.shape))], x.shape)


@translates("Pad")
def pad(t: Translation, f: Any) -> View:
    arguments, x = f.info.args, t.value(f.inputs[0])
    widths = list(arguments["pad_width"])
    widths = [0] * (2 * len(x.shape) - len(widths)) + widths
    before, after = widths[::2], widths[1::2]
    if arguments["mode"] != "constant":
        raise Unsupported(f"Pad in mode {arguments['mode']!r} is not translated")
    if t.batch is not None and (before[0] or after[0]):
        raise Mixes("Pad makes the batch larger")
    for axis, (b, a) in enumerate(zip(before, after)):
        sides = [t.graph.array(arguments["constant_value"]).broadcast(_with(x.shape, axis, n)) for n in (b, a)]
        parts = [v for v in (sides[0], x, sides[1]) if v.size]
        x = t.graph.concatenate(parts, axis)
    return x


def _with(shape: tuple[int, ...], axis: int, n: int) -> tuple[int, ...]:
    return (*shape[:axis], n, *shape[axis + 1 :])


@translates("MatrixDiag")
def matrix_diag(t: Translation, f: Any) -> View:
    x = t.value(f.inputs[0])
    n = _last(t, f)
    wide = t.graph.reshape(x, (*x.shape, 1)).broadcast((*x.shape, n))
    return t.graph.apply("select", t.graph.array(np.eye(n)), wide, 0.0)


@translates("MatrixDiagPart")
def matrix_diag_part(t: Translation, f: Any) -> View:
    x = t.value(f.inputs[0])
    _last(t, f)
    t.axis(f.inputs[0], -2)
    return x._replace(shape=x.shape[:-1], strides=(*x.strides[:-2], x.strides[-2] + x.strides[-1]))


@translates("Trilu")
def trilu(t: Translation, f: Any) -> View:
    """What is above a diagonal, or below it."""
    x, arguments = t.value(f.inputs[0]), f.info.args
    _last(t, f)
    t.axis(f.inputs[0], -2)
    part = (np.triu if arguments["upper"] else np.tril)(np.ones(x.shape[-2:]), arguments["k"])
    return t.graph.apply("select", t.graph.array(part), x, 0.0)


def _last(t: Translation, f: Any) -> int:
    """The size of the last axis, which must belong to the row."""
    return f.inputs[0].shape[t.axis(f.inputs[0], -1)]
