"""What goes through the rows of a matrix number by number, such as exponentials and the largest numbers; compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import c_int64, py_object
from functools import cache, reduce
from typing import Any, NamedTuple

import numpy as np

from ..compiling import pool
from ..compiling.arithmetic import OPERATIONS
from ..compiling.jobs import JOB, part_of, share, take
from ..compiling.machine import lanes, load
from ..compiling.products.arrays import Array, refuse_other_structures, require_rows
from ..compiling.text import module, suffix, truth, vector
from ..compiling.writer import Round, Writer

BLOCK = 128  # numbers that are compared at once: hardly any block holds one of the largest
_LOWEST = "0xFFF0000000000000"  # -inf
_NUMBER = 0.5  # nanoseconds


def exponentials(x: np.ndarray, keep: bool = False, bias: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest number of each row of x (N, V), and the sum of exp(x - largest), both (N,).

    Args:
        x: In float32; the numbers of a row lie side by side.
        keep: Whether x becomes these exponentials.
        bias: `(V,)`, is added to each row first.
    """
    found = np.empty((2, len(x)), np.float32)
    name = "kept" if keep else "sums"
    if bias is None:
        _call(name, x, found)
    else:
        _call(f"{name}_biased", x, bias.reshape(1, -1), found)
    return found[0], found[1]


def scale(x: np.ndarray, factors: np.ndarray) -> None:
    """Multiplies each row of x (N, V), as in `exponentials`, by its factor (N,)."""
    _call("scale", x, factors.reshape(1, -1))


