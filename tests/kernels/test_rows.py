"""What is compiled for the rows of a matrix, against NumPy in float64, with vectors of every width that the processor has."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from nnshop.compiling.machine import lanes
from nnshop.kernels.rows import BLOCK, exponentials, top_k

each_width = pytest.mark.parametrize("columns", [1, 3, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 1000])


def matrix(columns: int) -> np.ndarray:
    """Rows of all kinds: equal numbers, large ones, in order, with -inf."""
    rng = np.random.RandomState(columns)
    x = rng.randint(-4, 5, (6, columns)).astype(np.float32)
    x[1] = rng.randn(columns) * 30
    x[2] = np.sort(rng.randn(columns))
    x[3, : columns // 2] = -np.inf
    x[4] -= 1e5
    return x


@each_width
def test_exponentials_and_their_sums(columns: int) -> None:
    x = matrix(columns)
    highest = x.max(axis=1)
    exact = np.exp((x - highest[:, np.newaxis]).astype(np.float64))
    for keep in (False, True):
        given = x.copy()
        largest, sums = exponentials(given, keep)
        np.testing.assert_array_equal(largest, highest)
        np.testing.assert_allclose(sums, exact.sum(axis=1), rtol=2e-6)
        np.testing.assert_allclose(given, exact if keep else x, rtol=1e-6, atol=1e-37)


@each_width
def test_the_largest_numbers_come_first_and_of_equals_the_first(columns: int) -> None:
    x = matrix(columns)
    for k in {1, min(5, columns), columns}:
        for without in (-1, 0, columns - 1):
            found, places = top_k(x, k, without)
            left = np.where(np.arange(columns) == without, -np.inf, x)
            order = np.argsort(-left, axis=1, kind="stable")[:, :k]
            expected = np.take_along_axis(left, order, axis=1)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(places, np.where(expected > -np.inf, order, 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    x = matrix(300)
    expected = exponentials(x)[1]
    x[2, 211] = bad
    _, sums = exponentials(x)
    assert np.isnan(sums[2])
    np.testing.assert_array_equal(np.delete(sums, 2), np.delete(expected, 2))


def test_rows_may_lie_apart_and_nothing_else_is_written() -> None:
    whole = np.full((5, 40), 7, np.float32)
    x = whole[1:4, 3:30]
    x[...] = matrix(27)[:3]
    expected = matrix(27)[:3].copy()
    exponentials(expected, keep=True)
    np.testing.assert_array_equal(top_k(x, 3)[0], top_k(x.copy(), 3)[0])
    exponentials(x, keep=True)
    np.testing.assert_array_equal(x, expected)
    x[...] = 7
    assert (whole == 7).all()


@pytest.mark.parametrize("x", [np.zeros((2, 3)), np.zeros((2, 3, 4), np.float32), np.zeros((3, 2), np.float32).T])
def test_other_arrays_are_refused(x: np.ndarray) -> None:
    for function in (exponentials, lambda x: top_k(x, 1)):
        with pytest.raises(ValueError, match=r"rows are float32 \(N, V\)"):
            function(x)


@pytest.mark.parametrize("width", [width for width in (8, 4) if width < lanes()])
def test_narrower_vectors_give_the_same(width: int) -> None:
    tests = [__file__, "-k", "not narrower", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "NNSHOP_LANES": str(width)}
    done = subprocess.run([sys.executable, "-m", "pytest", *tests], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
