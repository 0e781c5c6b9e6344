"""The compiled matrix products against NumPy in float64, for vectors of 16, 8 and 4 numbers."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from nnshop.compiling import machine
from nnshop.compiling.products import ROWS, WIDTH, kernels, multiply, multiply_packed, pack
from nnshop.compiling.products.blocks import BLOCK_BREADTH, DEPTH, HEIGHT, PAGE
from nnshop.compiling.products.packing import transposed
from nnshop.compiling.products.tile import LANES, VECTOR
from nnshop.compiling.writer import Writer

KINDS = ["plain", "transposed", "columns", "rows", "backwards"]


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randn(rows, columns).astype(np.float32)


def stored(array: np.ndarray, kind: str) -> np.ndarray:
    """The same numbers, in another place."""
    if kind == "transposed":
        return np.ascontiguousarray(array.T).T
    if kind == "backwards":
        return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
    if kind == "columns":
        wide = np.full((array.shape[0], array.shape[1] + 5), np.nan, np.float32)
        wide[:, 2:-3] = array
        return wide[:, 2:-3]
    if kind == "rows":
        tall = np.full((2 * array.shape[0], array.shape[1]), np.nan, np.float32)
        tall[::2] = array
        return tall[::2]
    return array


def assert_product(actual: np.ndarray, a: np.ndarray, b: np.ndarray, plus: Any = 0) -> None:
    """To the error that sums of float32 have at most, number by number."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    bound = (a.shape[1] + 2) * 2.0**-24 * (abs(a) @ abs(b) + abs(plus)) + 1e-37
    assert np.all(abs(actual - (a @ b + plus)) <= bound)


def check(a: np.ndarray, b: np.ndarray, a_kind: str = "plain", b_kind: str = "plain", room: int = 0) -> None:
    """Both products, set and added, with numbers around the result that must stay."""
    a_there, b_there = stored(a, a_kind), stored(b, b_kind)
    before = matrix(len(a), b.shape[1], 2)
    packed = pack(b_there)
    for product in (lambda *rest: multiply(a_there, b_there, *rest), lambda *rest: multiply_packed(a_there, packed, *rest)):
        for accumulate in (False, True):
            around = np.full((len(a) + 2, b.shape[1] + 2 * room), 3, np.float32)
            out = around[1:-1, room : room + b.shape[1]]
            out[...] = before if accumulate else np.nan
            assert product(out, accumulate) is out
            assert_product(out, a, b, before if accumulate else 0)
            out[...] = 3
            assert np.all(around == 3)


def test_small_products() -> None:
    """Sizes are paired by their remainders, so that each meets many others."""
    for m in range(1, 71):
        for i in range(3):
            n, k = 1 + (m * 29 + i * 17) % 70, 1 + (m * 13 + i * 31) % 70
            check(matrix(m, k), matrix(k, n, 1), room=WIDTH + 3)


@pytest.mark.parametrize("n", [1, WIDTH - 1, WIDTH, WIDTH + 1, 2 * WIDTH + 3])
def test_around_a_tile(n: int) -> None:
    for m in (1, 2, 3, 4, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, 2 * ROWS + 1):
        for k in (1, 7, 8, 9, 33):
            check(matrix(m, k), matrix(k, n, 1), room=WIDTH + 3)


@pytest.mark.parametrize("k", [DEPTH - 1, DEPTH, DEPTH + 1, 2 * DEPTH + 5])
def test_deep_products(k: int) -> None:
    for m, n in ((1, WIDTH + 1), (ROWS + 1, 2 * WIDTH + 1), (HEIGHT + 1, WIDTH + 1)):
        check(matrix(m, k), matrix(k, n, 1), room=5)


