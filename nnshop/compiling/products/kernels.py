"""The products as one compiled program."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ctypes import c_int64, c_void_p, py_object
from functools import cache, partial
from typing import Any

from .. import machine
from ..jobs import JOB
from ..text import module
from ..writer import Writer
from . import arrays, blocks, few, packing, parts, tile

_PROVIDED = "multiply", "pack", "product"
_FOR_PYTHON = "pack_array", "multiply_arrays", "product_arrays"


@cache
def program() -> machine.Program:
    """Compiled when it is first asked for."""
    arrays.refuse_other_structures()
    return machine.load(text(), (*_PROVIDED, *_FOR_PYTHON))


@cache
def functions() -> tuple[Callable[..., int], ...]:
    """For Python: those of `arrays` that pack, that multiply by what is packed, and that multiply by any matrix.

    They return whether the arrays fit, without which they do nothing.
    """
    matrix: Any = py_object
    kinds = ([matrix] * 2 + [c_int64], [matrix] * 3 + [c_int64], [matrix] * 3 + [c_int64, c_void_p, c_int64])
    return tuple(program().function(name, *kind, result=c_int64) for name, kind in zip(_FOR_PYTHON, kinds))


def register() -> None:
    """Makes `nnshop_multiply`, `nnshop_pack` and `nnshop_product` known to compiled programs; importing this package did it."""
    for name in _PROVIDED:
        machine.provide(f"nnshop_{name}", partial(_address, name))


def _address(name: str) -> int:
    return program()[name]


def text() -> str:
    """The module of all products, in LLVM's language."""
    tiles = [(f"tile{rows}", tile.tile(rows), tile.PARAMETERS) for rows in range(1, tile.ROWS + 1)]
    fews = [(f"few{rows}", few.multiply_few(rows), few.PARAMETERS) for rows in range(1, few.FEW + 1)]
    rest = [
        ("panels", blocks.multiply_panels(), blocks.PANELS),
        ("blocks", blocks.multiply_blocks(), blocks.PANELS),
        ("packing", blocks.multiply_packing(), blocks.PRODUCT),
        ("many", blocks.multiply_many(), blocks.PRODUCT),
        ("multiply", blocks.multiply(), blocks.MULTIPLY),
        ("pack", packing.pack(), packing.PARAMETERS),
        ("product", blocks.multiply_any(), blocks.PRODUCT),
        ("pack_part", parts.pack_part(), JOB),
        ("product_part", parts.product_part(), JOB),
        ("pack_array", arrays.pack(), arrays.PACK),
        ("multiply_arrays", arrays.multiply_packed(), arrays.PACKED),
        ("product_arrays", arrays.multiply(), arrays.PRODUCT),
    ]
    written: list[tuple[str, Writer, str]] = [*tiles, *fews, *rest]
    outside = {*_PROVIDED, *_FOR_PYTHON}
    lines = [writer.function(name, given, "" if name in outside else "internal") for name, writer, given in written]
    declared = {line for _, writer, _ in written for line in writer.declared}
    return module([_table("tiles", tiles), _table("few", fews), *lines], declared)


def _table(name: str, functions: Iterable[tuple[str, Writer, str]]) -> str:
    """The functions for 1, 2 ... rows, at these places of a table."""
    entries = ["ptr null", *(f"ptr @{function}" for function, _, _ in functions)]
    return f"@{name} = internal constant [{len(entries)} x ptr] [{', '.join(entries)}]"
