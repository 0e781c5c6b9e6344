"""A scan that ends early, for each sample by itself, and with truncation, updates, and other scans."""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from checking import agrees, assert_close, each_mode, each_way, held, measured
from endings import T, growing, growing_steps, leaking, leaking_steps, linear, sampled, samples
from measuring import constant, factors

from nnshop import scan, until

rng = np.random.RandomState(1)


# One for each sample


@each_mode
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_each_sample_ends_by_itself(mode: str, shape: tuple[int, ...]) -> None:
    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        return scan(sampled(leaking, shape), x, y, w, **way)

    def expected(x: Any, y: Any, w: Any) -> Any:
        return np.stack([held(leaking_steps(x[:, b], y[b], w[0]), T) for b in range(3)], axis=1)

    found = agrees(mode, build, expected, *samples())
    assert found.lengths == [2, 5, T]
    assert not found.gradients[0][2:, 0].any()
    assert not found.gradients[0][5:, 1].any()


@each_mode
def test_each_sample_has_the_gradients_of_a_scan_that_is_cut(mode: str) -> None:
    """Only what was done is in the loss."""
    x, y, w = samples()
    R = rng.randn(T, 3, 2)
    for b, n in enumerate((2, 5, T)):
        R[n:, b] = 0

    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        return scan(sampled(leaking), x, y, w, **way)

    whole = measured(mode, build, x, y, w, loss=lambda ys: F.sum(ys * constant(R)))
    total = np.zeros((1, 2))
    for b, n in enumerate((2, 5, T)):
        part = (x[:n, b : b + 1], y[b : b + 1], w)
        weighted = lambda ys, b=b, n=n: F.sum(ys * constant(R[:n, b : b + 1]))  # noqa: E731
        alone = measured(mode, lambda x, y, w, **way: scan(lambda *v: leaking(*v)[0], x, y, w, **way), *part, loss=weighted)
        assert_close([whole.values[0][:n, b : b + 1]], alone.values)
        assert_close([whole.gradients[0][:n, b : b + 1], whole.gradients[1][b : b + 1]], alone.gradients[:2])
        total += alone.gradients[2]
    assert_close([whole.gradients[2]], [total])


@each_mode
def test_samples_of_a_batch_first(mode: str) -> None:
    x, y, w = samples()

    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        return scan(sampled(leaking), x, y, w, time_axis=1, **way)

    def expected(x: Any, y: Any, w: Any) -> Any:
        return np.stack([held(leaking_steps(x[b], y[b], w[0]), T) for b in range(3)])

    assert agrees(mode, build, expected, np.swapaxes(x, 0, 1), y, w).lengths == [2, 5, T]


@each_mode
def test_samples_with_taps_updates_and_outputs_without_a_past(mode: str) -> None:
    first, total = rng.uniform(0.1, 0.4, (2, 3)), constant(np.zeros(3)).apply(need_grad=True)
    x = rng.uniform(0.1, 0.4, (5, 3)) * [0.2, 1, 6]

    def build(x: Any, first: Any, **way: str) -> Any:
        def step(x: Any, y2: Any, y1: Any) -> Any:
            y = y1 + y2 * x
            return [y, x * 2], {total: total + y}, until(F.greater_scalar(y, 0.7))

        return scan(step, x, [{"initial": first, "taps": [-2, -1]}, None], **way)

    def steps(x: Any, first: Any, b: int) -> list:
        ys = list(first[:, b])
        for value in x[:, b]:
            ys.append(ys[-1] + ys[-2] * value)
            if ys[-1] > 0.7:
                break
        return ys[2:]

    lengths = [len(steps(x, first, b)) for b in range(3)]

    def expected(x: Any, first: Any) -> list:
        runs = [steps(x, first, b) for b in range(3)]
        twice = [held(list(x[:n, b] * 2), 5) for b, n in enumerate(lengths)]
        return [np.stack([held(ys, 5) for ys in runs], axis=1), np.stack(twice, axis=1), np.array([sum(ys) for ys in runs])]

    assert agrees(mode, build, expected, x, first).lengths == lengths
    assert len(set(lengths)) > 1


