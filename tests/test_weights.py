"""Weights to and from `F.lstm`, `F.gru` and `F.rnn`: equal values, equal gradients, round trips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from measuring import Measured, assert_same, measure, prepare, variables, weights

from nnshop import GRUCell, LSTMCell, SimpleRNNCell, bidirectional, from_fused, run, stack, to_fused
from nnshop.functions import swap_time

T, B, D, H = 4, 3, 5, 2
KINDS: dict[str, tuple[Callable, Callable, int]] = {  # the cell, NNabla's function, the number of states
    "lstm": (LSTMCell, F.lstm, 2),
    "gru": (GRUCell, F.gru, 1),
    "rnn": (SimpleRNNCell, F.rnn, 1),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def fused_layers(kind: str, x: Any, states: tuple, layers: list, with_bias: bool = True, **options: Any) -> Measured:
    """NNabla's function on the packed weights; the gradients of these come back unpacked."""
    names, arrays = zip(*to_fused(kind, layers).items())
    packed = tuple(array for name, array in zip(names, arrays) if with_bias or name != "bias")
    names = names[: len(packed)]

    def build(inputs: Any, states: tuple) -> tuple:
        x, *given = inputs
        ys, *after = KINDS[kind][1](swap_time(x), *states, training=True, **dict(zip(names, given)), **options)
        return swap_time(ys), tuple(after)

    measured = measure(build, (x, *packed), states)
    unpacked = from_fused(kind, dict(zip(names, measured.x_grad[1:])))
    found = {f"{i}/{j}/{n}": a for i, layer in enumerate(unpacked) for j, cell in enumerate(layer) for n, a in cell.items()}
    return measured._replace(x_grad=measured.x_grad[0], weight_grads=found)


def stacked_states(kind: str, states: list) -> tuple:
    """`(layers, directions, B, H)` of each state, of what nnshop has for each layer and direction."""
    by_layer = [[s if isinstance(s, tuple) else (s,) for s in layer] for layer in states]
    return tuple(F.stack(*[F.stack(*[s[i] for s in layer]) for layer in by_layer]) for i in range(KINDS[kind][2]))


def split_state(kind: str, states: tuple, layer: int, direction: int) -> Any:
    h = tuple(state[layer, direction] for state in states)
    return h if KINDS[kind][2] > 1 else h[0]


def random_states(kind: str, layers: int, directions: int) -> tuple:
    return tuple(np.random.randn(layers, directions, B, H) for _ in range(KINDS[kind][2]))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 3])
@each_kind
def test_a_stack_is_nnabla_s_function(kind: str, layers: int, with_bias: bool) -> None:
    cell = stack(*[KINDS[kind][0](H, with_bias=with_bias) for _ in range(layers)])
    prepare(cell, D)
    x, states = np.random.randn(B, T, D), random_states(kind, layers, 1)

    def build(x: nn.Variable, states: tuple) -> tuple:
        ys, after = run(cell, x, tuple(split_state(kind, states, layer, 0) for layer in range(layers)))
        return ys, stacked_states(kind, [[state] for state in after])

    ours = measure(build, x, states)
    theirs = fused_layers(kind, x, states, [[weights(str(i))] for i in range(layers)], with_bias, num_layers=layers)
    renamed = {name.replace("/", "/0/", 1): gradient for name, gradient in ours.weight_grads.items()}
    assert_same(theirs, ours._replace(weight_grads=renamed))


@pytest.mark.parametrize("layers", [1, 2])
@each_kind
def test_bidirectional_is_nnabla_s(kind: str, layers: int) -> None:
    cell = KINDS[kind][0](H)
    for layer in range(layers):
        for direction in ("forward", "backward"):
            with nn.parameter_scope(f"{layer}/{direction}"):
                cell(nn.Variable((1, D if layer == 0 else 2 * H)), cell.initial_state(1))
    for parameter in nn.get_parameters().values():
        parameter.d = np.random.randn(*parameter.shape) * 0.5
    x, states = np.random.randn(B, T, D), random_states(kind, layers, 2)

    def build(y: nn.Variable, states: tuple) -> tuple:
        finals = []
        for layer in range(layers):
            start = tuple(split_state(kind, states, layer, direction) for direction in range(2))
            y, after = bidirectional(y, cell, initial_state=start, return_state=True, name=str(layer))
            finals.append(after)
        return y, stacked_states(kind, finals)

    ours = measure(build, x, states)
    pairs = [[weights(f"{layer}/{direction}") for direction in ("forward", "backward")] for layer in range(layers)]
    theirs = fused_layers(kind, x, states, pairs, num_layers=layers, bidirectional=True)
    renamed = {name.replace("forward", "0").replace("backward", "1"): array for name, array in ours.weight_grads.items()}
    assert_same(theirs, ours._replace(weight_grads=renamed))


