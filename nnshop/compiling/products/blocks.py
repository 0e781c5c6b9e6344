"""Products of any size, in blocks that stay in the processor's caches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..writer import Writer
from .few import FEW
from .tile import ROWS, WIDTH

HEIGHT = 8 * ROWS  # so few rows, at most, go through B once: panel after panel, each of them by all rows
BLOCK_BREADTH = 8 * WIDTH  # more rows go through B block by block
DEPTH = 512  # of a panel and of a block: they stay in the second-level cache. One for all, so that all sums have one order
BLOCK = DEPTH * BLOCK_BREADTH  # numbers in a block
PAGE = 1024  # numbers so far apart, or a multiple, have the same places in the first-level cache
DIRECT = ROWS  # one tile reads B once, which does not pay for packing it
_A, _C = "ptr %a, i64 %a_row, i64 %a_column", "ptr %c, i64 %c_row, i64 %accumulate"
PANELS = f"i64 %m, i64 %n, i64 %k, {_A}, ptr %b, i64 %b_row, i64 %panel, {_C}"
MULTIPLY = f"i64 %m, i64 %n, i64 %k, {_A}, ptr %b, i64 %panel, {_C}"
PRODUCT = f"i64 %m, i64 %n, i64 %k, {_A}, ptr %b, i64 %b_row, i64 %b_column, {_C}, ptr %block"


def multiply_panels() -> Writer:
    """Writes `panels`: C (+)= A B, where B is packed, without blocks."""
    text = Writer()
    text.put(f"%edge = alloca [{ROWS * WIDTH} x float], align 64")
    tiles = text.round_up("%m", ROWS)
    height = text.whole("udiv", "%m", text.largest(tiles, 1))
    higher = text.whole("sub", "%m", text.whole("mul", tiles, height))  # so many tiles have a row more
    with text.loop("%n", WIDTH, kind="ptr", values=["%b"]) as panel:
        columns = text.whole("sub", "%n", panel.index)
        full = text.is_true("sge", columns, WIDTH)
        with text.loop(tiles, kind="i64", values=["0"]) as this:
            done, more = this.values[0], text.new(f"zext i1 {text.is_true('slt', this.index, higher)} to i64")
            rows = text.whole("add", height, more)
            of_a, to_c = text.at("%a", done, "%a_row"), text.at(text.at("%c", done, "%c_row"), panel.index)
            target = text.new(f"select i1 {full}, ptr {to_c}, ptr %edge")
            stride = text.new(f"select i1 {full}, i64 %c_row, i64 {WIDTH}")
            adds = text.new(f"select i1 {full}, i64 %accumulate, i64 0")
            function = text.new(f"load ptr, ptr {text.new(f'getelementptr ptr, ptr @tiles, i64 {rows}')}")
            given = f"ptr {of_a}, i64 %a_row, i64 %a_column, i64 %k, ptr {panel.values[0]}, i64 %b_row"
            text.put(f"call void {function}({given}, ptr {target}, i64 {stride}, i64 {adds})")
            with text.where(text.new(f"xor i1 {full}, true")):
                _copy_edge(text, rows, columns, to_c)
            this.after = [text.whole("add", done, rows)]
        panel.after = [text.at(panel.values[0], "%panel")]
    return text


def _copy_edge(text: Writer, rows: str, columns: str, to_c: str) -> None:
    """Writes what there is of a tile, of which a part lies right of C."""
    with text.loop(rows) as row, text.loop(columns) as column:
        number = text.load("float", text.at(text.at("%edge", row.index, WIDTH), column.index))
        place = text.at(text.at(to_c, row.index, "%c_row"), column.index)
        added = text.operate("fadd", "float", number, text.load("float", place))
        adds = text.is_true("ne", "%accumulate", 0)
        text.store("float", text.new(f"select i1 {adds}, float {added}, float {number}"), place)


def multiply_blocks() -> Writer:
    """Writes `blocks`: C (+)= A B, where the numbers in a row of a panel of B lie side by side."""
    text = Writer()
    many = text.is_true("sgt", "%m", HEIGHT)
    pairs = (BLOCK_BREADTH, text.largest("%n", 1)), (ROWS, HEIGHT)
    breadth, height = (text.new(f"select i1 {many}, i64 {a}, i64 {b}") for a, b in pairs)
    text.put(f"%near = alloca [{ROWS * DEPTH} x float], align 64")
    with (
        _blocks(text, "%n", breadth, WIDTH) as (j, n),
        _blocks(text, "%k", DEPTH) as (start, k),
        _blocks(text, "%m", height) as (i, m),
    ):
        of_a = text.at(text.at("%a", i, "%a_row"), start, "%a_column")
        of_b = text.at(text.at("%b", start, "%b_row"), text.whole("udiv", j, WIDTH), "%panel")
        to_c = text.at(text.at("%c", i, "%c_row"), j)
        of_a, a_row = _near(text, many, of_a, m, k)
        text.put(
            f"call void @panels(i64 {m}, i64 {n}, i64 {k}, ptr {of_a}, i64 {a_row}, i64 %a_column, "
            f"ptr {of_b}, i64 %b_row, i64 %panel, ptr {to_c}, i64 %c_row, i64 {_adds(text, start)})"
        )
    return text


def _near(text: Writer, many: str, of_a: str, m: str, k: str) -> tuple[str, str]:
    """A tile of A and the distance of its rows: a copy, where in A they displace each other from the first-level cache."""
    same = text.is_true("eq", text.whole("and", "%a_row", PAGE - 1), 0)
    in_rows = text.is_true("eq", "%a_column", 1)
    copied = text.new(f"and i1 {many}, {text.new(f'and i1 {same}, {in_rows}')}")
    text.declared.add("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
    with text.where(copied), text.loop(m) as row:
        places = f"ptr {text.at('%near', row.index, DEPTH)}, ptr {text.at(of_a, row.index, '%a_row')}"
        text.put(f"call void @llvm.memcpy.p0.p0.i64({places}, i64 {text.whole('mul', k, 4)}, i1 false)")
    return (
        text.new(f"select i1 {copied}, ptr %near, ptr {of_a}"),
        text.new(f"select i1 {copied}, i64 {DEPTH}, i64 %a_row"),
    )


def multiply() -> Writer:
    """Writes `multiply`: C (+)= A B, where B is packed, its panels of WIDTH columns `panel` numbers apart."""
    text = Writer()
    given = f"i64 %m, i64 %n, i64 %k, {_A}, ptr %b, i64 {WIDTH}, i64 %panel, {_C}"
    one = text.new(f"and i1 {text.is_true('sle', '%m', HEIGHT)}, {text.is_true('sle', '%k', DEPTH)}")
    with text.where(one):  # where there is one block only, its sizes need not be found by divisions
        text.put(f"call void @panels({given})")
    with text.where(text.new(f"xor i1 {one}, true")):
        text.put(f"call void @blocks({given})")
    return text


def multiply_packing() -> Writer:
    """Writes `packing`: C (+)= A B, where B is packed block by block."""
    text = Writer()
    with _blocks(text, "%n", BLOCK_BREADTH, WIDTH) as (j, n), _blocks(text, "%k", DEPTH) as (start, k):
        of_b, panel = text.at(text.at("%b", start, "%b_row"), j, "%b_column"), text.whole("mul", k, WIDTH)
        text.put(f"call void @pack(i64 {k}, i64 {n}, ptr {of_b}, i64 %b_row, i64 %b_column, ptr %block, i64 {panel})")
        text.put(
            f"call void @multiply(i64 %m, i64 {n}, i64 {k}, ptr {text.at('%a', start, '%a_column')}, i64 %a_row, "
            f"i64 %a_column, ptr %block, i64 {panel}, ptr {text.at('%c', j)}, i64 %c_row, i64 {_adds(text, start)})"
        )
    return text


def multiply_any() -> Writer:
    """Writes `product`: C (+)= A B, where both have any strides; the block has room for BLOCK numbers."""
    text = Writer()
    few = text.new(f"and i1 {text.is_true('ult', text.whole('sub', '%m', 1), FEW)}, {text.is_true('sgt', '%k', 0)}")
    few = text.new(f"and i1 {few}, {text.is_true('eq', '%b_column', 1)}")
    with text.where(few):
        function = text.new(f"load ptr, ptr {text.new('getelementptr ptr, ptr @few, i64 %m')}")
        text.put(f"call void {function}(i64 %n, i64 %k, ptr %a, i64 %a_row, i64 %a_column, ptr %b, i64 %b_row, {_C})")
    with text.where(text.new(f"xor i1 {few}, true")):
        text.put(f"call void @many({PRODUCT})")
    return text


def multiply_many() -> Writer:
    """Writes `many`: the same for more than FEW rows. Where one tile has them all, it reads the rows of B as they lie."""
    text = Writer()
    direct = text.new(f"and i1 {text.is_true('sle', '%m', DIRECT)}, {text.is_true('eq', '%b_column', 1)}")
    done = text.new(f"select i1 {direct}, i64 {text.whole('and', '%n', -WIDTH)}, i64 0")
    left = text.whole("sub", "%n", done)
    given = "i64 %k, ptr %a, i64 %a_row, i64 %a_column, ptr"
    text.put(f"call void @blocks(i64 %m, i64 {done}, {given} %b, i64 %b_row, i64 {WIDTH}, {_C})")
    text.put(
        f"call void @packing(i64 %m, i64 {left}, {given} {text.at('%b', done, '%b_column')}, i64 %b_row, i64 %b_column, "
        f"ptr {text.at('%c', done)}, i64 %c_row, i64 %accumulate, ptr %block)"
    )
    return text


def _adds(text: Writer, start: str) -> str:
    """Whether a block is added to what is in C: all blocks but the first one are."""
    return text.new(f"select i1 {text.is_true('sgt', start, 0)}, i64 1, i64 %accumulate")


@contextmanager
def _blocks(text: Writer, total: str, most: str | int, unit: int = 1) -> Iterator[tuple[str, str]]:
    """A loop over blocks of even sizes, at most so large, of whole units but for the last one; once where the total is 0.

    Gives the block's start and its size. Sizes differ by a unit at most: a tile of few rows would add in another order.
    """
    parts = text.largest(text.round_up(total, most), 1)
    units = text.round_up(total, unit)
    with text.loop(parts) as block:
        ends = (text.whole("mul", units, i) for i in (block.index, text.whole("add", block.index, 1)))
        start, stop = (text.least(text.whole("mul", text.whole("udiv", end, parts), unit), total) for end in ends)
        yield start, text.whole("sub", stop, start)
