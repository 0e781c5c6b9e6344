"""Matrix products in float32, made for recurrent networks: few rows at a time, by the same right-hand matrix at every step."""

from __future__ import annotations

import numpy as np

from .compiling import compiled, compiled_once
from .tile import ROWS, WIDTH, load, store, tile

DEPTH = 256  # of a block of B: DEPTH x WIDTH numbers stay in the first-level cache
BREADTH = 16 * WIDTH  # DEPTH x BREADTH numbers stay in the second-level cache
FEW = 3  # so few rows of A do not pay for the packing of B
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


@compiled("wmmi")
def _multiply_few(a, b, c, accumulate):
    """Reads B once for each row of A, as it lies, four of its rows at a time."""
    k, n = b.shape
    for i in range(a.shape[0]):
        x, y = a[i], c[i]
        if not accumulate:
            y[:] = 0
        for row in range(0, k - 3, 4):
            x0, x1, x2, x3 = x[row], x[row + 1], x[row + 2], x[row + 3]
            b0, b1, b2, b3 = b[row], b[row + 1], b[row + 2], b[row + 3]
            for j in range(n):
                y[j] += (x0 * b0[j] + x1 * b1[j]) + (x2 * b2[j] + x3 * b3[j])
        for row in range(k - k % 4, k):
            x0, b0 = x[row], b[row]
            for j in range(n):
                y[j] += x0 * b0[j]


@compiled("msmi")
def multiply_packed(a, b, c, accumulate):
    """C (m, n) (+)= A B, where B is packed: (panels, k, WIDTH), or one panel (1, k, n) as it lies."""
    k, n = b.shape[1], c.shape[1]
    if b.shape[2] > WIDTH:
        _multiply_few(a, b[0], c, accumulate)
        return
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


@compiled("wwwbs")
def _multiply(a, b, c, accumulate, packed):
    m, k = a.shape
    n = b.shape[1]
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


def pack_for(steps: int, rows: int, b: np.ndarray) -> np.ndarray:
    """Packs B `(k, n)` for so many products of so many rows; for too few it stays as it lies."""
    return b[np.newaxis] if steps * rows <= FEW and b.flags.c_contiguous and b.shape[1] > WIDTH else pack(b)


_BLOCK = np.empty((BREADTH // WIDTH, DEPTH, WIDTH), np.float32)


def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray, accumulate: bool = False) -> np.ndarray:
    """Computes `out = a @ b`, or adds it to out; a and b may be transposed views, the rows of out are contiguous."""
    if len(a) <= FEW and b.flags.c_contiguous and out.flags.c_contiguous:
        _multiply_few(a, b, out, accumulate)
    else:
        _multiply(a, b, out, accumulate, _BLOCK)
    return out
