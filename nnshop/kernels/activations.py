"""tanh, sigmoid and exp in float32, as code that vectorizes.

Each reaches its limits exactly, and NaN stays NaN: a gate that is closed lets nothing through, however long the sequence.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import float32 as f4

from .compiling import FAST
from .tile import power_of_two

# tanh(x) = x P(x * x) / Q(x * x) up to where it rounds to 1 in float32; coefficients from the highest power down to that of 0,
# which is 1. Fitted by least squares with Lawson's weights, to 5e-8; the best of their float32 neighbours.
_P = (1.31521682e-08, 2.04632706e-05, 3.48673225e-03, 1.33735701e-01)
_Q = (7.69379028e-07, 3.27114976e-04, 2.58432943e-02, 4.67068821e-01)
_ONE_FROM = 9.010913
_BELOW_ONE = 1 - 2.0**-24

# exp(r) = 1 + r + r * r * (...) for |r| <= log(2) / 2, from the highest power, to 1e-7; fitted in the same way.
_E = (8.3125014e-03, 4.1890332e-02, 1.6667115e-01, 4.9999230e-01)
_SHIFT = 64  # by so many powers of two results are kept away from float32's limits, until the last operation


@numba.njit(inline="always", fastmath=FAST, error_model="numpy")
def tanh(x):
    """The hyperbolic tangent, to 4e-7 of its value; 1 where that rounds to 1, and nowhere else."""
    s = x * x
    p = f4(_P[0])
    p = p * s + f4(_P[1])
    p = p * s + f4(_P[2])
    p = p * s + f4(_P[3])
    p = p * s + f4(1)
    q = f4(_Q[0])
    q = q * s + f4(_Q[1])
    q = q * s + f4(_Q[2])
    q = q * s + f4(_Q[3])
    q = q * s + f4(1)
    y = x * p / q
    y = f4(_BELOW_ONE) if y > f4(_BELOW_ONE) else y  # a NaN passes, as it compares false
    y = f4(-_BELOW_ONE) if y < f4(-_BELOW_ONE) else y
    y = f4(1) if x > f4(_ONE_FROM) else y
    return f4(-1) if x < f4(-_ONE_FROM) else y


@numba.njit(inline="always", fastmath=FAST, error_model="numpy")
def sigmoid(x):
    """The logistic function, to 3e-7 of its value, denormal ones included."""
    x = f4(43.4) if x > f4(43.4) else x  # where it is 1
    x = f4(-130) if x < f4(-130) else x  # where it is 0
    small = f4(2.0**-_SHIFT)
    return small / (small + _shifted_exp(-x, -_SHIFT))


@numba.njit(inline="always", fastmath=FAST, error_model="numpy")
def exp(x):
    """The exponential of x <= 0, to 2e-7 of its value, denormal ones included."""
    x = f4(-132.4) if x < f4(-132.4) else x  # where it is 0
    return _shifted_exp(x, _SHIFT) * f4(2.0**-_SHIFT)


@numba.njit(inline="always", fastmath=FAST, error_model="numpy")
def _shifted_exp(x, shift):
    """exp(x) * 2 ** shift, as a power of two times a polynomial of what is left; see `power_of_two` for its range."""
    n = np.floor(x * f4(1.44269504088896341) + f4(0.5))
    r = x - n * f4(0.693359375) + n * f4(2.12194440e-4)  # log(2) in two parts, as in the library Cephes
    p = f4(_E[0])
    p = p * r + f4(_E[1])
    p = p * r + f4(_E[2])
    p = p * r + f4(_E[3])
    p = p * r + f4(1)
    p = p * r + f4(1)
    return p * power_of_two(np.int32(n) + np.int32(shift))