@each_mode
def test_samples_that_all_end_at_the_first_step(mode: str) -> None:
    found = measured(mode, lambda x, **way: scan(lambda x: (x, until(x)), x, **way), [[1, 1], [2, 2], [3, 3]])
    assert found.lengths == [1, 1]
    assert found.values[0].tolist() == [[1, 1]] * 3


# With other options


@each_mode
@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize(("keep", "window"), [(1, 1000), (2, 1000), (5, 1000), (1000, 2), (3, 2), (1000, 1), (2, 3)])
def test_truncation_counts_from_the_end_and_windows_from_the_start(mode: str, n: int, keep: int, window: int) -> None:
    x = np.full(5, 0.1)
    x[n - 1] = 2.0
    R = factors((x,))[0]
    options = {"truncate_gradient": -1 if keep == 1000 else keep, "bptt_window": None if window == 1000 else window}

    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        return scan(growing, x, y, w, **options, **way)

    found = measured(mode, build, x, 0.3, 0.5)
    ys = [0.3, *growing_steps(x, 0.3, 0.5)]
    slopes = linear(R, 0.5, n, 5, keep, window)
    first = slopes[0] * 0.5 if keep >= n else 0.0
    assert found.lengths == n
    assert_close(found.values, [held(ys[1:], 5)])
    assert_close(found.gradients, [slopes, np.array(first), np.sum(slopes[:n] * ys[:-1])], 1e-4)


@each_mode
@pytest.mark.parametrize(("keep", "window"), [(2, 1000), (1000, 2), (3, 2), (1000, 3)])
def test_truncation_and_windows_of_samples(mode: str, keep: int, window: int) -> None:
    """The last steps are those of each sample; windows are the same for all."""
    x = np.full((5, 2), 0.1)
    x[1, 0] = x[4, 1] = 2.0
    options = {"truncate_gradient": -1 if keep == 1000 else keep, "bptt_window": None if window == 1000 else window}

    def build(x: Any, y: Any, w: Any, **way: str) -> Any:
        return scan(growing, x, y, w, **options, **way)

    found = measured(mode, build, x, [0.3, 0.3], [0.5])
    R = factors((x,))[0]
    expected = np.stack([linear(R[:, b], 0.5, n, 5, keep, window) for b, n in enumerate((2, 5))], axis=1)
    assert found.lengths == [2, 5]
    assert_close(found.gradients[:2], [expected, np.where([keep >= 2, keep >= 5], expected[0] * 0.5, 0)])


@each_way
def test_a_random_end_cannot_be_truncated(way: str) -> None:
    """Which steps are the last ones is found by a run of its own."""
    with pytest.raises(ValueError, match=r"truncate_gradient with until runs the scan twice.*Rand would draw other numbers"):
        scan(lambda x: (x, until(F.greater_scalar(F.rand(), 0.9))), np.ones(5), truncate_gradient=1, way=way)


@each_way
@pytest.mark.parametrize("inner", ["unrolled", "loop"])
def test_a_random_end_by_a_scan_within_cannot_be_truncated_either(way: str, inner: str) -> None:
    def step(x: Any) -> Any:
        drawn, _ = scan(lambda: F.rand(), n_steps=2, way=inner)
        return x, until(F.greater_scalar(F.sum(drawn), 1.5))

    with pytest.raises(ValueError, match="truncate_gradient with until runs the scan twice"):
        scan(step, np.ones(5), truncate_gradient=1, way=way)


