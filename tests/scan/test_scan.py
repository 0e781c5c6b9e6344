"""scan: the programs of Theano's tutorial, the cases that Theano once got wrong, and the options that are not Theano's."""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from checking import MODES, agrees, assert_close, computed, each_mode, each_way, measured, outputs_of
from measuring import factors

from nnshop import foldl, foldr, reduce, scan
from nnshop import map as scan_map
from nnshop.running import WAYS
from nnshop.running.ways import LOOP_FROM

rng = np.random.RandomState(0)


def add(a: Any, b: Any) -> Any:
    return a + b


# Theano's tutorial


@each_mode
def test_doubling(mode: str) -> None:
    found = agrees(mode, lambda y, **way: scan(lambda y: y * 2, outputs_info=y, n_steps=3, **way), lambda y: y * [2, 4, 8], 5.0)
    assert found.values[0].tolist() == [10, 20, 40]


@each_mode
def test_a_sequence_and_a_recurrent_output(mode: str) -> None:
    def expected(x: Any, y: Any) -> Any:
        return np.array([x[0] + 2 * y, x[1] + 2 * x[0] + 4 * y, x[2] + 2 * x[1] + 4 * x[0] + 8 * y])

    found = agrees(
        mode,
        lambda x, y, **way: scan(lambda x, y: x + y * 2, x, y, **way),
        expected,
        [[1, 0], [0, 1], [1, 1]],
        [0.5, 0.5],
    )
    assert found.values[0].tolist() == [[2, 1], [4, 3], [9, 7]]


@each_mode
def test_powers(mode: str) -> None:
    """A ** k by its factors; A is closed over, or passed as a non-sequence."""
    A = rng.randn(4)

    def expected(A: Any) -> Any:
        return np.array([A, A**2, A**3, A**4])

    agrees(mode, lambda A, **way: scan(lambda p, A: p * A, None, np.ones(4), A, n_steps=4, **way), expected, A)
    agrees(mode, lambda A, **way: scan(lambda p: p * A, None, np.ones(4), n_steps=4, **way), expected, A)


@each_mode
def test_a_polynomial(mode: str) -> None:
    def build(coefficients: Any, x: Any, **way: str) -> Any:
        terms, updates = scan(lambda c, power, x: c * x**power, [coefficients, np.arange(4)], None, x, **way)
        return F.sum(terms), updates

    agrees(mode, build, lambda c, x: np.sum(c * x ** np.arange(4)), [1.0, 0.5, -2.0, 3.0], 1.5)


@each_mode
def test_horners_scheme(mode: str) -> None:
    def build(coefficients: Any, x: Any, **way: str) -> Any:
        return foldr(lambda c, value, x: value * x + c, coefficients, 0.0, x, **way)

    agrees(mode, build, lambda c, x: np.sum(c * x ** np.arange(4)), [1.0, 0.5, -2.0, 3.0], 1.5)


@each_mode
def test_cumulative_products(mode: str) -> None:
    x = rng.uniform(0.5, 1.5, (6, 3))
    agrees(mode, lambda x, **way: scan(lambda x, p: p * x, x, np.ones(3), **way), lambda x: np.cumprod(x, axis=0), x)


@each_mode
def test_fibonacci(mode: str) -> None:
    def build(first: Any, **way: str) -> Any:
        return scan(add, outputs_info={"initial": first, "taps": [-1, -2]}, n_steps=6, **way)

    def expected(first: Any) -> Any:
        return np.array([[1, 2, 3, 5, 8, 13], [1, 1, 2, 3, 5, 8]]).T @ first[::-1]

    found = agrees(mode, build, expected, [0, 1])
    assert found.values[0].tolist() == [1, 2, 3, 5, 8, 13]


@each_mode
def test_a_moving_window(mode: str) -> None:
    def build(x: Any, w: Any, **way: str) -> Any:
        window = {"input": x, "taps": [-1, 0, 1]}
        return scan(lambda before, now, after, w: before * w[0] + now * w[1] + after * w[2], window, None, w, **way)

    agrees(mode, build, lambda x, w: x[:-2] * w[0] + x[1:-1] * w[1] + x[2:] * w[2], rng.randn(7), [0.25, 0.5, -0.75])


