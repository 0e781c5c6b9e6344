"""Matrix products in float32, made for recurrent networks: few rows at a time, by the same right-hand matrix at every step.

Compiled programs declare and call them by these names; importing this package makes the names known. Addresses are whole
numbers, strides are counted in float32 numbers:

    void @nnshop_multiply(i64 m, i64 n, i64 k, i64 a, i64 a_row, i64 a_column, i64 packed, i64 panel, i64 c, i64 c_row, i64 accumulate)
    void @nnshop_pack(i64 k, i64 n, i64 b, i64 b_row, i64 b_column, i64 packed, i64 panel)
    void @nnshop_product(i64 m, i64 n, i64 k, i64 a, i64 a_row, i64 a_column, i64 b, i64 b_row, i64 b_column, i64 c, i64 c_row,
                         i64 accumulate, i64 block)
"""

from __future__ import annotations

from .arrays import multiply, multiply_packed, pack
from .code import register
from .tile import ROWS, WIDTH

__all__ = ["ROWS", "WIDTH", "multiply", "multiply_packed", "pack", "register"]
