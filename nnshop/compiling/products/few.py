"""The product of one to three rows by a B that is not packed: it is read once, row after row, as it lies."""

from __future__ import annotations

from ..writer import Writer
from .tile import LANES, VECTOR, multiply_add

FEW = 3  # so few rows of A do not pay for the packing of B
PARAMETERS = "i64 %n, i64 %k, ptr %a, i64 %a_row, i64 %a_column, ptr %b, i64 %b_row, ptr %c, i64 %c_row, i64 %accumulate"
_TOGETHER = 8 if LANES == 16 else 4  # rows of B at once: their factors, for each row of A, stay in registers


def multiply_few(rows: int) -> Writer:
    """Writes `fewN`: C (+)= A B for so many rows, where the numbers of each row of B and C lie side by side."""
    text = Writer()
    whole = text.whole("and", "%k", -_TOGETHER)
    for together, start, stop in ((_TOGETHER, "0", whole), (1, whole, "%k")):
        with text.loop(stop, together, start=start) as k:
            adds = text.is_true("sgt", text.whole("or", "%accumulate", k.index), 0)
            _add_rows(text, rows, together, k.index, adds)
    return text


def _add_rows(text: Writer, rows: int, together: int, k: str, adds: str) -> None:
    """Adds the products with some rows of B to all rows of C."""
    of_a = text.at("%a", k, "%a_column")
    of_b = [text.at("%b", text.whole("add", k, n), "%b_row") for n in range(together)]
    numbers = [
        [text.load("float", text.at(text.at(of_a, n, "%a_column"), i, "%a_row")) for n in range(together)] for i in range(rows)
    ]
    vectors = [[text.splat(VECTOR, number) for number in row] for row in numbers]
    whole = text.whole("and", "%n", -LANES)
    for kind, factors, step, start, stop in ((VECTOR, vectors, LANES, "0", whole), ("float", numbers, 1, whole, "%n")):
        with text.loop(stop, step, start=start) as column:
            b = [text.load(kind, text.at(row, column.index)) for row in of_b]
            for i in range(rows):
                place = text.at(text.at("%c", i, "%c_row"), column.index)
                there = text.new(f"select i1 {adds}, {kind} {text.load(kind, place)}, {kind} zeroinitializer")
                for factor, number in zip(factors[i], b):
                    there = multiply_add(text, kind, factor, number, there)
                text.store(kind, there, place)
