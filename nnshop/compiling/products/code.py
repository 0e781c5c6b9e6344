"""The products as one program."""

from __future__ import annotations

from ctypes import c_int64
from functools import cache

from .. import machine
from ..text import module
from . import blocks, few, packing, tile

_NAMES = "multiply", "pack", "product"


@cache
def program() -> machine.Program:
    """The products, compiled when they are first asked for."""
    return machine.load(text(), _NAMES)


def text() -> str:
    """The module of all products."""
    tiles = {f"tile{rows}": tile.tile(rows) for rows in range(1, tile.ROWS + 1)}
    fews = {f"few{rows}": few.multiply_few(rows) for rows in range(1, few.FEW + 1)}
    parameters = dict.fromkeys(tiles, tile.PARAMETERS) | dict.fromkeys(fews, few.PARAMETERS)
    written = {**tiles, **fews}
    for name, writer, given in (
        ("panels", blocks.multiply_panels(), blocks.PANELS),
        ("blocks", blocks.multiply_blocks(), blocks.PANELS),
        ("packing", blocks.multiply_packing(), blocks.PRODUCT),
        ("multiply", blocks.multiply(), blocks.MULTIPLY),
        ("pack", packing.pack(), packing.PARAMETERS),
        ("product", blocks.multiply_any(), blocks.PRODUCT),
    ):
        written[name], parameters[name] = writer, given
    functions = [w.function(n, parameters[n], "" if n in _NAMES else "internal") for n, w in written.items()]
    declared = {line for writer in written.values() for line in writer.declared}
    return module([_table("tiles", tiles), _table("few", fews), *functions], declared)


def _table(name: str, functions: dict[str, object]) -> str:
    """The functions for 1, 2 ... rows, at these places of a table."""
    entries = ", ".join(["ptr null", *(f"ptr @{function}" for function in functions)])
    return f"@{name} = internal constant [{len(functions) + 1} x ptr] [{entries}]"


@cache
def function(name: str, arguments: int):  # type: ignore[no-untyped-def]
    return program().function(name, *[c_int64] * arguments)


def register() -> None:
    for name in _NAMES:
        machine.provide(f"nnshop_{name}", program()[name])
