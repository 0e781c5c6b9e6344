"""Products, normalizations, tables, random numbers, and whole steps, in the table of `cases`."""

from __future__ import annotations

from collections.abc import Callable

import nnabla as nn
import nnabla.functions as F
import numpy as np
from cases import CASES, B, case, step, truths, whole_numbers

from nnshop.functions import stop_gradient
from nnshop.ids import checked_ids

# Products

for _width in (1, 3, 17, 33):
    case(f"affine of {_width}", F.affine, (B, _width), outer=[(_width, _width), (_width,)])
case("affine", F.affine, (B, 5), outer=[(5, 4)])
case("affine of matrices", lambda a, w, b: F.affine(a, w, b), (B, 2, 3), outer=[(6, 4), (4,)])
case("affine base_axis 2", lambda a, w, b: F.affine(F.sin(a), w, b, base_axis=2), (B, 2, 5), outer=[(5, 4), (4,)])
case("affine to matrices", lambda a, w, b: F.affine(a, w, b), (B, 5), outer=[(5, 2, 3), (2, 3)])
case(
    "affine of what was concatenated", lambda a, b, w: F.affine(F.concatenate(a, b, axis=1), w), (B, 3), (B, 4), outer=[(7, 5)]
)
case("affine of what was padded", lambda a, w: F.affine(F.pad(a, (1, 2), constant_value=0.7), w), (B, 1), outer=[(4, 4)])
case("affine of what all rows share", lambda a, v, w: F.affine(F.concatenate(a, F.broadcast(v, (B, 2)), axis=1), w), (B, 3),
     outer=[(1, 2), (5, 4)])  # fmt: skip
case("affine of what rows have from outside", lambda a, v, w: F.affine(F.concatenate(a, v, axis=1), w), (B, 3),
     outer=[(B, 2), (5, 4)])  # fmt: skip
case("affine of a slice", lambda a, w: F.affine(a[:, 1:4], w) * F.affine(a[:, ::2], w), (B, 5), outer=[(3, 4)])
case("affine of equal numbers", lambda a, w: F.affine(F.broadcast(a, (B, 4)), w), (B, 1), outer=[(4, 3)])
case("sum of products", lambda a, b, v, w: F.affine(a, v) + F.affine(b, w), (B, 3), (B, 4), outer=[(3, 5), (4, 5)])
case("a weight twice", lambda a, w: F.affine(F.tanh(F.affine(a, w)), w), (B, 3), outer=[(3, 3)])
case("a weight that is computed", lambda a, w: F.affine(a, F.transpose(F.tanh(w), (1, 0))), (B, 3), outer=[(4, 3)])
case("a weight and rows at once", lambda a, w: F.affine(a, w) * w, (B, 3), outer=[(3, 3)])
case("a weight that the step computes", lambda a: F.affine(a, F.constant(0.5, (3, 4)) * 2), (B, 3))
case("a weight of the state", lambda a, b: F.affine(a, F.reshape(b, (3, 4), inplace=False)), (B, 3), (3, 4), rows=False)

for _a in (False, True):
    for _b in (False, True):
        _left, _right = ((B, 4, 2) if _a else (B, 2, 4)), ((B, 3, 4) if _b else (B, 4, 3))
        _more = {"transpose_a": _a, "transpose_b": _b}
        case(f"batch_matmul {_a} {_b}", lambda a, b, more=_more: F.batch_matmul(a, b, **more), _left, _right)
case("attention", lambda q, k: F.batch_matmul(F.softmax(F.batch_matmul(q, k, transpose_b=True)), k), (B, 1, 4), (B, 5, 4))
case("attention to outer rows", lambda q, k: F.batch_matmul(F.softmax(F.batch_matmul(q, k, transpose_b=True)), k), (B, 1, 4),
     outer=[(B, 5, 4)])  # fmt: skip
case("outer product", lambda a, b: F.batch_matmul(F.reshape(a, (B, 4, 1)), F.reshape(b, (B, 1, 3))), (B, 4), (B, 3))
case("batch_matmul of four axes", lambda a, b: F.batch_matmul(a, b, transpose_b=True), (B, 2, 3, 4), (B, 2, 5, 4))
for _equation in ("bi,bj->bij", "bik,bkj->bij", "bij,bj->bi", "bij,bij->b", "bij->bji"):
    _parts = [
        tuple(B if letter == "b" else 2 + "ijk".index(letter) for letter in part)
        for part in _equation[:-1].split("->")[0].split(",")
    ]
    case(f"einsum {_equation}", lambda *v, e=_equation: F.einsum(*v, equation=e), *_parts)
