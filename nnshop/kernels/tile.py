"""The innermost loop of a matrix product, written in LLVM's language: numba's own loops do not keep a tile in registers.

A tile of C, up to `ROWS` rows by `WIDTH` columns, stays in vector registers while k runs: for each k two vectors of B are
loaded, and each number of A's column is multiplied by both. B comes packed (see `gemm.pack`), so its loads are contiguous;
A is read by strides, so it may be transposed. References: K. Goto, R. van de Geijn, Anatomy of high-performance matrix
multiplication, 2008; F. Van Zee, R. van de Geijn, BLIS, 2015.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_AVX512 = llvmlite.binding.get_host_cpu_features().get("avx512f", False)
LANES = 16 if _AVX512 else 8  # numbers in a vector register
VECTORS = 2
WIDTH = VECTORS * LANES  # columns of a tile
ROWS = 14 if _AVX512 else 6  # with 32 or 16 registers: ROWS * VECTORS of C, VECTORS of B, one of A
_CHAINS = 8  # so many independent sums hide the latency of a multiply-add

_intrinsic: Any = intrinsic  # its type in numba has the typing context among the arguments of a call

_F32, _I1, _I32, _I64 = ir.FloatType(), ir.IntType(1), ir.IntType(32), ir.IntType(64)
_VECTOR, _MASK = ir.VectorType(_F32, LANES), ir.VectorType(_I1, LANES)
_ZERO = ir.Constant(_VECTOR, [0.0] * LANES)


@_intrinsic
def tile(typing: Any, rows, a, a_row, a_column, k, b, c, c_row, columns, accumulate):
    """Computes one tile of C (+)= A B.

    a, b and c are addresses; a_row, a_column and c_row are strides, counted in numbers; rows is 1 to ROWS, columns 1 to WIDTH.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        rows, *rest = arguments
        done = builder.function.append_basic_block("done")
        switch = builder.switch(rows, done)
        for count in range(1, ROWS + 1):
            block = builder.function.append_basic_block(f"rows{count}")
            switch.add_case(ir.Constant(_I64, count), block)
            builder.position_at_end(block)
            _Tile(builder, count).multiply(*rest)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


