"""The benchmarks themselves: what counts as equal, what is required, and that cells have the weights of their table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def row(work: str, rival: str, total: float | None, **arguments: Any) -> dict:
    size = ", ".join(map(str, arguments.values()))
    head = {"work": work, "size": size, "rival": rival, "arguments": arguments}
    return {**head, "note": "is not there"} if total is None else {**head, "seconds": {"total": total}, "megabytes": 100.0}


def reached(requirements: Iterator[dict]) -> dict[tuple, float | None]:
    return {(entry["size"], entry["required"]): entry["reached"] for entry in requirements}


def test_every_cell_has_the_weights_of_the_table_and_one_value_in_all_ways() -> None:
    import nnabla as nn

    cells, ours = import_module("cells"), import_module("nnabla_cells")
    for cell in cells.CELLS:
        values = []
        for way in ("unrolled", "loop"):
            nn.clear_parameters()
            training = ours.Training(cell, 2, 3, 4, way)
            training.prepare()
            values.append(training.values())
        assert values[0]["y"].shape == values[0]["x"].shape == (2, 3, 4)
        assert cells.difference(*values) < 1e-5, cell


def test_a_difference_is_a_part_of_the_largest_number() -> None:
    difference = import_module("cells").difference
    a = {"y": np.array([1.0, -4.0]), "x": np.array([0.0])}
    assert difference(a, a) == 0
    assert difference(a, {**a, "y": np.array([1.1, -4.0])}) == pytest.approx(0.1 / 4)
    assert difference(a, {**a, "x": np.array([1e-3])}) == 1
    for wrong in ({"y": a["y"]}, {**a, "y": np.array([1.0, math.nan])}, {**a, "x": np.zeros(2)}):
        assert difference(a, wrong) == math.inf
        assert difference(wrong, a) == math.inf


def test_the_medians_beside_jax_are_those_of_the_required_cells() -> None:
    works, of_cells = import_module("cell_works"), import_module("requirements").of_cells
    rows = []
    for cell, batch, jax in (("lstm", 32, 3.0), ("mgu", 1, 1.0), ("scan", 1, 2.0), ("sru", 1, 50.0)):
        rows += [row(works.CELLS_TITLE, name, t, cell=cell, batch=batch) for name, t in (("nnshop", 1.0), ("JAX", jax))]
    assert reached(of_cells(rows)) == {("median of B=1", 1.2): 1.5, ("median of all", 1.6): 2.0}
    rows[1] = row(works.CELLS_TITLE, "JAX", None, cell="lstm", batch=32)
    assert reached(of_cells(rows)) == {("median of B=1", 1.2): 1.5, ("median of all", 1.6): None}


def test_auto_is_held_against_the_best_way_and_growth_against_the_shortest() -> None:
    works, requirements = import_module("cell_works"), import_module("requirements")
    times = {"nnshop": 2.0, "nnshop, compiled": None, "nnshop, unrolled": 1.0, "nnshop, loop": 3.0}
    rows = [row(works.WAYS, way, total, cell="lstm", steps=5) for way, total in times.items()]
    assert reached(requirements.of_ways(rows)) == {("lstm, 5", works.AUTO): 0.5}

    rows = [row(works.CELL_GROWTH, "nnshop", 1.0, cell="lstm", steps=steps) for steps in (10, 1000)]
    rows[0]["seconds"], rows[1]["seconds"] = {"build": 2.0, "step": 1.0}, {"build": 3.0, "step": 130.0}
    assert [entry["reached"] for entry in requirements.of_cell_growth(rows)] == [1.5, 1.3]


def test_what_a_step_keeps_is_found_from_two_lengths() -> None:
    works, requirements = import_module("cell_works"), import_module("requirements")
    rows = []
    for steps in (500, 1000):
        for rival, kept in (("nnshop", 6), ("JAX", 8)):
            one = row(works.MEMORY, rival, 1.0, batch=32, steps=steps, units=128)
            one["megabytes"] = 70 + kept * steps * 32 * 128 * 4 / 2**20
            rows.append({**one, "size": f"LSTM, B=32, T={steps}, H=128"})
    assert requirements.numbers_kept(rows[::2]) == pytest.approx(6)
    assert reached(requirements.of_memory(rows)) == {("LSTM, what a step keeps", 1): pytest.approx(6 / 8)}


def test_rivals_that_differ_or_are_missing_are_told(tmp_path: Path) -> None:
    works, report = import_module("works"), import_module("report")
    run, requirements = import_module("run"), import_module("requirements")
    workshop = import_module("workshop").Workshop(1, tmp_path / "python")
    arguments = {"cell": "scan", "batch": 2, "steps": 3, "units": 4}
    case = works.Case(
        import_module("cell_works").CELLS_TITLE,
        "scan",
        "both_passes",
        arguments,
        ("nnshop", "nnshop, loop", "JAX"),
        "cells",
        rounds=1,
        repeats=1,
        compared=True,
        faster={"JAX": 1.2},
    )
    outcomes = workshop.measure(case, tqdm(disable=True))
    rows = [run.row(case, rival, outcomes[rival]) for rival in case.rivals]
    assert rows[0]["seconds"]["total"] > 0
    assert rows[1]["difference"] < 1e-6
    assert rows[2]["note"] == "JAX is not there"
    assert reached(requirements.of_case(case, rows)) == {("scan", 1.2): None}

    rows[1]["difference"] = 0.5
    (different,) = requirements.of_values(rows)
    results = {"date": "2026-01-01", "command": "run", "processor": "P", "threads": 1, "versions": {}, "rows": rows}
    report.write({**results, "requirements": [different]}, tmp_path, tmp_path)
    written = (tmp_path / "results.md").read_text()
    assert "| scan: nnshop, loop | values and gradients equal to 0.0001 | 5.0e-01 | **no** |" in written
    assert "- JAX: JAX is not there (scan)" in written
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows


def test_of_several_results_later_ones_replace_the_works_that_they_have() -> None:
    merge = import_module("report").merge

    def results(command: str, **totals: float) -> dict:
        rows = [{**row(work, "nnshop", total), "work": work} for work, total in totals.items()]
        return {
            "command": command,
            "versions": {command: "1"},
            "rows": rows,
            "requirements": [{"work": r["work"]} for r in rows],
        }

    merged = merge([results("a", layers=1.0, loop=2.0), results("b", loop=3.0, ways=4.0)])
    assert [(r["work"], r["seconds"]["total"]) for r in merged["rows"]] == [("layers", 1.0), ("loop", 3.0), ("ways", 4.0)]
    assert [entry["work"] for entry in merged["requirements"]] == ["layers", "loop", "ways"]
    assert merged["versions"] == {"a": "1", "b": "1"}
    assert merged["command"] == "a; b"
