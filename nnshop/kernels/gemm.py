"""Matrix products in float32, made for recurrent networks: few rows at a time, by the same right-hand matrix at every step."""

from __future__ import annotations

import numpy as np

from .compiling import compiled, compiled_once
from .tile import ROWS, WIDTH, load, store, tile

DEPTH = 256  # of a block of B: DEPTH x WIDTH numbers stay in the first-level cache
BREADTH = 16 * WIDTH  # DEPTH x BREADTH numbers stay in the second-level cache
FEW = 3  # so few rows of A do not pay for packing B
STRIP = 4096  # numbers of a row of C that stay in the first-level cache
HEIGHT = ROWS  # a tile of A stays in the first-level cache, and writes to C go along its rows


@compiled("iiiiiiiiii")
def _tile(rows, a, a_row, a_column, k, b, c, c_row, columns, accumulate):
    tile(rows, a, a_row, a_column, k, b, c, c_row, columns, accumulate)


@compiled_once("iiiiiiiiiii")
def multiply_block(m, n, k, a, a_row, a_column, b, b_panel, c, c_row, accumulate):
    """C (m, n) (+)= A (m, k) times a packed B, whose panels of WIDTH columns lie b_panel numbers apart."""
    tiles = (m + ROWS - 1) // ROWS
    for j in range(0, n, WIDTH):
        columns = min(WIDTH, n - j)
        done = 0
        for left in range(tiles, 0, -1):
            rows = (m - done + left - 1) // left  # tiles of even heights
            from_a, to_c = a + 4 * done * a_row, c + 4 * (done * c_row + j)
            _tile(rows, from_a, a_row, a_column, k, b, to_c, c_row, columns, accumulate)
            done += rows
        b += 4 * b_panel


@compiled("msmi")
def multiply_packed(a, b, c, accumulate):
    """C (m, n) (+)= A B, where B (panels, k, WIDTH) is packed."""
    k, n = b.shape[1], c.shape[1]
    for start in range(0, k, DEPTH):
        depth = min(DEPTH, k - start)
        from_a, from_b = a.ctypes.data + 4 * start, b.ctypes.data + 4 * start * WIDTH
        multiply_block(c.shape[0], n, depth, from_a, k, 1, from_b, k * WIDTH, c.ctypes.data, n, accumulate or start > 0)


@compiled("iiiiiii")
def pack_block(k, n, b, b_row, b_column, packed, panel):
    """Puts the columns of B (k, n) side by side in panels of WIDTH, `panel` numbers apart; zeros where B ends."""
    for first in range(0, n, WIDTH):
        width = min(WIDTH, n - first)
        source, target = b + 4 * first * b_column, packed + 4 * (first // WIDTH) * panel
        for _ in range(k):
            if width == WIDTH and b_column == 1:
                for column in range(WIDTH):
                    store(target + 4 * column, load(source + 4 * column))
            else:
                for column in range(width):
                    store(target + 4 * column, load(source + 4 * column * b_column))
                for column in range(width, WIDTH):
                    store(target + 4 * column, 0)
            source += 4 * b_row
            target += 4 * WIDTH


@compiled("iiiiiiii")
def _add_rows(k, a, a_column, b, b_row, c, first, last):
    """Adds a row of A times B to a row of C, in columns first to last: B is read once, as it lies."""
    for row in range(0, k - 3, 4):
        a0, a1 = load(a + 4 * row * a_column), load(a + 4 * (row + 1) * a_column)
        a2, a3 = load(a + 4 * (row + 2) * a_column), load(a + 4 * (row + 3) * a_column)
        b0 = b + 4 * row * b_row
        b1, b2, b3 = b0 + 4 * b_row, b0 + 8 * b_row, b0 + 12 * b_row
        for j in range(4 * first, 4 * last, 4):
            sums = a0 * load(b0 + j) + a1 * load(b1 + j) + a2 * load(b2 + j) + a3 * load(b3 + j)
            store(c + j, load(c + j) + sums)
    for row in range(k - k % 4, k):
        number, from_b = load(a + 4 * row * a_column), b + 4 * row * b_row
        for j in range(4 * first, 4 * last, 4):
            store(c + j, load(c + j) + number * load(from_b + j))


@compiled("wwwbs")
def _multiply(a, b, c, accumulate, packed):
    m, k = a.shape
    n = b.shape[1]
    if m <= FEW and b.strides[1] == 4:
        for i in range(m):
            row = c.ctypes.data + i * c.strides[0]
            if not accumulate:
                for j in range(n):
                    store(row + 4 * j, 0)
            from_a = a.ctypes.data + i * a.strides[0]
            for j in range(0, n, STRIP):
                _add_rows(k, from_a, a.strides[1] // 4, b.ctypes.data, b.strides[0] // 4, row, j, min(j + STRIP, n))
        return
    a_row, a_column, c_row = a.strides[0] // 4, a.strides[1] // 4, c.strides[0] // 4
    b_row, b_column = b.strides[0] // 4, b.strides[1] // 4
    for j in range(0, n, BREADTH):
        breadth = min(BREADTH, n - j)
        for start in range(0, k, DEPTH):
            depth = min(DEPTH, k - start)
            pack_block(
                depth,
                breadth,
                b.ctypes.data + 4 * (start * b_row + j * b_column),
                b_row,
                b_column,
                packed.ctypes.data,
                DEPTH * WIDTH,
            )
            for i in range(0, m, HEIGHT):
                height = min(HEIGHT, m - i)
                multiply_block(
                    height, breadth, depth, a.ctypes.data + 4 * (i * a_row + start * a_column), a_row, a_column,
                    packed.ctypes.data, DEPTH * WIDTH, c.ctypes.data + 4 * (i * c_row + j), c_row,
                    accumulate or start > 0,
                )  # fmt: skip


def pack(b: np.ndarray, packed: np.ndarray | None = None) -> np.ndarray:
    """Packs B `(k, n)`, which may be a transposed view, for `multiply_packed`."""
    if packed is None:
        packed = np.empty((-(-b.shape[1] // WIDTH), b.shape[0], WIDTH), np.float32)
    k, n = b.shape
    pack_block(k, n, b.ctypes.data, b.strides[0] // 4, b.strides[1] // 4, packed.ctypes.data, k * WIDTH)
    return packed


_BLOCK = np.empty((BREADTH // WIDTH, DEPTH, WIDTH), np.float32)


def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray, accumulate: bool = False) -> np.ndarray:
    """Computes `out = a @ b`, or adds it to out; a and b may be transposed views, the rows of out are contiguous."""
    _multiply(a, b, out, accumulate, _BLOCK)
    return out
