"""tanh, sigmoid and exp in float32, as code that vectorizes; NaN stays NaN, and infinity goes to the limit."""

from __future__ import annotations

import numba
import numpy as np
from numba import float32 as f4

from .compiling import FAST
from .tile import power_of_two

# tanh(x) = x P(x * x) / Q(x * x) with these coefficients, highest power first; from here on it is 1 in float32.
_LIMIT = 7.90531110763549805
_P = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
      6.37261928875436e-04, 4.89352455891786e-03)  # fmt: skip
_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


@numba.njit(inline="always", fastmath=FAST, error_model="numpy")
def tanh(x):
    """The hyperbolic tangent, to 3e-7.

    The rational approximation that the library Eigen uses.
    """
    x = f4(_LIMIT) if x > f4(_LIMIT) else x  # a NaN passes, as it compares false
    x = f4(-_LIMIT) if x < f4(-_LIMIT) else x
    s = x * x
    p = f4(_P[0])
    p = p * s + f4(_P[1])
    p = p * s + f4(_P[2])
    p = p * s + f4(_P[3])
    p = p * s + f4(_P[4])
    p = p * s + f4(_P[5])
    p = p * s + f4(_P[6])
    q = f4(_Q[0])
    q = q * s + f4(_Q[1])
    q = q * s + f4(_Q[2])
    q = q * s + f4(_Q[3])
    return x * p / q


@numba.njit(inline="always", fastmath=FAST, error_model="numpy")
def sigmoid(x):
    """The logistic function, to 2e-7."""
    return f4(0.5) * tanh(f4(0.5) * x) + f4(0.5)


@numba.njit(inline="always", fastmath=FAST, error_model="numpy")
def exp(x):
    """The exponential of x <= 0, to 2e-7 of its value; below -87 it is as at -87, 2e-38.

    A power of two times a polynomial of what is left, as in the library Cephes.
    """
    x = f4(-87) if x < f4(-87) else x
    n = np.floor(x * f4(1.44269504088896341) + f4(0.5))
    r = x - n * f4(0.693359375) + n * f4(2.12194440e-4)
    p = f4(1.9875691500e-4)
    p = p * r + f4(1.3981999507e-3)
    p = p * r + f4(8.3334519073e-3)
    p = p * r + f4(4.1665795894e-2)
    p = p * r + f4(1.6666665459e-1)
    p = p * r + f4(5.0000001201e-1)
    return (p * r * r + r + f4(1)) * power_of_two(np.int32(n))