case("einsum with a weight", lambda a, w: F.einsum(a, w, equation="bi,ij->bj"), (B, 3), outer=[(3, 3)])
case("einsum with rows outside", lambda a, w: F.einsum(a, w, equation="bi,bji->bj"), (B, 3), outer=[(B, 3, 3)])
case("einsum over rows", lambda a: F.einsum(a, a, equation="bi,ci->bc"), (B, 3), rows=False)
case("batch_matmul from outside", lambda a, w: F.batch_matmul(a, F.broadcast(w, (B, 3, 3))), (B, 2, 3), outer=[(1, 3, 3)])

_convolutions = {
    "1d": ((B, 3, 7), (4, 3, 3), {"pad": (1,)}),
    "1d by steps": ((B, 2, 9), (3, 2, 2), {"stride": (2,), "dilation": (3,)}),
    "2d": ((B, 2, 4, 5), (3, 2, 3, 2), {"pad": (1, 0)}),
    "2d by steps": ((B, 2, 5, 6), (2, 2, 2, 2), {"pad": (1, 1), "stride": (2, 3), "dilation": (1, 2)}),
    "groups": ((B, 4, 5), (6, 2, 3), {"pad": (1,), "group": 2}),
}
for _name, (_x, _w, _more) in _convolutions.items():
    case(f"convolution {_name}", lambda a, w, more=_more: F.convolution(a, w, **more), _x, outer=[_w])
    case(f"convolution {_name} bias", lambda a, w, b, more=_more: F.convolution(F.sin(a), w, b, **more), _x, outer=[_w, _w[:1]])
case("depthwise_convolution", lambda a, w, b: F.depthwise_convolution(a, w, b, pad=(1,)), (B, 3, 5), outer=[(3, 3), (3,)])
case("depthwise_convolution 2d", lambda a, w: F.depthwise_convolution(a, w, multiplier=2), (B, 2, 4, 4), outer=[(4, 2, 3)])

# Normalizing

case("layer_normalization", lambda a, b, g: F.layer_normalization(a, b, g), (B, 6), outer=[(1, 6), (1, 6)])
case("layer_normalization alone", lambda a: F.layer_normalization(F.sin(a), None, None), (B, 2, 5))
case("layer_normalization of two axes", lambda a: F.layer_normalization(a, None, None, batch_axis=[0, 1]), (B, 2, 5))
case("layer_normalization with a scale", lambda a, g: F.layer_normalization(a, None, g), (B, 5), outer=[(1, 5)])
case("instance_normalization", lambda a, b, g: F.instance_normalization(a, b, g), (B, 2, 5), outer=[(1, 2, 1), (1, 2, 1)])
case("group_normalization", lambda a, b, g: F.group_normalization(a, b, g, 2), (B, 4, 3), outer=[(1, 4, 1), (1, 4, 1)])
case("norm_normalization", lambda a: F.norm_normalization(a, axes=[1], eps=1e-3), (B, 5))
case("norm_normalization of inner axes", lambda a: F.norm_normalization(F.sin(a), axes=[1, 2]), (B, 2, 3))
case("weight_normalization", lambda a, w, g: F.affine(a, F.weight_normalization(w, g, dim=1)), (B, 3), outer=[(3, 4), (4,)])
case("batch_normalization", lambda a, b, g: F.batch_normalization(
    a, b, g, F.constant(0.3, (1, 4)), F.constant(1.7, (1, 4)), batch_stat=False), (B, 4), outer=[(1, 4), (1, 4)])  # fmt: skip

# Tables

