"""What the function of a scan may hold: weights, random functions, cells, other scans; and what a scan leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from checking import Counted, agrees, assert_close, computed, each_mode, each_way, measured
from measuring import constant, randomize

from nnshop import Cell, GRUCell, LSTMCell, StateSpec, run, scan, until
from nnshop.parameters import all_parameters
from nnshop.portable import portable

rng = np.random.RandomState(4)
T, B, D = 5, 2, 3
X, H = rng.randn(T, B, D), rng.randn(B, D)


def elman(x: Any, h: Any) -> Any:
    return F.tanh(PF.affine(F.concatenate(x, h, axis=1), D))


def by_hand(step: Callable, x: nn.Variable, h: nn.Variable) -> nn.Variable:
    hs = []
    for t in range(x.shape[0]):
        h = step(x[t], h)
        hs.append(F.reshape(h, (1, *h.shape), inplace=False))
    return F.concatenate(*hs, axis=0)


def with_weights(mode: str, build: Callable, *given: np.ndarray) -> tuple[list, list, dict]:
    """Values, gradients of what is given, and gradients of the weights by their names."""
    build(*(nn.Variable.from_numpy_array(array) for array in given))
    randomize()
    found = measured(mode, build, *given)
    return found.values, found.gradients, {name: v.g.copy() for name, v in nn.get_parameters().items()}


def assert_as_by_hand(mode: str, step: Callable, x: np.ndarray = X, h: np.ndarray = H) -> None:
    def expected(x: Any, h: Any, **way: str) -> Any:
        return by_hand(step, x, h), scan(lambda x: x, [1, 2])[1]

    *arrays, weights = with_weights(mode, lambda x, h, **way: scan(step, x, h, **way), x, h)
    *expected_arrays, expected_weights = with_weights("unrolled", expected, x, h)
    for found, wanted in zip(arrays, expected_arrays):
        assert_close(found, wanted)
    assert list(weights) == list(expected_weights)
    assert_close(weights.values(), expected_weights.values())


# Weights


@each_mode
def test_weights_are_shared_over_time(mode: str) -> None:
    assert_as_by_hand(mode, elman)
    assert list(nn.get_parameters()) == ["affine/W", "affine/b"]


@each_way
def test_a_scope_for_the_weights(way: str) -> None:
    x, h = constant(X), constant(H)
    with nn.parameter_scope("model"):
        scan(elman, x, h, name="rnn", way=way)
        scan(elman, x, h, name="deep/er", way=way)
        scan(elman, x, h, way=way)
    names = [f"model/{scope}affine/{name}" for scope in ("rnn/", "deep/er/", "") for name in "Wb"]
    assert list(nn.get_parameters()) == names
    assert nn.parameter.get_current_parameter_scope() is nn.parameter.root_scope


def test_weights_are_the_same_in_both_ways_and_by_hand() -> None:
    """Their names, their order, and what they are drawn to be: the call that tries the function draws nothing."""
    found = []
    for build in (
        lambda x, h: scan(elman, x, h, way="unrolled", name="rnn"),
        lambda x, h: scan(elman, x, h, way="loop", name="rnn"),
        lambda x, h: scan(elman, x, h, way="loop", name="rnn", strict=True),
        lambda x, h: scan(lambda x, h: (elman(x, h), until(F.sum(h))), x, h, name="rnn", truncate_gradient=2),
        lambda x, h: by_hand(scoped, x, h),
    ):
        nn.clear_parameters()
        nn.seed(7)
        build(constant(X), constant(H))
        after = nn.random.prng.rand()
        found.append([(name, v.d.tolist()) for name, v in nn.get_parameters().items()] + [after])
    assert found[0][0][0] == "rnn/affine/W"
    assert all(other == found[0] for other in found)


def scoped(x: Any, h: Any) -> Any:
    with nn.parameter_scope("rnn"):
        return elman(x, h)


@each_way
def test_weights_that_are_there_are_used(way: str) -> None:
    elman(nn.Variable((B, D)), nn.Variable((B, D)))
    randomize()
    before = {name: (v, v.d.copy()) for name, v in nn.get_parameters().items()}
    hs, _ = scan(elman, X, H, way=way)
    assert_close(computed(hs), computed(by_hand(elman, constant(X), constant(H))))
    assert list(nn.get_parameters()) == list(before)
    for name, (v, value) in before.items():
        assert nn.get_parameters()[name] is v
        np.testing.assert_array_equal(v.d, value)


@each_mode
def test_gradients_of_non_sequences_and_closures(mode: str) -> None:
    def passed(x: Any, w: Any, k: Any, **way: str) -> Any:
        return scan(lambda x, y, w, k: F.tanh(x * w + y * k), x, np.zeros((B, D)), [w, F.sin(k)], **way)

    def closed(x: Any, w: Any, k: Any, **way: str) -> Any:
        sin = F.sin(k)
        return scan(lambda x, y: F.tanh(x * w + y * sin), x, np.zeros((B, D)), **way)

    def expected(x: Any, w: Any, k: Any) -> Any:
        y, ys = np.zeros((B, D)), []
        for value in x:
            y = np.tanh(value * w + y * np.sin(k))
            ys.append(y)
        return np.array(ys)

    for build in (passed, closed):
        agrees(mode, build, expected, X, rng.randn(1, D), rng.randn(B, 1))


@each_mode
def test_a_mistake_leaves_no_parameters(mode: str) -> None:
    calls: list = []

    def fails_later(x: Any, h: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("a mistake")
        return elman(x, h)

    def fails_at_once(x: Any, h: Any) -> Any:
        elman(x, h)
        raise RuntimeError("a mistake")

    PF.affine(nn.Variable((2, 3)), 4, name="mine")
    before, x, h = list(all_parameters()), constant(X), constant(H)
    mistakes: dict[str, Callable] = {
        "a mistake": lambda: scan(fails_later, x, h, name="rnn"),
        "a mistake ": lambda: scan(fails_at_once, x, h),
        "has the shape": lambda: scan(lambda x, h: PF.affine(elman(x, h), 7, name="wide"), x, h),
        "too long": lambda: scan(elman, x, h, n_steps=T + 1),
    }
    for message, mistake in mistakes.items():
        with nn.auto_forward("eager" in mode), pytest.raises((RuntimeError, ValueError), match=message.strip()):
            mistake()
        assert list(all_parameters()) == before
        assert nn.parameter.get_current_parameter_scope() is nn.parameter.root_scope


@each_way
def test_how_often_the_function_is_called(way: str) -> None:
    calls: list = []

    def step(x: Any) -> Any:
        calls.append(nn.get_auto_forward())
        return x * 2

    scan(step, np.ones(20), way=way)
    assert len(calls) == {"unrolled": 21, "loop": 3}[way]
    assert not any(calls)


def test_the_call_that_tries_computes_nothing() -> None:
    counted = Counted()
    with nn.auto_forward():
        scan(lambda x: counted(x), np.ones(4), way="unrolled", strict=True)
    assert counted.forwards == 4


# Random functions


@each_mode
def test_dropout_has_one_mask_forward_and_backward(mode: str) -> None:
    x = np.ones((T, 40))
    build = lambda x, **way: scan(lambda x: F.dropout(x, 0.5) * 3, x, **way)  # noqa: E731
    found = measured(mode, build, x, loss=F.sum)
    np.testing.assert_array_equal(found.gradients[0], found.values[0])
    assert set(np.unique(found.values[0])) == {0, 6}
    assert len({row.tobytes() for row in found.values[0]}) == T


@each_mode
def test_dropout_within_a_recurrence(mode: str) -> None:
    """The product of the masks from a step on, by which the initial value is multiplied."""
    build = lambda y, **way: scan(lambda y: F.dropout(y, 0.2), outputs_info=y, n_steps=T, **way)  # noqa: E731
    found = measured(mode, build, np.ones(100), loss=lambda ys: F.sum(ys))
    np.testing.assert_allclose(found.gradients[0], found.values[0].sum(axis=0), rtol=1e-5)
    assert 0 < np.mean(found.values[0][-1] == 0) < 1


def test_numbers_are_drawn_as_by_hand() -> None:
    """The call that tries the function has not drawn."""
    drawn = []
    for build in (lambda: scan(lambda: F.rand(shape=(3,)), n_steps=2, way="unrolled")[0], lambda: by_hand_draws()):
        nn.seed(5)
        drawn.append(computed(build())[0])
    np.testing.assert_array_equal(*drawn)


def by_hand_draws() -> nn.Variable:
    return F.stack(*(F.rand(shape=(3,)) for _ in range(2)), axis=0)


# Cells


@each_mode
def test_a_cell_in_a_scan(mode: str) -> None:
    def build(x: Any, h: Any, c: Any, **way: str) -> Any:
        def step(x: Any, h: Any, c: Any) -> list:
            return list(LSTMCell(4)(x, (h, c))[1])

        return scan(step, x, [h, c], **way)

    def expected(x: Any, h: Any, c: Any, **way: str) -> Any:
        hs, (_, last) = run(LSTMCell(4), x, (h, c), way="unrolled")
        return [hs, last], scan(lambda x: x, [1, 2])[1]

    given = (X, rng.randn(B, 4), rng.randn(B, 4))
    values, gradients, weights = with_weights(mode, build, *given)
    turned = (np.swapaxes(X, 0, 1), *given[1:])
    run_values, _, run_weights = with_weights("unrolled", expected, *turned)
    assert list(weights) == list(run_weights) == ["x2h/W", "b", "h2h/W"]
    assert_close([values[0], values[1][-1]], [np.swapaxes(run_values[0], 0, 1), run_values[1]])
    assert all(gradient.any() for gradient in [*gradients, *weights.values()])


@each_mode
@pytest.mark.parametrize("outer", ["unrolled", "loop"])
def test_a_scan_in_a_cell(mode: str, outer: str) -> None:
    """Each step of the cell runs a scan over its input."""

    def build(x: Any, **way: str) -> Any:
        def step(x: Any, s: Any) -> tuple:
            ys, _ = scan(lambda x, s: F.tanh(x + s * 0.5), x, s, time_axis=1, **way)
            return ys, ys[:, -1]

        xs, _ = run(Cell(step, StateSpec(())), x, constant(np.zeros(B)), way=outer)
        return xs, scan(lambda x: x, [1, 2])[1]

    def expected(x: Any) -> Any:
        s, ys = np.zeros(B), np.zeros(x.shape)
        for t, u in np.ndindex(x.shape[1:]):
            s = ys[:, t, u] = np.tanh(x[:, t, u] + s * 0.5)
        return ys

    agrees(mode, build, expected, rng.randn(B, 3, 4))


@each_way
def test_a_run_of_a_cell_in_a_scan(way: str) -> None:
    """A layer over the words of each sentence, within a scan over sentences."""

    def outer(words: Any, h: Any) -> Any:
        hs, _ = run(GRUCell(4), words, way="unrolled")
        return F.tanh(h + hs[:, -1])

    assert_as_by_hand(way, outer, rng.randn(3, B, 4, D), rng.randn(B, 4))


# Scans in scans


@each_mode
@pytest.mark.parametrize("inner", ["unrolled", "loop"])
def test_scans_in_scans(mode: str, inner: str) -> None:
    """Over a triangle's worth of powers; the inner one closes over what the outer one was given."""

    def build(table: Any, start: Any, w: Any, **way: str) -> Any:
        def outer(row: Any, total: Any, w: Any) -> list:
            def step(x: Any, y: Any) -> Any:
                return F.tanh(x * w + y * F.sin(total))

            ys, _ = scan(step, row, total, way=inner)
            return [ys[-1] + total * 0.5, ys]

        return scan(outer, table, [start, None], w, **way)

    def expected(table: Any, start: Any, w: Any) -> list:
        total, totals, all_ys = start, [], []
        for row in table:
            y, ys = total, []
            for x in row:
                y = np.tanh(x * w + y * np.sin(total))
                ys.append(y)
            total = y + total * 0.5
            totals.append(total)
            all_ys.append(ys)
        return [np.array(totals), np.array(all_ys)]

    agrees(mode, build, expected, rng.randn(3, 4, 2), rng.randn(2), rng.randn(2))


