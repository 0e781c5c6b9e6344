"""One-step functions: their weights, names and initial values. That they compute their equations is a law of the cells."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
import reference
from measuring import assert_same, constant, inputs, prepare, randomize, weights
from nnabla.initializer import ConstantInitializer, NormalInitializer

from nnshop import GRUCell, LSTMCell, gru_cell, lstm_cell, run, simple_rnn_cell, tree_leaves, tree_map

D, H, B = 30, 40, 2
FUNCTIONS: dict[str, tuple[Callable, int, int]] = {  # function, number of states, of gates
    "simple_rnn": (simple_rnn_cell, 1, 1),
    "lstm": (lstm_cell, 2, 4),
    "gru": (gru_cell, 1, 3),
}
each_function = pytest.mark.parametrize("kind", FUNCTIONS)


def step(kind: str, **options: Any) -> Any:
    function, states, _ = FUNCTIONS[kind]
    return function(nn.Variable((B, D)), *(nn.Variable((B, H)) for _ in range(states)), H, **options)


@each_function
def test_weights_are_glorot_s_for_one_gate_and_biases_zero(kind: str) -> None:
    step(kind)
    gates, found = FUNCTIONS[kind][2], weights()
    shapes = {"x2h/W": (D, gates * H), "h2h/W": (H, gates * H), "b": (gates * H,)}
    if kind == "gru":
        shapes["h2h/b"] = (H,)
    assert {name: array.shape for name, array in found.items()} == shapes
    for name, fan_in in (("x2h/W", D), ("h2h/W", H)):
        limit = np.sqrt(6 / (fan_in + H))
        assert 0.98 * limit < np.abs(found[name]).max() <= limit
        np.testing.assert_allclose(found[name].std(), limit / np.sqrt(3), rtol=0.05)
    for name in set(found) - {"x2h/W", "h2h/W"}:
        np.testing.assert_array_equal(found[name], 0)


@each_function
def test_a_name_is_a_scope_and_a_second_call_shares(kind: str) -> None:
    step(kind, name="a")
    first = weights()
    assert all(name.startswith("a/") for name in first)
    step(kind, name="a")
    assert_same(weights(), first, rtol=0)
    step(kind, name="b")
    assert len(weights()) == 2 * len(first)


@each_function
def test_initializers_and_arrays_are_used(kind: str) -> None:
    gates = FUNCTIONS[kind][2]
    array = np.random.randn(H, gates * H)
    step(kind, w_init=ConstantInitializer(0.5), recurrent_w_init=array, b_init=NormalInitializer(0.1))
    found = weights()
    np.testing.assert_array_equal(found["x2h/W"], 0.5)
    np.testing.assert_allclose(found["h2h/W"], array, rtol=1e-6)
    np.testing.assert_allclose(found["b"].std(), 0.1, rtol=0.25)


@each_function
def test_rng_makes_the_same_weights(kind: str) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        step(kind, name=name, rng=np.random.RandomState(seed))
    assert_same(weights("b"), weights("a"), rtol=0)
    for matrix in ("x2h/W", "h2h/W"):
        assert not np.allclose(weights("c")[matrix], weights("a")[matrix])


@each_function
def test_no_bias_leaves_no_bias(kind: str) -> None:
    step(kind, with_bias=False)
    assert sorted(weights()) == ["h2h/W", "x2h/W"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"peephole": True}, {"peephole/W": (3, H)}),
        ({"projection_size": 7}, {"projection/W": (H, 7)}),
        ({"peephole": True, "projection_size": 7}, {"peephole/W": (3, H), "projection/W": (H, 7)}),
    ],
)
def test_weights_of_the_lstm_s_options(options: dict, names: dict) -> None:
    h, c = lstm_cell(
        nn.Variable((B, D)), nn.Variable((B, options.get("projection_size", H))), nn.Variable((B, H)), H, **options
    )
    found = weights()
    assert {name: found[name].shape for name in set(found) - {"x2h/W", "h2h/W", "b"}} == names
    assert all(np.abs(found[name]).max() > 0 for name in names)
    assert (h.shape, c.shape) == ((B, options.get("projection_size", H)), (B, H))


@pytest.mark.parametrize("b_init", [None, ConstantInitializer(0.25), np.arange(4.0 * H)], ids=["zero", "initializer", "array"])
def test_forget_bias_is_added_to_the_initial_bias_of_f(b_init: Any) -> None:
    step("lstm", forget_bias=1.5, b_init=b_init)
    expected = np.zeros(4 * H) + (0 if b_init is None else b_init if isinstance(b_init, np.ndarray) else 0.25)
    expected[H : 2 * H] += 1.5
    np.testing.assert_allclose(weights()["b"], expected, rtol=1e-6)
    if isinstance(b_init, np.ndarray):
        np.testing.assert_array_equal(b_init, np.arange(4.0 * H))  # the caller's array is as it was


def test_forget_bias_is_no_constant() -> None:
    """It is in the weights, and added once: a second graph on the same weights computes the same."""
    state = [constant(np.random.randn(B, H)) for _ in range(2)]
    x = constant(np.random.randn(B, D))
    first, second, plain = (lstm_cell(x, *state, H, forget_bias=bias)[0] for bias in (1.0, 1.0, 0.0))
    nn.forward_all([first, second, plain])
    np.testing.assert_array_equal(first.d, second.d)
    np.testing.assert_array_equal(first.d, plain.d)


@each_function
def test_fixed_parameters_get_no_gradient(kind: str) -> None:
    fixed = step(kind, fix_parameters=True)
    for output in fixed if isinstance(fixed, tuple) else (fixed,):
        assert not output.need_grad
    trained = step(kind)
    for output in trained if isinstance(trained, tuple) else (trained,):
        assert output.need_grad


@each_function
def test_one_step_has_two_axes(kind: str) -> None:
    function, states, _ = FUNCTIONS[kind]
    with pytest.raises(ValueError, match=rf"{kind}_cell takes one step of shape \(B, D\); got \(2, 5, 3\).*nnshop.run"):
        function(nn.Variable((2, 5, 3)), *(nn.Variable((2, H)) for _ in range(states)), H)


@each_function
def test_bad_options_are_named(kind: str) -> None:
    with pytest.raises(ValueError, match="got 'tahn'"):
        step(kind, activation="tahn")
    with pytest.raises(TypeError, match="peephol"):
        step(kind, peephol=True)
    assert not nn.get_parameters()


def test_a_forget_bias_needs_biases() -> None:
    with pytest.raises(ValueError, match=r"forget_bias=2.0 needs biases"):
        step("lstm", forget_bias=2.0, with_bias=False)
    assert not nn.get_parameters()


def test_lstm_cell_is_nnabla_s_with_gates_in_another_order() -> None:
    """`PF.lstm_cell` has i, o, f, g, and one matrix for x and h."""
    x, h, c = (constant(np.random.randn(B, n)) for n in (D, H, H))
    theirs = PF.lstm_cell(x, h, c, H)
    randomize(scale=0.2)
    W, b = (next(v for n, v in nn.get_parameters().items() if n.endswith(end)).d for end in ("/W", "/b"))
    order = [0, 2, 3, 1]
    W, b = W[:, order].reshape(D + H, 4 * H), b[order].ravel()
    ours = lstm_cell(x, h, c, H, w_init=W[:D], recurrent_w_init=W[D:], b_init=b, name="ours")
    nn.forward_all([*theirs, *ours])
    for mine, other in zip(ours, theirs):
        np.testing.assert_allclose(mine.d, other.d, rtol=1e-5, atol=1e-6)


def test_one_step_of_each_against_numpy() -> None:
    x, h, c = (np.random.randn(B, n) for n in (D, H, H))
    for kind, state, numpy_step in [
        ("simple_rnn", h, reference.simple_rnn(np.sin)),
        ("lstm", (h, c), reference.lstm(np.sin)),
        ("gru", h, reference.gru(np.sin)),
    ]:
        function, states, _ = FUNCTIONS[kind]
        after = function(constant(x), *[constant(h), constant(c)][:states], H, activation=F.sin, name=kind)
        randomize(scale=0.2)
        after = after if isinstance(after, tuple) else (after,)
        nn.forward_all(after)
        expected = reference.leaves(numpy_step(weights(kind), x, state)[1])
        assert_same(tuple(v.d for v in after), tuple(expected))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def layer_norm(z: np.ndarray) -> np.ndarray:
    return (z - z.mean(axis=1, keepdims=True)) / np.sqrt(z.var(axis=1, keepdims=True) + 1e-5)


# What takes all units of a gate together, and its twin in NumPy.
TOGETHER: dict[str, tuple[Any, Callable]] = {
    "softmax": ("softmax", softmax),
    "layer_norm": (lambda z: F.layer_normalization(z, None, None, batch_axis=0, eps=1e-5), layer_norm),
}
GATED: dict[str, tuple[Callable, Callable]] = {
    "lstm": (LSTMCell, reference.lstm),
    "peephole": (partial(LSTMCell, peephole=True), reference.lstm),
    "gru": (GRUCell, reference.gru),
    "gru_before": (partial(GRUCell, reset_after=False), partial(reference.gru, reset_after=False)),
}


@pytest.mark.parametrize("way", ["auto", "loop"])
@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("activation", TOGETHER)
def test_an_activation_of_several_units_is_one_gate_s(activation: str, kind: str, way: str) -> None:
    (ours, theirs), (make, of_numpy) = TOGETHER[activation], GATED[kind]
    cell = make(4, activation=ours, recurrent_activation=ours)
    prepare(cell, 3)
    x, state = inputs(cell, 3)
    ys, after = run(cell, constant(x), tree_map(constant, state), way=way)
    nn.forward_all([ys, *tree_leaves(after)])
    expected = reference.run(of_numpy(theirs, theirs), weights(), x, state)
    assert_same((ys.d, tree_map(lambda v: v.d, after)), expected)
