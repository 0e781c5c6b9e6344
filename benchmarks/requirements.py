"""What is required of nnshop, and what it reached; None where something was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from statistics import median

from cell_works import (
    AUTO,
    CELL_GROWTH,
    CELL_GROWTH_LIMITS,
    CELLS_TITLE,
    COMPILE_LIMITS,
    COMPILING,
    MEDIANS,
    MEMORY,
    WAYS,
)
from cells import CELLS
from works import BEFORE, COMPILED, JAX, LOOP, LOOP_GROWTH, NNSHOP, Case, loops

EQUAL = 1e-4  # the largest difference of values and gradients that is rounding, as a part of the largest number


def entry(work: str, size: str, measure: str, required: float, reached: float | None, against: str | None = None) -> dict:
    return {"work": work, "size": size, "measure": measure, "against": against, "required": required, "reached": reached}


def total(row: dict | None) -> float | None:
    return row["seconds"]["total"] if row and "note" not in row else None


def ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def of_case(case: Case, rows: list[dict]) -> Iterator[dict]:
    """What is required of the first rival of a case."""
    by_rival = {row["rival"]: row for row in rows if "note" not in row}
    ours, taking_part = by_rival.get(case.rivals[0], {}), {row["rival"] for row in rows}
    for rival, factor in case.faster.items():
        if rival in taking_part:
            reached = ratio(total(by_rival.get(rival)), total(ours))
            yield entry(case.work, case.size, "speed", factor, reached, rival)
    for rival, part in case.smaller.items():
        if rival in taking_part:
            reached = ratio(ours.get("megabytes"), by_rival.get(rival, {}).get("megabytes"))
            yield entry(case.work, case.size, "memory", part, reached, rival)
    if case.seconds:
        yield entry(case.work, case.size, "seconds", case.seconds, total(ours))


def of_all(rows: list[dict]) -> list[dict]:
    """What is required of several cases together."""
    made = [of_loops, of_cells, of_compiling, of_memory, of_cell_growth, of_ways, of_values]
    return [requirement for function in made for requirement in function(rows)]


def of_work(rows: list[dict], work: str) -> dict[str, dict[str, dict]]:
    """The rows of a work, by size and rival."""
    some = [row for row in rows if row["work"] == work]
    return {size: {row["rival"]: row for row in group} for size, group in groupby(some, lambda row: row["size"])}


def of_loops(rows: list[dict]) -> Iterator[dict]:
    seconds = {
        row["arguments"]["steps"]: row["seconds"]
        for row in rows
        if row["rival"] == LOOP and row["work"] == LOOPS and "note" not in row
    }
    for phase, (first, last, required) in LOOP_GROWTH.items():
        if first in seconds and last in seconds:
            yield growth(LOOPS, "", phase, seconds, first, last, required)


LOOPS = loops()[0].work


def growth(work: str, cell: str, phase: str, seconds: dict[int, dict], first: int, last: int, required: float) -> dict:
    """How the time to build, or that of a step, grows with T."""
    reached = None
    if first in seconds and last in seconds:
        reached = seconds[last][phase] / seconds[first][phase] / (1 if phase == "build" else last / first)
    return entry(work, f"{cell}T={last:,} beside T={first:,}", phase, required, reached)


def of_cells(rows: list[dict]) -> Iterator[dict]:
    speeds = []
    for rivals in of_work(rows, CELLS_TITLE).values():
        arguments = next(iter(rivals.values()))["arguments"]
        if CELLS[arguments["cell"]].required:
            speeds.append((arguments["batch"], ratio(total(rivals.get(JAX)), total(rivals.get(NNSHOP)))))
    for size, (required, counts) in MEDIANS.items():
        some = [speed for batch, speed in speeds if counts(batch)]
        if some:
            yield entry(CELLS_TITLE, size, "speed", required, None if None in some else median(some), JAX)


def compile_time(row: dict | None) -> float | None:
    """How much longer the first use takes than the second."""
    return row["seconds"]["first"] - row["seconds"]["again"] if row and "note" not in row else None


def of_compiling(rows: list[dict]) -> Iterator[dict]:
    for size, rivals in of_work(rows, COMPILING).items():
        required = COMPILE_LIMITS[size.rsplit(", ", 1)[1]]
        yield entry(COMPILING, size, "seconds", required, compile_time(rivals.get(COMPILED)))


def numbers_kept(rows: Iterable[dict]) -> float | None:
    """How many numbers a step keeps for each row and unit, by the memory at two lengths."""
    by_steps = {row["arguments"]["steps"]: row for row in rows if "note" not in row}
    if len(by_steps) < 2:
        return None
    (shorter, a), (longer, b) = min(by_steps.items()), max(by_steps.items())
    units = (longer - shorter) * a["arguments"]["batch"] * a["arguments"]["units"]
    return (b["megabytes"] - a["megabytes"]) * 2**20 / 4 / units


def of_memory(rows: list[dict]) -> Iterator[dict]:
    some = [row for row in rows if row["work"] == MEMORY]
    for what in dict.fromkeys(row["size"].split(", B=")[0] for row in some):
        rivals = {
            r: [row for row in some if row["rival"] == r and row["size"].startswith(f"{what}, B=")]
            for r in (NNSHOP, JAX, BEFORE)
        }
        ours = numbers_kept(rivals[NNSHOP])
        for rival in (JAX, BEFORE):
            if rivals[rival]:
                reached = ratio(ours, numbers_kept(rivals[rival]))
                yield entry(MEMORY, f"{what}, what a step keeps", "memory", 1, reached, rival)


def of_cell_growth(rows: list[dict]) -> Iterator[dict]:
    some = [row for row in rows if row["work"] == CELL_GROWTH and row["rival"] == NNSHOP]
    for cell, group in groupby(some, lambda row: row["arguments"]["cell"]):
        of_cell = list(group)
        lengths = [row["arguments"]["steps"] for row in of_cell]
        seconds = {row["arguments"]["steps"]: row["seconds"] for row in of_cell if "note" not in row}
        for phase, required in CELL_GROWTH_LIMITS.items():
            yield growth(CELL_GROWTH, f"{CELLS[cell].title}, ", phase, seconds, min(lengths), max(lengths), required)


def of_ways(rows: list[dict]) -> Iterator[dict]:
    for size, rivals in of_work(rows, WAYS).items():
        others = [total(row) for rival, row in rivals.items() if rival != NNSHOP and "note" not in row]
        best = min((seconds for seconds in others if seconds is not None), default=None)
        yield entry(WAYS, size, "speed", AUTO, ratio(best, total(rivals.get(NNSHOP))), "the best way")


def of_values(rows: list[dict]) -> Iterator[dict]:
    """Values and gradients must be equal; the largest difference counts."""
    for work, group in groupby(rows, lambda row: row["work"]):
        worst = max((row for row in group if "difference" in row), key=lambda row: row["difference"], default=None)
        if worst:
            yield entry(work, f"{worst['size']}: {worst['rival']}", "difference", EQUAL, worst["difference"])
