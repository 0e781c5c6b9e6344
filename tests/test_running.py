"""Running over time: trees, sequences without inputs, and every bad input."""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
import reference
from cells_table import echo
from measuring import assert_same, constant, measure, randomize, weights

from nnshop import Cell, GRUCell, LSTMCell, SimpleRNNCell, StateSpec, iterate, lift, run, stack, tree_map
from nnshop.running import WAYS

each_way = pytest.mark.parametrize("way", WAYS)


# iterate: a plain function, time first, no batch


@each_way
@pytest.mark.parametrize("reverse", [False, True])
def test_iterate_is_the_loop(reverse: bool, way: str) -> None:
    """Scalars: nothing is assumed of a batch axis."""
    xs, start = np.random.randn(5), np.array(0.5)

    def step(x: nn.Variable, state: nn.Variable) -> tuple:
        state = 0.5 * state + x * x
        return state * 2, state

    measured = measure(lambda xs, s: iterate(step, xs, s, reverse=reverse, way=way), xs, start)
    state, ys = 0.5, np.zeros(5)
    for t in range(5)[::-1] if reverse else range(5):
        state = 0.5 * state + xs[t] ** 2
        ys[t] = 2 * state
    assert_same((measured.ys, measured.state), (ys, np.array(state)))
    assert measured.ys.shape == (5,)
    assert measured.state.shape == ()


@each_way
@pytest.mark.parametrize("reverse", [False, True])
def test_the_time_may_be_the_second_axis(reverse: bool, way: str) -> None:
    """Values and gradients are those of the same sequences with the time first; nothing is assumed of the other axis."""
    rng = np.random.RandomState(0)
    xs, start = (rng.randn(3, 4, 2), rng.randn(3, 4)), rng.randn(3, 2)

    def step(x: Any, state: nn.Variable) -> tuple:
        state = F.tanh(F.cumsum(state, axis=0) + x[0])
        return (state, x[1] * F.sum(state, axis=1)), state

    def build(time_axis: int) -> Any:
        swap = (lambda v: F.transpose(v, (1, 0, *range(2, v.ndim)))) if time_axis == 0 else (lambda v: v)

        def made(xs: Any, s: Any) -> tuple:
            ys, after = iterate(step, tree_map(swap, xs), s, reverse=reverse, way=way, time_axis=time_axis)
            return tree_map(swap, ys), after

        return measure(made, xs, start)

    assert_same(build(time_axis=1), build(time_axis=0))


@each_way
def test_iterate_over_several_inputs_and_nested_trees(way: str) -> None:
    """Inputs `(a, (b, None))`, outputs `(p, (q,))`, states `((s,), t)`, all of other shapes; values and gradients."""
    rng = np.random.RandomState(0)
    xs, state = (rng.randn(4, 2, 3), (rng.randn(4, 3), None)), ((rng.randn(2, 3),), rng.randn(2))

    def build(xs: Any, state: Any) -> tuple:
        def step(x: Any, state: Any) -> tuple:
            (a, (b, nothing)), ((s,), t) = x, state
            assert nothing is None
            s = 0.5 * s + a * F.broadcast(F.reshape(b, (1, 3), inplace=False), (2, 3))
            t = t + F.sum(s, axis=1)
            return (t, (F.tanh(s),)), ((s,), t)

        return iterate(step, xs, state, way=way)

    def loop(arrays: dict) -> tuple:
        s, t, ps, qs = arrays["s"], arrays["t"], [], []
        for a, b in zip(arrays["a"], arrays["b"]):
            s = 0.5 * s + a * b
            t = t + s.sum(axis=1)
            ps.append(t)
            qs.append(np.tanh(s))
        return (np.stack(ps), (np.stack(qs),)), ((s,), t)

    arrays = {"a": xs[0], "b": xs[1][0], "s": state[0][0], "t": state[1]}
    measured = measure(build, xs, state)
    ys, after = loop(arrays)
    assert_same((measured.ys, measured.state), (ys, after))
    factors = [np.random.RandomState(7) for _ in range(2)]
    weigh = [[rng.randn(*leaf.shape) for leaf in reference.leaves(tree)] for rng, tree in zip(factors, (ys, after))]

    def loss(arrays: dict) -> float:
        return sum(float(np.sum(a * w)) for tree, ws in zip(loop(arrays), weigh) for a, w in zip(reference.leaves(tree), ws))

    slopes = reference.gradients(loss, arrays)
    assert measured.x_grad[1][1] is None
    assert_same((measured.x_grad[0], measured.x_grad[1][0]), (slopes["a"], slopes["b"]))
    assert_same(measured.state_grad, ((slopes["s"],), slopes["t"]))