@each_mode
def test_a_step_that_draws(mode: str) -> None:
    """As in a Gibbs chain. The gradient is that of the numbers that were drawn, which the loop draws once for both passes."""

    def build(start: Any, scale: Any, **way: str) -> Any:
        def step(y: Any) -> list:
            noise, uniform = F.randn(shape=(50,)), F.rand(shape=(50,))
            return [y * 0.5 + noise * scale, noise, uniform]

        return scan(step, outputs_info=[start, None, None], n_steps=20, **way)

    found = measured(mode, build, np.zeros(50), [3.0], loss=lambda y, noise, uniform: F.sum(y[-1]))
    y, noise, uniform = found.values
    before = np.zeros(50)
    for t in range(20):
        np.testing.assert_allclose(y[t], 0.5 * before + 3 * noise[t], rtol=1e-5, atol=1e-5)
        before = y[t]
    decay = 0.5 ** np.arange(19, -1, -1)
    assert_close(found.gradients, [np.full(50, 0.5**20), [np.sum(decay[:, None] * noise)]], 1e-4)
    assert abs(noise.mean()) < 0.15
    assert abs(noise.std() - 1) < 0.1
    assert abs(uniform.mean() - 0.5) < 0.05
    assert len(np.unique(noise)) > 990  # other numbers at each step


@each_mode
def test_a_counter(mode: str) -> None:
    way, eager = MODES[mode]
    count = nn.Variable.from_numpy_array(7.0)
    with nn.auto_forward(eager):
        outputs, updates = scan(lambda: {count: count + 1}, n_steps=3, way=way)
    assert outputs is None
    computed(*updates.values())
    assert float(count.d) == 7
    updates.apply()
    assert float(count.d) == 10


# Arguments


@each_way
def test_a_list_of_numbers_is_one_array_and_a_tuple_several(way: str) -> None:
    assert outputs_of(scan(lambda x: x * 2, [1, 2, 3], way=way)).tolist() == [2, 4, 6]
    assert outputs_of(scan(lambda x: x * 2, [[1.0, 2.0], [3.0, 4.0]], way=way)).tolist() == [[2, 4], [6, 8]]
    assert outputs_of(scan(lambda y: y * 2, outputs_info=[1, 2], n_steps=2, way=way)).tolist() == [[2, 4], [4, 8]]
    a, b = outputs_of(scan(lambda a, b, c, d: (a + c, b * d), None, (1, 2), (10, 3.0), n_steps=2, way=way))
    assert (a.tolist(), b.tolist()) == ([11, 21], [6, 18])
    assert outputs_of(scan(lambda x, c: F.sum(c) * x, [1, 2], None, [3, 4], way=way)).tolist() == [7, 14]


@each_way
def test_a_list_of_one_number_is_a_number(way: str) -> None:
    """As in Theano, whose users write outputs_info=[0.]."""
    assert outputs_of(scan(lambda y: y + 1, outputs_info=[1.0], n_steps=2, way=way)).tolist() == [2, 3]
    assert outputs_of(scan(lambda x, k: x * k, [1, 2], non_sequences=[3], way=way)).tolist() == [3, 6]


@each_way
@pytest.mark.parametrize("x", [[[1.0], [2.0]], [[1.0, 2.0]], [[[1.0]], [[2.0]]], [[1, 2], [3, 4]]])
def test_a_list_of_lists_of_numbers_is_one_array(way: str, x: list) -> None:
    """Of whatever sizes."""
    assert outputs_of(scan(lambda x: x * 2, x, way=way)).tolist() == (np.array(x) * 2).tolist()


