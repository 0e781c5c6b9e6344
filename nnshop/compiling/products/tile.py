"""The innermost loop of a matrix product.

A tile of C, up to `ROWS` rows by `WIDTH` columns, stays in vector registers while k runs: for each k two vectors of B are
loaded, and each number of A's column is multiplied by both. The columns of B lie side by side; A is read by strides, so it may
be transposed. References: K. Goto, R. van de Geijn, Anatomy of high-performance matrix multiplication, 2008; F. Van Zee,
R. van de Geijn, BLIS, 2015.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..machine import has_fma, lanes
from ..text import vector
from ..writer import Writer

LANES = lanes()
VECTORS = 2
WIDTH = VECTORS * LANES  # columns of a tile
ROWS = 14 if LANES == 16 else 6  # with 32 or 16 registers: ROWS * VECTORS of C, VECTORS of B, one of A
VECTOR = vector(LANES)
PARAMETERS = "ptr %a, i64 %a_row, i64 %a_column, i64 %k, ptr %b, i64 %b_row, ptr %c, i64 %c_row, i64 %accumulate"
_CHAINS = 8  # so many independent sums hide the latency of a multiply-add
_AHEAD = 32  # rows of B: they are asked for so early, since they may lie in the third-level cache
_LINE = 16  # numbers in a line of the cache


def multiply_add(text: Writer, kind: str, a: str, b: str, c: str) -> str:
    """`a * b + c`, rounded once where the processor can."""
    return text.call("fma" if has_fma() else "fmuladd", kind, a, b, c)


def tile(rows: int) -> Writer:
    """Writes `tileN`, which computes C (+)= A B for a tile of so many rows."""
    text = Writer()
    for row in _rows(text, "%c", "%c_row", rows):
        for column in range(0, WIDTH, _LINE):
            text.prefetch(text.at(row, column), write=True)
    sums = _sums(text, _rows(text, "%a", "%a_row", rows))
    text.put(f"br i1 {text.is_true('ne', '%accumulate', 0)}, label %add, label %store")
    for block in ("add", "store"):
        text.label(block)
        _write(text, sums, rows, block == "add")
        text.put("br label %done")
    text.label("done")
    return text


def _rows(text: Writer, first: str, stride: str, count: int) -> list[str]:
    """The addresses of rows."""
    found = [first]
    while len(found) < count:
        found.append(text.at(found[-1], stride))
    return found


def _sums(text: Writer, rows: Sequence[str]) -> list[str]:
    """The numbers of the tile: the vectors of its first row, of its second row ..."""
    size = len(rows) * VECTORS
    chains = max(1, _CHAINS // size)
    whole = text.whole("sub", "%k", text.whole("srem", "%k", chains)) if chains > 1 else "%k"
    with text.loop(whole, chains, kind=VECTOR, values=["zeroinitializer"] * (size * chains)) as this:
        parts = [this.values[n * size : (n + 1) * size] for n in range(chains)]
        added = [_add_products(text, part, rows, text.whole("add", this.index, n)) for n, part in enumerate(parts)]
        this.after = [number for part in added for number in part]
    if chains == 1:
        return this.values
    with text.loop("%k", start=whole, kind=VECTOR, values=parts[0]) as rest:
        rest.after = _add_products(text, rest.values, rows, rest.index)
    return [_total(text, numbers) for numbers in zip(rest.values, *parts[1:])]


def _add_products(text: Writer, sums: Sequence[str], rows: Sequence[str], k: str) -> list[str]:
    """Adds the products of one column of A and one row of B."""
    of_b = text.at("%b", k, "%b_row")
    vectors = [text.load(VECTOR, text.at(of_b, v * LANES)) for v in range(VECTORS)]
    later = text.at(of_b, "%b_row", _AHEAD)
    for column in range(0, WIDTH, _LINE):
        text.prefetch(text.at(later, column))
    offset, added = text.whole("mul", k, "%a_column"), []
    for i, row in enumerate(rows):
        number = text.splat(VECTOR, text.load("float", text.at(row, offset)))
        added += [multiply_add(text, VECTOR, number, b, sums[i * VECTORS + v]) for v, b in enumerate(vectors)]
    return added


def _total(text: Writer, numbers: Iterable[str]) -> str:
    total, *rest = numbers
    for number in rest:
        total = text.operate("fadd", VECTOR, total, number)
    return total


def _write(text: Writer, sums: Sequence[str], rows: int, add: bool) -> None:
    for i, row in enumerate(_rows(text, "%c", "%c_row", rows)):
        for v in range(VECTORS):
            place, number = text.at(row, v * LANES), sums[i * VECTORS + v]
            if add:
                number = text.operate("fadd", VECTOR, number, text.load(VECTOR, place))
            text.store(VECTOR, number, place)
