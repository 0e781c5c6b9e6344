"""Products of any size, in blocks that stay in the processor's caches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .few import FEW
from .loops import Writer
from .tile import ROWS, WIDTH

DEPTH = 1024  # most rows of a packed B at once: a panel of them, and HEIGHT rows of A, stay in the second-level cache
HEIGHT = 8 * ROWS
BLOCK_DEPTH = 256  # of the block of B that is packed at once where B was not: it stays in the second-level cache
BLOCK_BREADTH = 16 * WIDTH
BLOCK = BLOCK_DEPTH * BLOCK_BREADTH  # numbers in it
_A, _C = "ptr %a, i64 %a_row, i64 %a_column", "ptr %c, i64 %c_row, i64 %accumulate"
MULTIPLY = f"i64 %m, i64 %n, i64 %k, {_A}, ptr %b, i64 %panel, {_C}"
PRODUCT = f"i64 %m, i64 %n, i64 %k, {_A}, ptr %b, i64 %b_row, i64 %b_column, {_C}, ptr %block"


def multiply_panels() -> Writer:
    """Writes `panels`: C (+)= A B, where B is packed, without blocks."""
    text = Writer()
    text.put(f"%edge = alloca [{ROWS * WIDTH} x float], align 64")
    tiles = text.round_up("%m", ROWS)
    with text.loop("%n", WIDTH, kind="ptr", values=["%b"]) as panel:
        columns = text.whole("sub", "%n", panel.index)
        full = text.is_true("sge", columns, WIDTH)
        with text.loop(tiles, kind="i64", values=["0"]) as this:
            done = this.values[0]  # tiles of even heights
            rows = text.round_up(text.whole("sub", "%m", done), text.whole("sub", tiles, this.index))
            of_a, to_c = text.at("%a", done, "%a_row"), text.at(text.at("%c", done, "%c_row"), panel.index)
            target = text.new(f"select i1 {full}, ptr {to_c}, ptr %edge")
            stride = text.new(f"select i1 {full}, i64 %c_row, i64 {WIDTH}")
            adds = text.new(f"select i1 {full}, i64 %accumulate, i64 0")
            function = text.new(f"load ptr, ptr {text.new(f'getelementptr ptr, ptr @tiles, i64 {rows}')}")
            given = f"ptr {of_a}, i64 %a_row, i64 %a_column, i64 %k, ptr {panel.values[0]}, i64 {WIDTH}"
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


def multiply() -> Writer:
    """Writes `multiply`: C (+)= A B, where B is packed, its panels of WIDTH columns `panel` numbers apart."""
    text = Writer()
    with _blocks(text, "%m", HEIGHT) as (i, height), _blocks(text, "%k", DEPTH) as (start, depth):
        of_a = text.at(text.at("%a", i, "%a_row"), start, "%a_column")
        given = f"ptr {of_a}, i64 %a_row, i64 %a_column, ptr {text.at('%b', start, WIDTH)}, i64 %panel"
        text.put(
            f"call void @panels(i64 {height}, i64 %n, i64 {depth}, {given}, "
            f"ptr {text.at('%c', i, '%c_row')}, i64 %c_row, i64 {_adds(text, start)})"
        )
    return text


def multiply_packing() -> Writer:
    """Writes `packing`: C (+)= A B, where B is packed block by block."""
    text = Writer()
    with _blocks(text, "%n", BLOCK_BREADTH) as (j, breadth), _blocks(text, "%k", BLOCK_DEPTH) as (start, depth):
        of_b, panel = text.at(text.at("%b", start, "%b_row"), j, "%b_column"), text.whole("mul", depth, WIDTH)
        text.put(f"call void @pack(i64 {depth}, i64 {breadth}, ptr {of_b}, i64 %b_row, i64 %b_column, ptr %block, i64 {panel})")
        text.put(
            f"call void @multiply(i64 %m, i64 {breadth}, i64 {depth}, ptr {text.at('%a', start, '%a_column')}, i64 %a_row, "
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
        given = "ptr %a, i64 %a_row, i64 %a_column, ptr %b, i64 %b_row, ptr %c, i64 %c_row, i64 %accumulate"
        text.put(f"call void {function}(i64 %n, i64 %k, {given})")
    with text.where(text.new(f"xor i1 {few}, true")):
        text.put(f"call void @packing({PRODUCT})")
    return text


def _adds(text: Writer, start: str) -> str:
    """Whether a block is added to what is in C: all blocks but the first one are."""
    return text.new(f"select i1 {text.is_true('sgt', start, 0)}, i64 1, i64 %accumulate")


@contextmanager
def _blocks(text: Writer, total: str, most: int) -> Iterator[tuple[str, str]]:
    """A loop over blocks of about even sizes, at most so large, and once where the total is 0: gives their starts and sizes."""
    size = text.round_up(total, text.largest(text.round_up(total, most), 1))
    with text.loop(text.largest(total, 1), text.largest(size, 1)) as block:
        yield block.index, text.least(text.whole("sub", total, block.index), size)