@each_way
def test_what_arguments_may_be(way: str) -> None:
    array = np.array([1.0, 2.0, 3.0])
    kept = nn.NdArray.from_numpy_array(array)
    for x in (array, array.astype(np.int64), kept, nn.Variable.from_numpy_array(array), range(1, 4), [1, 2, 3]):
        for sequences in (x, [x] if not isinstance(x, list) else x, {"input": x}, [{"input": x, "taps": [0]}]):
            assert outputs_of(scan(lambda x, k: x * k, sequences, [None], 10, way=way)).tolist() == [10, 20, 30]
    for initial in (1, np.float64(1), np.array(1), nn.Variable.from_numpy_array(1.0)):
        for info in (initial, [initial] if isinstance(initial, nn.Variable) else (initial,), {"initial": initial}):
            assert outputs_of(scan(lambda y: y + 1, None, info, n_steps=np.int64(2), way=way)).tolist() == [2, 3]


def test_how_many_outputs_come_back() -> None:
    assert isinstance(scan(lambda x: x, [1, 2])[0], nn.Variable)
    assert [y.shape for y in scan(lambda x: x, [1, 2], return_list=True)[0]] == [(2,)]
    assert [y.shape for y in scan(lambda x: [x, x], [1, 2])[0]] == [(2,), (2,)]
    assert scan(lambda x: None, [1, 2])[0] is None
    assert scan(lambda x: [], [1, 2], return_list=True)[0] == []
    assert not scan(lambda x: x, [1, 2])[1]
    assert scan(lambda x: x, [1, 2])[1].lengths is None


@each_mode
def test_arguments_come_in_theanos_order(mode: str) -> None:
    """Taps of each sequence, taps of each output, as they were written; then non-sequences."""

    def build(x: Any, y: Any, a: Any, b: Any, **way: str) -> Any:
        def step(x1: Any, x0: Any, y0: Any, a2: Any, a1: Any, b1: Any, k: Any, j: Any) -> list:
            return [x1 + 10 * x0 + 100 * a1, y0 + a2 * 3, b1 * k + j]

        sequences = [{"input": x, "taps": [1, -1]}, y]
        info = [{"initial": a, "taps": [-2, -1]}, None, b]
        return scan(step, sequences, info, (2.0, 3.0), n_steps=2, **way)

    def expected(x: Any, y: Any, a: Any, b: Any) -> list:
        first, b1 = x[2] + 10 * x[0] + 100 * a[1], b * 2 + 3
        return [[first, x[3] + 10 * x[1] + 100 * first], [y[0] + a[0] * 3, y[1] + a[1] * 3], [b1, b1 * 2 + 3]]

    agrees(mode, build, expected, rng.randn(4), rng.randn(3), rng.randn(3), 0.3, tolerance=1e-4)


# What Theano once got wrong


@each_mode
def test_only_past_taps(mode: str) -> None:
    """Theano#692, #2946."""

    def build(x: Any, **way: str) -> Any:
        return scan(lambda a, b: [a * 10 + b, a * b], {"input": x, "taps": [-2, -1]}, **way)

    found = agrees(mode, build, lambda x: [x[:3] * 10 + x[1:4], x[:3] * x[1:4]], [1, 2, 3, 4, 5])
    assert found.values[0].tolist() == [12, 23, 34]


@each_mode
@pytest.mark.parametrize("backwards", [False, True])
def test_one_step(mode: str, backwards: bool) -> None:
    """Outputs keep their time axis, and backwards it is the last window (Theano inlined it, and took the first)."""

    def build(x: Any, y: Any, **way: str) -> Any:
        window = {"input": x, "taps": [0, 1]}
        return scan(lambda a, b, y: a + 10 * b + y, window, y, n_steps=1, go_backwards=backwards, **way)

    found = agrees(mode, build, lambda x, y: np.array([x[2 * backwards] + 10 * x[2 * backwards + 1] + y]), [1, 2, 3, 4], 0)
    assert found.values[0].tolist() == [43 if backwards else 21]


