"""The products of NumPy's arrays."""

from __future__ import annotations

import threading

import numpy as np

from .blocks import BLOCK
from .code import function
from .tile import WIDTH


def pack(b, packed=None):
    if packed is None:
        packed = np.empty((-(-b.shape[1] // WIDTH), b.shape[0], WIDTH), np.float32)
    k, n = b.shape
    function("pack", 7)(k, n, b.ctypes.data, b.strides[0] // 4, b.strides[1] // 4, packed.ctypes.data, k * WIDTH)
    return packed


def multiply_packed(a, packed, out, accumulate=False):
    k, n = a.shape[1], out.shape[1]
    function("multiply", 11)(len(a), n, k, a.ctypes.data, a.strides[0] // 4, a.strides[1] // 4, packed.ctypes.data, k * WIDTH, out.ctypes.data, out.strides[0] // 4, accumulate)
    return out


_local = threading.local()


def multiply(a, b, out, accumulate=False):
    if not hasattr(_local, "block"):
        _local.block = np.empty(BLOCK, np.float32)
    m, k = a.shape
    (ar, ac), (br, bc) = a.strides, b.strides
    function("product", 13)(m, b.shape[1], k, a.ctypes.data, ar // 4, ac // 4, b.ctypes.data, br // 4, bc // 4, out.ctypes.data, out.strides[0] // 4, accumulate, _local.block.ctypes.data)
    return out