class _Tile:
    """Writes the code for a tile of so many rows where the builder stands."""

    def __init__(self, builder: ir.IRBuilder, rows: int) -> None:
        self.builder, self.rows = builder, rows
        self.fma = self._declare(f"llvm.fma.v{LANES}f32", _VECTOR, [_VECTOR] * 3)
        pointer = _VECTOR.as_pointer()
        self.masked_load = self._declare(f"llvm.masked.load.v{LANES}f32.p0", _VECTOR, [pointer, _I32, _MASK, _VECTOR])
        self.masked_store = self._declare(f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), [_VECTOR, pointer, _I32, _MASK])

    def multiply(
        self, a: Any, a_row: Any, a_column: Any, k: Any, b: Any, c: Any, c_row: Any, columns: Any, accumulate: Any
    ) -> None:
        at = self.builder
        a, b, c = (at.inttoptr(address, _F32.as_pointer()) for address in (a, b, c))
        starts = [at.gep(a, [at.mul(a_row, _int(i))]) for i in range(self.rows)]
        self._prefetch(c, c_row)
        unroll = max(1, _CHAINS // (self.rows * VECTORS))
        whole = at.sub(k, at.srem(k, _int(unroll)))
        size = self.rows * VECTORS
        index, sums = self._loop(_int(0), whole, unroll, [_ZERO] * (unroll * size), starts, a_column, b)
        if unroll > 1:
            _, rest = self._loop(index, k, 1, sums[:size], starts, a_column, b)
            chains = [rest, *(sums[n * size : (n + 1) * size] for n in range(1, unroll))]
            sums = [self._sum(parts) for parts in zip(*chains)]
        self._store(sums, c, c_row, columns, accumulate)

    def _loop(self, start: Any, stop: Any, step: int, sums: list, starts: list, a_column: Any, b: Any) -> tuple[Any, list]:
        """Adds the products for k from start to stop to the sums, `step` at a time, each to sums of its own."""
        at, before = self.builder, self.builder.block
        head, body, end = (at.function.append_basic_block(name) for name in ("head", "body", "end"))
        at.branch(head)
        at.position_at_end(head)
        k = self._phi(_I64, start, before)
        running = [self._phi(_VECTOR, value, before) for value in sums]
        at.cbranch(at.icmp_signed("<", k, stop), body, end)
        at.position_at_end(body)
        after = list(running)
        for n in range(step):
            self._add_products(after, n, at.add(k, _int(n)), starts, a_column, b)
        for phi, value in zip([k, *running], [at.add(k, _int(step)), *after]):
            phi.add_incoming(value, body)
        at.branch(head)
        at.position_at_end(end)
        return k, running

    def _add_products(self, sums: list, chain: int, k: Any, starts: list, a_column: Any, b: Any) -> None:
        at = self.builder
        row = at.gep(b, [at.mul(k, _int(WIDTH))])
        vectors = [at.load(self._vector_at(row, v), align=4) for v in range(VECTORS)]
        offset = at.mul(k, a_column)
        for i, start in enumerate(starts):
            number = self._spread(at.load(at.gep(start, [offset]), align=4), LANES)
            for v, vector in enumerate(vectors):
                place = (chain * self.rows + i) * VECTORS + v
                sums[place] = at.call(self.fma, [number, vector, sums[place]])

    def _prefetch(self, c: Any, c_row: Any) -> None:
        """Asks for the tile of C, to be written: it arrives while the products are computed."""
        at = self.builder
        fetch = self._declare("llvm.prefetch.p0", ir.VoidType(), [ir.IntType(8).as_pointer(), _I32, _I32, _I32])
        write, keep, data = (ir.Constant(_I32, n) for n in (1, 3, 1))
        for i in range(self.rows):
            for v in range(VECTORS):
                place = self._vector_at(at.gep(c, [at.mul(c_row, _int(i))]), v)
                at.call(fetch, [at.bitcast(place, ir.IntType(8).as_pointer()), write, keep, data])

    def _store(self, sums: list, c: Any, c_row: Any, columns: Any, accumulate: Any) -> None:
        """Writes the sums to C, or adds them to what is there; masks keep off what lies right of the matrix."""
        at, align = self.builder, ir.Constant(_I32, 4)
        adds = at.icmp_signed("!=", accumulate, _int(0))
        limit = self._spread(columns, LANES)
        for v in range(VECTORS):
            lanes = ir.Constant(ir.VectorType(_I64, LANES), [v * LANES + lane for lane in range(LANES)])
            inside = at.icmp_signed("<", lanes, limit)
            reads = at.select(adds, inside, ir.Constant(_MASK, [0] * LANES))
            for i in range(self.rows):
                place = self._vector_at(at.gep(c, [at.mul(c_row, _int(i))]), v)
                there = at.call(self.masked_load, [place, align, reads, _ZERO])
                at.call(self.masked_store, [at.fadd(sums[i * VECTORS + v], there), place, align, inside])

    def _declare(self, name: str, result: Any, arguments: list) -> Any:
        module = self.builder.module
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)

    def _phi(self, kind: Any, value: Any, block: Any) -> Any:
        phi = self.builder.phi(kind)
        phi.add_incoming(value, block)
        return phi

    def _vector_at(self, row: Any, v: int) -> Any:
        at = self.builder
        return at.bitcast(at.gep(row, [_int(v * LANES)]), _VECTOR.as_pointer())

    def _spread(self, number: Any, lanes: int) -> Any:
        """A vector that repeats a number."""
        at, empty = self.builder, ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
        first = at.insert_element(empty, number, ir.Constant(_I32, 0))
        return at.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))

    def _sum(self, parts: tuple) -> Any:
        total = parts[0]
        for part in parts[1:]:
            total = self.builder.fadd(total, part)
        return total


def _int(number: int) -> ir.Constant:
    return ir.Constant(_I64, number)


@_intrinsic
def load(typing: Any, address):
    """Reads the float32 at an address; loops of it vectorize, which those over an array of unknown strides do not."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], _F32.as_pointer()), align=4)

    return types.float32(types.int64), generate


@_intrinsic
def store(typing: Any, address, number):
    """Writes a float32 to an address."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], builder.inttoptr(arguments[0], _F32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@_intrinsic
def power_of_two(typing: Any, exponent):
    """2 to a whole int32 number between -126 and 127, as a float32: its bits are written down. For -127 they are those of 0."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        bits = builder.shl(builder.add(arguments[0], ir.Constant(_I32, 127)), ir.Constant(_I32, 23))
        return builder.bitcast(bits, _F32)

    return types.float32(types.int32), generate
