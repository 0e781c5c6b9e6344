"""What is measured of a user's cells, beside JAX and PyTorch; `cells.py` has the table of cells."""

from __future__ import annotations

from dataclasses import replace

from cells import CELLS
from works import BEFORE, COMPILED, FOUR, JAX, LOOP, NNSHOP, ONE, TORCH, UNROLLED, Case

CELLS_TITLE = "A user's cells, forward and backward"
COMPILING = "Compiling a cell"
MEMORY = "Memory of a training step"
CELL_GROWTH = "A user's cells over long sequences"
CALL = "The fixed cost of a call"
WAYS = "A user's LSTM in each way"

Size = tuple[int, int, int]  # B, T, H = D
SIZES: list[Size] = [(32, 100, 128), (20, 35, 650), (1, 200, 64), (8, 1000, 32)]
TINY: list[Size] = [(4, 20, 16)]


def _case(work: str, cell: str, size: Size, function: str = "both_passes", **options) -> Case:
    batch, steps, units = size
    arguments = {"cell": cell, "batch": batch, "steps": steps, "units": units}
    label = f"{CELLS[cell].title}, B={batch}, T={steps}, H={units}"
    return Case(work, label, function, arguments, family="cells", **options)


def cells(quick: bool) -> list[Case]:
    """Each cell beside JAX and PyTorch. `auto` and JAX alternate in two rounds; the others vary less than they differ."""
    cases = []
    for name, entry in CELLS.items():
        for size in TINY if quick else SIZES if entry.required else [SIZES[0], SIZES[2]]:
            batch, _, units = size
            ways = (UNROLLED, LOOP) if quick or (entry.required and batch == 1) else ()
            case = _case(
                CELLS_TITLE,
                name,
                size,
                rivals=(NNSHOP, JAX, COMPILED, TORCH, *ways),
                repeats=8 if units > 500 else 30,
                rounds=1 if quick or not entry.required else 2,
                once=(COMPILED, TORCH, *ways),
                patience=1,
                compared=True,
                faster={JAX: 1.2 if batch >= 8 else 1, TORCH: 2} if entry.required else {},
            )
            cases.append(case)
    return cases


def thread_cells(quick: bool) -> list[Case]:
    """What a second thread brings to a user's cell, for `--threads 2`."""
    return [
        _case(
            "Threads: a user's cells",
            name,
            size,
            rivals=(NNSHOP, ONE, FOUR, JAX),
            repeats=8 if size[-1] > 500 else 30,
            rounds=1 if quick else 2,
            patience=1,
            faster={ONE: 1.7, JAX: 1.3},
        )
        for name in ("lstm", "layer_norm_lstm", "attention")
        for size in (TINY if quick else SIZES[:2])
    ]


# The median of the speeds beside JAX, of the required cells: what it must be, over which batch sizes.
MEDIANS = {"median of B=1": (1.2, lambda batch: batch == 1), "median of all": (1.6, lambda batch: True)}

# How long a cell may take to compile, in seconds, by what the cache on disk holds.
COMPILE_LIMITS = {"the very first use": 2, "a new cell": 0.2, "from disk": 0.01}


def compiling(quick: bool) -> list[Case]:
    """The first use of a cell beside its second. Before a new cell the same process runs another one."""
    cases = []
    for cell in ("lstm",) if quick else ("lstm", "layer_norm_lstm", "two_lstms"):
        for state in COMPILE_LIMITS:
            case = _case(COMPILING, cell, TINY[0] if quick else (32, 20, 128), "first_use", warmup=0, repeats=1)
            case = replace(
                case,
                size=f"{CELLS[cell].title}, {state}",
                arguments={**case.arguments, "after": None if state == "the very first use" else "scan"},
                rivals=(COMPILED, NNSHOP, JAX) if state == "a new cell" else (COMPILED, NNSHOP),
                rounds=1 if quick else 3,
                once=(NNSHOP, JAX),
                cached={"the very first use": (), "a new cell": ("scan",), "from disk": ("scan", cell)}[state],
            )
            cases.append(case)
    return cases


def memory(quick: bool) -> list[Case]:
    """Two lengths each: by their difference a step and a row can be told from the libraries and the weights."""
    cases = []
    for steps in (20, 40) if quick else (500, 1000):
        options = {"warmup": 1, "repeats": 2, "rounds": 1, "patience": 1}
        arguments = {"kind": "lstm", "batch": 32, "steps": steps, "units": 128}
        size = f"nnshop.lstm, B=32, T={steps}, H=128"
        cases.append(Case(MEMORY, size, "layer", arguments, (NNSHOP, BEFORE, TORCH), smaller={BEFORE: 1}, **options))
        cases += [
            _case(MEMORY, cell, (32, steps, 128), rivals=(NNSHOP, COMPILED, JAX, TORCH), smaller={JAX: 1}, **options)
            for cell in ("lstm", "layer_norm_lstm")
        ]
    return cases


def cell_growth(quick: bool) -> list[Case]:
    lengths = (10, 20, 40) if quick else (1000, 8000, 64_000)
    return [
        _case(
            CELL_GROWTH,
            cell,
            (32, steps, 128),
            rivals=(NNSHOP, COMPILED, JAX) if steps <= 8000 else (NNSHOP,),  # the others have no room for 64,000 steps
            warmup=1,
            repeats=3,
            rounds=1,
            patience=1,
            limit=150,
        )
        for cell in ("lstm", "layer_norm_lstm")
        for steps in lengths
    ]


# What must not grow from T=1,000 to T=64,000, by phase: at most so many times. The time is that of a step.
CELL_GROWTH_LIMITS = {"build": 1.2, "step": 1.2}


def calls(quick: bool) -> list[Case]:
    """Sizes at which nothing is computed: what is left is what a call costs."""
    options = {"warmup": 20, "repeats": 2000, "rounds": 1 if quick else 2, "patience": 1}
    layer = Case(CALL, "nnshop.lstm, B=1, T=1, H=8", "layer", {"kind": "lstm", "batch": 1, "steps": 1, "units": 8})
    return [
        replace(layer, rivals=(NNSHOP, BEFORE, TORCH), seconds=0.00015, **options),
        *(
            _case(CALL, cell, (1, 1, 8), rivals=(COMPILED, NNSHOP, UNROLLED, JAX, TORCH), seconds=seconds, **options)
            for cell, seconds in (("lstm", 0.00015), ("two_lstms", 0.0003))
        ),
    ]


def ways(quick: bool) -> list[Case]:
    """`auto` must never be more than 5 % slower than the best way."""
    return [
        _case(
            WAYS,
            "lstm",
            (batch, steps, units),
            rivals=(NNSHOP, COMPILED, UNROLLED, LOOP),
            repeats=500,
            rounds=1 if quick else 2,
            patience=1,
            compared=True,
        )
        for batch, units in ((4, 32), (32, 128))[: 1 if quick else 2]
        for steps in ((1, 20) if quick else (1, 2, 5, 20, 100, 1000))
    ]


AUTO = 0.95  # of the speed of the best way

CELL_WORKS = {
    "cells": cells,
    "compiling": compiling,
    "memory": memory,
    "cell_growth": cell_growth,
    "calls": calls,
    "ways": ways,
    "thread_cells": thread_cells,
}
