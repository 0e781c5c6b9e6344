from __future__ import annotations

import llvmlite.binding as llvm


def register():
    addr = llvm.address_of_symbol("nnshop_multiply_block")
    assert addr
    llvm.add_symbol("nnshop_multiply", addr)
