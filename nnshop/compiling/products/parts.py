"""Products and packing by several threads: each has some panels of B, or else some rows of A.

The sums of a product run over k in the same order then, so that its bits do not depend on the number of threads.
"""

from __future__ import annotations

from .. import pool
from ..writer import Writer
from .blocks import BLOCK, PRODUCT
from .packing import PARAMETERS
from .tile import ROWS, WIDTH

JOB = "ptr %job, i64 %i"


def share(text: Writer, name: str, arguments: str) -> None:
    """Calls a function of this module, or `%parts` times that for its parts, which `product_part` or `pack_part` takes."""
    several = text.is_true("sgt", "%parts", 1)
    with text.where(text.new(f"xor i1 {several}, true")):
        text.put(f"call void @{name}({arguments})")
    with text.where(several):
        values = ["i64 %parts", *arguments.split(", ")]
        text.put(f"%job = alloca [{len(values)} x i64]")
        for n, value in enumerate(values):
            text.put(f"store {value}, ptr {_entry(text, n)}")
        text.declared.add(f"declare void @{pool.NAME}(ptr, ptr, i64)")
        text.put(f"call void @{pool.NAME}(ptr @{name}_part, ptr %job, i64 %parts)")


def _entry(text: Writer, n: int) -> str:
    return text.new(f"getelementptr i64, ptr %job, i64 {n}")


def _take(text: Writer, parameters: str) -> dict[str, str]:
    """Reads the arguments of a function from a job, by their names."""
    named = [parameter.split(" %") for parameter in ("i64 %parts, " + parameters).split(", ")]
    return {name: text.new(f"load {kind}, ptr {_entry(text, n)}") for n, (kind, name) in enumerate(named)}


def _range(text: Writer, total: str, unit: int, parts: str) -> tuple[str, str]:
    """The start and the size of this part of a total, of whole units but for the very last one."""
    units = text.round_up(total, unit)
    ends = [text.whole("udiv", text.whole("mul", units, i), parts) for i in ("%i", text.whole("add", "%i", 1))]
    start, stop = (text.least(text.whole("mul", end, unit), total) for end in ends)
    return start, text.whole("sub", stop, start)


def pack_part() -> Writer:
    """Writes `pack_part`: some panels of `pack`."""
    text = Writer()
    the = _take(text, PARAMETERS)
    start, n = _range(text, the["n"], WIDTH, the["parts"])
    to = text.at(the["packed"], text.whole("udiv", start, WIDTH), the["panel"])
    text.put(
        f"call void @pack(i64 {the['k']}, i64 {n}, ptr {text.at(the['b'], start, the['b_column'])}, i64 {the['b_row']}, "
        f"i64 {the['b_column']}, ptr {to}, i64 {the['panel']})"
    )
    return text


def product_part() -> Writer:
    """Writes `product_part`: some columns of `product`, or some rows where there are fewer panels than parts."""
    text = Writer()
    the = _take(text, PRODUCT)
    wide = text.is_true("sge", text.round_up(the["n"], WIDTH), the["parts"])
    columns, rows = (_range(text, the[size], unit, the["parts"]) for size, unit in (("n", WIDTH), ("m", ROWS)))
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
