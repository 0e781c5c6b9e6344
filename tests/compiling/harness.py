"""Compiles LLVM text for vectors of a given width and applies it to arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import cache

import llvmlite.binding as llvm
import numpy as np

from nnshop.compiling.text import Text, module, vector

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
_HOST = llvm.get_host_cpu_features()
WIDTHS = [n for n, feature in ((16, "avx512f"), (8, "fma"), (4, "sse2"), (1, "sse2")) if _HOST.get(feature)]

Operation = Callable[..., str]


@cache
def target(width: int) -> llvm.TargetMachine:
    """This processor; for 8 numbers AVX2 and for 4 plain SSE, which has no fused multiply-add."""
    cpu, features = {8: ("haswell", ""), 4: ("x86-64", "")}.get(
        width, (llvm.get_host_cpu_name(), f"{_HOST.flatten()},-prefer-256-bit")
    )
    return llvm.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=2, jit=True)


def optimized(text: str, width: int) -> llvm.ModuleRef:
    made = llvm.parse_assembly(text)
    made.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.loop_vectorization = options.loop_unrolling = False  # a loop over single numbers stays one
    builder = llvm.create_pass_builder(target(width), options)
    builder.getModulePassManager().run(made, builder)
    return made


def load(text: str, names: list[str], width: int) -> tuple[dict[str, int], llvm.ExecutionEngine]:
    """The addresses of functions, and what keeps them alive."""
    engine = llvm.create_mcjit_compiler(optimized(text, width), target(width))
    engine.finalize_object()
    return {name: engine.get_function_address(name) for name in names}, engine


def loop_text(operations: Mapping[str, tuple[Operation, int]], width: int) -> str:
    """A module with one function for each operation of so many arguments: it goes through arrays, `width` numbers at a time."""
    texts = [(name, *pair, Text()) for name, pair in operations.items()]
    functions = ["\n".join(_loop(*entry, vector(width), width)) for entry in texts]
    return module(functions, [line for *_, text in texts for line in text.declared])


def _loop(name: str, operation: Operation, arity: int, text: Text, kind: str, width: int) -> list[str]:
    arrays = [f"%a{i}" for i in range(arity)]
    text.lines.append(f"define void @{name}(i64 %count, {', '.join(f'ptr {a}' for a in arrays)}, ptr %out) {{")
    text.label("entry")
    text.put("br label %loop")
    text.label("loop")
    text.put("%i = phi i64 [0, %entry], [%next, %loop]")

    def place(array: str) -> str:
        return text.new(f"getelementptr float, ptr {array}, i64 %i")

    result = operation(text, kind, *(text.new(f"load {kind}, ptr {place(a)}, align 4") for a in arrays))
    text.put(f"store {kind} {result}, ptr {place('%out')}, align 4")
    text.put(f"%next = add i64 %i, {width}")
    text.put("%more = icmp ult i64 %next, %count")
    text.put("br i1 %more, label %loop, label %end")
    text.label("end")
    text.put("ret void")
    return [*text.lines, "}"]


class Loops:
    """Operations as functions of arrays."""

    def __init__(self, operations: Mapping[str, tuple[Operation, int]], width: int) -> None:
        self.width = width
        self._arity = {name: arity for name, (_, arity) in operations.items()}
        self._addresses, self._engine = load(loop_text(operations, width), list(operations), width)

    def __call__(self, name: str, *arrays: np.ndarray) -> np.ndarray:
        count = arrays[0].size
        padded = [np.resize(np.asarray(a, np.float32), -(-count // self.width) * self.width) for a in arrays]
        out = np.empty_like(padded[0])
        signature = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_void_p] * (self._arity[name] + 1))
        signature(self._addresses[name])(out.size, *(a.ctypes.data for a in (*padded, out)))
        return out[:count].reshape(arrays[0].shape)
