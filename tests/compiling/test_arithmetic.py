"""What is computed number by number: as NNabla does it, and right against float64 over all of float32, for each vector."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from harness import WIDTHS, Loops, loop_text, optimized, target

from nnshop.compiling.arithmetic import OPERATIONS

BINARY = (
    "add sub mul div maximum minimum pow atan2 fmod equal not_equal less less_equal greater greater_equal "
    "logical_and logical_or logical_xor straight_sign"
).split()
ARITY = {name: 2 if name in BINARY else 3 if name == "select" else 1 for name in OPERATIONS}

each_width = pytest.mark.parametrize("width", WIDTHS)

SPECIAL = np.array([0.0, -0.0, 1, -1, 0.5, -0.25, 2.5, -2.5, 3, 1e-40, -1e-40, 3e38, np.nan, np.inf, -np.inf], np.float32)
A, B = (v.ravel() for v in np.meshgrid(SPECIAL, SPECIAL, indexing="ij"))


@cache
def loops(width: int) -> Loops:
    return Loops({name: (operation, ARITY[name]) for name, operation in OPERATIONS.items()}, width)


def by_nnabla(function: Callable, *arrays: np.ndarray) -> np.ndarray:
    y = function(*(nn.Variable.from_numpy_array(a) for a in arrays))
    y.forward()
    return y.d


# As NNabla

OF_ONE: dict[str, Callable] = {
    "copy": F.identity, "stop": F.identity, "neg": lambda x: F.mul_scalar(x, -1), "sqrt": lambda x: F.pow_scalar(x, 0.5),
    "rsqrt": lambda x: F.pow_scalar(x, -0.5), "sign": lambda x: F.sign(x, alpha=0), "logsigmoid": F.log_sigmoid,
    "greater_zero": lambda x: F.greater_scalar(x, 0),
    **{name: getattr(F, name) for name in (
        "abs exp log sigmoid tanh softplus erf sin cos tan sinh cosh asin acos atan asinh acosh atanh floor ceil round "
        "logical_not isnan isinf").split()},
}  # fmt: skip
OF_TWO: dict[str, Callable] = {
    "add": F.add2, "sub": F.sub2, "mul": F.mul2, "div": F.div2, "maximum": F.maximum2, "minimum": F.minimum2, "pow": F.pow2,
    "fmod": F.mod2, "atan2": F.atan2,
    **{name: getattr(F, name) for name in BINARY if name.startswith(("equal", "not_", "less", "greater", "logical"))},
}  # fmt: skip
UNNAMED = {"expm1", "log1p", "trunc"}  # NNabla has none


def test_every_operation_is_compared() -> None:
    assert set(OF_ONE) | set(OF_TWO) | UNNAMED | {"select", "straight_sign"} == set(OPERATIONS)


@each_width
@pytest.mark.parametrize("name", OF_ONE)
def test_functions_of_one_number_are_nnablas(name: str, width: int) -> None:
    x = SPECIAL
    if name in ("sqrt", "rsqrt"):
        x = x[x != -np.inf]  # pow(-inf, 0.5) is inf
        x = np.where(x == 0, np.float32(0), x)  # and pow(-0, -0.5) as well
    np.testing.assert_allclose(loops(width)(name, x), by_nnabla(OF_ONE[name], x), rtol=1e-6, atol=0)


@each_width
@pytest.mark.parametrize("name", OF_TWO)
def test_functions_of_two_numbers_are_nnablas(name: str, width: int) -> None:
    made, expected = loops(width)(name, A, B), by_nnabla(OF_TWO[name], A, B)
    np.testing.assert_allclose(made, expected, rtol=1e-6, atol=0)
    if name in ("div", "atan2", "maximum", "minimum"):
        there = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(made)[there], np.signbit(expected)[there])


@each_width
def test_relu_and_clipping_are_made_of_maximum_and_minimum(width: int) -> None:
    run, low, high = loops(width), np.full_like(SPECIAL, -1), np.full_like(SPECIAL, 2)
    np.testing.assert_array_equal(run("maximum", SPECIAL, low * 0), by_nnabla(F.relu, SPECIAL))
    clipped = by_nnabla(lambda x: F.clip_by_value(x, -1.0, 2.0), SPECIAL)
    np.testing.assert_array_equal(run("minimum", run("maximum", SPECIAL, low), high), clipped)


@each_width
def test_select_and_sign_take_nan_as_nnabla_does(width: int) -> None:
    yes, no = np.full_like(SPECIAL, 3), np.full_like(SPECIAL, np.nan)
    np.testing.assert_array_equal(loops(width)("select", SPECIAL, yes, no), by_nnabla(F.where, SPECIAL, yes, no))
    alpha = np.full_like(SPECIAL, 0.3)
    expected = by_nnabla(lambda x: F.sign(x, alpha=0.3), SPECIAL)
    np.testing.assert_array_equal(loops(width)("straight_sign", SPECIAL, alpha), expected)


@each_width
def test_rounding_is_right_beside_halves_and_where_no_fractions_are(width: int) -> None:
    x = np.array([0.49999997, -0.49999997, 0.5, 1.5, 2.5, -0.5, -2.5, 8388607.5, 8388609.0, -3e9, 3e38], np.float32)
    run = loops(width)
    np.testing.assert_array_equal(run("round", x), np.copysign(np.floor(np.abs(x.astype(np.float64)) + 0.5), x))
    for name in ("floor", "ceil", "trunc"):
        np.testing.assert_array_equal(run(name, x), getattr(np, name)(x))


# Against float64

BITS = np.arange(0, 2**32, 1021, dtype=np.uint32)
EDGES = [0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**-126, 1e-45, 9.010914, -9.010914, 0.5, 0.75, 1.5, 1, -1, 17.328679, 16.635532,
         88.72284, 88.37626, -87.33655, -103.972084, 3.4e38]  # fmt: skip


def beside(number: float) -> np.ndarray:
    """The 200 numbers next to one."""
    return (np.float32(number).view(np.uint32).astype(np.int64) + np.arange(-100, 100)).astype(np.uint32)


X = np.concatenate([BITS, *map(beside, EDGES)]).view(np.float32)


def log1p_of_exp(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


DENSE: dict[str, tuple[Callable, float]] = {  # with the bounds in ulp
    "exp": (np.exp, 1.1),
    "expm1": (np.expm1, 2),
    "log": (np.log, 1.5),
    "tanh": (np.tanh, 5),
    "sigmoid": (lambda x: np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x))), 3),
    "softplus": (log1p_of_exp, 3),
    "logsigmoid": (lambda x: -log1p_of_exp(-x), 3),
}


@cache
def in_float64(name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return DENSE[name][0](X.astype(np.float64))


def assert_within(made: np.ndarray, right: np.ndarray, ulp: float, x: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        rounded = right.astype(np.float32)
        errors = np.abs(made - right) / np.spacing(np.abs(rounded)).astype(np.float64)
    errors[(made == rounded) | (np.isnan(made) & np.isnan(rounded))] = 0
    errors[np.isnan(errors)] = np.inf
    worst = errors.argmax()
    assert errors[worst] <= ulp, f"{made[worst]!r} at {x[worst]!r} is {errors[worst]:.2f} ulp away from {right[worst]!r}."


@each_width
@pytest.mark.parametrize("name", DENSE)
def test_is_right_for_all_numbers(name: str, width: int) -> None:
    assert_within(loops(width)(name, X), in_float64(name), DENSE[name][1], X)


@each_width
def test_tanh_is_right_to_3e_7_of_it(width: int) -> None:
    there = ~np.isnan(X) & (np.abs(X) > 2.0**-126)
    error = loops(width)("tanh", X)[there] / in_float64("tanh")[there] - 1
    assert np.abs(error).max() < 3e-7


@each_width
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_limits_are_reached_where_float32_reaches_them(name: str, width: int) -> None:
    made, right = loops(width)(name, X), in_float64(name).astype(np.float32)
    for limit in (-1, 0, 1):
        np.testing.assert_array_equal(made == limit, right == limit)
    assert not (np.abs(made) > 1).any()


@each_width
def test_zeros_and_denormal_numbers_pass_through(width: int) -> None:
    x = np.concatenate([beside(0.0)[100:], beside(-0.0)[100:]]).view(np.float32)
    for name in ("tanh", "expm1", "sin", "asinh", "log1p"):
        np.testing.assert_array_equal(loops(width)(name, x), x)
    np.testing.assert_array_equal(np.signbit(loops(width)("tanh", x)), np.signbit(x))


@each_width
@pytest.mark.parametrize("name", ["exp", "sigmoid", "softplus"])
def test_denormal_results_are_the_nearest_ones(name: str, width: int) -> None:
    """Rounded once: sigmoid(-100) is 3.78e-44."""
    x = np.linspace(-87, -105, 5000).astype(np.float32)
    right = np.exp(x.astype(np.float64))
    assert (np.abs(loops(width)(name, x) - right) <= 0.51 * 2.0**-149 + 3e-7 * right).all()


LIBRARY: dict[str, Callable] = {
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "sinh": np.sinh, "cosh": np.cosh, "asin": np.arcsin, "acos": np.arccos,
    "atan": np.arctan, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "log1p": np.log1p, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip


@each_width
@pytest.mark.parametrize("name", LIBRARY)
def test_functions_of_the_library_are_right(name: str, width: int) -> None:
    x = X[::101]
    with np.errstate(all="ignore"):
        assert_within(loops(width)(name, x), LIBRARY[name](x.astype(np.float64)), 3, x)


@each_width
def test_functions_of_two_numbers_are_right(width: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5000)).astype(np.float32) * 3
    for name, function in {"atan2": np.arctan2, "fmod": np.fmod, "div": np.divide}.items():
        assert_within(loops(width)(name, a, b), function(a.astype(np.float64), b), 2, a)
    assert_within(loops(width)("pow", np.abs(a), b), np.abs(a).astype(np.float64) ** b, 2, a)


# The machine code


def code(name: str, width: int) -> str:
    text = loop_text({name: (OPERATIONS[name], ARITY[name])}, width)
    return target(width).emit_assembly(optimized(text, width))


@each_width
@pytest.mark.parametrize("name", [*DENSE, "select", "maximum"])
def test_nothing_branches_or_calls(name: str, width: int) -> None:
    """A loop has one jump. On SSE `llvm.fma` would be a call of the C library, for each number."""
    lines = [line.split()[0] for line in code(name, width).splitlines() if line.startswith("\t") and line.strip()]
    assert "callq" not in lines
    assert len([line for line in lines if line.startswith("j")]) == 1