def add_up(x: np.ndarray, sums: np.ndarray, accumulate: bool = False) -> None:
    """Writes, or adds, the sums of the columns of x (N, V), as in `exponentials`, to `sums` (V,)."""
    _call("add_up", x, sums.reshape(1, -1), accumulate, most=x.shape[-1] // lanes())


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


def _call(name: str, x: np.ndarray, *arguments: Any, most: int | None = None) -> None:
    parts = pool.parts(x.size * _NUMBER, len(x) if most is None else most)
    if not (x.dtype == np.float32 and _functions()[name](x, *arguments, parts)):
        raise ValueError(f"rows are float32 (N, V), and the numbers of each lie side by side; got {x.dtype} {x.shape}.")


@cache
def _functions() -> dict[str, Any]:
    """For Python: they take arrays, and return whether x fits, without which they do nothing."""
    refuse_other_structures()
    kinds: dict[str, list[Any]] = {
        name: [py_object if kind == "ptr" else c_int64 for kind, _ in _named(work.outside)] for name, work in _works().items()
    }
    program = load(_text(), list(kinds))
    return {name: program.function(name, *given, result=c_int64) for name, given in kinds.items()}


Moved = dict[str, tuple[str | int, str]]


class _Work(NamedTuple):
    """A function of a matrix that threads can share, in three texts.

    Args:
        outside: The parameters of the function that Python calls; the number of parts is the last.
        check: It: looks at the arrays, and shares.
        inside: The parameters of the function that does the work.
        rows: That.
        moved: How far pointers of it move from row to row, or from column to column: by a parameter or a number, of a type.
        along: What is divided: rows, or columns in vectors.
    """

    outside: str
    check: Writer
    inside: str
    rows: Writer
    moved: Moved
    along: str = "rows"

    def part(self, name: str) -> Writer:
        """One part of the work."""
        text = Writer()
        the = take(text, self.inside)
        start, count = part_of(text, the[self.along], lanes() if self.along == "columns" else 1, the["parts"])
        for pointer, (stride, kind) in self.moved.items():
            offset = text.whole("mul", start, the[stride] if isinstance(stride, str) else stride)
            the[pointer] = text.new(f"getelementptr {kind}, ptr {the[pointer]}, i64 {offset}")
        the[self.along] = count
        text.put(f"call void @{name}_rows({', '.join(f'{kind} {the[one]}' for kind, one in _named(self.inside))})")
        return text


def _named(parameters: str) -> list[tuple[str, str]]:
    """The types and the names of parameters."""
    return [(kind, name) for kind, name in (one.split(" %") for one in parameters.split(", "))]


@cache
def _works() -> dict[str, _Work]:
    works = {"scale": _scale(), "add_up": _add_up(), "top_k": _top_k()}
    for keep in (True, False):
        for biased in (True, False):
            name = ("kept" if keep else "sums") + ("_biased" if biased else "")
            works[name] = _exponentials(name, keep, biased)
    return works


def _text() -> str:
    functions, declared = [], set()
    for name, work in _works().items():
        part = work.part(name)
        functions += [
            work.rows.function(f"{name}_rows", work.inside),
            part.function(f"{name}_rows_part", JOB),
            work.check.function(name, work.outside, linkage=""),
        ]
        declared |= work.rows.declared | part.declared | work.check.declared
    return module(functions, declared)


def _begin() -> tuple[Writer, Array]:
    text = Writer()
    x = Array(text, "%x")
    require_rows(text, x)
    return text, x


def _row_like(text: Writer, name: str, size: str) -> Array:
    """An array (1, so many) whose numbers lie side by side."""
    array = Array(text, name)
    require_rows(text, array)
    text.require(text.is_true("eq", array.sizes[1], size))
    return array


def _exponentials(name: str, keep: bool, biased: bool) -> _Work:
    check, matrix = _begin()
    rows, columns = matrix.sizes
    bias = _row_like(check, "%bias", columns).data if biased else "null"
    found = Array(check, "%found")
    sums = check.at(found.data, found.strides[0])
    given = f"ptr {matrix.data}, i64 {matrix.strides[0]}, ptr {bias}, ptr {found.data}, ptr {sums}"
    share(check, f"{name}_rows", f"i64 {rows}, i64 {columns}, {given}")
    text = Writer()
    with text.loop("%rows") as row:
        x = text.at("%x", row.index, "%x_row")

        def value(kind: str, at: str) -> str:
            number = text.load(kind, text.at(x, at))
            return text.operate("fadd", kind, number, text.load(kind, text.at("%bias", at))) if biased else number

        largest = _LOWEST
        for kind, number in _along(text, "%columns", largest, "fmax"):
            number.after = [OPERATIONS["maximum"](text, kind, value(kind, number.index), number.values[0])]
        largest = number.values[0]
        for kind, number in _along(text, "%columns", "0.0", "fadd"):
            below = text.operate("fsub", kind, value(kind, number.index), text.splat(kind, largest))
            exp = OPERATIONS["exp"](text, kind, below)
            if keep:
                text.store(kind, exp, text.at(x, number.index))
            number.after = [text.operate("fadd", kind, exp, number.values[0])]
        text.store("float", largest, text.at("%largest", row.index))
        text.store("float", number.values[0], text.at("%sums", row.index))
    inside = "i64 %rows, i64 %columns, ptr %x, i64 %x_row, ptr %bias, ptr %largest, ptr %sums"
    outside = f"ptr %x, {'ptr %bias, ' if biased else ''}ptr %found, i64 %parts"
    return _Work(outside, check, inside, text, {"x": ("x_row", "float"), "largest": (1, "float"), "sums": (1, "float")})


def _scale() -> _Work:
    check, matrix = _begin()
    rows, columns = matrix.sizes
    factors = _row_like(check, "%factors", rows)
    share(check, "scale_rows", f"i64 {rows}, i64 {columns}, ptr {matrix.data}, i64 {matrix.strides[0]}, ptr {factors.data}")
    text = Writer()
    with text.loop("%rows") as row:
        x, factor = text.at("%x", row.index, "%x_row"), text.load("float", text.at("%factors", row.index))
        for kind, place in _places(text, "%columns", x):
            text.store(kind, text.operate("fmul", kind, text.load(kind, place), text.splat(kind, factor)), place)
    inside = "i64 %rows, i64 %columns, ptr %x, i64 %x_row, ptr %factors"
    moved: Moved = {"x": ("x_row", "float"), "factors": (1, "float")}
    return _Work("ptr %x, ptr %factors, i64 %parts", check, inside, text, moved)


def _add_up() -> _Work:
    check, matrix = _begin()
    rows, columns = matrix.sizes
    sums = _row_like(check, "%sums", columns)
    given = f"ptr {matrix.data}, i64 {matrix.strides[0]}, ptr {sums.data}, i64 %accumulate"
    share(check, "add_up_rows", f"i64 {rows}, i64 {columns}, {given}")
    text = Writer()
    with text.where(text.is_true("eq", "%accumulate", 0)):
        for kind, place in _places(text, "%columns", "%sums"):
            text.store(kind, text.splat(kind, "0.0"), place)
    with text.loop("%rows") as row:
        x = text.at("%x", row.index, "%x_row")
        for kind, place, to in _places(text, "%columns", x, "%sums"):
            text.store(kind, text.operate("fadd", kind, text.load(kind, to), text.load(kind, place)), to)
    inside = "i64 %rows, i64 %columns, ptr %x, i64 %x_row, ptr %sums, i64 %accumulate"
    moved: Moved = {"x": (1, "float"), "sums": (1, "float")}
    return _Work("ptr %x, ptr %sums, i64 %accumulate, i64 %parts", check, inside, text, moved, "columns")


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


def _places(text: Writer, columns: str, *rows: str) -> Iterator[Sequence[str]]:
    """Goes through rows by vectors, and one by one at their end: the type, and the addresses in each row."""
    whole = text.whole("and", columns, -lanes())
    for kind, step, start, stop in ((vector(lanes()), lanes(), "0", whole), ("float", 1, whole, columns)):
        with text.loop(stop, step, start=start) as number:
            yield kind, *(text.at(row, number.index) for row in rows)


def _top_k() -> _Work:
    check, matrix = _begin()
    rows, columns = matrix.sizes
    numbers, indices = Array(check, "%best"), Array(check, "%places")
    k = numbers.sizes[1]
    given = f"ptr {matrix.data}, i64 {matrix.strides[0]}, i64 {k}, ptr {numbers.data}, ptr {indices.data}, i64 %without"
    share(check, "top_k_rows", f"i64 {rows}, i64 {columns}, {given}")
    text = Writer()
    last = text.whole("sub", "%k", 1)
    whole = text.whole("and", "%columns", -BLOCK)
    with text.loop("%rows") as row:
        x, best = text.at("%x", row.index, "%x_row"), text.at("%best", row.index, "%k")
        places = _entry(text, "%places", text.whole("mul", row.index, "%k"))

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
        offer(whole, "%columns")
    inside = "i64 %rows, i64 %columns, ptr %x, i64 %x_row, i64 %k, ptr %best, ptr %places, i64 %without"
    moved: Moved = {"x": ("x_row", "float"), "best": ("k", "float"), "places": ("k", "i64")}
    return _Work("ptr %x, ptr %best, ptr %places, i64 %without, i64 %parts", check, inside, text, moved)


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
