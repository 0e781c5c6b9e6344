"""Every test starts from no parameters, fixed seeds and the CPU; what several folders of tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import nnabla as nn
import nnabla_ext.cpu
import numpy as np
import pytest


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
