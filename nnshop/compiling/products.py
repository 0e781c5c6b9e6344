"""Stand-in: packed products by numba's kernels."""

from __future__ import annotations

import llvmlite.binding as llvm

from ..kernels.gemm import multiply, pack
from ..kernels.tile import WIDTH

__all__ = ["WIDTH", "multiply", "pack", "register"]


def register() -> None:
    llvm.add_symbol("nnshop_multiply", llvm.address_of_symbol("nnshop_multiply_block"))
