"""Products: by weights that all rows share, of matrices that belong to a row, and what picks rows of a table."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..graph import Graph
from ..nodes import Unsupported, View, Weight, aligned, all_of
from ..translate import Mixes, Translation, translates


@translates("Affine")
def affine(t: Translation, f: Any) -> View:
    x, w, *bias = f.inputs
    base = f.info.args["base_axis"] % max(x.ndim, 1)
    value, g = t.value(x), t.graph
    if base == 0:
        t.axis(x, 0)
    k, n = prod(x.shape[base:]), prod(w.shape[1:])
    rows = g.reshape(value, (prod(value.shape[:base]), k))
    if t.is_outside(w):
        y = multiply(g, rows, n, t.weight(w, n, k))
    else:
        if t.batch is not None:
            t.axis(w, 0)  # a weight that has rows of the batch
        y = _row_product(g, rows, g.reshape(t.value(w), (k, n)))
    if bias:
        y = g.apply("add", y, g.reshape(t.whole(bias[0]), (1, n)) if t.is_outside(bias[0]) else t.value(bias[0]))
    return g.reshape(y, t.shape(f.outputs[0]))


def multiply(g: Graph, a: View, n: int, weight: Weight) -> View:
    """Rows `(P, K)` by a weight; what was concatenated is multiplied part by part, since some may not depend on the state."""
    node = a.node
    parts = _side_by_side(a)
    if node.op != "assemble" or parts is None:
        return g.product(a, n, weight)
    total = None
    for value, first, size in parts:
        product = g.product(g.reshape(value, (1, size)), n, weight._replace(row=weight.row + first, rows=size))
        total = product if total is None else g.add_alone(total, product)
    assert total is not None
    return total


def _side_by_side(a: View) -> list[tuple[View, int, int]] | None:
    """The parts of a row that was concatenated: each with its start and size."""
    if a.node.op != "assemble" or not a.whole or a.shape[0] != 1:
        return None
    parts, at = [], 0
    for value, (shape, strides, offset) in zip(a.node.args, a.node.attribute):
        if offset != at or not View(a.node, shape, strides, offset).contiguous:
            return None
        parts.append((value, at, prod(shape)))
        at += prod(shape)
    return parts if at == a.node.size else None


def _row_product(g: Graph, a: View, b: View) -> View:
    """`(..., M, K)` times `(..., K, N)`, both of one row."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    a = g.reshape(a, (*a.shape[:-2], m, 1, k)).broadcast((*batch, m, n, k))
    b = b.transpose([*range(len(b.shape) - 2), len(b.shape) - 1, len(b.shape) - 2])
    b = g.reshape(b, (*b.shape[:-2], 1, n, k)).broadcast((*batch, m, n, k))
    return g.reduce("sum", g.apply("mul", a, b), [-1])


@translates("BatchMatmul")
def batch_matmul(t: Translation, f: Any) -> View:
    a, b = (t.graph.own(v) if v.node.op == "constant" else v for v in t.inputs(f))
    swap = lambda v: v.transpose([*range(len(v.shape) - 2), len(v.shape) - 1, len(v.shape) - 2])  # noqa: E731
    a = swap(a) if f.info.args["transpose_a"] else a
    b = swap(b) if f.info.args["transpose_b"] else b
    if t.batch is not None and f.inputs[0].ndim < 3:
        t.axis(f.inputs[0], 0)
    return t.graph.reshape(_row_product(t.graph, a, b), t.shape(f.outputs[0]))


@translates("Embed")
def embed(t: Translation, f: Any) -> View:
    """Rows of a table, by their numbers."""
    ids, table = f.inputs
    places, weight = t.value(ids), t.whole(table) if t.is_outside(table) else t.value(table)
    rows, width = table.shape[0], prod(table.shape[1:])
    if t.batch is not None and not t.is_outside(table):
        t.axis(table, 0)
    flat = t.graph.reshape(weight, (rows, width))
    shape = (places.size, width)
    read = View(flat.node, shape, (0, flat.strides[1]), flat.offset)
    at = t.graph.reshape(places, (places.size, 1)).broadcast(shape)
    return t.graph.reshape(gather(t.graph, read, at, flat.strides[0], rows), t.shape(f.outputs[0]))


def gather(g: Graph, table: View, places: View, stride: int, count: int) -> View:
    """What a table has at computed places: each place moves the view on, by a stride for each 1."""
    sizes, args = aligned(table.shape, [table, places])
    return all_of(g.make("gather", args, sizes, (stride, count)), table.shape)


@translates("Gather")
def gather_(t: Translation, f: Any) -> View:
    """NNabla's gather: along one axis, with as many leading axes in common as `batch_dims` says."""
    x, places = t.value(f.inputs[0]), t.value(f.inputs[1])
    common, axis = f.info.args["batch_dims"] or 0, (f.info.args["axis"] or 0) % f.inputs[0].ndim
    t.axis(f.inputs[0], axis)
    if t.batch is not None and common == 0:
        t.axis(f.inputs[0], 0)
    own = places.shape[common:]
    shape = (*x.shape[:axis], *own, *x.shape[axis + 1 :])
    strides = (*x.strides[:axis], *(0,) * len(own), *x.strides[axis + 1 :])
    table = View(x.node, shape, strides, x.offset)
    spread = (*places.shape[:common], *(1,) * (axis - common), *own, *(1,) * (len(x.shape) - axis - 1))
    at = t.graph.reshape(places, spread).broadcast(shape)
    return t.graph.reshape(gather(t.graph, table, at, x.strides[axis], x.shape[axis]), t.shape(f.outputs[0]))