@pytest.mark.parametrize("k", [PAGE, PAGE - 1, DEPTH - 3])
def test_rows_that_are_pages_apart(k: int) -> None:
    """They are copied, tile by tile; what lies beside the k numbers of a row is not read."""
    for width in (PAGE, 2 * PAGE):
        wide = np.full((HEIGHT + 3, width), np.nan, np.float32)
        wide[:, :k] = matrix(HEIGHT + 3, k)
        for n in (WIDTH - 1, 2 * WIDTH):
            check(wide[:, :k], matrix(k, n, 1), room=1)


@pytest.mark.parametrize("n", [BLOCK_BREADTH - 1, BLOCK_BREADTH, 2 * BLOCK_BREADTH + WIDTH + 1])
def test_broad_products(n: int) -> None:
    for m, k in ((2, 3), (ROWS + 3, DEPTH + 3), (HEIGHT + ROWS + 1, 9)):
        check(matrix(m, k), matrix(k, n, 1), room=1)


@pytest.mark.parametrize("b_kind", KINDS)
@pytest.mark.parametrize("a_kind", KINDS)
def test_operands_may_be_views(a_kind: str, b_kind: str) -> None:
    for m, k, n in (
        (ROWS + 1, 5, WIDTH + 1),
        (3, LANES + 2, 2 * WIDTH),
        (1, 1, 1),
        (1, 6, 1),
        (4, 1, 2 * WIDTH),
        (HEIGHT + 2, 19, WIDTH),
    ):
        check(matrix(m, k), matrix(k, n, 1), a_kind, b_kind, 1)


sizes = st.one_of(st.integers(1, 3 * WIDTH), st.sampled_from([DEPTH - 1, DEPTH, DEPTH + 1]))


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.sampled_from(KINDS), st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 99))
def test_any_product(m: int, k: int, n: int, a_kind: str, b_kind: str, room: int, seed: int) -> None:
    check(matrix(m, k, seed), matrix(k, n, seed + 1), a_kind, b_kind, room)


@pytest.mark.parametrize("accumulate", [False, True])
def test_sums_of_nothing(accumulate: bool) -> None:
    for m in (1, ROWS + 1):
        a, b = matrix(m, 0), matrix(0, WIDTH + 1)
        for out in (
            multiply(a, b, np.full((m, WIDTH + 1), 2, np.float32), accumulate),
            multiply_packed(a, pack(b), np.full((m, WIDTH + 1), 2, np.float32), accumulate),
        ):
            np.testing.assert_array_equal(out, 2 if accumulate else 0)
    for m, n in ((0, 5), (3, 0), (5, 0)):
        assert multiply(matrix(m, 4), matrix(4, n), np.empty((m, n), np.float32)).size == 0


def test_operands_stay() -> None:
    a, b = matrix(ROWS + 1, DEPTH + 1), matrix(DEPTH + 1, WIDTH + 1, 1)
    copies = a.copy(), b.copy()
    check(a, b)
    np.testing.assert_array_equal(a, copies[0])
    np.testing.assert_array_equal(b, copies[1])


