"""Every test starts from no parameters, fixed seeds and the CPU; what several folders of tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import nnabla as nn
import nnabla_ext.cpu
import numpy as np
import pytest

from nnshop import set_threads

try:
    from hypothesis import settings
except ModuleNotFoundError:  # tests/gpu go without, on a machine that has NNabla and pytest only
    pass
else:
    # Settings that a test leaves open. `--hypothesis-profile=fuzz` is what `make fuzz` chooses: new examples at every run.
    settings.register_profile("ordinary", derandomize=True)
    settings.register_profile("fuzz", max_examples=5000, print_blob=True)
    settings.load_profile("ordinary")


@pytest.fixture(autouse=True)
def _fresh_nnabla() -> Iterator[None]:
    nn.clear_parameters()
    nn.set_auto_forward(False)
    nn.set_default_context(nn.Context())
    nn.seed(313)
    np.random.seed(313)
    yield
    nn.clear_parameters()
    nn.set_auto_forward(False)
    nn.set_default_context(nn.Context())


@pytest.fixture
def share_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, which share the smallest work."""
    pytest.importorskip("llvmlite")
    from nnshop.compiling import pool

    monkeypatch.setattr(pool, "PART", 1)
    yield set_threads
    set_threads(None)


@pytest.fixture
def host_accesses(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable], int]]:
    """Counts how often a call takes an NNabla array as a NumPy array; NNabla looks up the host's context for each."""
    found = [0]
    context = nnabla_ext.cpu.context

    def counted(*arguments: Any, **options: Any) -> nn.Context:
        found[0] += 1
        return context(*arguments, **options)

    def accesses(call: Callable) -> int:
        before = found[0]
        call()
        return found[0] - before

    with monkeypatch.context() as patch:
        patch.setattr(nnabla_ext.cpu, "context", counted)
        yield accesses