@each_mode
def test_backwards_with_taps_and_sequences_of_other_lengths(mode: str) -> None:
    """Each starts from its own end; taps keep their meaning."""

    def build(x: Any, z: Any, **way: str) -> Any:
        taps = {"input": x, "taps": [-1, 0]}
        return scan(lambda before, now, z: before + 10 * now + 100 * z, [taps, z], n_steps=2, go_backwards=True, **way)

    found = agrees(mode, build, lambda x, z: x[[3, 2]] + 10 * x[[4, 3]] + 100 * z[[2, 1]], [1, 2, 3, 4, 5], [6, 7, 8])
    assert found.values[0].tolist() == [854, 743]


@each_way
def test_taps_may_be_any_numbers_in_a_row(way: str) -> None:
    """Theano compared with the list [-1], and wanted a time axis for the tuple (-1,)."""
    for taps in ([-1], (-1,), -1, np.array([-1]), range(-1, 0)):
        info = {"initial": 1.0, "taps": taps}
        assert outputs_of(scan(lambda y: y * 3, outputs_info=info, n_steps=2, way=way)).tolist() == [3, 9]
    for taps in ([1], (1,), 1, np.int32(1)):
        assert outputs_of(scan(lambda x: x, {"input": [1, 2, 3], "taps": taps}, way=way)).tolist() == [2, 3]


@each_mode
def test_a_longer_initial_is_read_from_its_beginning(mode: str) -> None:
    def build(first: Any, **way: str) -> Any:
        return scan(lambda y: y * 2, outputs_info={"initial": first, "taps": [-2]}, n_steps=3, **way)

    found = agrees(mode, build, lambda first: np.array([first[0] * 2, first[1] * 2, first[0] * 4]), [1, 2, 50, 60])
    assert not found.gradients[0][2:].any()


@each_mode
def test_a_sequence_tap_twice(mode: str) -> None:
    """Theano#4899."""

    def build(x: Any, **way: str) -> Any:
        return scan(lambda a, b, c: a * b + c, {"input": x, "taps": [0, 0, 1]}, **way)

    agrees(mode, build, lambda x: x[:-1] ** 2 + x[1:], [1, 2, 3])


# Other forms of it


@each_mode
def test_map_reduce_and_folds(mode: str) -> None:
    x = [1.0, 2.0, 3.0]
    digits = {"foldl": (foldl, lambda x: 100 * x[0] + 10 * x[1] + x[2]), "foldr": (foldr, lambda x: np.sum(x * [1, 10, 100]))}
    for fold, expected in digits.values():
        agrees(mode, lambda x, fold=fold, **way: fold(lambda d, n: n * 10 + d, x, 0.0, **way), expected, x)
    agrees(mode, lambda x, a, **way: scan_map(lambda x, a: x * x + a, x, a, **way), lambda x, a: x**2 + a, x, 10.0)
    agrees(mode, lambda x, **way: scan_map(lambda x: x, x, go_backwards=True, **way), lambda x: x[::-1], rng.randn(4, 2))
    agrees(
        mode,
        lambda x, a, k, **way: reduce(lambda x, s, p, k: [s + x * k, p * x], x, [a, a], k, **way),
        lambda x, a, k: [a + k * x.sum(), a * x.prod()],
        x,
        0.5,
        2.0,
    )


@each_way
def test_reduce_gives_a_list_where_it_is_asked_for(way: str) -> None:
    (total,), _ = reduce(add, [1, 2, 3], 0, return_list=True, way=way)
    assert computed(total)[0] == 6


@each_way
def test_reduce_may_have_updates_only(way: str) -> None:
    count = nn.Variable.from_numpy_array(7.0)
    outputs, updates = reduce(lambda x: {count: count + x}, [1, 2, 3], None, way=way)
    assert outputs is None
    assert computed(*updates.values())[0] == 13


# The time axis