@pytest.mark.parametrize("kind", KINDS)
def test_pack_puts_columns_side_by_side(kind: str) -> None:
    for k, n in ((3, 1), (2, WIDTH), (LANES, WIDTH), (3 * LANES + 1, 2 * WIDTH + 1), (1, 3 * WIDTH)):
        b, size = matrix(k, n), -(-n // WIDTH) * k * WIDTH
        around = np.full(size + 2 * WIDTH, 3, np.float32)
        used = around[WIDTH:-WIDTH].reshape(-1, k, WIDTH)
        assert pack(stored(b, kind), used) is used
        side_by_side = np.concatenate(list(used), axis=1)
        np.testing.assert_array_equal(side_by_side[:, :n], b)
        np.testing.assert_array_equal(side_by_side[:, n:], 0)
        assert np.all(around[:WIDTH] == 3)
        assert np.all(around[-WIDTH:] == 3)
        np.testing.assert_array_equal(pack(stored(b, kind)), used)
        assert pack(b).ctypes.data % 64 == 0


def test_a_square_of_vectors_is_transposed() -> None:
    text = Writer()
    rows = transposed(text, [text.load(VECTOR, text.at("%x", i, LANES)) for i in range(LANES)])
    for i, row in enumerate(rows):
        text.store(VECTOR, row, text.at("%y", i, LANES))
    program = machine.load(text.function("turn", "ptr %x, ptr %y", ""), ["turn"])
    x, y = matrix(LANES, LANES), np.empty((LANES, LANES), np.float32)
    program.function("turn", ctypes.c_int64, ctypes.c_int64)(x.ctypes.data, y.ctypes.data)
    np.testing.assert_array_equal(y, x.T)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("m", [1, 3, ROWS, 2 * ROWS + 1])
def test_what_is_not_finite_stays_in_its_row_and_column(m: int, bad: float) -> None:
    k, n = DEPTH + 3, WIDTH + 3
    for place in ((0, 0), (m // 2, DEPTH), (m - 1, k - 1)):
        a, b = matrix(m, k), matrix(k, n, 1)
        a[place] = bad
        for out in products(a, b):
            assert not np.isfinite(out[place[0]]).any()
            np.testing.assert_array_equal(np.isnan(out[place[0]]), np.isnan(bad))
            assert np.isfinite(np.delete(out, place[0], axis=0)).all()
    for place in ((0, 0), (DEPTH, WIDTH), (k - 1, n - 1)):
        a, b = matrix(m, k), matrix(k, n, 1)
        b[place] = bad
        for out in products(a, b):
            assert not np.isfinite(out[:, place[1]]).any()
            assert np.isfinite(np.delete(out, place[1], axis=1)).all()


def products(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    outs = [np.full((len(a), b.shape[1]), np.nan, np.float32) for _ in range(2)]
    return [multiply(a, b, outs[0]), multiply_packed(a, pack(b), outs[1])]


def test_infinity_times_zero_is_nan() -> None:
    for m in (2, ROWS + 1):
        for out in products(np.zeros((m, 3), np.float32), np.full((3, WIDTH + 2), np.inf, np.float32)):
            assert np.isnan(out).all()
    nan = np.full((2, 3), np.nan, np.float32)
    assert np.isnan(multiply(matrix(2, 4), matrix(4, 3), nan, True)).all()


def test_equal_rows_give_equal_results() -> None:
    """To the last bit or two, whatever tile a row falls into: a row of a batch does not depend on the others."""
    a, b = np.repeat(matrix(1, DEPTH + 9), 3 * ROWS + 2, axis=0), matrix(DEPTH + 9, WIDTH + 3, 1)
    for out in products(a, b):
        np.testing.assert_allclose(out, np.broadcast_to(out[0], out.shape), rtol=1e-5, atol=1e-5)


def test_the_same_numbers_each_time_and_from_all_threads() -> None:
    """Results do not depend on what else happens: each thread has a block of its own for what it packs."""
    cases = [
        (matrix(m, k, m), matrix(k, n, n)) for m, k, n in ((40, 300, 70), (33, 290, 600), (HEIGHT + 9, 40, 90), (2, 80, 40))
    ]
    expected, wrong = [products(a, b) for a, b in cases], []

    def work() -> None:
        for _ in range(20):
            for (a, b), outs in zip(cases, expected):
                wrong.extend(out for out, right in zip(products(a, b), outs) if not np.array_equal(out, right))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


CALLER = """
declare void @nnshop_pack(i64, i64, i64, i64, i64, i64, i64)
declare void @nnshop_multiply(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64)
declare void @nnshop_product(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64)
define void @call(i64 %m, i64 %n, i64 %k, i64 %a, i64 %b, i64 %packed, i64 %panel, i64 %c, i64 %d, i64 %block) {
  call void @nnshop_pack(i64 %k, i64 %n, i64 %b, i64 %n, i64 1, i64 %packed, i64 %panel)
  call void @nnshop_multiply(i64 %m, i64 %n, i64 %k, i64 %a, i64 %k, i64 1, i64 %packed, i64 %panel, i64 %c, i64 %n, i64 0)
  call void @nnshop_multiply(i64 %m, i64 %n, i64 %k, i64 %a, i64 %k, i64 1, i64 %packed, i64 %panel, i64 %c, i64 %n, i64 1)
  call void @nnshop_product(i64 %m, i64 %n, i64 %k, i64 %a, i64 %k, i64 1, i64 %b, i64 %n, i64 1,
                            i64 %d, i64 %n, i64 0, i64 %block)
  ret void
}
"""


def test_programs_call_the_products() -> None:
    from nnshop.compiling.products import BLOCK

    call = machine.load(CALLER, ["call"]).function("call", *[ctypes.c_int64] * 10)
    for m, k, n in ((3, 5, WIDTH + 1), (HEIGHT + 3, DEPTH + 5, 3 * WIDTH + 2)):
        a, b, panel = matrix(m, k), matrix(k, n, 1), k * WIDTH + 24  # further apart than need be
        packed, c, d = np.full(4 * panel, np.nan, np.float32), np.empty((m, n), np.float32), np.empty((m, n), np.float32)
        block = np.empty(BLOCK, np.float32)
        call(m, n, k, *(x.ctypes.data for x in (a, b, packed)), panel, *(x.ctypes.data for x in (c, d, block)))
        assert_product(c / 2, a, b)
        assert_product(d, a, b)


def odd(rows: int, columns: int) -> np.ndarray:
    """Numbers that lie between bytes of other kinds."""
    return np.zeros((rows, columns), np.dtype([("other", "u1"), ("number", "f4")]))["number"]


def test_operands_that_do_not_fit_are_refused() -> None:
    n = WIDTH + 1
    a, b, out, packed = matrix(3, 4), matrix(4, n), matrix(3, n), pack(matrix(4, n))
    single, double, deep = np.float32(1), a.astype(np.float64), a[np.newaxis]
    for wrong in (single, a[0], deep, a[:, :3], a[:2], double, odd(3, 4)):
        for product in (lambda a: multiply(a, b, out), lambda a: multiply_packed(a, packed, out)):
            with pytest.raises(ValueError, match=r"A product needs .* got "):
                product(np.asarray(wrong))
    for wrong in (
        a,
        out[:2],
        out[:, 1:-5],
        out[:, :-1][:, :1],
        out.astype(int),
        out[0],
        np.empty((n, 3), np.float32).T,
        odd(3, n),
    ):
        with pytest.raises(ValueError, match="A product needs"):
            multiply(a, b, wrong)
    for wrong in (out[:, : WIDTH - 1], matrix(3, 2 * WIDTH + 1), out[:2], np.empty((n, 3), np.float32).T):
        with pytest.raises(ValueError, match="A product needs"):
            multiply_packed(a, packed, wrong)
    for room in (packed[:1], packed[:, :3], packed[..., :-1], packed.astype(np.float64), packed[0], packed[:, ::-1]):
        with pytest.raises(ValueError, match="pack needs"):
            pack(b, room)
    np.testing.assert_array_equal(out, matrix(3, n))


def test_the_text_is_the_same_each_time() -> None:
    """Else nothing would be found on the disk."""
    assert kernels.text() == kernels.text()


@pytest.mark.skipif("NNSHOP_LANES" in os.environ, reason="this is the process that another one of these tests started")
@pytest.mark.parametrize("lanes", [8, 4])
def test_narrower_vectors(lanes: int) -> None:
    """All tests of this file again, on the code of processors without AVX-512, and without AVX2 and FMA."""
    if lanes >= machine.lanes():
        pytest.skip(f"vectors have {machine.lanes()} numbers here")
    environment = {**os.environ, "NNSHOP_LANES": str(lanes), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