@each_way
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 6])
def test_iterate_without_inputs(length: int, reverse: bool, way: str) -> None:
    def step(x: None, state: tuple) -> tuple:
        assert x is None
        a, b = state
        return a, (b, a + b)

    ys, (a, b) = iterate(step, None, (constant(1.0), constant(1.0)), length=length, reverse=reverse, way=way)
    outputs = [F.identity(v) for v in (ys, a, b)]
    nn.forward_all(outputs)
    fibonacci = [1, 1, 2, 3, 5, 8, 13, 21]
    computed = fibonacci[:length]
    assert outputs[0].d.tolist() == (computed[::-1] if reverse else computed)
    assert [float(v.d) for v in outputs[1:]] == fibonacci[length : length + 2]


@each_way
def test_iterate_gives_parameters_their_gradients(way: str) -> None:
    """A constant input is a closure; it gets its gradient too."""
    xs, closed = np.random.randn(3, 2, 4), np.random.randn(2, 4)

    def build(inputs: tuple, state: Any) -> tuple:
        xs, closed = inputs
        return iterate(lambda x, h: echo(x * closed, h), xs, state, way=way)

    def by_hand(inputs: tuple, h: Any) -> tuple:
        xs, closed = inputs
        ys = []
        for t in range(3):
            y, h = echo(xs[t] * closed, h)
            ys.append(y)
        return F.stack(*ys), h

    build((constant(xs), constant(closed)), constant(np.zeros((2, 4))))
    randomize()
    state = np.random.randn(2, 4)
    assert_same(measure(build, (xs, closed), state), measure(by_hand, (xs, closed), state))


