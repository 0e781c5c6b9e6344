"""Variables that change their shapes after a graph was built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nnabla as nn
import pytest
from changed_shapes import CASES

import nnshop


def test_what_is_computed_is_right_or_refused_and_no_foreign_memory_is_written() -> None:
    program = Path(__file__).parent / "changed_shapes.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=300, check=False)
    said = [line for line in done.stdout.splitlines() if "wrong: " in line or "bystanders" in line]
    assert said == [f"{kind}: 0 bystanders changed" for kind in CASES], (done.returncode, done.stderr[-2000:])


@pytest.mark.parametrize("way", ["compiled", "loop"])
def test_a_refusal_names_the_input_and_both_shapes(way: str) -> None:
    x = nn.Variable((2, 3, 4))
    ys, _ = nnshop.run(nnshop.SimpleRNNCell(5), x, way=way)
    x.reset_shape((2, 3, 6), True)
    for _ in range(2):
        with pytest.raises(SystemError) as raised:
            ys.forward()
        cause = raised.value.__cause__
        while cause.__cause__ is not None:
            cause = cause.__cause__
        assert isinstance(cause, ValueError)
        assert "build it again" in str(cause)
        told = "input 0 (2, 3, 4), not (2, 3, 6)" if way == "compiled" else "sequence 0 (3, 2, 4), not (3, 2, 6)"
        assert told in str(cause)