def test_relu_is_nnabla_s() -> None:
    cell = SimpleRNNCell(H, activation="relu")
    prepare(cell, D)
    x, states = np.random.randn(B, T, D), random_states("rnn", 1, 1)

    def build(x: nn.Variable, states: tuple) -> tuple:
        ys, h = run(cell, x, states[0][0, 0])
        return ys, stacked_states("rnn", [[h]])

    theirs = fused_layers("rnn", x, states, [[weights()]], nonlinearity="relu")
    ours = measure(build, x, states)
    assert_same(theirs, ours._replace(weight_grads={f"0/0/{name}": array for name, array in ours.weight_grads.items()}))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (2, 1), (1, 2), (3, 2)])
@each_kind
def test_round_trip(kind: str, layers: int, directions: int, with_bias: bool) -> None:
    gates, rng = {"lstm": 4, "gru": 3, "rnn": 1}[kind], np.random.RandomState(0)
    cells = []
    for layer in range(layers):
        width = D if layer == 0 else directions * H
        shapes = {"x2h/W": (width, gates * H), "h2h/W": (H, gates * H)}
        if with_bias:
            shapes.update({"b": (gates * H,)}, **({"h2h/b": (H,)} if kind == "gru" else {}))
        cells.append([{name: rng.randn(*shape) for name, shape in shapes.items()} for _ in range(directions)])
    fused = to_fused(kind, cells)
    assert ("weight" in fused) == (layers > 1)
    if not with_bias:
        assert not fused.pop("bias").any()
    back = from_fused(kind, fused)
    assert [len(layer) for layer in back] == [directions] * layers
    for layer, expected in zip(back, cells):
        for cell, original in zip(layer, expected):
            assert_same(cell, original, rtol=0)
    again = to_fused(kind, back)
    for name, array in fused.items():
        np.testing.assert_array_equal(again[name], array)


def test_unpacked_weights_are_copies() -> None:
    fused = to_fused("gru", [[weights_of_ones()]])
    [[cell]] = from_fused("gru", fused)
    for array in cell.values():
        array[...] = 5
    assert all((array <= 1).all() for array in fused.values())


def weights_of_ones() -> dict[str, np.ndarray]:
    return {"x2h/W": np.ones((D, 3 * H)), "h2h/W": np.ones((H, 3 * H)), "b": np.ones(3 * H), "h2h/b": np.ones(H)}


def test_weights_of_nnabla_s_layers_can_be_taken_over() -> None:
    """What `nn.load_parameters` gives of a model with `PF.gru` goes into a cell."""
    with nn.parameter_scope("theirs"):
        x = nn.Variable.from_numpy_array(np.random.randn(T, B, D))
        ys, _ = nn.parametric_functions.gru(x, nn.Variable((1, 1, B, H)), num_layers=1)
    fused = {name.split("/")[-1]: variable.d for name, variable in nn.get_parameters(grad_only=False).items()}
    [[cell]] = from_fused("gru", fused)
    for name, array in cell.items():
        nn.parameter.set_parameter(f"ours/{name}", variables(array))
    with nn.parameter_scope("ours"):
        mine, _ = run(GRUCell(H), swap_time(x))
    nn.forward_all([ys, mine])
    np.testing.assert_allclose(mine.d, ys.d.swapaxes(0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "layers", "message"),
    [
        ("elman", [[weights_of_ones()]], "one of lstm, gru, rnn; got 'elman'"),
        ("gru", [], "at least one layer"),
        ("gru", [[{"x2h/W": np.ones((D, 3 * H))}]], r"need \['h2h/W'\]; got \['x2h/W'\]"),
        ("gru", [[{**weights_of_ones(), "peephole/W": np.ones((3, H))}]], r"no counterpart of \['peephole/W'\]"),
        ("lstm", [[weights_of_ones()]], r"4 gates are x2h/W \(D, 4 H\) and h2h/W \(H, 4 H\); got .*\(2, 6\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(kind: str, layers: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_fused(kind, layers)


@pytest.mark.parametrize(
    ("kind", "fused", "message"),
    [
        ("elman", {}, "one of lstm, gru, rnn; got 'elman'"),
        ("lstm", {"weight_l0": np.ones((1, 3, H, D + H))}, r"needs 4 gates: .*got \(1, 3, 2, 7\)"),
        ("lstm", {"weight_l0": np.ones((4, H, D + H))}, r"got \(4, 2, 7\)"),
        (
            "gru",
            {"weight_l0": np.ones((1, 3, H, D + H)), "bias": np.ones((1, 1, 3, H))},
            r"shape \(1, 1, 4, 2\); got \(1, 1, 3, 2\)",
        ),
    ],
)
def test_fused_weights_that_do_not_fit_are_named(kind: str, fused: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_fused(kind, fused)


def test_a_gru_with_reset_before_has_no_counterpart() -> None:
    cell = {"x2h/W": np.zeros((3, 12)), "h2h/W": np.zeros((4, 12)), "b": np.ones(12)}
    with pytest.raises(ValueError, match=r"reset_after=True has both b and h2h/b; got \['b', 'h2h/W', 'x2h/W'\]"):
        to_fused("gru", [[cell]])
    del cell["b"]
    assert to_fused("gru", [[cell]])["bias"].shape == (1, 1, 4, 4)
