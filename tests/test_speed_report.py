"""The benchmarks' tables and pictures, also where a rival was not there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any, Any]]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import report
    import run
    import works

    yield report, run, works
    for name in ("report", "run", "works"):
        del sys.modules[name]


@pytest.mark.parametrize(
    ("work", "absent"),
    [*((work, "PyTorch") for work in ("language_model", "layers", "loop", "growth", "decoding")), ("layers", "nnshop")],
)
def test_a_rival_that_is_not_there_is_left_out(
    modules: tuple[Any, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], work: str, absent: str
) -> None:
    report, run, works = modules
    rows, required = [], []
    for case in filter(None, map(works.quick, works.WORKS[work]())):
        measured = {"seconds": {"build": [0.5], "forward": [1.0], "backward": [2.0]}, "megabytes": 100, "processors": 1}
        notes = {"note": "is not there"}
        made = [run.row(case, rival, [notes if rival == absent else measured]) for rival in case.rivals]
        rows += made
        required += run.requirements.of_case(case, made)
    results = {"date": "2026-01-01", "command": "c", "processor": "p", "threads": 1, "versions": {}}
    report.write({**results, "requirements": required, "rows": rows}, tmp_path / "tables", tmp_path / "images")
    assert "| work | size | required | reached | met |" in capsys.readouterr().out
    assert (absent in [row["rival"] for row in rows]) == ("is not there" in (tmp_path / "tables/results.md").read_text())
    pictures = [path.name for path in (tmp_path / "images").iterdir()]
    wanted = work in report.PLOTS and not (work == "layers" and absent in ("PyTorch", "nnshop"))
    assert pictures == ([f"speed_{work}.png"] if wanted else [])
