"""Matrix products in float32, made for recurrent networks: few rows at a time, by the same right-hand matrix at every step.

Compiled programs that declare these functions can call them. Addresses are whole numbers, strides are counted in numbers:

    void @nnshop_multiply(i64 m, i64 n, i64 k, i64 a, i64 a_row, i64 a_column, i64 packed, i64 panel,
                          i64 c, i64 c_row, i64 accumulate)
    void @nnshop_pack(i64 k, i64 n, i64 b, i64 b_row, i64 b_column, i64 packed, i64 panel)
    void @nnshop_product(i64 m, i64 n, i64 k, i64 a, i64 a_row, i64 a_column, i64 b, i64 b_row, i64 b_column,
                         i64 c, i64 c_row, i64 accumulate, i64 block)

`packed` is B in panels of WIDTH columns, which are `panel` numbers apart (k * WIDTH, or more). `block` is room for BLOCK
numbers, which belongs to the calling thread. `accumulate` is 1 to add to C, else 0.
"""

from __future__ import annotations

import threading

import numpy as np

from .. import pool
from .arrays import address, refuse_other_structures
from .blocks import BLOCK
from .kernels import functions, register
from .tile import ROWS, WIDTH

__all__ = ["BLOCK", "ROWS", "WIDTH", "address", "multiply", "multiply_packed", "pack", "refuse_other_structures", "register"]

register()

_FLOAT = np.dtype(np.float32)
_LINE = 64  # bytes; what lies at a multiple of it is read faster


def pack(b: np.ndarray, packed: np.ndarray | None = None) -> np.ndarray:
    """Packs B `(k, n)`, which may have any strides, for `multiply_packed`.

    Args:
        b: The float32 matrix.
        packed: Gets the result: `(ceil(n / WIDTH), k, WIDTH)`, contiguous. A new array by default.
    """
    if packed is None:
        packed = _aligned((-(-b.shape[1] // WIDTH), b.shape[0], WIDTH))
    parts = pool.parts(b.size / 2, len(packed))
    if not (b.dtype == packed.dtype == _FLOAT and packed.flags.c_contiguous and functions()[0](b, packed, parts)):
        raise ValueError(f"pack needs float32 (k, n) and room (ceil(n / {WIDTH}), k, {WIDTH}); got {_said(b, packed)}.")
    return packed


def multiply_packed(a: np.ndarray, packed: np.ndarray, out: np.ndarray, accumulate: bool = False) -> np.ndarray:
    """Computes `out = a @ b`, or adds it to out, with the b that `pack` packed; the rest is as in `multiply`."""
    if not (a.dtype == packed.dtype == out.dtype == _FLOAT and functions()[1](a, packed, out, accumulate)):
        raise ValueError(f"{_RULE} b packed in panels of {WIDTH} columns; got {_said(a, packed, out)}.")
    return out


def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray, accumulate: bool = False) -> np.ndarray:
    """Computes `out = a @ b`, or adds it to out, which shares no memory with them.

    Args:
        a, b: float32 matrices `(m, k)` and `(k, n)` of any strides, such as transposed views.
        out: float32 `(m, n)`; the numbers of a row lie side by side.
        accumulate: Whether to add.
    """
    rows, columns = (1, 1, *out.shape)[-2:]
    parts = pool.parts(a.size * columns / 25, max(columns // WIDTH, rows // (2 * ROWS)))
    if not (a.dtype == b.dtype == out.dtype == _FLOAT and functions()[2](a, b, out, accumulate, _blocks(parts), parts)):
        raise ValueError(f"{_RULE} b (k, n); got {_said(a, b, out)}.")
    return out


_RULE = "A product needs float32, out (m, n), whose rows lie side by side, a (m, k), and"


def _said(*arrays: np.ndarray) -> str:
    return ", ".join(f"{array.shape} of {array.dtype} with strides {array.strides}" for array in arrays)


_thread = threading.local()


def _blocks(count: int) -> int:
    """The address of so many blocks, which belong to the calling thread."""
    if getattr(_thread, "count", 0) < count:
        _thread.count, _thread.blocks = count, _aligned((count, BLOCK))
        _thread.address = _thread.blocks.ctypes.data
    return _thread.address


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty array at the beginning of a line of the cache."""
    size = int(np.prod(shape))
    room = np.empty(size + _LINE // 4, np.float32)
    start = -room.ctypes.data % _LINE // 4
    return room[start : start + size].reshape(shape)
