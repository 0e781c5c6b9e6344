"""Memory with guards around it, for all tests that run compiled steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nnshop.compiling import memory
from nnshop.running import compiled, draws

GUARD = 64  # numbers, at least as many as four vectors hold
MARK = np.frombuffer(b"\xad\xde\xc0\x7f" * GUARD, np.float32)  # not a number, so that what is read of it shows in results


class Guarded:
    """NumPy, whose new arrays lie between guards."""

    def __init__(self) -> None:
        self.made: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, kind: Any = np.float32) -> np.ndarray:
        whole = np.full(int(np.prod(shape)) + 2 * GUARD, np.nan, kind)  # what nobody wrote shows, too
        whole[:GUARD] = whole[-GUARD:] = MARK
        self.made.append(whole)
        return whole[GUARD:-GUARD].reshape(shape)

    def zeros(self, shape: Any, kind: Any = np.float32) -> np.ndarray:
        made = self.empty(shape) if kind is np.float32 else np.empty(shape, kind)
        made[...] = 0
        return made

    def check(self) -> None:
        assert self.made
        for whole in self.made:
            for guard in (whole[:GUARD], whole[-GUARD:]):
                assert guard.tobytes() == MARK.tobytes(), f"a program wrote beyond a buffer of {whole.size - 2 * GUARD} numbers"


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    """Guards around all buffers of compiled steps, which the test leaves as they are."""
    guarded = Guarded()
    for module in (memory, compiled, draws):
        monkeypatch.setattr(module, "np", guarded)
    yield guarded
    guarded.check()
