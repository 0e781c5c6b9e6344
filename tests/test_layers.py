"""Functions from sequence to sequence: lstm, gru, simple_rnn, bidirectional, TimeDistributed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
import reference
from measuring import assert_same, constant, measure, randomize, weights

import nnshop
from nnshop import (
    GRUCell,
    LSTMCell,
    RecurrentSequential,
    SimpleRNNCell,
    StateSpec,
    TimeDistributed,
    bidirectional,
    each,
    residual,
    run,
    stack,
    tree_map,
)

B, T, D, H = 3, 5, 2, 4
LENGTHS = [5, 2, 0]
MASK = (np.arange(T) < np.array(LENGTHS)[:, None]).astype(int)
HOLES = np.array([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]])
LAYERS: dict[str, tuple[Callable, Callable, Callable]] = {  # the layer, its cell, its step in NumPy
    "lstm": (nnshop.lstm, LSTMCell, reference.lstm()),
    "gru": (nnshop.gru, GRUCell, reference.gru()),
    "simple_rnn": (nnshop.simple_rnn, SimpleRNNCell, reference.simple_rnn()),
}
each_layer = pytest.mark.parametrize("kind", LAYERS)


def random_x(*shape: int) -> np.ndarray:
    return np.random.RandomState(2).randn(*(shape or (B, T, D)))


def random_state(kind: str, seed: int = 3) -> Any:
    rng = np.random.RandomState(seed)
    return tree_map(lambda spec: rng.randn(B, *spec.shape), LAYERS[kind][1](H).state)


def value(variable: nn.Variable) -> np.ndarray:
    variable.forward()
    return variable.d.copy()


def make_weights(build: Callable, x: np.ndarray) -> None:
    """Builds once for the parameters, and gives them random values."""
    build(constant(x))
    randomize()


# lstm, gru, simple_rnn


@pytest.mark.parametrize("padding", [{}, {"lengths": LENGTHS}, {"mask": HOLES}], ids=["whole", "lengths", "mask"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "initial_state"])
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("return_sequences", [False, True], ids=["last", "all"])
@each_layer
def test_layers_against_numpy(kind: str, return_sequences: bool, go_backwards: bool, given: bool, padding: dict) -> None:
    """Outputs and states; backwards, outputs come in the order of computation, as in Keras."""
    layer, _, step = LAYERS[kind]
    options: dict[str, Any] = {"go_backwards": go_backwards, "return_sequences": return_sequences, "return_state": True}
    options.update({name: constant(a) if name == "mask" else a for name, a in padding.items()})
    x, state = random_x(), random_state(kind)
    make_weights(lambda x: layer(x, H), x)
    initial = tree_map(constant, state) if given else None
    y, after = layer(constant(x), H, initial_state=initial, **options)
    outputs = [y, *nnshop.tree_leaves(after)]
    nn.forward_all(outputs)
    mask = padding.get("mask", MASK if padding else None)
    begin = state if given else tree_map(np.zeros_like, state)
    ys, final = reference.run(step, weights(kind), x, begin, mask, go_backwards)
    order = ys[:, ::-1] if go_backwards else ys
    assert_same(tree_map(lambda v: v.d, (y, after)), (order if return_sequences else order[:, -1], final))
    alone = layer(constant(x), H, initial_state=initial, **{**options, "return_state": False})
    assert_same(value(alone), y.d, rtol=1e-7)


@each_layer
def test_gradients_pass_through_layers(kind: str) -> None:
    layer, cell, _ = LAYERS[kind]
    x, state = random_x(), random_state(kind)
    make_weights(lambda x: layer(x, H), x)

    def by_run(x: nn.Variable, state: Any) -> tuple:
        with nn.parameter_scope(kind):
            ys, after = run(cell(H), x, state, lengths=LENGTHS, reverse=True)
        return ys[:, 0], after

    def by_layer(x: nn.Variable, state: Any) -> tuple:
        return layer(x, H, return_state=True, initial_state=state, go_backwards=True, lengths=LENGTHS)

    assert_same(measure(by_layer, x, state), measure(by_run, x, state))


@each_layer
def test_scopes_of_layers(kind: str) -> None:
    layer = LAYERS[kind][0]
    layer(nn.Variable((B, T, D)), H)
    own = set(weights())
    assert all(name.startswith(f"{kind}/") for name in own)
    layer(nn.Variable((B, T, D)), H)
    assert set(weights()) == own
    layer(nn.Variable((B, T, D)), H, name="second")
    with nn.parameter_scope("third"):
        layer(nn.Variable((B, T, D)), H)
    assert set(weights()) == own | {f"{scope}/{name}" for scope in ("second", "third") for name in own}


@each_layer
def test_layers_pass_options_on(kind: str) -> None:
    layer = LAYERS[kind][0]
    layer(nn.Variable((B, T, D)), H, with_bias=False, w_init=np.full((D, weights_width(kind)), 0.5))
    assert sorted(weights()) == [f"{kind}/h2h/W", f"{kind}/x2h/W"]
    np.testing.assert_array_equal(weights()[f"{kind}/x2h/W"], 0.5)
    assert not layer(nn.Variable((B, T, D)), H, fix_parameters=True).need_grad
    relu = layer(constant(random_x()), H, activation="relu", name="relu")
    relu.forward()
    if kind != "gru":
        assert (relu.d >= 0).all()
    with pytest.raises(TypeError, match="unit_forget_bias"):
        layer(nn.Variable((B, T, D)), H, unit_forget_bias=True)


def weights_width(kind: str) -> int:
    return {"lstm": 4, "gru": 3, "simple_rnn": 1}[kind] * H


def test_names_of_keras() -> None:
    assert (nnshop.LSTM, nnshop.GRU, nnshop.SimpleRNN) == (nnshop.lstm, nnshop.gru, nnshop.simple_rnn)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 5), {}, r"takes sequences of shape \(B, T, D\); got \(3, 5\). Embed ids first"),
        ((3, 5, 2, 2), {}, r"\(B, T, D\); got \(3, 5, 2, 2\). Flatten each step"),
        ((3, 0, 2), {}, r"must not be empty: .* got the shape \(3, 0, 2\)"),
        ((0, 5, 2), {}, r"must not be empty: .* got the shape \(0, 5, 2\)"),
        ((3, 5, 2), {"units": 0}, "units >= 1, a whole number; got 0"),
        ((3, 5, 2), {"units": -4}, "units >= 1, a whole number; got -4"),
        ((3, 5, 2), {"mask": nn.Variable((5, 3))}, r"\(3, 5\); got \(5, 3\)"),
        ((3, 5, 2), {"lengths": [6, 1, 1]}, r"T=5; got \[6, 1, 1\]"),
        ((3, 5, 2), {"lengths": [-1, 1, 1]}, r"T=5; got \[-1, 1, 1\]"),
        ((3, 5, 2), {"lengths": [1, 1, 1], "mask": nn.Variable((3, 5))}, "not both"),
        ((3, 5, 2), {"initial_state": nn.Variable((2, 4))}, r"got .*\(2, 4\)"),
        ((3, 5, 2), {"initial_state": (nn.Variable((3, 4)),) * 3}, r"got \(\(3, 4\), \(3, 4\), \(3, 4\)\)"),
        ((3, 5, 2), {"activation": "tahn"}, "got 'tahn'"),
        ((3, 5, 2), {"way": "rolled"}, "got 'rolled'"),
    ],
)
@each_layer
def test_bad_layers_are_named_before_a_parameter_is_made(kind: str, shape: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LAYERS[kind][0](nn.Variable(shape), **{"units": 4, **options})
    assert not nn.get_parameters()


def test_an_array_is_no_variable() -> None:
    with pytest.raises(TypeError, match="got ndarray"):
        nnshop.lstm(random_x(), 4)


# bidirectional


MERGES = {
    "concat": lambda a, b: np.concatenate([a, b], axis=-1),
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "ave": lambda a, b: (a + b) / 2,
    "none": lambda a, b: (a, b),
    None: lambda a, b: (a, b),
}


@pytest.mark.parametrize("padding", [{}, {"lengths": LENGTHS}, {"mask": HOLES}], ids=["whole", "lengths", "mask"])
@pytest.mark.parametrize("return_sequences", [False, True], ids=["last", "all"])
@pytest.mark.parametrize("mode", MERGES)
@each_layer
def test_bidirectional_against_numpy(kind: str, mode: str | None, return_sequences: bool, padding: dict) -> None:
    """Each row is reversed within its length; each direction has weights of its own."""
    _, make, step = LAYERS[kind]
    options: dict[str, Any] = {"merge_mode": mode, "return_sequences": return_sequences, "return_state": True}
    options.update({name: constant(a) if name == "mask" else a for name, a in padding.items()})
    x, states = random_x(), (random_state(kind), random_state(kind, 4))
    make_weights(lambda x: bidirectional(x, make(H)), x)
    y, after = bidirectional(constant(x), make(H), initial_state=tree_map(constant, states), **options)
    nn.forward_all([F.identity(leaf) for leaf in nnshop.tree_leaves((y, after))])
    mask = padding.get("mask", MASK if padding else None)
    (forward, h), (backward, g) = (
        reference.run(step, weights(scope), x, state, mask, scope == "backward")
        for scope, state in zip(("forward", "backward"), states)
    )
    if not return_sequences:
        forward, backward = forward[:, -1], backward[:, 0]
    assert_same(tree_map(lambda v: v.d, (y, after)), (MERGES[mode](forward, backward), (h, g)))


def test_bidirectional_starts_from_zeros_and_returns_all_steps() -> None:
    x = random_x()
    make_weights(lambda x: bidirectional(x, GRUCell(H)), x)
    y = value(bidirectional(constant(x), GRUCell(H)))
    zeros = np.zeros((B, H))
    sides = [
        reference.run(reference.gru(), weights(scope), x, zeros, reverse=scope == "backward")[0]
        for scope in ("forward", "backward")
    ]
    assert_same(y, np.concatenate(sides, axis=2))


def test_gradients_pass_through_bidirectional() -> None:
    x, states = random_x(), (random_state("lstm"), random_state("lstm", 4))
    make_weights(lambda x: bidirectional(x, LSTMCell(H)), x)
    assert set(weights()) == {f"{way}/{name}" for way in ("forward", "backward") for name in ("x2h/W", "h2h/W", "b")}

    def by_run(x: nn.Variable, states: Any) -> tuple:
        sides = []
        for scope, state, reverse in zip(("forward", "backward"), states, (False, True)):
            with nn.parameter_scope(scope):
                sides.append(run(LSTMCell(H), x, state, lengths=LENGTHS, reverse=reverse))
        (forward, h), (backward, g) = sides
        return F.concatenate(forward, backward, axis=2), (h, g)

    def layer(x: nn.Variable, states: Any) -> tuple:
        return bidirectional(x, LSTMCell(H), initial_state=states, lengths=LENGTHS, return_state=True)

    assert_same(measure(layer, x, states), measure(by_run, x, states))


def test_scopes_of_bidirectional() -> None:
    x = nn.Variable((B, T, D))
    own = ("x2h/W", "h2h/W", "b")
    bidirectional(x, SimpleRNNCell(H, name="a"))
    expected = {f"{way}/a/{name}" for way in ("forward", "backward") for name in own}
    assert set(weights()) == expected
    bidirectional(x, SimpleRNNCell(H, name="a"), name="second")
    expected |= {f"second/{name}" for name in expected}
    assert set(weights()) == expected
    bidirectional(x, stack(SimpleRNNCell(H), SimpleRNNCell(H)), name="third")
    expected |= {f"third/{way}/{i}/{name}" for way in ("forward", "backward") for i in (0, 1) for name in own}
    assert set(weights()) == expected


def test_directions_may_be_of_different_cells() -> None:
    x = random_x()
    make_weights(lambda x: bidirectional(x, GRUCell(H), LSTMCell(2)), x)
    y, (h, (g, c)) = bidirectional(constant(x), GRUCell(H), LSTMCell(2), return_state=True)
    nn.forward_all([y, h, g, c])
    forward, _ = reference.run(reference.gru(), weights("forward"), x, np.zeros((B, H)))
    backward, state = reference.run(
        reference.lstm(), weights("backward"), x, (np.zeros((B, 2)), np.zeros((B, 2))), reverse=True
    )
    assert_same((y.d, (g.d, c.d)), (np.concatenate([forward, backward], axis=2), state))
    assert bidirectional(nn.Variable((B, T, D)), GRUCell(H), SimpleRNNCell(H), merge_mode="sum", name="b").shape == (B, T, H)


@pytest.mark.parametrize("mode", ["sum", "mul", "ave"])
def test_other_widths_are_found_before_a_parameter_is_made(mode: str) -> None:
    message = rf"merge_mode='{mode}' needs outputs of one shape; GRUCell\(4\) gives \(4,\), LSTMCell\(5\) gives \(5,\)"
    with pytest.raises(ValueError, match=message):
        bidirectional(nn.Variable((B, T, D)), GRUCell(4), LSTMCell(5), merge_mode=mode)
    assert not nn.get_parameters()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_mode": "add"}, "one of concat, sum, mul, ave, none; got 'add'"),
        ({"initial_state": nn.Variable((B, H))}, r"initial_state=\(forward state, backward state\)"),
        ({"initial_state": (None,)}, r"initial_state=\(forward state, backward state\)"),
        ({"initial_state": (nn.Variable((B, 5)), None)}, r"needs a state of shapes \(3, 4\); got \(3, 5\)"),
        ({"lengths": [6, 1, 1]}, r"T=5; got \[6, 1, 1\]"),
        ({"way": "rolled"}, "got 'rolled'"),
    ],
)
def test_bad_bidirectional_is_named_before_a_parameter_is_made(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bidirectional(nn.Variable((B, T, D)), GRUCell(H), **options)
    assert not nn.get_parameters()


def test_one_initial_state_may_be_left_out() -> None:
    x, h = random_x(), random_state("gru")
    make_weights(lambda x: bidirectional(x, GRUCell(H)), x)
    y = bidirectional(constant(x), GRUCell(H), initial_state=(None, constant(h)), merge_mode="none")
    nn.forward_all(y)
    expected = [
        reference.run(reference.gru(), weights(scope), x, state, reverse=scope == "backward")[0]
        for scope, state in (("forward", 0 * h), ("backward", h))
    ]
    assert_same(tuple(v.d for v in y), tuple(expected))


# TimeDistributed


each_fold = pytest.mark.parametrize("fold", [True, False], ids=["fold", "loop"])
each_length = pytest.mark.parametrize("length", [1, 4])


@each_length
@each_fold
def test_time_distributed_is_the_function_at_each_step(fold: bool, length: int) -> None:
    """Values and gradients; the same weights at all steps."""
    x = random_x(B, length, D)
    make_weights(lambda x: PF.affine(x[:, 0], 6), x)

    def by_hand(x: nn.Variable, _: Any) -> tuple:
        return F.stack(*[F.tanh(PF.affine(x[:, t], 6)) for t in range(length)], axis=1), ()

    def layer(x: nn.Variable, _: Any) -> tuple:
        return TimeDistributed(lambda step: F.tanh(PF.affine(step, 6)), fold=fold)(x), ()

    actual, expected = measure(layer, x, ()), measure(by_hand, x, ())
    assert_same(actual, expected)
    assert actual.ys.shape == (B, length, 6)
    assert sorted(weights()) == ["affine/W", "affine/b"]
    assert_same(measure(layer, x, (), auto_forward=True), expected)


@each_fold
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 1, 4, 5), (2, 1), (1, 1, 4)])
def test_steps_of_any_rank(shape: tuple, fold: bool) -> None:
    x = random_x(*shape)
    y = TimeDistributed(F.sin, fold=fold)(constant(x))
    np.testing.assert_allclose(value(y), np.sin(x), rtol=1e-5, atol=1e-6)


@each_fold
def test_convolution_at_each_step(fold: bool) -> None:
    x = random_x(2, 3, 1, 6, 6)
    y = TimeDistributed(PF.convolution, fold=fold)(constant(x), 4, (3, 3))
    by_hand = [PF.convolution(constant(x[:, t]), 4, (3, 3)) for t in range(3)]
    nn.forward_all([y, *by_hand])
    np.testing.assert_allclose(y.d, np.stack([v.d for v in by_hand], axis=1), rtol=1e-5, atol=1e-6)
    assert y.shape == (2, 3, 4, 4, 4)


@each_length
@each_fold
def test_embedding_of_ids(fold: bool, length: int) -> None:
    ids = np.random.RandomState(0).randint(0, 7, (3, length))
    y = TimeDistributed(PF.embed, fold=fold)(constant(ids), 7, 5)
    np.testing.assert_array_equal(value(y), weights()["embed/W"][ids].astype(np.float32))


@each_fold
def test_arguments_and_options_are_passed_on(fold: bool) -> None:
    x = nn.Variable((B, T, D))
    assert TimeDistributed(PF.affine, fold=fold)(x, 6, name="out", with_bias=False).shape == (B, T, 6)
    assert list(nn.get_parameters()) == ["out/affine/W"]
    assert TimeDistributed(PF.affine, fold=fold)(x, n_outmaps=(2, 3), name="b").shape == (B, T, 2, 3)
    factor = np.array([[2.0, 3.0]])
    data = random_x()
    y = TimeDistributed(lambda step, f, power: step * f**power, fold=fold)(constant(data), constant(factor), power=2)
    np.testing.assert_allclose(value(y), data * factor**2, rtol=1e-5)


@each_length
@each_fold
def test_several_inputs(fold: bool, length: int) -> None:
    """By `each`, as an argument and as an option, of several ranks; gradients of both."""
    a, b, c = random_x(B, length, 2), random_x(B, length, 2, 3), random_x(B, length)

    def function(a: Any, factor: float, b: Any, c: Any = None) -> Any:
        return F.sum(b, axis=2) * a * factor + F.reshape(c, (c.shape[0], 1), inplace=False)

    def layer(x: Any, _: Any) -> tuple:
        a, b, c = x
        return TimeDistributed(function, fold=fold)(a, 3.0, each(b), c=each(c)), ()

    def whole(x: Any, _: Any) -> tuple:
        a, b, c = x
        return F.sum(b, axis=3) * a * 3.0 + F.reshape(c, (B, length, 1), inplace=False), ()

    assert_same(measure(layer, (a, b, c), ()), measure(whole, (a, b, c), ()))


@each_length
@each_fold
@pytest.mark.parametrize("kind", [tuple, list])
def test_several_outputs(kind: Callable, fold: bool, length: int) -> None:
    x = random_x(B, length, 4)
    layer = TimeDistributed(lambda step: kind([step[:, :3] * 2, F.sum(step, axis=1)]), fold=fold)
    twice, total = layer(constant(x))
    nn.forward_all([twice, total])
    np.testing.assert_allclose(twice.d, 2 * x[..., :3], rtol=1e-6)
    np.testing.assert_allclose(total.d, x.sum(axis=2), rtol=1e-5, atol=1e-6)


def test_decorators() -> None:
    @TimeDistributed
    def double(step: nn.Variable) -> nn.Variable:
        """Doubles."""
        return step * 2

    @TimeDistributed(fold=False)
    def triple(step: nn.Variable) -> nn.Variable:
        return step * 3

    @TimeDistributed()
    def half(step: nn.Variable) -> nn.Variable:
        return step / 2

    x = random_x()
    for layer, factor, fold in ((double, 2, True), (triple, 3, False), (half, 0.5, True)):
        np.testing.assert_allclose(value(layer(constant(x))), x * factor, rtol=1e-6)
        assert layer.fold is fold
    assert (double.__name__, double.__doc__) == ("double", "Doubles.")
    assert isinstance(double, TimeDistributed)


def test_folding_calls_once_and_the_loop_calls_at_each_step() -> None:
    seen = []

    def look(step: nn.Variable) -> nn.Variable:
        seen.append(step.shape)
        return step * 1

    TimeDistributed(look)(nn.Variable((B, T, D)))
    assert seen == [(B * T, D)]
    seen.clear()
    TimeDistributed(look, fold=False)(nn.Variable((B, T, D)))
    assert seen == [(B, D)] * T


def test_batch_normalization_needs_the_loop() -> None:
    """Each step has its own batch statistics, and adds to the running ones in the order of time."""
    x = random_x(6, T, D) * np.arange(1, T + 1)[:, None]

    def by_hand(x: nn.Variable, _: Any) -> tuple:
        return F.stack(*[PF.batch_normalization(x[:, t], name="a") for t in range(T)], axis=1), ()

    def layer(fold: bool, name: str) -> Callable:
        return lambda x, _: (TimeDistributed(PF.batch_normalization, fold=fold)(x, name=name), ())

    expected, looped, folded = (measure(build, x, ()) for build in (by_hand, layer(False, "b"), layer(True, "c")))
    assert_same((looped.ys, looped.x_grad), (expected.ys, expected.x_grad))
    assert np.abs(folded.ys - expected.ys).max() > 0.1
    assert_same(weights("b/bn"), weights("a/bn"))


def test_noise_of_a_fold_differs_from_step_to_step() -> None:
    y = value(TimeDistributed(F.dropout)(constant(np.ones((2, 6, 50))), 0.5))
    assert all(not np.array_equal(y[:, 0], y[:, t]) for t in range(1, 6))


@each_fold
@pytest.mark.parametrize(
    ("function", "returned"),
    [
        (lambda x: F.sum(x), r"\(\)"),
        (lambda x: F.concatenate(x, x, axis=0), r"\((30|6), 2\)"),
        (lambda x: (x, F.transpose(x, (1, 0))), r"\(\((15|3), 2\), \(2, (15|3)\)\)"),
        (lambda x: 3.0, "float"),
    ],
)
def test_a_function_that_changes_the_batch_is_named(function: Callable, returned: str, fold: bool) -> None:
    with pytest.raises(ValueError, match=rf"keeps the batch size, {15 if fold else 3} rows here; <lambda> returned {returned}"):
        TimeDistributed(function, fold=fold)(nn.Variable((B, T, D)))


@pytest.mark.parametrize("function", [3, "affine", nn.Variable((2, 3, 4))])
def test_what_is_no_function_is_named(function: Any) -> None:
    with pytest.raises(TypeError, match=r"TimeDistributed takes a function of one step; got "):
        TimeDistributed(function)


@each_fold
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(3,)], r"sequences \(B, T, ...\) of one \(B, T\); got \(\(3,\),\)"),
        ([(3, 5, 2), (3, 4, 2)], r"one \(B, T\); got \(\(3, 5, 2\), \(3, 4, 2\)\)"),
        ([(3, 5, 2), (5, 3, 2)], r"one \(B, T\); got \(\(3, 5, 2\), \(5, 3, 2\)\)"),
        ([(3, 0, 2)], r"must not be empty: .* got the shape \(3, 0, 2\)"),
        ([(0, 3, 2)], r"must not be empty: .* got the shape \(0, 3, 2\)"),
    ],
)
def test_bad_sequences_are_named(shapes: list, message: str, fold: bool) -> None:
    first, *others = map(nn.Variable, shapes)
    with pytest.raises(ValueError, match=message):
        TimeDistributed(lambda x, *more: x, fold=fold)(first, *map(each, others))


def test_an_array_is_no_sequence() -> None:
    with pytest.raises(TypeError, match="got ndarray"):
        TimeDistributed(F.tanh)(random_x())
    with pytest.raises(TypeError, match="got ndarray"):
        TimeDistributed(F.add2)(constant(random_x()), each(random_x()))


def test_layers_and_cells_have_states_of_one_kind() -> None:
    """What a layer returns as its state is what its cell, and the next call, takes."""
    x = nn.Variable((B, T, D))
    _, state = nnshop.lstm(x, H, return_state=True)
    nnshop.lstm(x, H, initial_state=state)
    run(LSTMCell(H), x, state)
    assert LSTMCell(H).state == (StateSpec((H,)), StateSpec((H,)))


@pytest.mark.parametrize("fold", [True, False])
def test_time_distributed_is_copied_and_pickled(fold: bool) -> None:
    for again in (copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))):
        layer = again(TimeDistributed(PF.affine, fold=fold))
        assert (layer.function, layer.fold) == (PF.affine, fold)
    with pytest.raises(TypeError, match=r"fold is True or False; got 10"):
        TimeDistributed(PF.affine, 10)
    with pytest.raises(ValueError, match="returned None"):
        TimeDistributed(lambda x: None)(nn.Variable((2, 3, 4)))


def test_bidirectional_checks_both_states_before_it_makes_a_parameter() -> None:
    cell = GRUCell(3)
    with pytest.raises(ValueError, match=r"GRUCell\(3\) needs a state of shapes \(2, 3\); got \(2, 4\)"):
        bidirectional(nn.Variable((2, 5, 3)), cell, initial_state=(cell.initial_state(2), nn.Variable((2, 4))))
    assert not nn.get_parameters()


def four_rows(x: nn.Variable) -> nn.Variable:
    return F.reshape(PF.affine(x, 4), (-1, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: run(stack(GRUCell(8), residual(GRUCell(4))), x),
        lambda x: TimeDistributed(four_rows)(x),
        lambda x: TimeDistributed(four_rows, fold=False)(x),
        lambda x: bidirectional(x, residual(GRUCell(4))),
    ],
    ids=["residual", "fold", "no fold", "bidirectional"],
)
def test_a_mistake_that_only_a_step_shows_leaves_no_parameter(make: Callable) -> None:
    x = nn.Variable((2, 5, 3))
    kept = PF.affine(nn.Variable((1, 2)), 3, name="kept")
    assert kept.shape == (1, 3)
    before = sorted(nn.get_parameters())
    with pytest.raises(ValueError, match="needs"):
        make(x)
    assert sorted(nn.get_parameters()) == before


class Scale:
    """A callable whose attributes have the names of a wrapper's own."""

    function, fold, sequence = 2.0, False, None

    def __init__(self) -> None:
        self.function, self.fold = 3.0, False

    def __call__(self, x: nn.Variable) -> nn.Variable:
        return x * self.function


