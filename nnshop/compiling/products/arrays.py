"""Products that take NumPy's arrays as they are: what would be asked in Python takes longer than a small product."""

from __future__ import annotations

from ctypes import c_int64
from functools import cache

import numpy as np

from ..jobs import share
from ..writer import Writer
from .tile import WIDTH

# In CPython's and NumPy's structures for 64 bits: where an array's data, sizes and strides are. NumPy has kept them since 1.0.
_DATA, _AXES, _SIZES, _STRIDES = 16, 24, 32, 40
PACKED = "ptr %a, ptr %packed, ptr %out, i64 %accumulate"
PRODUCT = "ptr %a, ptr %b, ptr %out, i64 %accumulate, ptr %blocks, i64 %parts"
PACK = "ptr %b, ptr %packed, i64 %parts"


class Array:
    """An array of whole float32 numbers with so many axes, an argument of the function, which returns 0 where it is another."""

    def __init__(self, text: Writer, name: str, axes: int = 2) -> None:
        _require_equal(text, text.new(f"sext i32 {_field(text, 'i32', name, _AXES)} to i64"), axes)
        self.data = _field(text, "ptr", name, _DATA)
        sizes, strides = (_field(text, "ptr", name, offset) for offset in (_SIZES, _STRIDES))
        self.sizes = [_field(text, "i64", sizes, 8 * axis) for axis in range(axes)]
        in_bytes = [_field(text, "i64", strides, 8 * axis) for axis in range(axes)]
        for number in (text.new(f"ptrtoint ptr {self.data} to i64"), *in_bytes):
            _require_equal(text, text.whole("and", number, 3), 0)
        self.strides = [text.whole("sdiv", stride, 4) for stride in in_bytes]

    @property
    def as_arguments(self) -> str:
        row, column = self.strides
        return f"ptr {self.data}, i64 {row}, i64 {column}"


def _field(text: Writer, kind: str, structure: str, offset: int) -> str:
    return text.new(f"load {kind}, ptr {text.new(f'getelementptr i8, ptr {structure}, i64 {offset}')}")


def _require_equal(text: Writer, a: str, b: str | int) -> None:
    text.require(text.is_true("eq", a, b))


def require_rows(text: Writer, array: Array) -> None:
    """The numbers of each row lie side by side, if there are two of them."""
    rows, columns = array.sizes
    apart = text.is_true("ne", array.strides[1], 1)
    several = text.is_true("sgt", text.least(columns, text.whole("add", rows, 1)), 1)
    text.require(text.new(f"xor i1 {text.new(f'and i1 {apart}, {several}')}, true"))


def _packed(text: Writer, k: str, n: str) -> tuple[str, str]:
    """The data of an array that holds a packed B (k, n), and how far apart its panels are."""
    packed, panel = Array(text, "%packed", 3), text.whole("mul", k, WIDTH)
    for size, right in zip(packed.sizes, (text.round_up(n, WIDTH), k, str(WIDTH))):
        _require_equal(text, size, right)
    return packed.data, panel


def pack() -> Writer:
    """Writes `pack_array`: packs a matrix into an array that was made for it."""
    text = Writer()
    b = Array(text, "%b")
    k, n = b.sizes
    data, panel = _packed(text, k, n)
    share(text, "pack", f"i64 {k}, i64 {n}, {b.as_arguments}, ptr {data}, i64 {panel}")
    return text


def multiply_packed() -> Writer:
    """Writes `multiply_arrays`: out (+)= A B, where B is packed."""
    text = Writer()
    a, out = Array(text, "%a"), Array(text, "%out")
    (m, k), n = a.sizes, out.sizes[1]
    _require_equal(text, m, out.sizes[0])
    require_rows(text, out)
    data, panel = _packed(text, k, n)
    to_out = f"ptr {out.data}, i64 {out.strides[0]}, i64 %accumulate"
    text.put(f"call void @multiply(i64 {m}, i64 {n}, i64 {k}, {a.as_arguments}, ptr {data}, i64 {panel}, {to_out})")
    return text


def multiply() -> Writer:
    """Writes `product_arrays`: out (+)= A B."""
    text = Writer()
    a, b, out = (Array(text, name) for name in ("%a", "%b", "%out"))
    (m, k), n = a.sizes, b.sizes[1]
    for given, right in ((b.sizes[0], k), (out.sizes[0], m), (out.sizes[1], n)):
        _require_equal(text, given, right)
    require_rows(text, out)
    to_out = f"ptr {out.data}, i64 {out.strides[0]}, i64 %accumulate"
    share(text, "product", f"i64 {m}, i64 {n}, i64 {k}, {a.as_arguments}, {b.as_arguments}, {to_out}, ptr %blocks")
    return text


def address(array: np.ndarray) -> int:
    """Where an array's data are: NumPy's own answer takes as long as a small product.

    Only right after `refuse_other_structures`.
    """
    return c_int64.from_address(id(array) + _DATA).value


@cache
def refuse_other_structures() -> None:
    """Raises an error where a Python has its arrays' numbers elsewhere than these functions look for them."""
    array = np.zeros((2, 3), np.float32)
    data, sizes, strides = (c_int64.from_address(id(array) + offset).value for offset in (_DATA, _SIZES, _STRIDES))
    found = [c_int64.from_address(start + 8 * axis).value for start in (sizes, strides) for axis in (0, 1)]
    if [data, *found] != [array.ctypes.data, *array.shape, *array.strides]:
        raise RuntimeError("nnshop's products cannot read the arrays of this build of CPython and NumPy; use CPython 3.10.")