whole_numbers("embed", lambda i, x, w: F.embed(i, w) * x, (B,), (B, 4), below=5, outer=[(5, 4)])
whole_numbers("embed, checked", lambda i, x, w: F.embed(checked_ids(i, 5, "id"), w) * x, (B,), (B, 4), below=5, outer=[(5, 4)])
whole_numbers("embed of two axes", F.embed, (B, 2), below=5, outer=[(5, 17)])
whole_numbers("embed of the input", F.embed, (B, 2), (5, 4), below=5, rows=False)
whole_numbers("one_hot", lambda i: F.one_hot(i, (5,)), (B, 1), below=5)
whole_numbers("one_hot of two axes", lambda i: F.one_hot(i, (3, 3)), (B, 2), below=3)
whole_numbers("gather", lambda i, x: F.gather(x, i, axis=1, batch_dims=1), (B, 2), (B, 5), below=5)
whole_numbers("gather of rows", lambda i, x: F.gather(x, i, axis=1, batch_dims=1), (B, 2), (B, 5, 3), below=5)
whole_numbers("gather of the last axis", lambda i, x: F.gather(x, i, axis=2, batch_dims=1), (B, 2), (B, 3, 5), below=5)
whole_numbers("gather of two axes", lambda i, x: F.gather(x, i, axis=2, batch_dims=2), (B, 2, 4), (B, 2, 5), below=5)
whole_numbers("gather from outside", lambda i, w: F.gather(w, i, axis=0), (B,), below=5, outer=[(5, 3)], rows=False)
whole_numbers("softmax_cross_entropy", lambda i, x: F.softmax_cross_entropy(x, i, axis=1), (B, 1), (B, 5), below=5)
whole_numbers("softmax_cross_entropy inside", lambda i, x: F.softmax_cross_entropy(x, i, axis=1), (B, 1, 2), (B, 5, 2), below=5)
whole_numbers("categorical_cross_entropy", lambda i, x: F.categorical_cross_entropy(F.softmax(x), i, axis=1), (B, 1), (B, 5),
              below=5)  # fmt: skip

# Random numbers, one for each number of the state: so NNabla draws in the same order

_draws = {
    "dropout": lambda a: F.dropout(a, 0.4),
    "rand": lambda a: a * F.rand(-1, 1, (B, 5)),
    "randn": lambda a: a + F.randn(0, 1, (B, 5)),
    "randint": lambda a: a + F.randint(0, 9, (B, 5)),
    "rand_binomial": lambda a: a * F.rand_binomial(3, 0.5, (B, 5)),
    "seeded": lambda a: F.dropout(a, 0.5, seed=3) + F.randn(0, 1, (B, 5), seed=4),
}


def drawing(draw: Callable) -> Callable:
    def whole(x: tuple, h: tuple, outer: tuple) -> tuple[tuple, tuple]:
        y = draw(F.tanh(x[0] + h[0]))
        return (y,), (y,)

    return whole


for _name, _draw in _draws.items():
    step(_name, [(B, 5)], [(B, 5)])(drawing(_draw))

# From outside

for _shape in ((1, 3), (B, 3), (B, 1), (1, 1)):
    case(f"outer {_shape}", lambda a, w: a * w + F.tanh(w), (B, 3), outer=[_shape])
case("outer (B, S, H)", lambda a, w: F.sum(F.reshape(a, (B, 1, 3), inplace=False) * w, axis=2), (B, 3), outer=[(B, 4, 3)])
case("outer (S, H)", lambda a, w: a * F.broadcast(w, (B, 4, 3)), (B, 4, 3), outer=[(1, 4, 3)])
case("outer (H,)", lambda a, w: a * F.broadcast(F.reshape(w, (1, 3), inplace=False), (B, 3)), (B, 3), outer=[(3,)])
case("outer scalar", lambda a, w: a * F.broadcast(F.reshape(w, (1, 1), inplace=False), (B, 3)), (B, 3), outer=[()])
case("constants", lambda a: a * F.constant(0.3, (B, 5)) + F.constant(2, (1, 5)), (B, 5))
case("arrays", lambda a: a * nn.Variable.from_numpy_array(np.arange(5.0).reshape(1, 5)), (B, 5))
case("linspace", lambda a: a * F.reshape(F.linspace(-1, 1, 5), (1, 5)) + F.reshape(F.arange(0, 5, 1), (1, 5)), (B, 5))
case("twos on the diagonal", lambda a: F.batch_matmul(a, F.matrix_diag(F.constant(2, (B, 3)))) + a, (B, 3, 3))

# In place

case("relu in place", lambda a: F.relu(a * 2, inplace=True) + a, (B, 5))
case("add2 in place", lambda a, b: F.add2(a * 2, b, inplace=True) + a, (B, 5), (B, 5))
case("scalars in place", lambda a: F.mul_scalar(F.add_scalar(a * a, 1.0, inplace=True), 3.0, inplace=True), (B, 5))

# Whole steps


@step("the input", [(B, 4)], [(B, 4)])
def the_input(x, h, outer):  # type: ignore[no-untyped-def]
    return x, x


