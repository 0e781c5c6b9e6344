"""Products that take NumPy's arrays as they are: what would be asked in Python takes longer than a small product."""

from __future__ import annotations

from ctypes import c_int64
from typing import NamedTuple

import numpy as np

from .loops import Writer
from .tile import WIDTH

# In CPython's and NumPy's structures for 64 bits: where an array's data, sizes and strides are. NumPy has kept them since 1.0.
_DATA, _SIZES, _STRIDES = 16, 32, 40
PACKED = "ptr %a, ptr %packed, ptr %out, i64 %accumulate"
PRODUCT = "ptr %a, ptr %b, ptr %out, i64 %accumulate, ptr %block"
PACK = "ptr %b, ptr %packed"


class _Matrix(NamedTuple):
    """A matrix whose object is an argument of the function."""

    data: str
    rows: str
    columns: str
    row: str
    column: str


def _matrix(text: Writer, array: str) -> _Matrix:
    sizes, strides = (_field(text, "ptr", array, offset) for offset in (_SIZES, _STRIDES))
    steps = [text.whole("sdiv", _field(text, "i64", strides, 8 * axis), 4) for axis in (0, 1)]
    return _Matrix(_data(text, array), *(_field(text, "i64", sizes, 8 * axis) for axis in (0, 1)), *steps)


def _data(text: Writer, array: str) -> str:
    return _field(text, "ptr", array, _DATA)


def _field(text: Writer, kind: str, structure: str, offset: int) -> str:
    return text.new(f"load {kind}, ptr {text.new(f'getelementptr i8, ptr {structure}, i64 {offset}')}")


def pack() -> Writer:
    """Writes `pack_array`: packs a matrix into an array that was made for it."""
    text = Writer()
    b, packed = _matrix(text, "%b"), _data(text, "%packed")
    panel = text.whole("mul", b.rows, WIDTH)
    text.put(
        f"call void @pack(i64 {b.rows}, i64 {b.columns}, ptr {b.data}, i64 {b.row}, i64 {b.column}, ptr {packed}, i64 {panel})"
    )
    return text


def multiply_packed() -> Writer:
    """Writes `multiply_arrays`: out (+)= A B, where B is packed."""
    text = Writer()
    a, out, packed = _matrix(text, "%a"), _matrix(text, "%out"), _data(text, "%packed")
    text.put(
        f"call void @multiply(i64 {a.rows}, i64 {out.columns}, i64 {a.columns}, ptr {a.data}, i64 {a.row}, i64 {a.column}, "
        f"ptr {packed}, i64 {text.whole('mul', a.columns, WIDTH)}, ptr {out.data}, i64 {out.row}, i64 %accumulate)"
    )
    return text


def multiply() -> Writer:
    """Writes `product_arrays`: out (+)= A B."""
    text = Writer()
    a, b, out = (_matrix(text, name) for name in ("%a", "%b", "%out"))
    text.put(
        f"call void @product(i64 {a.rows}, i64 {b.columns}, i64 {a.columns}, ptr {a.data}, i64 {a.row}, i64 {a.column}, "
        f"ptr {b.data}, i64 {b.row}, i64 {b.column}, ptr {out.data}, i64 {out.row}, i64 %accumulate, ptr %block)"
    )
    return text


def refuse_other_structures() -> None:
    """Raises an error where a Python has its arrays' numbers elsewhere than these functions look for them."""
    array = np.zeros((2, 3), np.float32)
    data, sizes, strides = (c_int64.from_address(id(array) + offset).value for offset in (_DATA, _SIZES, _STRIDES))
    found = [c_int64.from_address(start + 8 * axis).value for start in (sizes, strides) for axis in (0, 1)]
    if [data, *found] != [array.ctypes.data, *array.shape, *array.strides]:
        raise RuntimeError("nnshop's products cannot read the arrays of this build of CPython and NumPy; use CPython 3.10.")
