"""Every test starts from no parameters, fixed seeds and the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import nnabla as nn
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
