"""Jobs that are written down: a function calls another one for each part of its work, by several threads.

The arguments lie in an array of whole numbers, the job; the number of parts is the first.
"""

from __future__ import annotations

from . import pool
from .writer import Writer

JOB = "ptr %job, i64 %i"


def share(text: Writer, name: str, arguments: str) -> None:
    """Calls a function, such as `pack`, of this module; or `pack_part`, if `%parts` is 2 or more, for each of so many."""
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


def take(text: Writer, parameters: str) -> dict[str, str]:
    """Reads the arguments of a function from a job, by their names."""
    named = [parameter.split(" %") for parameter in ("i64 %parts, " + parameters).split(", ")]
    return {name: text.new(f"load {kind}, ptr {_entry(text, n)}") for n, (kind, name) in enumerate(named)}


def part_of(text: Writer, total: str, unit: int, parts: str) -> tuple[str, str]:
    """The start and the size of this part of a total, of whole units but for the very last one."""
    units = text.round_up(total, unit)
    ends = [text.whole("udiv", text.whole("mul", units, i), parts) for i in ("%i", text.whole("add", "%i", 1))]
    start, stop = (text.least(text.whole("mul", end, unit), total) for end in ends)
    return start, text.whole("sub", stop, start)
