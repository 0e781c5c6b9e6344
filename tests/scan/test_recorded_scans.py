"""What Theano's `scan` computed, recorded from Theano 1.0.5: outputs and all gradients.

The folder is named by NNSHOP_SCAN_REFERENCE (default ../shared/reference/scan, beside the checkout).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import programs
import pytest
from programs import Program, Result

FOLDER = Path(os.environ.get("NNSHOP_SCAN_REFERENCE", Path(__file__).resolve().parents[3] / "shared/reference/scan"))
CASES = sorted((FOLDER / "cases").glob("*.json"))
each_case = pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)


def recorded(case: Program) -> Result:
    arrays = (case["grads"][group] for group in ("sequences", "outputs_info", "non_sequences"))
    gradients = ([g if g is None else np.array(g) for g in group] for group in arrays)
    return Result([np.array(y) for y in case["outputs"]], *gradients)


def test_the_recorded_cases_are_there() -> None:
    if not CASES:
        pytest.skip(f"no recorded cases of Theano's scan in {FOLDER}")
    assert len(CASES) >= 100


@each_case
@pytest.mark.parametrize("way", ["unrolled", "loop", "auto_forward"])
def test_outputs_and_gradients(path: Path, way: str) -> None:
    case = json.loads(path.read_text())
    eager = way == "auto_forward"
    found = programs.run(case, case["R"], "auto" if eager else way, auto_forward=eager)
    programs.assert_equal(found, recorded(case), 1e-5)


@each_case
def test_the_interpreter(path: Path) -> None:
    """What the tests with random programs compare with."""
    case = json.loads(path.read_text())
    programs.assert_equal(programs.differences(case, case["R"]), recorded(case), 1e-6)
