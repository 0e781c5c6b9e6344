"""These tests need a CUDA device, and are skipped as a whole where none answers.

With NNSHOP_GPU_TESTS_ON_CPU=1 they run without one, in contexts that NNabla computes on the CPU: a test of the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from gpu_device import context_of


@pytest.fixture
def device() -> Callable[..., AbstractContextManager]:
    """`with device():` computes by cuDNN, `with device("half"):` in 16 bits."""
    return context_of
