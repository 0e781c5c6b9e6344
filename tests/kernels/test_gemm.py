"""The matrix product against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from nnshop.kernels.gemm import BREADTH, DEPTH, multiply, multiply_packed, pack
from nnshop.kernels.tile import ROWS, WIDTH

ROWS_AROUND = [1, 2, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + 1]
COLUMNS_AROUND = [1, 7, WIDTH - 1, WIDTH, WIDTH + 1, 2 * WIDTH + 3]
DEPTHS_AROUND = [1, 2, 9, DEPTH - 1, DEPTH, DEPTH + 1, 2 * DEPTH + 5]


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randn(rows, columns).astype(np.float32)


def stored(array: np.ndarray, kind: str) -> np.ndarray:
    """The same numbers, in another place."""
    if kind == "transposed":
        return np.ascontiguousarray(array.T).T
    if kind == "columns":
        wide = np.full((array.shape[0], array.shape[1] + 5), np.nan, np.float32)
        wide[:, 2:-3] = array
        return wide[:, 2:-3]
    if kind == "rows":
        tall = np.full((2 * array.shape[0], array.shape[1]), np.nan, np.float32)
        tall[::2] = array
        return tall[::2]
    return array


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.float64) @ b.astype(np.float64)


def assert_product(actual: np.ndarray, a: np.ndarray, b: np.ndarray, plus: Any = 0) -> None:
    """To the error that sums of float32 have at most, number by number."""
    bound = (a.shape[1] + 2) * 2.0**-24 * (exact(abs(a), abs(b)) + abs(plus)) + 1e-37
    assert np.all(abs(actual - (exact(a, b) + plus)) <= bound)


@pytest.mark.parametrize("k", DEPTHS_AROUND)
@pytest.mark.parametrize("n", COLUMNS_AROUND)
def test_multiply_is_the_product(n: int, k: int) -> None:
    for m in ROWS_AROUND:
        a, b = matrix(m, k), matrix(k, n, 1)
        out = np.full((m, n), np.nan, np.float32)
        assert multiply(a, b, out) is out
        assert_product(out, a, b)


@pytest.mark.parametrize("n", [BREADTH - 1, BREADTH, BREADTH + 1, 2 * BREADTH + WIDTH + 1])
def test_broad_products(n: int) -> None:
    for m, k in ((1, 3), (ROWS + 3, DEPTH + 3)):
        a, b, before = matrix(m, k), matrix(k, n, 1), matrix(m, n, 2)
        assert_product(multiply(a, b, np.full((m, n), np.nan, np.float32)), a, b)
        assert_product(multiply(a, b, before.copy(), True), a, b, before)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("b_kind", ["plain", "transposed", "columns", "rows"])
@pytest.mark.parametrize("a_kind", ["plain", "transposed", "columns", "rows"])
def test_operands_may_be_views(a_kind: str, b_kind: str, accumulate: bool) -> None:
    for m, k, n in ((ROWS + 1, 5, WIDTH + 1), (3, DEPTH + 2, 4), (1, 1, 1), (1, 6, 1), (4, 1, 2 * WIDTH)):
        a, b, out = matrix(m, k), matrix(k, n, 1), matrix(m, n, 2)
        before = out.copy()
        multiply(stored(a, a_kind), stored(b, b_kind), out, accumulate)
        assert_product(out, a, b, before if accumulate else 0)


@pytest.mark.parametrize("accumulate", [False, True])
def test_what_lies_around_the_result_stays(accumulate: bool) -> None:
    for m, k, n in ((ROWS + 1, 5, WIDTH + 1), (3, DEPTH + 2, 4), (1, 1, 1), (ROWS, 3, WIDTH), (2, 3, BREADTH + 1)):
        a, b, around = matrix(m, k), matrix(k, n, 1), matrix(m + 2, n + WIDTH + 5, 2)
        before = around.copy()
        multiply(a, b, around[1:-1, 3 : 3 + n], accumulate)
        assert_product(around[1:-1, 3 : 3 + n], a, b, before[1:-1, 3 : 3 + n] if accumulate else 0)
        around[1:-1, 3 : 3 + n] = before[1:-1, 3 : 3 + n]
        np.testing.assert_array_equal(around, before)


def test_operands_stay() -> None:
    a, b = matrix(ROWS + 1, DEPTH + 1), matrix(DEPTH + 1, WIDTH + 1, 1)
    copies = a.copy(), b.copy()
    multiply(a, b, np.empty((ROWS + 1, WIDTH + 1), np.float32))
    np.testing.assert_array_equal(a, copies[0])
    np.testing.assert_array_equal(b, copies[1])


sizes = st.one_of(st.integers(1, 3 * WIDTH), st.sampled_from([DEPTH - 1, DEPTH, DEPTH + 1]))
kinds = st.sampled_from(["plain", "transposed", "columns", "rows"])


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, sizes, kinds, kinds, st.booleans(), st.booleans(), st.integers(0, 1000))
def test_any_product(m: int, k: int, n: int, a_kind: str, b_kind: str, accumulate: bool, slot: bool, seed: int) -> None:
    a, b, before = matrix(m, k, seed), matrix(k, n, seed + 1), matrix(m, n, seed + 2)
    around = np.full((m, n + 7), 3.0, np.float32)
    out = around[:, 2:-5] if slot else np.empty((m, n), np.float32)
    out[...] = before
    multiply(stored(a, a_kind), stored(b, b_kind), out, accumulate)
    assert_product(out, a, b, before if accumulate else 0)
    if slot:
        assert np.all(around[:, :2] == 3)
        assert np.all(around[:, -5:] == 3)


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, sizes, kinds, st.booleans(), st.integers(0, 1000))
def test_any_packed_product(m: int, k: int, n: int, b_kind: str, accumulate: bool, seed: int) -> None:
    a, b, before = matrix(m, k, seed), matrix(k, n, seed + 1), matrix(m, n, seed + 2)
    out = before.copy()
    multiply_packed(a, pack(stored(b, b_kind)), out, accumulate)
    assert_product(out, a, b, before if accumulate else 0)


@pytest.mark.parametrize("kind", ["plain", "transposed", "columns", "rows"])
def test_pack_puts_columns_side_by_side(kind: str) -> None:
    for k, n in ((3, 1), (2, WIDTH), (DEPTH + 1, 2 * WIDTH + 1)):
        b = matrix(k, n)
        used = np.full((-(-n // WIDTH), k, WIDTH), np.nan, np.float32)
        packed = pack(stored(b, kind), used)
        assert packed is used
        side_by_side = np.concatenate(list(packed), axis=1)
        np.testing.assert_array_equal(side_by_side[:, :n], b)
        np.testing.assert_array_equal(side_by_side[:, n:], 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row_and_column(bad: float) -> None:
    m, k, n = 2 * ROWS + 1, DEPTH + 3, WIDTH + 3
    for place in ((0, 0), (ROWS, DEPTH), (m - 1, k - 1)):
        a, b = matrix(m, k), matrix(k, n, 1)
        a[place] = bad
        out = multiply(a, b, np.empty((m, n), np.float32))
        packed = np.zeros((m, n), np.float32)
        multiply_packed(a, pack(b), packed, 0)
        for product in (out, packed):
            assert not np.isfinite(product[place[0]]).any()
            np.testing.assert_array_equal(np.isnan(product[place[0]]), np.isnan(bad))
            assert np.isfinite(np.delete(product, place[0], axis=0)).all()
    for place in ((0, 0), (DEPTH, WIDTH), (k - 1, n - 1)):
        a, b = matrix(m, k), matrix(k, n, 1)
        b[place] = bad
        for product in (multiply(a, b, np.empty((m, n), np.float32)), packed_product(a, b)):
            assert not np.isfinite(product[:, place[1]]).any()
            assert np.isfinite(np.delete(product, place[1], axis=1)).all()


def packed_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    multiply_packed(a, pack(b), out, 0)
    return out


def test_a_result_that_is_not_finite_is_overwritten_without_accumulate() -> None:
    a, b = matrix(3, 4), matrix(4, 5, 1)
    assert_product(multiply(a, b, np.full((3, 5), np.inf, np.float32), False), a, b)
    assert np.isnan(multiply(a, b, np.full((3, 5), np.nan, np.float32), True)).all()


def test_infinity_times_zero_is_nan() -> None:
    a, b = np.zeros((2, 3), np.float32), np.full((3, 2), np.inf, np.float32)
    assert np.isnan(multiply(a, b, np.empty((2, 2), np.float32))).all()


def test_equal_rows_give_equal_results() -> None:
    """Whatever tile a row falls into, so that a row of a batch does not depend on the others."""
    a, b = np.repeat(matrix(1, DEPTH + 9), 3 * ROWS + 2, axis=0), matrix(DEPTH + 9, WIDTH + 3, 1)
    out = multiply(a, b, np.empty((len(a), b.shape[1]), np.float32))
    np.testing.assert_allclose(out, np.broadcast_to(out[0], out.shape), rtol=1e-5, atol=1e-5)
