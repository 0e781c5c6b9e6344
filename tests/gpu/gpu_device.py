"""The device that these tests need, and how to do without it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import nnabla as nn
import pytest

from nnshop.context import use_context, why_not_cuda

os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # read when CUDA's libraries are loaded: products in 32 bits, not in 19
ON_CPU = os.environ.get("NNSHOP_GPU_TESTS_ON_CPU") == "1"
REASON = "" if ON_CPU else why_not_cuda()


def require_device() -> None:
    """Skips the module that calls it, where no CUDA device answers."""
    if REASON:
        pytest.skip(f"no CUDA device: {REASON}", allow_module_level=True)


def context_of(type_config: str = "float") -> AbstractContextManager:
    """Computes by cuDNN in a block; or in one that NNabla takes for that, and computes on the CPU."""
    if not ON_CPU:
        return use_context("cudnn", type_config=type_config)
    backend = ["cudnn:half", "cuda:half", "cpu:half"] if type_config == "half" else ["cudnn:float", "cuda:float"]
    return nn.context_scope(nn.Context([*backend, "cpu:float"], "CpuCachedArray", device_id="0"))
