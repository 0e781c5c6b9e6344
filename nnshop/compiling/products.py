from __future__ import annotations
import llvmlite.binding as llvm
from ..kernels import gemm
from ..kernels.gemm import multiply, pack
from ..kernels.tile import WIDTH
def register():
    addr = llvm.address_of_symbol("nnshop_multiply_block")
    assert addr
    llvm.add_symbol("nnshop_multiply", addr)