@step("the state", [(B, 4)], [(B, 4)])
def the_state(x, h, outer):  # type: ignore[no-untyped-def]
    return h, (F.tanh(h[0] + x[0]),)


@step("the same twice", [(B, 4)], [(B, 4), (B, 4)])
def the_same(x, h, outer):  # type: ignore[no-untyped-def]
    y = F.tanh(x[0] + h[0] * h[1])
    return (y, y, x[0]), (y, y)


@step("states that change places", [(B, 4)], [(B, 4), (B, 4)])
def changing(x, h, outer):  # type: ignore[no-untyped-def]
    return (x[0] * h[0],), (h[1], h[0])


@step("a view of the state", [(B, 4)], [(B, 4)])
def viewing(x, h, outer):  # type: ignore[no-untyped-def]
    return (h[0][:, 1:3], F.flip(h[0], [1])), (F.concatenate(h[0][:, 1:], x[0][:, :1], axis=1),)


@step("a state that stays", [(B, 4)], [(B, 4), (B, 2)])
def staying(x, h, outer):  # type: ignore[no-untyped-def]
    return (x[0] * F.broadcast(F.sum(h[1], axis=1, keepdims=True), (B, 4)),), (F.sin(x[0]), h[1])


@step("a state from outside", [(B, 4)], [(B, 4)], outer=[(B, 4)])
def from_outside(x, h, outer):  # type: ignore[no-untyped-def]
    return (h[0] * x[0], outer[0]), outer


@step("a state of zeros", [(B, 4)], [(B, 4)])
def zeros(x, h, outer):  # type: ignore[no-untyped-def]
    return (h[0] + x[0],), (F.constant(0, (B, 4)),)


@step("numbers without axes", [()], [()], rows=False)
def numbers(x, h, outer):  # type: ignore[no-untyped-def]
    h = F.tanh(x[0] * h[0] + 0.5)
    return (h * 2,), (h,)


@step("a state without axes", [(B, 4)], [()], rows=False)
def without_axes(x, h, outer):  # type: ignore[no-untyped-def]
    y = x[0] * F.broadcast(F.reshape(h[0], (1, 1), inplace=False), (B, 4))
    return (y,), (h[0] + F.mean(y),)


@step("vectors", [(B,)], [(B,)], rows=False)
def vectors(x, h, outer):  # type: ignore[no-untyped-def]
    return (x[0] * h[0],), (F.sin(x[0] + h[0]),)


@step("a matrix as a state", [(B, 4), (B, 3)], [(B, 4, 3)], outer=[(4, 3)])
def memory(x, h, outer):  # type: ignore[no-untyped-def]
    key, value = x
    read = F.batch_matmul(F.reshape(key, (B, 1, 4), inplace=False), h[0])
    read = F.reshape(read, (B, 3), inplace=False)
    change = F.reshape(key, (B, 4, 1), inplace=False) * F.reshape(value - read, (B, 1, 3), inplace=False)
    return (read * F.affine(key, outer[0]),), (h[0] * 0.9 + change,)


@step("a convolution of the state", [(B, 2, 4, 3)], [(B, 2, 4, 3)], outer=[(2, 2, 3, 3), (2,)])
def convolving(x, h, outer):  # type: ignore[no-untyped-def]
    h = F.tanh(x[0] + F.convolution(h[0], *outer, pad=(1, 1)))
    return (F.sum(h, axis=(1, 2)),), (h,)


@step("an LSTM", [(B, 5)], [(B, 4), (B, 4)], outer=[(5, 16), (4, 16), (16,)])
def lstm(x, h, outer):  # type: ignore[no-untyped-def]
    w, u, b = outer
    gates = F.affine(x[0], w, b) + F.affine(h[0], u)
    i, f, o = (F.sigmoid(gates[:, k * 4 : k * 4 + 4]) for k in range(3))
    c = f * h[1] + i * F.tanh(gates[:, 12:])
    y = o * F.tanh(c)
    return (y,), (y, c)


@step("gates of truth values", [(B, 4)], [(B, 4)], numbers=truths)
def gates(x, h, outer):  # type: ignore[no-untyped-def]
    return (x[0] * F.logical_and(stop_gradient(x[0]), stop_gradient(h[0])),), (
        F.logical_xor(stop_gradient(x[0]), stop_gradient(h[0])),
    )


__all__ = ["CASES"]