def test_a_length_may_agree_with_the_inputs() -> None:
    add = lambda x, total: (total + x, total + x)  # noqa: E731
    ys, _ = iterate(add, constant(np.ones(3)), constant(0.0), length=3)
    ys.forward()
    assert ys.d.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("xs", "options", "message"),
    [
        (None, {}, "length=T"),
        (nn.Variable((3, 2)), {"length": 4}, r"inputs have shapes \(3, 2\), length is 4"),
        ((nn.Variable((3, 2)), nn.Variable((4, 2))), {}, r"shapes \(\(3, 2\), \(4, 2\)\), length is None"),
        (None, {"length": 0}, "length must be a whole number, 1 or more; got 0"),
        (None, {"length": -2}, "1 or more; got -2"),
        (None, {"length": 2.5}, "1 or more; got 2.5"),
        (None, {"length": True}, "1 or more; got True"),
        (nn.Variable((0, 2)), {}, r"must not be empty: .* got the shape \(0, 2\)"),
        (nn.Variable(()), {}, r"time on axis 0; got shapes \(\)"),
        (nn.Variable((3, 2)), {"time_axis": 2}, r"time_axis is 0 for \(T, B, \.\.\.\), or 1 for .*; got 2"),
        (nn.Variable((3, 2)), {"way": "rolled"}, "way must be one of auto, unrolled.*; got 'rolled'"),
    ],
)
def test_bad_sequences_are_named(xs: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        iterate(lambda x, s: (s, s), xs, nn.Variable((2,)), **options)


@each_way
@pytest.mark.parametrize("after", [lambda s: F.concatenate(s, s, axis=0), lambda s: (s, s), lambda s: ()])
def test_a_step_keeps_the_shapes_of_its_state(after: Any, way: str) -> None:
    with pytest.raises(ValueError, match=r"\(2,\).*returned"):
        iterate(lambda x, s: (x, after(s)), nn.Variable((3, 2)), nn.Variable((2,)), way=way)


# run: a cell, batch first


@each_way
@pytest.mark.parametrize("reverse", [False, True])
def test_run_without_inputs(reverse: bool, way: str) -> None:
    cell = Cell(lambda _, n: (n * n, n + 1), StateSpec((2,)))
    ys, n = run(cell, None, cell.initial_state(3), length=4, reverse=reverse, way=way)
    nn.forward_all([ys, n])
    squares = [0.0, 1.0, 4.0, 9.0]
    np.testing.assert_array_equal(ys.d, np.tile(np.array(squares[::-1] if reverse else squares)[None, :, None], (3, 1, 2)))
    np.testing.assert_array_equal(n.d, np.full((3, 2), 4))


def test_run_without_inputs_with_lengths() -> None:
    cell = Cell(lambda _, n: (n + 1, n + 1), StateSpec((1,)))
    ys, n = run(cell, None, cell.initial_state(3), length=3, lengths=[3, 1, 0])
    nn.forward_all([ys, n])
    assert ys.d[..., 0].tolist() == [[1, 2, 3], [1, 1, 1], [0, 0, 0]]
    assert n.d.ravel().tolist() == [3, 1, 0]


@pytest.mark.parametrize("reverse", [False, True])
def test_run_over_trees_with_a_mask(reverse: bool) -> None:
    """Several inputs of several ranks, several outputs; NaN in the padding of each."""
    mask = np.array([[1, 0, 1, 1], [1, 1, 0, 0]])
    rng = np.random.RandomState(0)
    a, b = rng.randn(2, 4, 3), rng.randn(2, 4, 3, 2)

    def function(x: Any, s: Any) -> tuple:
        a, (b,) = x
        s = 0.5 * s + F.sum(b, axis=2) * a
        return (s, (b * 2,)), s

    cell = Cell(function, StateSpec((3,)))

    def build(xs: Any, state: Any) -> tuple:
        return run(cell, xs, state, mask=constant(mask), reverse=reverse)

    state = rng.randn(2, 3)
    clean = measure(build, (a, (b,)), state)
    a[mask == 0], b[mask == 0] = np.nan, np.inf
    dirty = measure(build, (a, (b,)), state)
    assert_same(dirty, clean, rtol=1e-7)
    assert not dirty.x_grad[0][mask == 0].any()
    assert not dirty.x_grad[1][0][mask == 0].any()
    s, held = state.copy(), np.zeros((2, 3, 2))
    for t in range(4)[::-1] if reverse else range(4):
        keep = mask[:, t] == 1
        s[keep] = 0.5 * s[keep] + b[keep, t].sum(axis=2) * a[keep, t]
        held[keep] = 2 * b[keep, t]
        assert_same(clean.ys[1][0][:, t], held)
    assert_same(clean.state, s)


def test_run_over_steps_of_any_rank() -> None:
    cell = stack(lift(F.max_pooling, (2, 2)), lift(PF.affine, 5), GRUCell(4))
    ys, _ = run(cell, nn.Variable((2, 3, 1, 6, 6)), lengths=[3, 1])
    assert ys.shape == (2, 3, 4)


def test_ids_are_a_sequence_too() -> None:
    """A step of `(B,)`."""
    ids = np.array([[1, 2, 0], [2, 2, 1]])
    ys, _ = run(stack(lift(PF.embed, 4, 5), SimpleRNNCell(3)), constant(ids), mask=constant(np.array([[1, 1, 1], [1, 0, 0]])))
    ys.forward()
    found = weights()
    expected = reference.run(
        reference.simple_rnn(),
        reference.below("1", found),
        found["0/embed/W"][ids],
        np.zeros((2, 3)),
        np.array([[1, 1, 1], [1, 0, 0]]),
    )[0]
    assert_same(ys.d, expected)


def test_random_steps_run_once() -> None:
    """What a step draws is one draw, for the output and for the state."""
    cell = Cell(lambda x, s: ((F.dropout(x, 0.5),) * 2, s), ())
    (a, b), _ = run(cell, constant(np.ones((4, 3, 10))))
    nn.forward_all([a, b])
    np.testing.assert_array_equal(a.d, b.d)


X = (2, 5, 3)


@pytest.mark.parametrize(
    ("xs", "options", "message"),
    [
        (X, {"mask": (5, 2)}, r"shape \(B, T\) of the inputs, \(2, 5\); got \(5, 2\)"),
        (X, {"mask": (2, 5, 1)}, r"\(2, 5\); got \(2, 5, 1\)"),
        (X, {"mask": (2, 4)}, r"\(2, 5\); got \(2, 4\)"),
        (X, {"lengths": [6, 1]}, r"between 0 and the sequence length T=5; got \[6, 1\]"),
        (X, {"lengths": [-1, 1]}, r"between 0 and the sequence length T=5; got \[-1, 1\]"),
        (X, {"lengths": [1, 2, 3]}, r"\(2, 5\); got \(3, 5\)"),
        (X, {"lengths": [1.0, 2.0]}, r"whole numbers of shape \(B,\); got \[1.0, 2.0\]"),
        (X, {"lengths": (2, 1), "mask": (2, 5)}, "a mask or lengths, not both"),
        (X, {"way": "rolled"}, "way must be one of .*; got 'rolled'"),
        (X, {"length": 4}, r"inputs have shapes \(2, 5, 3\), length is 4"),
        ((2, 0, 3), {}, r"must not be empty: .* got the shape \(2, 0, 3\)"),
        ((2, 5, 0), {}, r"must not be empty: .* got the shape \(2, 5, 0\)"),
        ((0, 5, 3), {}, r"must not be empty: .* got the shape \(0, 5, 3\)"),
        ((2,), {}, r"time on axis 1; got shapes \(2,\)"),
        (X, {"state": (3, 4)}, r"GRUCell\(4\) needs a state of shapes \(2, 4\); got \(3, 4\)"),
        (X, {"state": (2, 5)}, r"needs a state of shapes \(2, 4\); got \(2, 5\)"),
        (None, {"length": 3}, r"state=cell.initial_state\(batch_size\)"),
        (None, {"state": (2, 4)}, "length=T"),
        ((2, 5), {}, r"GRUCell\(4\) takes one step of shape \(B, D\); got \(2,\)"),
        ((2, 5, 3, 3), {}, r"GRUCell\(4\) takes one step of shape \(B, D\); got \(2, 3, 3\)"),
    ],
)
def test_bad_inputs_are_named_before_a_parameter_is_made(xs: Any, options: dict, message: str) -> None:
    made = {name: nn.Variable(v) if name in ("mask", "state") else v for name, v in options.items()}
    with pytest.raises(ValueError, match=message):
        run(GRUCell(4), None if xs is None else nn.Variable(xs), **made)
    assert not nn.get_parameters()


def test_inputs_of_several_batch_sizes_are_named() -> None:
    cell = Cell(lambda pair, s: (pair[0], s), ())
    with pytest.raises(ValueError, match=r"one batch size; they have shapes \(\(2, 5, 3\), \(3, 5, 3\)\)"):
        run(cell, (nn.Variable((2, 5, 3)), nn.Variable((3, 5, 3))))
    with pytest.raises(ValueError, match=r"one number of steps; inputs have shapes \(\(2, 5, 3\), \(2, 4, 3\)\)"):
        run(cell, (nn.Variable((2, 5, 3)), nn.Variable((2, 4, 3))))


@pytest.mark.parametrize("xs", [np.zeros((2, 5, 3)), [nn.Variable((2, 5, 3))], (nn.Variable((2, 5, 3)), 3.0)])
def test_what_is_no_variable_is_named(xs: Any) -> None:
    with pytest.raises(TypeError, match=r"a sequence must be a Variable; got "):
        run(LSTMCell(4), xs)


def test_a_mask_is_a_variable() -> None:
    with pytest.raises(TypeError, match="got ndarray"):
        run(LSTMCell(4), nn.Variable((2, 5, 3)), mask=np.ones((2, 5)))


def test_the_same_graph_takes_other_batches() -> None:
    """Inputs, mask and lengths are fed; nothing of the first batch stays."""
    x, lengths = nn.Variable((2, 4, 3)), nn.Variable((2,))
    cell = LSTMCell(4)
    ys, (h, c) = run(cell, x, lengths=lengths)
    for numbers in ([4, 2], [0, 3]):
        x.d, lengths.d = np.random.randn(2, 4, 3), numbers
        nn.forward_all([ys, h, c])
        mask = np.arange(4) < np.array(numbers)[:, None]
        expected = reference.run(reference.lstm(), weights(), x.d, (np.zeros((2, 4)), np.zeros((2, 4))), mask)
        assert_same((ys.d, (h.d, c.d)), expected)
