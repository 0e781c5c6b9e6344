"""Packing: the columns of B side by side, as `tile` reads them."""

from __future__ import annotations

from collections.abc import Sequence

from ..writer import Writer
from .tile import LANES, VECTOR, VECTORS, WIDTH

PARAMETERS = "i64 %k, i64 %n, ptr %b, i64 %b_row, i64 %b_column, ptr %packed, i64 %panel"


def pack() -> Writer:
    """Writes `pack`: puts the columns of B (k, n) into panels of WIDTH, `panel` numbers apart; zeros where B ends."""
    text = Writer()
    with text.loop("%n", WIDTH, kind="ptr", values=["%packed"]) as panel:
        target, width = panel.values[0], text.least(text.whole("sub", "%n", panel.index), WIDTH)
        source = text.at("%b", panel.index, "%b_column")
        full = text.is_true("eq", width, WIDTH)
        across, down = (text.new(f"and i1 {full}, {text.is_true('eq', s, 1)}") for s in ("%b_column", "%b_row"))
        copied = text.new(f"select i1 {across}, i64 %k, i64 0")
        turned = text.new(f"select i1 {down}, i64 {text.whole('and', '%k', -LANES)}, i64 {copied}")
        with text.loop(copied) as row:
            _copy(text, text.at(source, row.index, "%b_row"), text.at(target, row.index, WIDTH))
        with text.loop(turned, LANES, start=copied) as row:
            _transpose(text, text.at(source, row.index), text.at(target, row.index, WIDTH))
        with text.loop("%k", start=turned) as row:
            _gather(text, text.at(source, row.index, "%b_row"), width, text.at(target, row.index, WIDTH))
        panel.after = [text.at(target, "%panel")]
    return text


def _copy(text: Writer, source: str, target: str) -> None:
    """A row of B whose numbers lie side by side."""
    for v in range(VECTORS):
        text.store(VECTOR, text.load(VECTOR, text.at(source, v * LANES)), text.at(target, v * LANES))


def _transpose(text: Writer, source: str, target: str) -> None:
    """LANES rows of B whose columns' numbers lie side by side."""
    for v in range(VECTORS):
        columns = [text.load(VECTOR, text.at(source, v * LANES + lane, "%b_column")) for lane in range(LANES)]
        for lane, row in enumerate(transposed(text, columns)):
            text.store(VECTOR, row, text.at(text.at(target, lane, WIDTH), v * LANES))


def transposed(text: Writer, rows: Sequence[str]) -> list[str]:
    """The columns of a square matrix of vectors: bit by bit, the row's number and the column's are exchanged."""
    rows, bit = list(rows), 1
    while bit < len(rows):
        lanes = range(len(rows))
        low = ", ".join(f"i32 {e if not e & bit else e - bit + len(rows)}" for e in lanes)
        high = ", ".join(f"i32 {e + bit if not e & bit else e + len(rows)}" for e in lanes)
        for i in lanes:
            if not i & bit:
                kind, pair = f"<{len(rows)} x i32>", (rows[i], rows[i | bit])
                for place, mask in ((i, low), (i | bit, high)):
                    rows[place] = text.new(f"shufflevector {VECTOR} {pair[0]}, {VECTOR} {pair[1]}, {kind} <{mask}>")
        bit *= 2
    return rows


def _gather(text: Writer, source: str, width: str, target: str) -> None:
    """A row of B number by number, and zeros behind it."""
    with text.loop(width) as column:
        text.store("float", text.load("float", text.at(source, column.index, "%b_column")), text.at(target, column.index))
    with text.loop(WIDTH, start=width) as column:
        text.store("float", "0.0", text.at(target, column.index))
