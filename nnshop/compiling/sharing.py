"""How threads share the rows of a program, so that results do not depend, to the last bit, on how many there are.

Each row is computed by one thread, by operations that do not depend on what other rows the thread has. Sums over rows, such as
the gradient of a bias, are made in two steps: those over a group of neighbours, in order, and then those over all groups. The
groups depend on the number of rows alone, and no thread has a part of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from . import machine, pool
from .nodes import CHEAP, Node
from .schedule import Schedule

FLAT_GROUPS = 64
LEAST = 3  # rows of a thread: products of fewer add in another order, see `products.tile`
_PRODUCT, _CHEAP, _DEAR = 1 / 25, 0.1, 0.8  # nanoseconds for each number: of a weight, of a simple operation, of others


def group_of(rows: int, flat: bool) -> int:
    """How many rows a group has. Many groups are small parts for threads; few stay in the first-level cache."""
    return -(-rows // FLAT_GROUPS) if flat else min(max(rows // 8, 1), 4)


def cost_of_a_row(schedule: Schedule) -> float:
    """About how many nanoseconds a row takes."""
    products = [p.node for at in schedule.products.values() for p in at]
    return sum(_PRODUCT * node.size * node.args[0].shape[-1] for node in products) + sum(map(_cost, schedule.nodes()))


def _cost(node: Node) -> float:
    return 0 if node.op == "product" else node.size * (_CHEAP if node.op in CHEAP else _DEAR)


def cuts(rows: int, group: int, parts: int) -> list[int]:
    """Where the parts of threads begin and end: at most so many, about even, of whole groups and of LEAST rows or more."""
    groups = rows // group  # the last one has the rows that are left, too
    most = max(1, min(parts, groups // -(-LEAST // group)))
    return [*(groups * i // most * group for i in range(most)), rows]


def share(program: int, given: Sequence[int], tables: np.ndarray, ends: Sequence[int]) -> None:
    """Runs a program by its address, for threads that `pool.parts` started: each has a table and a part of the rows."""
    job = np.array([program, *given, tables.ctypes.data, tables.strides[0], *ends], np.int64)
    pool.parallel(_part()["part"], job.ctypes.data, len(tables))


@cache
def _part() -> machine.Program:
    return machine.load(_PART, ["part"])


_PART = """
define void @part(ptr %job, i64 %i) {
  %table.at = getelementptr i64, ptr %job, i64 5
  %start.at = getelementptr i64, ptr %job, i64 7
  %steps.at = getelementptr i64, ptr %job, i64 1
  %rows.at = getelementptr i64, ptr %job, i64 2
  %back.at = getelementptr i64, ptr %job, i64 3
  %group.at = getelementptr i64, ptr %job, i64 4
  %size.at = getelementptr i64, ptr %job, i64 6
  %begin.at = getelementptr i64, ptr %start.at, i64 %i
  %end.at = getelementptr i64, ptr %begin.at, i64 1
  %program = load ptr, ptr %job
  %tables = load ptr, ptr %table.at
  %size = load i64, ptr %size.at
  %offset = mul i64 %size, %i
  %table = getelementptr i8, ptr %tables, i64 %offset
  %steps = load i64, ptr %steps.at
  %rows = load i64, ptr %rows.at
  %back = load i64, ptr %back.at
  %group = load i64, ptr %group.at
  %begin = load i64, ptr %begin.at
  %end = load i64, ptr %end.at
  call void %program(ptr %table, i64 %steps, i64 %rows, i64 %back, i64 %group, i64 %begin, i64 %end)
  ret void
}
"""