@each_mode
def test_batch_first_is_the_same_transposed(mode: str) -> None:
    """Sequences, initials with time axes, outputs of several ranks, and an initial without a time axis."""
    B, T = 3, 6
    x, z, first, y = rng.randn(T, B, 2), rng.randn(T + 1, B), rng.randn(3, B, 2), rng.randn(B, 2)

    def build(axis: int) -> Any:
        def step(before: Any, x: Any, z: Any, a3: Any, a1: Any, y: Any) -> list:
            y = F.tanh(y * 0.5 + a3) * F.reshape(z, (B, 1), inplace=False)
            return [before * a1 + x, y, F.sum(y, axis=1)]

        def scanned(x: Any, z: Any, first: Any, y: Any, **way: str) -> Any:
            info = [{"initial": first, "taps": [-3, -1]}, y, None]
            return scan(step, [{"input": x, "taps": [-1, 0]}, z], info, time_axis=axis, go_backwards=True, **way)

        return scanned

    def turned(arrays: Any) -> list:
        return [np.swapaxes(array, 0, 1) for array in arrays]

    def loss(*outputs: Any) -> Any:
        return sum((F.sum(F.sin(y)) for y in outputs[1:]), F.sum(F.sin(outputs[0])))

    theano = measured(mode, build(0), x, z, first, y, loss=loss)
    mine = measured(mode, build(1), *turned([x, z, first]), y, loss=loss)
    assert [v.shape for v in mine.values] == [(B, T - 1, 2), (B, T - 1, 2), (B, T - 1)]
    assert_close(turned(mine.values), theano.values, 1e-6)
    assert_close([*turned(mine.gradients[:3]), mine.gradients[3]], theano.gradients, 1e-6)
    assert all(gradient.any() for gradient in theano.gradients)


@each_mode
def test_reduce_of_a_batch_first(mode: str) -> None:
    x = rng.randn(3, 5, 2)
    build = lambda x, **way: reduce(add, x, np.zeros((3, 2)), time_axis=1, **way)  # noqa: E731
    agrees(mode, build, lambda x: x.sum(axis=1), x)


# Long ones


def test_auto_takes_the_loop_for_a_long_scan() -> None:
    calls, T = [], 2000

    def step(x: Any, y: Any, a: Any) -> Any:
        calls.append(1)
        return F.tanh(x + y * a)

    def build(x: Any, a: Any, **way: str) -> Any:
        return scan(step, x, np.zeros(2), a)

    x, a = rng.randn(T, 2), np.array([0.7])
    found = measured("loop", build, x, a)
    assert len(calls) < 10
    y = np.zeros((T + 1, 2))
    for t in range(T):
        y[t + 1] = np.tanh(x[t] + y[t] * a)
    assert_close(found.values, [y[1:]])
    (factor,) = factors((y[1:],))
    dz, after = np.zeros((T, 2)), np.zeros(2)
    for t in reversed(range(T)):
        dz[t] = (factor[t] + after) * (1 - y[t + 1] ** 2)
        after = dz[t] * a
    assert_close(found.gradients, [dz, [np.sum(dz * y[:-1])]])


def test_auto_unrolls_a_short_scan() -> None:
    calls: list = []
    scan(lambda y: calls.append(1) or y * 2, outputs_info=1.0, n_steps=3)
    assert 3 <= len(calls) < 3 + 5


def test_auto_unrolls_what_cannot_be_a_loop() -> None:
    """A step that is another one at each call."""
    calls: list = []

    def step(y: Any) -> Any:
        calls.append(1)
        return y + len(calls) / len(calls) if len(calls) % 2 else y - -1

    y, _ = scan(step, outputs_info=0.0, n_steps=LOOP_FROM)
    y.forward()
    np.testing.assert_array_equal(y.d, np.arange(1, LOOP_FROM + 1))


@pytest.mark.parametrize("every", [1, 3, 100])
def test_checkpoints(every: int) -> None:
    def build(x: Any, y: Any, way: str) -> Any:
        return scan(lambda x, y: F.sin(x) * y, x, y, way=WAYS[way](checkpoint_every=every))

    agrees("loop", build, lambda x, y: np.cumprod(np.sin(x)) * y, rng.uniform(1, 2, 7), 2.0)
