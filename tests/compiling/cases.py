"""What is compiled as a user writes it: a table of functions in steps, which one law walks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnshop.functions import stop_gradient

Shape = tuple[int, ...]
Numbers = Callable[[np.ndarray], np.ndarray]

B = T = 3  # the batch is as long as time, and as many a shape below: no axis can be told by its size


class Case(NamedTuple):
    """A step, and the shapes of what it takes.

    Args:
        step: `(xs, states, outer) -> (ys, states)`, tuples of Variables.
        xs, states: Shapes of inputs and states of one step.
        outer: Shapes of Variables from outside.
        numbers: Makes numbers for the inputs and states of random ones.
        rows: Whether the rows of the batch stay apart, so that they are computed one by one.
    """

    step: Callable
    xs: Sequence[Shape]
    states: Sequence[Shape]
    outer: Sequence[Shape] = ()
    numbers: Numbers = np.asarray
    rows: bool = True


CASES: dict[str, Case] = {}


def step(name: str, xs: Sequence[Shape], states: Sequence[Shape], outer: Sequence[Shape] = (), **more: Any) -> Callable:
    """Enters a step."""

    def enter(function: Callable) -> Callable:
        CASES[name] = Case(function, xs, states, outer, **more)
        return function

    return enter


def case(name: str, function: Callable, *shapes: Shape, **more: Any) -> None:
    """Enters a function of as many Variables as there are shapes, and of those from outside.

    The step computes it of its inputs, and of the last ones mixed with them; its result goes into the state.
    """
    assert name not in CASES, name
    rows = more.get("rows", True)

    def whole(x: tuple, h: tuple, outer: tuple) -> tuple[tuple, tuple]:
        plain = listed(function(*x, *outer))
        mixed = listed(function(*(a * 0.7 + b * 0.3 for a, b in zip(x, h)), *outer))
        return (*plain, *mixed), (x[0] + 0.1 * F.sigmoid(summary(mixed[0], x[0], rows)), *x[1:])

    CASES[name] = Case(whole, shapes, shapes, **more)


def whole_numbers(name: str, function: Callable, *shapes: Shape, below: int, **more: Any) -> None:
    """Enters a function whose first argument holds whole numbers, of the step before and of this one."""

    def both(x: tuple, h: tuple, outer: tuple) -> tuple[tuple, tuple]:
        plain, before = (listed(function(stop_gradient(i), *x[1:], *outer)) for i in (x[0], h[0]))
        return (*plain, *before), (x[0], *h[1:])

    CASES[name] = Case(both, shapes, shapes, numbers=lambda r: np.floor(np.abs(r) * 7) % below, **more)


def listed(made: Any) -> list[nn.Variable]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def summary(y: nn.Variable, x: nn.Variable, rows: bool) -> nn.Variable:
    """One number for each row, or for all of them, in as many axes as x has."""
    if rows:
        return F.reshape(F.mean(F.reshape(y, (B, -1), inplace=False), axis=1), (B,) + (1,) * (x.ndim - 1), inplace=False)
    return F.reshape(F.mean(y), (1,) * x.ndim, inplace=False)


def positive(r: np.ndarray) -> np.ndarray:
    return np.abs(r) + 0.2


def fractions(r: np.ndarray) -> np.ndarray:
    return np.clip(r / 4, -0.8, 0.8)


def probabilities(r: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-r))


def ties(r: np.ndarray) -> np.ndarray:
    return np.round(r)


def truths(r: np.ndarray) -> np.ndarray:
    return (r > 0).astype(float)


# Number by number

_OF_ONE: dict[Numbers, str] = {
    np.asarray: "abs exp sigmoid tanh sin cos tan sinh cosh asinh atan erf floor ceil round log_sigmoid relu leaky_relu relu6 "
    "elu selu hard_sigmoid hard_tanh swish mish gelu softplus softsign tanh_shrink sinc sign crelu celu identity "
    "reset_nan reset_inf binary_tanh binary_sigmoid",
    positive: "log",
    fractions: "asin acos atanh",
    lambda r: np.abs(r) + 1.2: "acosh",
}
for _numbers, _names in _OF_ONE.items():
    for _name in _names.split():
        case(_name, getattr(F, _name), (B, 5), numbers=_numbers)

_OF_TWO: dict[Numbers, str] = {
    np.asarray: "add2 bc_add2 sub2 mul2 maximum2 minimum2 atan2 add_n mul_n squared_error absolute_error huber_loss "
    "epsilon_insensitive_loss",
    positive: "pow2 div2",
    probabilities: "binary_cross_entropy",
}
_SETTINGS: dict[str, tuple] = {"huber_loss": (0.7,), "epsilon_insensitive_loss": (0.3,)}
for _numbers, _names in _OF_TWO.items():
    for _name in _names.split():
        _function, _more = getattr(F, _name), _SETTINGS.get(_name, ())
        case(_name, lambda a, b, f=_function, more=_more: f(a, b, *more), (B, 5), (B, 5), numbers=_numbers)

for _name in "add2 sub2 mul2 div2 maximum2 minimum2".split():
    case(f"{_name} over axes", getattr(F, _name), (B, 2, 1, 3), (B, 1, 4, 3))
for _name in "add2 sub2 mul2 maximum2".split():  # F.add2 in place is below
    case(f"{_name} of a number in each row", getattr(F, _name), (B, 7), (B, 1))

for _name in "equal not_equal less less_equal greater greater_equal logical_and logical_or logical_xor".split():
    _numbers = truths if "logical" in _name else ties
    _function, _scalar = getattr(F, _name), getattr(F, f"{_name}_scalar")
    case(_name, lambda a, b, f=_function: a * f(stop_gradient(a), stop_gradient(b)), (B, 5), (B, 5), numbers=_numbers)
    case(f"{_name}_scalar", lambda a, f=_scalar: a * f(stop_gradient(a), 1), (B, 4), numbers=_numbers)
for _name in "isnan isinf logical_not".split():
    _function = getattr(F, _name)
    case(_name, lambda a, f=_function: a + f(stop_gradient(a)), (B, 4), numbers=truths)
for _name in "add mul pow r_sub r_div maximum minimum".split():
    _function = getattr(F, f"{_name}_scalar")
    case(f"{_name}_scalar", lambda a, f=_function: f(a, 1.7), (B, 4), numbers=positive)
case("r_pow_scalar", lambda a: F.r_pow_scalar(a, 1.7), (B, 4))
for _exponent in (0, 1, 2, 3, 0.5, -0.5, -1, -2.5):
    case(f"pow {_exponent}", lambda a, e=_exponent: a**e, (B, 4), numbers=positive)
case("pow 3 of negative numbers", lambda a: a**3 + a**2, (B, 4))
case("clip", lambda a: F.clip_by_value(a, F.constant(-0.5, (B, 5)), F.constant(0.5, (B, 5))), (B, 5))
case("scalars of Python", lambda a: 2 - (1 - a) * 3 / 7 + 1 / (a * a + 1) - a / 3, (B, 5))
case("softplus beta", lambda a: F.softplus(a, beta=2.5), (B, 5))
case("leaky_relu alpha", lambda a: F.leaky_relu(a, 0.3) + F.elu(a, 0.4) + F.sign(a, 0.5), (B, 5))
case("crelu and celu along axis 2", lambda a: F.crelu(a, axis=2) + F.celu(a, 0.5, axis=2), (B, 2, 3))
case("prelu", lambda a, slope: F.prelu(a, slope), (B, 4), outer=[(4,)])
case("prelu shared", lambda a, slope: F.prelu(a, slope), (B, 4), outer=[()])
case("sigmoid_cross_entropy", lambda a, b: F.sigmoid_cross_entropy(a, F.greater_scalar(stop_gradient(b), 0.0)), (B, 5), (B, 5))
case("kl_multinomial", lambda a, b: F.kl_multinomial(a, b), (B, 5), (B, 5), numbers=probabilities)
case("stops a gradient", lambda a: a * stop_gradient(a) + F.sin(a) * F.unlink(a), (B, 5))
case("clip_grad_by_value", lambda a: F.clip_grad_by_value(a * a, *(F.constant(c, (B, 5)) for c in (-0.3, 0.5))), (B, 5))

# Choosing

case("where", lambda c, a, b: F.where(F.greater_scalar(stop_gradient(c), 0.2), a, b), (B, 3), (B, 3), (B, 3))
case("where of rows", lambda c, a, b: F.where(F.greater_scalar(stop_gradient(c), 0.2), a, b), (B,), (B, 3), (B, 3))
case("where of matrices", lambda c, a, b: F.where(F.greater_scalar(stop_gradient(c), 0.2), a, b), (B, 2), (B, 2, 4), (B, 2, 4))
case(
    "where from outside", lambda a, b, c: F.where(F.greater_scalar(stop_gradient(c), 0.0), a, b), (B, 3), (B, 3), outer=[(B, 3)]
)

# Moving

case("slice", lambda a: a[:, 1:4] + a[:, 2:5], (B, 5))
case("slice with steps", lambda a: a[:, ::2] + a[:, 1:6:2], (B, 6))
case("slice backwards", lambda a: F.slice(a, (0, 4), (B, -6), (1, -1)) * a, (B, 5))
case("slice backwards by two", lambda a: F.tanh(a)[:, 4:0:-2], (B, 5))
case("slices that overlap", lambda a: F.concatenate(a[:, :4], a[:, 1:], a[:, 2:3], axis=1), (B, 5))
case("slice of inner axes", lambda a: F.exp(a)[:, 1:, ::2, -1], (B, 3, 4, 2))
case("a single number", lambda a: a[:, 3:4] * a, (B, 5))
case("index", lambda a: a[:, 1] + a[..., 2], (B, 3, 3))
case("new axis", lambda a: a[:, None, :] * a[:, :, None], (B, 4))
case("split", lambda a: F.split(a, axis=1), (B, 3, 4))
case("split of the last axis", lambda a: F.split(a, axis=2), (B, 4, 3))
case("reshape", lambda a: F.reshape(F.transpose(a, (0, 2, 1)), (B, 2, 6), inplace=False), (B, 3, 4))
case("reshape in place", lambda a: F.reshape(a + 1, (B, 12)), (B, 3, 4))
case("rows in parts", lambda a: F.reshape(F.sin(F.reshape(a, (B * 2, 3), inplace=False)), (B, 6), inplace=False), (B, 6))
case("transpose", lambda a: F.transpose(a, (0, 3, 1, 2)), (B, 2, 3, 4))
case("transpose of a product", lambda a, b: F.transpose(a * b, (0, 2, 1)) * F.transpose(a, (0, 2, 1)), (B, 3, 4), (B, 3, 4))
case("concatenate", lambda a, b: F.concatenate(a, F.sin(b), a, axis=1), (B, 3), (B, 5))
case("concatenate of inner axes", lambda a, b: F.concatenate(a, b, axis=2), (B, 2, 3, 2), (B, 2, 1, 2))
case("stack", lambda a, b: F.stack(a, F.sin(b), axis=1), (B, 4), (B, 4))
case("stack behind", lambda a, b: F.stack(a, F.sin(b), axis=2), (B, 4), (B, 4))
case("broadcast", lambda a: F.broadcast(a, (B, 4, 5)), (B, 1, 5))
case("broadcast of inner axes", lambda a: F.broadcast(F.sin(a), (B, 2, 4, 3)), (B, 2, 1, 3))
case("broadcast of numbers", lambda a: F.broadcast(F.reshape(a, (B, 1, 1), inplace=False), (B, 4, 3)), (B, 1))
case("broadcast_to", lambda a, b: a + stop_gradient(F.broadcast_to(a, F.sin(b), axis=1)), (B, 4, 3), (4, 3), rows=False)
case("broadcast_to of rows", lambda a, b: a + stop_gradient(F.broadcast_to(a, F.sin(b), axis=0)), (B, 4, 3), (B, 4))
case("tile", lambda a: F.tile(a, (1, 3)), (B, 4))
case("tile of inner axes", lambda a: F.tile(F.sin(a), (1, 2, 1, 3)), (B, 2, 3, 1))
case("pad", lambda a: F.pad(a, (1, 2), constant_value=0.7), (B, 4))
case("pad of two axes", lambda a: F.pad(F.sin(a), (0, 1, 2, 0)), (B, 2, 3))
case("flip", lambda a: F.flip(a, [1]) + F.flip(a, [-1, 1]), (B, 3, 3))
case("shift", lambda a: F.concatenate(a[:, 1:], a[:, :1], axis=1) * a, (B, 5))
case("matrix_diag", lambda a: F.matrix_diag(F.sin(a)), (B, 4))
case("matrix_diag of inner axes", lambda a: F.matrix_diag(a), (B, 2, 3))
case("matrix_diag_part", lambda a: F.matrix_diag_part(F.sin(a)), (B, 2, 3, 3))
case("trilu", lambda a: F.trilu(a, 0, True) + F.trilu(F.sin(a), 1, False), (B, 4, 3))
case("trilu below", lambda a: F.trilu(a, -1, True), (B, 3, 3))

# Whole rows

for _how in ("sum", "mean", "max", "min", "prod"):
    _f = getattr(F, _how)
    case(_how, lambda a, f=_f: f(a, axis=1), (B, 17))
    case(f"{_how} kept", lambda a, f=_f: f(a, axis=-1, keepdims=True) * a, (B, 2, 3))
    case(f"{_how} of an inner axis", lambda a, f=_f: f(F.sin(a), axis=2), (B, 2, 5, 3))
    case(f"{_how} of two axes", lambda a, f=_f: f(a, axis=(1, 3)), (B, 2, 3, 4))
    case(f"{_how} of one number", lambda a, f=_f: f(a, axis=1), (B, 1, 3))
    case(f"{_how} over the batch", lambda a, f=_f: f(a, axis=0), (B, 4), rows=False)
    case(f"{_how} of all", lambda a, f=_f: f(a), (B, 4), rows=False)
case("max with ties", lambda a: F.max(a, axis=1) * F.min(a, axis=1), (B, 9), numbers=ties)
case("max with ties over two axes", lambda a: F.max(a, axis=(1, 2)), (B, 3, 3), numbers=ties)
case("max with index", lambda a: F.max(a, axis=1, with_index=True), (B, 9), numbers=ties)
case("min with index of two axes", lambda a: F.min(a, axis=(1, 3), with_index=True, keepdims=True), (B, 2, 3, 4))
case(
    "only the index",
    lambda a: F.max(stop_gradient(a), axis=2, only_index=True) + F.min(stop_gradient(a), axis=2, only_index=True),
    (B, 2, 9),
)
case("norm", lambda a: F.norm(a, axis=1), (B, 5))
case("norm 1 kept", lambda a: F.norm(a, p=1, axis=(1, 2), keepdims=True), (B, 5, 2))
case("norm 3", lambda a: F.norm(a, p=3, axis=2), (B, 2, 5))
case("cumsum", lambda a: F.cumsum(a, axis=1), (B, 6))
case("cumsum exclusive", lambda a: F.cumsum(F.sin(a), axis=2, exclusive=True), (B, 2, 4, 3))
case("cumsum reverse", lambda a: F.cumsum(a, axis=-1, reverse=True), (B, 2, 4))
case("cumsum exclusive reverse", lambda a: F.cumsum(a, axis=1, exclusive=True, reverse=True), (B, 5, 2))
for _exclusive, _reverse in ((False, False), (True, False), (False, True), (True, True)):
    _more = {"exclusive": _exclusive, "reverse": _reverse}
    case(f"cumprod {_exclusive} {_reverse}", lambda a, more=_more: F.cumprod(a, axis=1, **more), (B, 4, 2))
case("softmax", lambda a: F.softmax(a), (B, 17))
case("softmax of an inner axis", lambda a: F.softmax(a * 3, axis=1), (B, 5, 3))
case("softmax over the batch", lambda a: F.softmax(a, axis=0), (B, 4), rows=False)
case("log_softmax", lambda a: F.log_softmax(a, axis=1), (B, 5))
case("log_softmax of an inner axis", lambda a: F.log_softmax(F.sin(a), axis=2), (B, 2, 5, 3))
case("batch statistics by hand", lambda a: a - F.mean(a, axis=0, keepdims=True), (B, 4), rows=False)
case("transpose of the batch", lambda a: F.transpose(a, (1, 0)), (B, 3), rows=False)
case("part of the batch", lambda a: F.concatenate(a[1:], a[:1], axis=0), (B, 3), rows=False)
case("rows beside rows", lambda a: F.affine(a, F.transpose(a, (1, 0))), (B, 3), rows=False)
