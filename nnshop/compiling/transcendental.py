"""exp, log, tanh and what is made of them, in float32 and without branches.

Bounds are in units in the last place (ulp) of float32, for all numbers, with and without fused multiply-add. What float64
gives as infinity, zero, a denormal number or NaN when it is rounded to float32 is so here too. NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .formulas import Number
from .text import lanes

# Polynomials, lowest power first, with the smallest largest relative error that float32 coefficients reach.
# tanh(x / 2) = x (1 + s top(s)) / (2 + 2 s bottom(s)), where s = x^2, for x up to 9.02: so that tanh(x) is right to 8e-9.
_TANH_TOP, _TANH_BOTTOM = (0.029774569, 0.000114270159), (0.1131078675, 0.00120662898, 1.22933716e-06)
# e^r = (even(s) + r odd(s)) / (even(s) - r odd(s)), where s = r^2, for |r| up to log(2) / 2: to 3e-10.
_EXP_EVEN, _EXP_ODD = (1, 0.0999800563), (0.5, 0.0083233919)
# e^r = 1 + r + r^2 p(r): e^r - 1 is right to 1.4e-8.
_EXPM1 = (0.49999997, 0.166665465, 0.041667439, 0.00836625602, 0.00138703233)
# log(1 + r) = r + r^2 p(r) for r from -1/4 to 1/2: to 2.8e-8.
_LOG1P = (-0.500000596, 0.333335459, -0.249934912, 0.19977206, -0.168223113, 0.149822965, -0.120672271, 0.0541498587)

# log(2) in two parts, of one sign as n may be infinite; products of the first one with whole numbers up to 2^13 are exact.
_LOG_2 = (1419 / 2048, math.log(2) - 1419 / 2048)
_ROUNDER = 1.5 * 2**23  # added to a smaller number it leaves a whole one, in the lowest bits
_BIAS, _PLACE = 127, 23  # of the exponent in a float32's bits
_AWAY = 64  # 2^(n + 64) is a normal number where 2^n may be denormal; a denormal result is rounded once, at the end


def tanh(x: Number) -> Number:
    """The hyperbolic tangent, to 5 ulp (3e-7 of it), and exactly 1 where float32 has no number that is nearer.

    Of t = tanh(x / 2) it is 2 t / (1 + t^2), where errors of t vanish as t nears 1; so few coefficients suffice.
    Its derivative is 1 - y^2, exactly 0 where y is 1 or -1.
    """
    size = abs(x)
    z = size.at_most(_TANH_IS_ONE)
    s = z * z
    top = (z * s).fma(_polynomial(s, _TANH_TOP), z)  # t is top / 2 over 1 + bottom
    bottom = s * _polynomial(s, _TANH_BOTTOM)
    y = top.fma(bottom, top) / bottom.fma(bottom + 2, (top * top).fma(0.25, 1))
    y = size.where("oge", _TANH_IS_ONE, 1, y.at_most(1 - 2.0**-24))
    return y.call("copysign", x)


_TANH_IS_ONE = 9.010914  # from here on tanh is nearer to 1 than to 1 - 2^-24


def sigmoid(x: Number) -> Number:
    """1 / (1 + e^-x), to 3 ulp, also where it is a denormal number; exactly 1 from 17.33 on.

    Its derivative is y (1 - y), exactly 0 where y is 1. (y - y^2 loses digits without fused multiply-add.)
    """
    t, n, r = _whole_and_rest((-abs(x)).at_least(-104), _BIAS + _AWAY)
    s = r * r
    even, odd = _polynomial(s, _EXP_EVEN), _polynomial(s, _EXP_ODD)
    top, bottom = r.fma(odd, even), (-r).fma(odd, even)  # e^r is the one over the other
    if lanes(x.kind) == 16:
        q = _scale(top / (_scale(top, n) + bottom), n)
    else:
        large = top * _power(t)
        q = large / large.fma(2.0**-_AWAY, bottom) * 2.0**-_AWAY
    return x.where("olt", 0, q, 1 - q)


def exp(x: Number) -> Number:
    """e^x, to 1.1 ulp; inf from 88.73 on, 0 below -103.97. Its derivative is itself."""
    x = x.at_most(89).at_least(-104)
    if lanes(x.kind) == 16:
        _, n, r = _whole_and_rest(x, 0)
        return _scale(_expm1(r) + 1, n)
    first, second, r = _powers_and_rest(x)
    return _expm1(r).fma(first, first) * second


def expm1(x: Number) -> Number:
    """e^x - 1, to 2 ulp, also near 0. Its derivative is the result plus 1."""
    first, second, r = _powers_and_rest(x.at_most(89).at_least(-20))
    inverse = ((2 * _BIAS << _PLACE) - second.bits()).number()
    return _expm1(r).fma(first, first - inverse) * second


def log(x: Number) -> Number:
    """The natural logarithm, to 2 ulp; -inf at 0 and NaN below. Its derivative is 1 / x."""
    if lanes(x.kind) == 16:
        return _log_of_parts(*_exponent_and_rest(x))
    tiny = x.where("olt", 2.0**-126, -23, 0)  # denormal
    y = tiny.where("une", 0, x * 2.0**23, x)
    exponent = (y.bits() - _THREE_QUARTERS) >> _PLACE
    r = (y.bits() - (exponent << _PLACE)).number() - 1
    y = _log_of_parts(exponent.value() + tiny, r)
    y = x.where("olt", math.inf, y, x)
    return x.where("olt", 0, math.nan, x.where("oeq", 0, -math.inf, y))


_THREE_QUARTERS = 0x3F400000  # its bits


def softplus(x: Number) -> Number:
    """log(1 + e^x), to 3 ulp, without overflow. Its derivative is sigmoid(x)."""
    return x.where("olt", 0, 0, x) + _log1p_of_exp(-abs(x))


def logsigmoid(x: Number) -> Number:
    """log(sigmoid(x)), to 3 ulp. Its derivative is sigmoid(-x)."""
    return x.where("ogt", 0, 0, x) - _log1p_of_exp(-abs(x))


def _log1p_of_exp(x: Number) -> Number:
    """log(1 + e^x) of numbers up to 0."""
    e = exp(x)
    r = e.where("ogt", 0.5, e.fma(0.5, -0.5), e)  # 1 + e is 2 + 2 r, or 1 + r
    return _log_of_parts(e.test("ogt", 0.5), r)


# e^x = 2^n e^r


def _whole_and_rest(x: Number, bias: int) -> tuple[Number, Number, Number]:
    """A number whose lowest bits hold n + bias; n; and r, up to log(2) / 2."""
    rounder = _ROUNDER + bias
    t = x.fma(1 / math.log(2), rounder)
    n = t - rounder
    r = x
    for part in _LOG_2:
        r = n.fma(-part, r)
    return t, n, r


def _powers_and_rest(x: Number) -> tuple[Number, Number, Number]:
    """Two powers of two, whose product is 2^n also where that is no normal number; and r."""
    t, _, r = _whole_and_rest(x, 2 * _BIAS)
    both = t.bits()
    half = both >> 1
    return (half << _PLACE).number(), ((both - half) << _PLACE).number(), r


def _power(t: Number) -> Number:
    """The power of two whose exponent, and its bias, stand in the lowest bits."""
    return (t.bits() << _PLACE).number()


def _expm1(r: Number) -> Number:
    s = r * r
    return s.fma(_polynomial_in_pairs(r, s, _EXPM1), r)


# log(x) = n log(2) + log(1 + r)


def _log_of_parts(n: Number, r: Number) -> Number:
    s = r * r
    y = s.fma(_polynomial_in_pairs(r, s, _LOG1P), r)
    for part in reversed(_LOG_2):
        y = n.fma(part, y)
    return y


# Polynomials


def _polynomial(x: Number, coefficients: Sequence[float]) -> Number:
    y = x.like(coefficients[-1])
    for c in coefficients[-2::-1]:
        y = y.fma(x, c)
    return y


def _polynomial_in_pairs(x: Number, square: Number, coefficients: Sequence[float]) -> Number:
    """A polynomial as one in the square, whose coefficients are of the first degree: it waits half as long."""
    pairs = [_polynomial(x, coefficients[i : i + 2]) for i in range(0, len(coefficients), 2)]
    y = pairs.pop()
    for pair in reversed(pairs):
        y = y.fma(square, pair)
    return y


# AVX-512 has instructions for exponents, which see to denormal numbers, infinity and NaN.


def _scale(x: Number, n: Number) -> Number:
    """x 2^n."""
    return _avx512("scalef", x, "<16 x float>", n.name)


def _exponent_and_rest(x: Number) -> tuple[Number, Number]:
    """x = 2^n (1 + r): n is -inf at 0 and inf at inf; r is from -1/4 to 1/2, and NaN where x is below 0."""
    m = _avx512("getmant", x, "i32", "11")  # 3: from 3/4 to 3/2; 8: NaN where negative
    return _avx512("getexp", x) - _avx512("getexp", m), m - 1


def _avx512(name: str, x: Number, *other: str) -> Number:
    """Calls an instruction on 16 numbers and perhaps another argument, given as its type and itself."""
    kind, function = x.kind, f"@llvm.x86.avx512.mask.{name}.ps.512"
    of, second = ("", "") if not other else (f"{other[0]}, ", f"{other[0]} {other[1]}, ")
    x.text.declared.add(f"declare {kind} {function}({kind}, {of}{kind}, i16, i32)")
    return Number(
        x.text, kind, x.text.new(f"call {kind} {function}({kind} {x.name}, {second}{kind} zeroinitializer, i16 -1, i32 4)")
    )
