"""What goes through the rows of a matrix number by number: exponentials, their sums, and the largest numbers; compiled."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_int64, py_object
from functools import cache, reduce
from typing import Any

import numpy as np

from ..compiling.arithmetic import OPERATIONS
from ..compiling.machine import lanes, load
from ..compiling.products.arrays import Array, refuse_other_structures, require_rows
from ..compiling.text import module, suffix, truth, vector
from ..compiling.writer import Round, Writer

BLOCK = 128  # numbers that are compared at once: hardly any block holds one of the largest
_LOWEST = "0xFFF0000000000000"  # -inf


def exponentials(x: np.ndarray, keep: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest number of each row of x (N, V), and the sum of exp(x - largest), both (N,).

    Args:
        x: In float32; the numbers of a row lie side by side.
        keep: Whether x becomes these exponentials.
    """
    found = np.empty((2, len(x)), np.float32)
    _call("kept" if keep else "sums", x, found)
    return found[0], found[1]


def top_k(x: np.ndarray, k: int, without: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k largest numbers of each row of x (N, V), from the largest, the first of equals first.

    Args:
        x: As in `exponentials`.
        without: A column that does not count among them, or -1.

    Returns:
        The numbers (N, k), -inf where a row has fewer above that, and their columns (N, k), 0 there.
    """
    best, places = np.empty((len(x), k), np.float32), np.zeros((len(x), k), np.int64)
    best.fill(-np.inf)
    _call("top_k", x, best, places, without)
    return best, places


def _call(name: str, x: np.ndarray, *arguments: Any) -> None:
    if not (x.dtype == np.float32 and _functions()[name](x, *arguments)):
        raise ValueError(f"rows are float32 (N, V), and the numbers of each lie side by side; got {x.dtype} {x.shape}.")


@cache
def _functions() -> dict[str, Any]:
    """For Python: they take arrays, and return whether x fits, without which they do nothing."""
    refuse_other_structures()
    matrix: Any = py_object
    parameters = {"kept": [matrix] * 2, "sums": [matrix] * 2, "top_k": [matrix] * 3 + [c_int64]}
    program = load(_text(), list(parameters))
    return {name: program.function(name, *kinds, result=c_int64) for name, kinds in parameters.items()}


def _text() -> str:
    written = [
        ("kept", _exponentials(True), "ptr %x, ptr %found"),
        ("sums", _exponentials(False), "ptr %x, ptr %found"),
        ("top_k", _top_k(), "ptr %x, ptr %best, ptr %places, i64 %without"),
    ]
    functions = [text.function(name, parameters, linkage="") for name, text, parameters in written]
    return module(functions, {line for _, text, _ in written for line in text.declared})


def _begin() -> tuple[Writer, Array]:
    text = Writer()
    x = Array(text, "%x")
    require_rows(text, x)
    return text, x


def _exponentials(keep: bool) -> Writer:
    text, matrix = _begin()
    rows, columns = matrix.sizes
    found = Array(text, "%found")
    with text.loop(rows) as row:
        x = text.at(matrix.data, row.index, matrix.strides[0])
        largest = _LOWEST
        for kind, number in _along(text, columns, largest, "fmax"):
            here = text.load(kind, text.at(x, number.index))
            number.after = [OPERATIONS["maximum"](text, kind, here, number.values[0])]
        largest = number.values[0]
        for kind, number in _along(text, columns, "0.0", "fadd"):
            place = text.at(x, number.index)
            below = text.operate("fsub", kind, text.load(kind, place), text.splat(kind, largest))
            exp = OPERATIONS["exp"](text, kind, below)
            if keep:
                text.store(kind, exp, place)
            number.after = [text.operate("fadd", kind, exp, number.values[0])]
        for which, value in enumerate((largest, number.values[0])):
            text.store("float", value, text.at(text.at(found.data, which, found.strides[0]), row.index))
    return text


def _along(text: Writer, columns: str, start: str, combine: str) -> Iterator[tuple[str, Round]]:
    """Goes through a row by vectors, and one by one at its end; the last round's value combines all lanes with `start`."""
    kind = vector(lanes())
    whole = text.whole("and", columns, -lanes())
    with text.loop(whole, lanes(), kind=kind, values=[text.splat(kind, start)]) as many:
        yield kind, many
    with text.loop(columns, start=whole, kind="float", values=[_reduced(text, combine, kind, many.values[0])]) as one:
        yield "float", one


def _reduced(text: Writer, combine: str, kind: str, value: str) -> str:
    first = {"fmax": "", "fadd": "float -0.0, "}[combine]
    function = f"@llvm.vector.reduce.{combine}.{suffix(kind)}"
    text.declared.add(f"declare float {function}({'float, ' if first else ''}{kind})")
    return text.new(f"call reassoc float {function}({first}{kind} {value})")


def _top_k() -> Writer:
    text, matrix = _begin()
    rows, columns = matrix.sizes
    numbers, indices = Array(text, "%best"), Array(text, "%places")
    k = numbers.sizes[1]
    last = text.whole("sub", k, 1)
    whole = text.whole("and", columns, -BLOCK)
    with text.loop(rows) as row:
        x, best = text.at(matrix.data, row.index, matrix.strides[0]), text.at(numbers.data, row.index, k)
        places = _entry(text, indices.data, text.whole("mul", row.index, k))

        def offer(start: str, stop: str) -> None:
            with text.loop(stop, start=start) as column:
                number = text.load("float", text.at(x, column.index))
                is_higher = text.compare("ogt", "float", number, text.load("float", text.at(best, last)))
                counts = text.is_true("ne", column.index, "%without")
                with text.where(text.new(f"and i1 {is_higher}, {counts}")):
                    _insert(text, number, column.index, best, places, last)

        with text.loop(whole, BLOCK) as block:
            with text.where(_any_higher(text, text.at(x, block.index), text.at(best, last))):
                offer(block.index, text.whole("add", block.index, BLOCK))
        offer(whole, columns)
    return text


def _any_higher(text: Writer, block: str, least: str) -> str:
    """Whether one of BLOCK numbers is higher than the least of the best."""
    kind = vector(lanes())
    limit = text.splat(kind, text.load("float", least))
    vectors = [text.load(kind, text.at(block, start)) for start in range(0, BLOCK, lanes())]
    higher = [text.compare("ogt", kind, numbers, limit) for numbers in vectors]
    found = reduce(lambda a, b: text.new(f"or {truth(kind)} {a}, {b}"), higher)
    function = f"@llvm.vector.reduce.or.v{lanes()}i1"
    text.declared.add(f"declare i1 {function}({truth(kind)})")
    return text.new(f"call i1 {function}({truth(kind)} {found})")


def _insert(text: Writer, number: str, column: str, best: str, places: str, last: str) -> None:
    """Puts a number behind those that are as high, and moves the lower ones by one place; the last one falls out."""
    with text.loop(last, kind="i64", values=["0"]) as place:
        stays = text.compare("oge", "float", text.load("float", text.at(best, place.index)), number)
        place.after = [text.whole("add", place.values[0], text.new(f"zext i1 {stays} to i64"))]
    at = place.values[0]
    behind, moved = text.whole("add", at, 1), text.whole("sub", last, at)
    text.declared.add("declare ptr @memmove(ptr, ptr, i64)")
    for kind, value, array, address, size in (("float", number, best, Writer.at, 4), ("i64", column, places, _entry, 8)):
        to, source = address(text, array, behind), address(text, array, at)
        text.new(f"call ptr @memmove(ptr {to}, ptr {source}, i64 {text.whole('mul', moved, size)})")
        text.store(kind, value, source)


def _entry(text: Writer, base: str, index: str) -> str:
    return text.new(f"getelementptr i64, ptr {base}, i64 {index}")
