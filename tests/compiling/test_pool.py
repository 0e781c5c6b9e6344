"""Threads that share tasks: each task is done once, whoever does it, and whatever else is under way."""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from nnshop.compiling import machine, pool

# Adds 1 to the number of its own; `nested` shares tasks itself.
TASKS = """
declare void @nnshop_parallel(ptr, ptr, i64)
define void @count(ptr %numbers, i64 %i) {
  %at = getelementptr i64, ptr %numbers, i64 %i
  %old = load i64, ptr %at
  %new = add i64 %old, 1
  store i64 %new, ptr %at
  ret void
}
define void @nested(ptr %numbers, i64 %i) {
  %start = mul i64 %i, 7
  %at = getelementptr i64, ptr %numbers, i64 %start
  call void @nnshop_parallel(ptr @count, ptr %at, i64 7)
  ret void
}
"""


@pytest.fixture(scope="module")
def tasks() -> machine.Program:
    return machine.load(TASKS, ["count", "nested"])


@pytest.mark.parametrize("count", [0, 1, 2, 5, 64])
def test_each_task_is_done_once(tasks: machine.Program, count: int) -> None:
    pool.start(3)
    numbers = np.zeros(65, np.int64)
    for _ in range(3000):
        pool.parallel(tasks["count"], numbers.ctypes.data, count)
    np.testing.assert_array_equal(numbers, [3000] * count + [0] * (65 - count))


def test_a_task_may_share_tasks(tasks: machine.Program) -> None:
    pool.start(3)
    numbers = np.zeros(35, np.int64)
    for _ in range(500):
        pool.parallel(tasks["nested"], numbers.ctypes.data, 5)
    assert (numbers == 500).all()


def test_callers_at_once(tasks: machine.Program) -> None:
    pool.start(3)
    numbers = np.zeros((4, 6), np.int64)

    def call(row: np.ndarray) -> None:
        for _ in range(2000):
            pool.parallel(tasks["count"], row.ctypes.data, 6)

    callers = [threading.Thread(target=call, args=(row,)) for row in numbers]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert (numbers == 2000).all()


def test_small_work_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "threads", lambda: 4)
    assert [pool.parts(work, 100) for work in (0, 1.9 * pool.PART, 2 * pool.PART, 3.5 * pool.PART, 1e9)] == [1, 1, 2, 3, 4]
    assert pool.parts(1e9, 2) == 2
    assert pool.parts(1e9, 0) == 1