@each_mode
@pytest.mark.parametrize("inner", ["unrolled", "loop"])
def test_weights_within_scans_within_scans(mode: str, inner: str) -> None:
    def step(x: Any, h: Any) -> Any:
        hs, _ = scan(lambda h: elman(x, h), outputs_info=h, n_steps=3, way=inner, name="inner")
        return PF.affine(hs[-1], D, name="outer")

    assert_as_by_hand(mode, step)
    assert list(nn.get_parameters()) == ["inner/affine/W", "inner/affine/b", "outer/affine/W", "outer/affine/b"]


# Other graphs


def test_a_portable_scan_has_functions_of_nnabla_only() -> None:
    with portable():
        ys, _ = scan(elman, X, H)
        with pytest.raises(ValueError, match="portable"):
            scan(elman, X, H, way="loop")
    kinds: set = set()
    ys.visit(lambda function: kinds.add(function.name))
    assert not any("Callback" in kind for kind in kinds)


def test_gradients_of_gradients() -> None:
    y = constant([0.5]).apply(need_grad=True)
    ys, _ = scan(lambda y: y * y, outputs_info=y, n_steps=2, way="unrolled")  # y ** 4
    (slope,) = nn.grad([F.sum(ys[-1])], [y])
    loss = F.sum(slope)
    loss.forward()
    y.grad.zero()
    loss.backward()
    assert_close([slope.d, y.g], [[4 * 0.5**3], [12 * 0.5**2]])
