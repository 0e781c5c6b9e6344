"""No call of a public function ends the process or hangs, and what is wrong is said by nnshop; see `fuzz_calls.py`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fuzz_calls
import pytest
from hypothesis import settings

import nnshop
from nnshop import decoding, recurrentshop, seq2seq

# What has no row of its own, and why.
ELSEWHERE = {
    "AbstractCell": "abstract",
    "Choice": "what decode makes",
    "ContextError": "an error",
    "Decoded": "a result",
    "ExtendedRNNCell": "RNNCell's other name",
    "GRU": "gru",
    "LSTM": "lstm",
    "NonNegative": "recurrentshop rules",
    "RHNCell": "RecurrentSequential decode",
    "RNNCell": "abstract; recurrentshop cells",
    "RecurrentContainer": "RecurrentSequential's other name",
    "SimpleRNN": "simple_rnn",
    "Speaking": "what decode makes",
    "UnitNorm": "recurrentshop rules",
    "MaxNorm": "recurrentshop rules",
    "AttentionDecoderCell": "AttentionSeq2Seq",
    "LSTMDecoderCell": "Seq2Seq",
    "building": "takes nothing",
    "apply_constraints": "recurrentshop rules",
    "from_config": "test_fuzz",
    "l1": "recurrentshop rules",
    "l2": "recurrentshop rules",
    "load_recurrentshop_weights": "test_fuzz",
    "no_new_parameters": "takes nothing",
    "penalized": "recurrentshop rules",
    "portable": "takes nothing",
    "regularization_losses": "recurrentshop rules",
    "show_config": "takes nothing",
    "tree_leaves": "takes any tree",
    "tree_map": "takes any tree",
}


def public(module: ModuleType) -> set[str]:
    found = {name: v for name, v in vars(module).items() if not name.startswith("_") and callable(v)}
    return {name for name, v in found.items() if getattr(v, "__module__", "").startswith("nnshop")}


@pytest.mark.parametrize("module", [nnshop, decoding, seq2seq, recurrentshop])
def test_every_public_callable_is_called(module: ModuleType) -> None:
    rows = {name.split()[0] for name in fuzz_calls.CALLS}
    missing = public(module) - rows - set(ELSEWHERE)
    assert not missing, f"give {sorted(missing)} a row in fuzz_calls.CALLS"
    assert not rows & set(ELSEWHERE)


def test_spoilt_calls_neither_end_the_process_nor_hang() -> None:
    """In an ordinary run some 300 calls, always the same; `make fuzz` makes 15,000, other ones each time."""
    count = 3 * settings.default.max_examples
    first = 1000 if settings.default.derandomize else random.SystemRandom().randrange(10**4, 2**62)
    script = Path(fuzz_calls.__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(nnshop.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(script), str(first), str(count)], env=environment, capture_output=True, text=True, check=False
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert not found, "\n".join(f"{one['case']}  {one['call']}\n    {one['wrong']}" for one in found)


def test_the_fuzzer_sees_deaths_hangs_and_what_nnabla_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above could not fail."""
    faults = {
        "dies": (lambda: os.abort(), "SIGABRT"),
        "hangs": (lambda: [None for _ in iter(int, 1)], "it hung"),
        "nnabla": (lambda: nnshop.functions.F.affine(fuzz_calls.real(2, 3), fuzz_calls.real(4, 5)), "RuntimeError"),
        "fair": (lambda: nnshop.LSTMCell(0), ""),
    }
    monkeypatch.setattr(fuzz_calls, "PATIENCE", 1.0)
    for name, (call, wrong) in faults.items():
        monkeypatch.setattr(fuzz_calls, "CALLS", {name: lambda call=call: fuzz_calls.Made(lambda: call(), ())})
        said = fuzz_calls.in_a_process(0)["wrong"]
        assert said.startswith(wrong), said
        assert bool(said) == bool(wrong)