@each_mode
@pytest.mark.parametrize("given", ["sequence", "initial", "non-sequence", "closure"])
def test_what_is_drawn_outside_may_be_truncated(mode: str, given: str) -> None:
    """It is drawn once."""

    def build(x: Any, **way: str) -> Any:
        mask = F.dropout(F.constant(1, (4, 8)), 0.5)
        read = {"sequence": (mask, None), "initial": (None, mask[0]), "non-sequence": (None, None), "closure": (None, None)}
        sequence, initial = read[given]

        def step(x: Any, *entries: Any) -> Any:
            m = entries[0] if entries else mask[0]
            return [m * 1, x * m], until(F.less_scalar(F.sum(x), 0))

        sequences, info = [x, *([] if sequence is None else [sequence])], [initial, None]
        return scan(step, sequences, info, mask[0] if given == "non-sequence" else None, truncate_gradient=2, **way)

    x = np.ones((4, 8))
    x[2] = -1
    found = measured(mode, build, x, loss=lambda m, y: F.sum(y[:3]))
    m, y = found.values
    assert found.lengths == 3
    assert set(np.unique(m)) == {0, 2}
    assert_close([y[:3], found.gradients[0]], [m[:3] * x[:3], np.stack([m[0] * 0, m[1], m[2], m[3] * 0])])


@each_mode
def test_updates_end_too(mode: str) -> None:
    count = constant(10.0)

    def build(x: Any, **way: str) -> Any:
        total = nn.Variable.from_numpy_array(0.0)
        return scan(lambda x: (x, {total: total + x, count: count + 1}, until(F.less_scalar(x, 0))), x, **way)

    found = agrees(mode, build, lambda x: [held(list(x[:3]), 5), x[:3].sum(), np.array(13.0)], [1.0, 2.0, -3.0, 4.0, 5.0])
    assert found.lengths == 3


@each_mode
@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_windows_after_the_end_cut_nothing(mode: str, window: int) -> None:
    """The last value of an update, too, has the gradient of the steps that were done."""

    def build(x: Any, total: Any, **way: str) -> Any:
        def step(x: Any) -> Any:
            return x, {total: total * 0.5 + x}, until(F.less_scalar(x, 0))

        return scan(step, x, bptt_window=window, **way)

    found = measured(mode, build, [1.0, 2.0, -3.0, 4.0, 5.0, 6.0], 1.0, loss=lambda x, total: F.sum(x) * 0 + total)
    assert found.lengths == 3
    start = (3 - 1) // window * window  # of the window in which it ends
    slopes = np.where(np.arange(6) >= start, 0.5 ** (2.0 - np.arange(6)), 0)
    slopes[3:] = 0
    assert_close(found.gradients, [slopes, 0.125 if start == 0 else 0.0])


@each_mode
def test_updates_until_and_a_recurrent_output(mode: str) -> None:
    """It took twice as long with each step."""

    def build(x: Any, rate: Any, **way: str) -> Any:
        def step(x: Any, y: Any) -> Any:
            y = y * rate + x
            return y, {rate: rate * 0.5}, until(F.greater_scalar(y, 10))

        return scan(step, x, 1.0, **way)

    def expected(x: Any, rate: Any) -> list:
        y, ys = 1.0, []
        for t in range(len(x)):
            y = y * rate * 0.5**t + x[t]
            ys.append(y)
            if y > 10:
                break
        return [held(ys, len(x)), rate * 0.5 ** len(ys)]

    assert agrees(mode, build, expected, [1.0, 2.0, 20.0, 3.0], 2.0).lengths == 3


@each_mode
def test_a_scan_that_ends_within_a_scan(mode: str) -> None:
    """Each step of the outer one ends its own inner one elsewhere."""

    def build(limits: Any, w: Any, **way: str) -> Any:
        def outer(limit: Any, y: Any, w: Any) -> Any:
            def inner(y: Any) -> Any:
                y = y * w
                return y, until(F.greater(y, limit))

            ys, updates = scan(inner, outputs_info=y, n_steps=6, **way)
            return [ys[-1] * 0.1, updates.lengths]

        return scan(outer, limits, (1.0, None), w, **way)

    def expected(limits: Any, w: Any) -> list:
        y, ys, lengths = 1.0, [], []
        for limit in limits:
            for n in range(1, 7):  # noqa: B007
                y = y * w
                if y > limit:
                    break
            y = y * 0.1
            ys.append(y)
            lengths.append(n)
        return [np.array(ys), np.array(lengths)]

    found = agrees(mode, build, expected, [7.0, 1.0, 20.0, 1000.0], 2.0)
    assert found.values[1].tolist() == [3, 1, 6, 6]
