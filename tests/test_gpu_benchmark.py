"""The benchmark for GPUs: what it does without one, and that it measures, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnshop.context import why_not_cuda

ROOT = Path(__file__).resolve().parents[1]


def benchmark(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), *options]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(not why_not_cuda(), reason="there is a CUDA device")
def test_without_a_device_it_says_why_and_ends() -> None:
    done = benchmark()
    assert done.returncode == 1
    assert "context='cudnn' needs a CUDA device, but" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_it_measures_and_goes_on_without_the_rival(tmp_path: Path) -> None:
    options = ["--context", "cpu", "--quick", "--only", "language_model", "--type", "float"]
    done = benchmark(*options, "--torch-python", str(tmp_path / "python"), "--output", str(tmp_path / "results.json"))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["device"] == "CPU"
    assert {"NNabla", "nnshop", "NumPy"} <= set(results["versions"])
    ours, theirs = ([row for row in results["rows"] if row["rival"] == rival] for rival in ("nnshop", "PyTorch"))
    assert [row["size"].split(":")[0] for row in ours] == ["small", "medium", "large"]
    assert all(row["seconds"] > 0 and row["words_per_second"] == 6 / row["seconds"] and row["repeats"] == 2 for row in ours)
    assert all("No such file" in row["note"] for row in theirs)
    assert f"| {ours[0]['size']} | float | nnshop |" in done.stdout
