"""Tables and plots of a user's cells."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from cell_works import CALL, CELL_GROWTH, CELLS_TITLE, COMPILING, MEMORY, WAYS
from cells import CELLS
from requirements import compile_time, numbers_kept, ratio, total
from tables import by_size, cells, milliseconds, notes, rivals_of, table
from works import JAX, LIBRARY, NNSHOP, TORCH

SHAPES = ("batch", "steps", "units")


def shape(row: dict) -> str:
    """B, T, H."""
    return ", ".join(f"{row['arguments'][axis]:,}" for axis in SHAPES)


def times(rivals: dict[str, dict], rival: str) -> str:
    """How many times as fast as a rival; nothing where one of both is missing."""
    found = ratio(total(rivals.get(rival)), total(rivals.get(NNSHOP)))
    return "" if found is None else f"{found:.2f}"


def time_of(row: dict) -> str:
    return milliseconds(row["seconds"]["total"])


def cells_table(rows: list[dict]) -> list[str]:
    """ms of each rival, and how many times as fast nnshop is."""
    columns, lines = rivals_of(rows), []
    for _, rivals in by_size(rows):
        row = next(iter(rivals.values()))
        ratios = [times(rivals, rival) for rival in (JAX, TORCH)]
        lines.append([CELLS[row["arguments"]["cell"]].title, shape(row), *cells(rivals, columns, time_of), *ratios])
    head = ["cell", "B, T, H", *(f"{rival}, ms" for rival in columns), f"times as fast as {JAX}", f"as {TORCH}"]
    return table(head, lines) + notes(rows)


def compiling_table(rows: list[dict]) -> list[str]:
    """ms that the first use takes more than the second, and ms that both take."""

    def show(row: dict) -> str:
        first, again = (milliseconds(row["seconds"][phase]) for phase in ("first", "again"))
        return f"{milliseconds(max(0, compile_time(row) or 0))} ({first} - {again})"

    columns = rivals_of(rows)
    lines = [[size, *cells(rivals, columns, show)] for size, rivals in by_size(rows)]
    return table(["cell", *(f"{rival}, ms" for rival in columns)], lines) + notes(rows)


def memory_table(rows: list[dict]) -> list[str]:
    """MB of the whole process, and how many numbers are kept for each step, row and unit: the difference of two lengths."""
    columns = rivals_of(rows)
    lines = [[size, *cells(rivals, columns, lambda row: f"{row['megabytes']:,.0f}")] for size, rivals in by_size(rows)]
    head = ["training step", *(f"{rival}, MB" for rival in columns)]
    what = lambda row: row["size"].split(", B=")[0]  # noqa: E731
    kept = []
    for name in dict.fromkeys(map(what, rows)):
        some = [numbers_kept([row for row in rows if what(row) == name and row["rival"] == rival]) for rival in columns]
        kept.append([f"{name}: numbers for a step, row and unit", *("" if k is None else f"{k:.1f}" for k in some)])
    return table(head, lines + kept) + notes(rows)


def growth_table(rows: list[dict]) -> list[str]:
    """ms to build, microseconds a step, MB."""

    def show(row: dict) -> str:
        step = 1e6 * row["seconds"]["total"] / row["arguments"]["steps"]
        build = "" if row["rival"] in LIBRARY else f"{milliseconds(row['seconds']['build'])}, "
        return f"{build}{step:,.0f}, {row['megabytes']:,.0f}"

    columns = rivals_of(rows)
    lines = [
        [
            CELLS[next(iter(rivals.values()))["arguments"]["cell"]].title,
            size.split(", T=")[1].split(",")[0],
            *cells(rivals, columns, show),
        ]
        for size, rivals in by_size(rows)
    ]
    what = [f"{rival}: {'' if rival in LIBRARY else 'build, ms; '}a step, µs; MB" for rival in columns]
    return table(["cell", "T", *what], lines) + notes(rows)


def ways_table(rows: list[dict]) -> list[str]:
    """ms of each way, and how auto compares with the best."""
    columns, lines = rivals_of(rows), []
    for _, rivals in by_size(rows):
        best = min((total(row) for rival, row in rivals.items() if rival != NNSHOP and "note" not in row), default=None)
        found = ratio(best, total(rivals.get(NNSHOP)))
        row = next(iter(rivals.values()))
        lines.append([shape(row), *cells(rivals, columns, time_of), "" if found is None else f"{found:.2f}"])
    return table(["B, T, H", *(f"{rival}, ms" for rival in columns), "speed beside the best way"], lines) + notes(rows)


def calls_table(rows: list[dict]) -> list[str]:
    columns = rivals_of(rows)
    lines = [[size, *cells(rivals, columns, time_of)] for size, rivals in by_size(rows)]
    return table(["call, both passes", *(f"{rival}, ms" for rival in columns)], lines) + notes(rows)


TABLES: dict[str, Callable[[list[dict]], list[str]]] = {
    CELLS_TITLE: cells_table,
    COMPILING: compiling_table,
    MEMORY: memory_table,
    CELL_GROWTH: growth_table,
    WAYS: ways_table,
    CALL: calls_table,
}


# ----------------------------------------------------------------------------------------------------------------- plots


def draw_cells(plt, rows: list[dict]):
    """How many times as fast as JAX and PyTorch, each cell at each size; nothing where neither was measured."""
    names = list(dict.fromkeys(row["arguments"]["cell"] for row in rows))
    found: dict[str, dict[str, list[tuple[float, int]]]] = {JAX: {}, TORCH: {}}
    for _, rivals in by_size(rows):
        row = next(iter(rivals.values()))
        for rival, points in found.items():
            speed = ratio(total(rivals.get(rival)), total(rivals.get(NNSHOP)))
            if speed is not None:
                points.setdefault(shape(row), []).append((speed, names.index(row["arguments"]["cell"])))
    if not any(found.values()):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(12, 0.32 * len(names) + 1.2), sharey=True)
    for ax, (rival, points), required in zip(axes, found.items(), (1.2, 2)):
        for label, some in points.items():
            ax.plot(*zip(*some), "o", label=label)
        ax.axvline(1, color="black", linewidth=1)
        ax.axvline(required, color="tab:red", linestyle="--", linewidth=1)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel=f"times as fast as {rival}", yticks=range(len(names)), yticklabels=[CELLS[name].title for name in names])
        ax.grid(axis="y", alpha=0.3)
    axes[0].invert_yaxis()
    axes[1].legend(title="B, T, H", fontsize="small")
    figure.tight_layout()
    return figure


def draw_growth(plt, rows: list[dict]):
    names = list(dict.fromkeys(row["arguments"]["cell"] for row in rows))
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    values: dict[str, Callable[[dict], float]] = {
        "building, ms": lambda row: 1000 * row["seconds"]["build"],
        "a step, forward and backward, µs": lambda row: 1e6 * row["seconds"]["total"] / row["arguments"]["steps"],
        "peak memory, MB": lambda row: row["megabytes"],
    }
    for ax, (label, value) in zip(axes, values.items()):
        for name, marker in zip(names, "os^v"):
            for rival, color in ((NNSHOP, "tab:blue"), (JAX, "tab:orange")):
                some = [row for row in rows if row["rival"] == rival and row["arguments"]["cell"] == name]
                if some and not (rival in LIBRARY and label.startswith("building")):
                    steps = [row["arguments"]["steps"] for row in some]
                    ax.plot(steps, list(map(value, some)), marker + "-", color=color, label=f"{CELLS[name].title}, {rival}")
        ax.set(xlabel="T", ylabel=label, xscale="log", ylim=(0, None))
    axes[1].legend(fontsize="small")
    figure.tight_layout()
    return figure


def draw_ways(plt, rows: list[dict]):
    groups = [
        (name, list(group)) for name, group in groupby(rows, lambda row: (row["arguments"]["batch"], row["arguments"]["units"]))
    ]
    figure, axes = plt.subplots(1, len(groups), figsize=(5.5 * len(groups), 3.2), squeeze=False)
    for ax, ((batch, units), some) in zip(axes[0], groups):
        for rival in rivals_of(some):
            points = [(row["arguments"]["steps"], 1000 * row["seconds"]["total"]) for row in some if row["rival"] == rival]
            thick = {"linewidth": 4, "alpha": 0.4} if rival == NNSHOP else {}
            ax.plot(*zip(*points), "o-", label=f"{rival} (auto)" if rival == NNSHOP else rival, **thick)
        ax.set(title=f"B={batch}, H={units}", xlabel="T", ylabel="forward and backward, ms", xscale="log", yscale="log")
    axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    return figure


PLOTS: dict[str, tuple[str, Callable]] = {
    "cells": (CELLS_TITLE, draw_cells),
    "cell_growth": (CELL_GROWTH, draw_growth),
    "ways": (WAYS, draw_ways),
}
