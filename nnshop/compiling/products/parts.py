"""Products and packing by several threads: each has some panels of B, or else some rows of A.

The sums of a product run over k in the same order then, so that its bits do not depend on the number of threads.
"""

from __future__ import annotations

from ..jobs import part_of, take
from ..writer import Writer
from .blocks import BLOCK, PRODUCT
from .packing import PARAMETERS
from .tile import ROWS, WIDTH


def pack_part() -> Writer:
    """Writes `pack_part`: some panels of `pack`."""
    text = Writer()
    the = take(text, PARAMETERS)
    start, n = part_of(text, the["n"], WIDTH, the["parts"])
    to = text.at(the["packed"], text.whole("udiv", start, WIDTH), the["panel"])
    text.put(
        f"call void @pack(i64 {the['k']}, i64 {n}, ptr {text.at(the['b'], start, the['b_column'])}, i64 {the['b_row']}, "
        f"i64 {the['b_column']}, ptr {to}, i64 {the['panel']})"
    )
    return text


def product_part() -> Writer:
    """Writes `product_part`: some columns of `product`, or some rows where there are fewer panels than parts."""
    text = Writer()
    the = take(text, PRODUCT)
    wide = text.is_true("sge", text.round_up(the["n"], WIDTH), the["parts"])
    columns, rows = (part_of(text, the[size], unit, the["parts"]) for size, unit in (("n", WIDTH), ("m", ROWS)))
    j, n = (text.new(f"select i1 {wide}, i64 {c}, i64 {whole}") for c, whole in zip(columns, ("0", the["n"])))
    i, m = (text.new(f"select i1 {wide}, i64 {whole}, i64 {r}") for r, whole in zip(rows, ("0", the["m"])))
    of_a, of_b = text.at(the["a"], i, the["a_row"]), text.at(the["b"], j, the["b_column"])
    to_c = text.at(text.at(the["c"], i, the["c_row"]), j)
    block = text.at(the["block"], "%i", BLOCK)
    text.put(
        f"call void @product(i64 {m}, i64 {n}, i64 {the['k']}, ptr {of_a}, i64 {the['a_row']}, i64 {the['a_column']}, "
        f"ptr {of_b}, i64 {the['b_row']}, i64 {the['b_column']}, ptr {to_c}, i64 {the['c_row']}, i64 {the['accumulate']}, "
        f"ptr {block})"
    )
    return text