@translates("OneHot")
def one_hot(t: Translation, f: Any) -> View:
    """Ones where the number of a place is the one that is given; places of several axes are counted through."""
    g, ids, sizes = t.graph, t.value(f.inputs[0]), list(f.info.args["shape"])
    number = None
    for i, size in enumerate(sizes):
        part = ids.take(len(ids.shape) - 1, i, 1)
        number = part if number is None else g.apply("add", g.apply("mul", number, float(size)), part)
    assert number is not None
    hot = g.apply("equal", number, g.array(np.arange(prod(sizes))))
    return g.reshape(hot, t.shape(f.outputs[0]))


@translates("Convolution")
def convolution(t: Translation, f: Any) -> View:
    """The windows of x as rows, times the kernels; each group of channels has kernels of its own."""
    w, bias = f.inputs[1], f.inputs[2:]
    g, out, windows = t.graph, t.shape(f.outputs[0])[2:], _windows(t, f)
    groups, n, channels, kernel = f.info.args["group"], w.shape[0], w.shape[1], prod(w.shape[2:])
    parts = []
    for i in range(groups):
        rows = g.reshape(g.own(windows.take(len(out), i * channels, channels)), (prod(out), channels * kernel))
        weight = t.weight(w, channels * kernel, n)._replace(row=i * n // groups, rows=n // groups, transposed=True)
        parts.append(g.product(rows, n // groups, weight))
    return _with_channels_first(t, f, g.concatenate(parts, 1), bias)


@translates("DepthwiseConvolution")
def depthwise_convolution(t: Translation, f: Any) -> View:
    """Each channel by itself, times one or several kernels."""
    w, bias = f.inputs[1], f.inputs[2:]
    g, out, windows = t.graph, t.shape(f.outputs[0])[2:], _windows(t, f)
    n, channels, kernel = w.shape[0], windows.shape[len(out)], prod(w.shape[1:])
    rows = g.reshape(g.own(windows), (prod(out), channels, 1, kernel))
    kernels = g.reshape(t.whole(w), (1, channels, n // channels, kernel))
    y = g.reduce("sum", g.apply("mul", rows, kernels), [-1])
    return _with_channels_first(t, f, g.reshape(y, (prod(out), n)), bias)


def _windows(t: Translation, f: Any) -> View:
    """What each number of a convolution's output sees: `(*out, channels, *kernel)`."""
    arguments, value = f.info.args, t.value(f.inputs[0])
    if arguments.get("channel_last") or arguments["base_axis"] != 1:
        raise Unsupported("a convolution with channels last or another base axis is not translated")
    if value.shape[0] != 1:
        raise Unsupported("a convolution of several images in a row is not translated")
    out = t.shape(f.outputs[0])[2:]
    kernel = f.inputs[1].shape[-len(out) :]
    pad, stride, dilation = (
        list(arguments[name] or [default] * len(out)) for name, default in (("pad", 0), ("stride", 1), ("dilation", 1))
    )
    x = _padded(t.graph, t.graph.reshape(value, value.shape[1:]), pad)
    along = [tuple(s * n for s, n in zip(x.strides[1:], steps)) for steps in (stride, dilation)]
    return View(x.node, (*out, x.shape[0], *kernel), (*along[0], x.strides[0], *along[1]), x.offset)


def _with_channels_first(t: Translation, f: Any, y: View, bias: Any) -> View:
    """`(positions, channels)` with a bias added, as NNabla gives it."""
    if bias:
        y = t.graph.apply("add", y, t.graph.reshape(t.whole(bias[0]), (1, y.shape[1])))
    return t.graph.reshape(y.transpose([1, 0]), t.shape(f.outputs[0]))


def _padded(g: Graph, x: View, pad: list[int]) -> View:
    """x `(C, ...)` among zeros."""
    for axis, n in enumerate(pad, start=1):
        if n:
            zeros = g.constant(0.0).broadcast((*x.shape[:axis], n, *x.shape[axis + 1 :]))
            x = g.concatenate([zeros, x, zeros], axis)
    return g.own(x)


@translates("Einsum")
def einsum(t: Translation, f: Any) -> View:
    """A sum of products, number by number: each letter is an axis."""
    terms, out = f.info.args["equation"].replace(" ", "").split("->")
    letters = terms.split(",")
    if any("." in term or len(set(term)) < len(term) for term in [*letters, out]):
        raise Unsupported(f"Einsum with {f.info.args['equation']!r} is not translated")
    axes = out + "".join(sorted(set("".join(letters)) - set(out)))
    total = None
    for v, term in zip(f.inputs, letters):
        value = _of_letters(t, v, term, out)
        order = [term.index(a) for a in axes if a in term]
        value = value.transpose(order)
        sizes = iter(value.shape)
        value = t.graph.reshape(value, [next(sizes) if a in term else 1 for a in axes])
        total = value if total is None else t.graph.apply("mul", total, value)
    assert total is not None
    return t.graph.reduce("sum", total, range(len(out), len(axes)))


def _of_letters(t: Translation, v: Any, term: str, out: str) -> View:
    """An input of an Einsum; where the step has rows, its first letter is theirs, or none is, and all rows share it."""
    if t.batch is None or (out[:1] and term[:1] == out[:1]):
        return t.value(v)
    if out[:1] and out[0] not in term and t.is_outside(v):
        return t.whole(v)
    raise Mixes("Einsum lets rows of the batch meet")