def test_time_distributed_of_time_distributed_is_applied_to_both_axes() -> None:
    x = constant(np.random.RandomState(0).randn(2, 3, 5, 4))
    y = TimeDistributed(TimeDistributed(PF.affine))(x, 7)
    y.forward()
    w, b = (nn.get_parameters()[f"affine/{name}"].d for name in "Wb")
    assert w.shape == (4, 7)
    np.testing.assert_allclose(y.d, x.d @ w + b, rtol=1e-5, atol=1e-6)


def test_time_distributed_keeps_its_own_attributes() -> None:
    calls = []

    def double(x: nn.Variable) -> nn.Variable:
        calls.append(x.shape)
        return 2 * x

    double.fold, double.function = False, F.tanh  # type: ignore[attr-defined]
    for function, factor in ((double, 2), (Scale(), 3)):
        y = TimeDistributed(function)(constant(np.ones((2, 3, 4))))
        y.forward()
        np.testing.assert_array_equal(y.d, np.full((2, 3, 4), factor))
    assert calls == [(6, 4)]
    assert TimeDistributed(double).__name__ == "double"


def owner() -> RecurrentSequential:
    rnn = RecurrentSequential()
    rnn.add(LSTMCell(8))
    return rnn


def test_a_cell_that_owns_its_weights_does_not_run_in_both_directions() -> None:
    x, rnn = nn.Variable((2, 5, 3)), owner()
    once = RecurrentSequential()
    once.add(rnn.get_cell())
    for cell in (rnn.get_cell(), stack(rnn.get_cell(), GRUCell(4)), once.get_cell()):
        with pytest.raises(ValueError, match=r"bidirectional: two of its cells are of RecurrentSequential\('recurrent_seq"):
            bidirectional(x, cell)
    with pytest.raises(ValueError, match="bidirectional: two of its cells"):
        bidirectional(x, rnn.get_cell(), once.get_cell())
    assert not nn.get_parameters()
    bidirectional(x, rnn.get_cell(), owner().get_cell())
    assert len(nn.get_parameters()) == 6
