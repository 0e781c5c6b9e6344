"""The models and cells of seq2seq: by their equations, in NumPy; what they share; configs, weights, mistakes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest
import reference
from measuring import (
    assert_same,
    constant,
    inputs,
    measure,
    measure_reference,
    named,
    randomize,
    runs,
    values,
    variable,
    weights,
)

from nnshop import no_new_parameters, output_shape, portable, readout, run, save_nnp
from nnshop.parameters import all_parameters
from nnshop.recurrentshop import (
    MaxNorm,
    RecurrentSequential,
    apply_constraints,
    from_config,
    l1,
    l2,
    load_recurrentshop_weights,
    regularization_losses,
)
from nnshop.recurrentshop.weights import places
from nnshop.seq2seq import AttentionDecoderCell, AttentionSeq2Seq, LSTMDecoderCell, Seq2Seq, SimpleSeq2Seq

B, T, D, Y, L, H = 3, 4, 3, 2, 5, 4


# NumPy


def decoder_cell(w: dict, x: np.ndarray, state: tuple) -> tuple:
    """The textbook's LSTM with hard gates, and an output layer."""
    h, c = state
    z = x @ w["x2h/W"] + h @ w["h2h/W"] + w.get("b", 0) + w.get("h2h/b", 0)
    i, f, g, o = np.split(z, 4, axis=1)
    gate = reference.hard_sigmoid
    c = gate(f) * c + gate(i) * np.tanh(g)
    h = gate(o) * np.tanh(c)
    return np.tanh(h @ w["h2y/W"] + w.get("h2y/b", 0)), (h, c)


def attention_cell(w: dict, xs: np.ndarray, state: tuple) -> tuple:
    _, c = state
    asked = np.repeat(c[:, None], xs.shape[1], axis=1)
    scores = np.concatenate([xs, asked], axis=2) @ w["score/W"] + w.get("score/b", 0)  # (B, T, 1)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return decoder_cell(w, (shares * xs).sum(axis=1), state)


def encoder_cell(w: dict, x: np.ndarray, state: tuple) -> tuple:
    """RecurrentShop's LSTM: the cell state is carried squashed."""
    h, c = state
    i, f, g, o = np.split(x @ w["x2h/W"] + h @ w["h2h/W"] + w["b"], 4, axis=1)
    gate = reference.hard_sigmoid
    c = np.tanh(gate(f) * c + gate(i) * np.tanh(g))
    h = gate(o) * c
    return h, (h, c)


def chained(w: dict, kinds: list[Callable], sync: bool = False) -> Callable:
    """One step through cells `cell_0`, `cell_1`, ..., each with its state, or all with one."""

    def step(x: np.ndarray, states: list) -> tuple:
        after = []
        for i, kind in enumerate(kinds):
            x, new = kind(reference.below(f"cell_{i}", w), x, after[-1] if sync and after else states[0 if sync else i])
            after.append(new)
        return x, after[-1:] if sync else after

    return step


def zero_states(w: dict, depth: int) -> list:
    return [(np.zeros((B, len(w[f"cell_{i}/h2h/W"]))),) * 2 for i in range(depth)]


def simple_by_hand(w: dict, x: np.ndarray, depth: tuple, **_: Any) -> np.ndarray:
    before, after = reference.below("encoder", w), reference.below("decoder", w)
    cells = max(depth[1], 2)
    encode, decode = chained(before, [encoder_cell] * depth[0]), chained(after, [encoder_cell] * cells)
    states, ys = zero_states(before, depth[0]), []
    for t in range(T):
        last, states = encode(x[:, t], states)
    states = zero_states(after, cells)
    for _ in range(L):
        y, states = decode(last, states)
        ys.append(y)
    return np.stack(ys, axis=1)


def seq2seq_by_hand(
    w: dict,
    x: np.ndarray,
    depth: tuple,
    truth: np.ndarray | None = None,
    broadcast_state: bool = True,
    inner_broadcast_state: bool = True,
    peek: bool = False,
    **_: Any,
) -> np.ndarray:
    before, after, sync = reference.below("encoder", w), reference.below("decoder", w), inner_broadcast_state
    encode = chained(before, [encoder_cell] * depth[0], sync)
    decode = chained(after, [decoder_cell] * depth[1], sync)
    states, last, ys = zero_states(before, depth[0]), 0, []
    for t in range(T):
        last, states = encode(x[:, t] @ w["project/affine/W"] + w["project/affine/b"] + last, states)
    context = last @ w["context/affine/W"] + w["context/affine/b"]
    states = states[-1:] if broadcast_state else zero_states(after, depth[1])
    y = context
    for t in range(L):
        fed = truth[:, t - 1] if truth is not None and t else y
        y, states = decode(context + fed if peek else fed, states)
        ys.append(y)
    return np.stack(ys, axis=1)


def attention_by_hand(w: dict, x: np.ndarray, depth: tuple, bidirectional: bool = True, **_: Any) -> np.ndarray:
    def encode(scope: str, order: range) -> np.ndarray:
        below = reference.below(scope, w)
        step, states, ys = chained(below, [encoder_cell] * depth[0]), zero_states(below, depth[0]), np.zeros((B, T, H))
        for t in order:
            ys[:, t], states = step(x[:, t], states)
        return ys

    ys = encode("encoder", range(T))
    if bidirectional:
        ys = ys + encode("backward_encoder", range(T)[::-1])
    after = reference.below("decoder", w)
    decode = chained(after, [attention_cell, *[decoder_cell] * (depth[1] - 1)])
    states, made = zero_states(after, depth[1]), []
    for _ in range(L):
        y, states = decode(ys, states)
        made.append(y)
    return np.stack(made, axis=1)


# Models


def make(kind: type, **options: Any) -> Any:
    return kind(**{"output_dim": Y, "output_length": L, "hidden_dim": H, "name": "m", **options})


MODELS = [
    (SimpleSeq2Seq, simple_by_hand, {}),
    (SimpleSeq2Seq, simple_by_hand, {"depth": (2, 3)}),
    (Seq2Seq, seq2seq_by_hand, {}),
    (Seq2Seq, seq2seq_by_hand, {"depth": 2, "peek": True}),
    (Seq2Seq, seq2seq_by_hand, {"depth": (1, 2), "teacher_force": True}),
    (Seq2Seq, seq2seq_by_hand, {"depth": (2, 3), "broadcast_state": False, "inner_broadcast_state": False}),
    (Seq2Seq, seq2seq_by_hand, {"depth": (3, 1), "inner_broadcast_state": False, "peek": True, "teacher_force": True}),
    (AttentionSeq2Seq, attention_by_hand, {}),
    (AttentionSeq2Seq, attention_by_hand, {"depth": (2, 3)}),
    (AttentionSeq2Seq, attention_by_hand, {"depth": (1, 2), "bidirectional": False}),
]
models = pytest.mark.parametrize(("kind", "by_hand", "options"), MODELS, ids=lambda v: getattr(v, "__name__", str(v)))
kinds = pytest.mark.parametrize("kind", [SimpleSeq2Seq, Seq2Seq, AttentionSeq2Seq])


def pair_of(depth: Any) -> tuple:
    return depth if isinstance(depth, tuple) else (depth, depth)


def truth_of(options: dict) -> dict[str, nn.Variable]:
    return {"ground_truth": variable(B, L, Y, seed=5)} if options.get("teacher_force") else {}


@pytest.mark.parametrize("unroll", [False, True])
@models
def test_by_its_equations(kind: type, by_hand: Callable, options: dict, unroll: bool) -> None:
    """Outputs, and the gradients of all weights, of the input and of the ground truth."""
    model, x, truth = make(kind, **options, unroll=unroll), variable(B, T, D), truth_of(options)
    y = model(x, **truth).apply(persistent=True)
    randomize()
    arrays = {**weights("m"), "x": x.d.astype(np.float64), **{k: v.d.astype(np.float64) for k, v in truth.items()}}
    settings = {**options, "depth": pair_of(options.get("depth", 1))}
    factor = np.random.RandomState(8).randn(B, L, Y)

    def forward(arrays: dict) -> np.ndarray:
        return by_hand(arrays, arrays["x"], truth=arrays.get("ground_truth"), **settings)

    loss = F.sum(y * constant(factor))
    leaves = {**nn.get_parameters(), **{f"m/{k}": v for k, v in {"x": x, **truth}.items()}}
    for leaf in leaves.values():
        leaf.g = 0
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    assert_same(y.d, forward(arrays))
    found = reference.gradients(lambda arrays: float(np.sum(factor * forward(arrays))), arrays)
    assert_same({name[2:]: leaf.g for name, leaf in leaves.items()}, found)


@models
def test_auto_forward_gives_the_same(kind: type, by_hand: Callable, options: dict) -> None:
    model, x = make(kind, **options), variable(B, T, D)
    truth = truth_of(options)
    y = model(x, **truth)
    randomize()
    with nn.auto_forward():
        same = model(x, **truth)
    assert_same(same.d.copy(), values(y)[0])


@models
def test_it_is_saved_as_a_network(kind: type, by_hand: Callable, options: dict, tmp_path: Any) -> None:
    model, x = make(kind, **options), nn.Variable((B, T, D))
    with portable():
        y = model(x, training=False)
    save_nnp(tmp_path / "m.nnp", {"x": x}, {"y": y})


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 3), (1, 6, 1)])
@kinds
def test_shapes(kind: type, sizes: tuple) -> None:
    batch, steps, outputs = sizes
    model = kind(output_dim=Y, output_length=outputs)  # as wide inside as out
    assert model.hidden_dim == Y
    assert model(nn.Variable((batch, steps, 1))).shape == (batch, outputs, Y)


@kinds
def test_the_depth_is_one_number_or_two(kind: type) -> None:
    one, two = make(kind, depth=2, name="one"), make(kind, depth=[2, 2], name="two")
    for model in (one, two):
        model(nn.Variable((B, T, D)))
    assert {n: v.shape for n, v in weights("one").items()} == {n: v.shape for n, v in weights("two").items()}


def test_a_simple_decoder_of_depth_one_has_two_cells_of_the_outputs_size() -> None:
    """The original's; with a depth of two the first is as wide as the hidden ones."""
    for depth, expected in ((1, [Y, Y]), (2, [H, Y]), (3, [H, H, Y])):
        assert [cell.size for cell in make(SimpleSeq2Seq, depth=(1, depth)).decoder.cells] == expected


def test_peeking_adds_the_context_to_itself_at_first() -> None:
    """With one output to come, a peeking model is one that does not peek, whose context is twice as large."""
    peeking, other = make(Seq2Seq, peek=True, output_length=1), make(Seq2Seq, output_length=1)
    x = variable(B, T, D)
    y, plain = peeking(x), other(x)
    randomize()
    (expected,) = values(y)
    for name in ("m/context/affine/W", "m/context/affine/b"):
        nn.get_parameters()[name].d *= 2
    assert_same(values(plain)[0], expected)


# Teacher forcing


def forced(**options: Any) -> tuple[Seq2Seq, nn.Variable, nn.Variable]:
    return make(Seq2Seq, depth=2, teacher_force=True, **options), variable(B, T, D), variable(B, L, Y, seed=5)


def test_training_and_free_running_share_weights() -> None:
    model, x, truth = forced()
    y = model(x, ground_truth=truth)
    randomize()
    with no_new_parameters():
        free, ignoring = model(x, training=False), model(x, ground_truth=truth, training=False)
        plain = make(Seq2Seq, depth=2)(x)  # of the same name
    taught, *untaught = values(y, free, ignoring, plain)
    assert (taught[:, 0] == untaught[0][:, 0]).all()  # both start from the context
    assert (taught[:, 1:] != untaught[0][:, 1:]).any()
    for other in untaught[1:]:
        np.testing.assert_array_equal(other, untaught[0])


@pytest.mark.parametrize("peek", [False, True])
def test_forced_with_its_own_outputs_it_runs_free(peek: bool) -> None:
    model, x, own = forced(peek=peek)
    y, free = model(x, ground_truth=own), model(x, training=False)
    randomize()
    (own.d,) = values(free)
    assert_same(values(y)[0], values(free)[0])


@pytest.mark.parametrize("t", range(L))
def test_changing_the_truth_at_t_changes_nothing_up_to_t(t: int) -> None:
    """The original fed truth[t] at step t."""
    model, x, truth = forced()
    y = model(x, ground_truth=truth)
    randomize()
    (before,) = values(y)
    changed = truth.d.copy()
    changed[:, t] += 1
    truth.d = changed
    (after,) = values(y)
    np.testing.assert_array_equal(before[:, : t + 1], after[:, : t + 1])
    assert t + 1 == L or (before[:, t + 1] != after[:, t + 1]).any(axis=1).all()


def test_it_learns_by_forcing_what_it_then_does_by_itself() -> None:
    model, x = make(Seq2Seq, teacher_force=True, hidden_dim=16, output_dim=1), variable(4, T, D)
    target = constant(np.sin(np.arange(4)[:, None] + np.arange(L))[..., None] * 0.8)
    loss = F.mean((model(x, ground_truth=target) - target) ** 2)
    solver = S.Adam(0.03)
    solver.set_parameters(nn.get_parameters())
    for _ in range(300):
        solver.zero_grad()
        loss.forward()
        loss.backward()
        solver.update()
    (free,) = values(model(x, training=False))
    assert np.mean((free - target.d) ** 2) < 0.02 < 0.3 * np.var(target.d)


# Dropout


def dropouts(y: nn.Variable) -> int:
    names: list[str] = []
    y.visit(lambda function: names.append(function.info.type_name))
    return names.count("Dropout")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(SimpleSeq2Seq, 2 * T + 3 * L), (Seq2Seq, 2 * T + 3 * L), (AttentionSeq2Seq, 2 * 2 * T + 3 * L)],
)
def test_dropout_is_before_every_cell_but_the_first_at_each_step(kind: type, expected: int) -> None:
    model, x = make(kind, depth=3, dropout=0.5, unroll=True), variable(B, T, D)
    assert dropouts(model(x)) == expected
    assert dropouts(model(x, training=False)) == 0


@pytest.mark.parametrize("unroll", [False, True])
@kinds
def test_dropout_acts_in_training_only_and_changes_no_name(kind: type, unroll: bool) -> None:
    model, x = make(kind, dropout=0.5, unroll=unroll), variable(B, T, D)
    y = model(x)
    randomize()
    with no_new_parameters():
        calm, plain = model(x, training=False), make(kind)(x)
    assert (values(y)[0] != values(y)[0]).any()
    assert_same(values(calm)[0], values(plain)[0])


# The cells

CELLS = [
    (LSTMDecoderCell(Y, H, name="c"), decoder_cell, (D,)),
    (LSTMDecoderCell(Y, hidden_dim=H, use_bias=False, name="c"), decoder_cell, (D,)),
    (AttentionDecoderCell(Y, H, name="c"), attention_cell, (T, D)),
    (AttentionDecoderCell(output_dim=Y, use_bias=False, name="c"), attention_cell, (T, D)),
]


@pytest.mark.parametrize("way", ["unrolled", "loop"])
@pytest.mark.parametrize(("cell", "step", "shape"), CELLS, ids=named)
def test_a_cell_by_its_equations(cell: Any, step: Callable, shape: tuple, way: str) -> None:
    """Three steps, each on an input of its own, from a random state; with all gradients."""
    with nn.auto_forward(False):
        cell(nn.Variable((1, *shape)), cell.initial_state(1))
    randomize()
    _, state = inputs(cell, 1)
    x = np.random.RandomState(2).randn(B, 3, *shape)
    expected = measure_reference(reference.scoped("c", step), x, state)
    assert_same(measure(runs(cell, way=way), x, state), expected)


def test_a_cell_says_its_sizes() -> None:
    assert LSTMDecoderCell(5).hidden_dim == 5  # the original fails without
    assert LSTMDecoderCell(units=5, hidden_dim=3).num_states == 2
    cell = AttentionDecoderCell(5, 3, kernel_initializer="he_normal", name="a")
    assert cell.recurrent_initializer == "he_normal"
    assert repr(cell).startswith("AttentionDecoderCell(")
    assert pickle.loads(pickle.dumps(cell)) == replace(cell) == cell
    assert replace(cell, hidden_dim=4).hidden_dim == 4
    for kind in (LSTMDecoderCell, AttentionDecoderCell):
        for wrong in (0, 2.0, "3"):
            with pytest.raises(ValueError, match=rf"{kind.__name__} needs hidden_dim >= 1, a whole number; got {wrong!r}"):
                kind(5, hidden_dim=wrong)
            with pytest.raises(ValueError, match=rf"{kind.__name__} needs units >= 1, a whole number; got {wrong!r}"):
                kind(wrong)


def test_the_kernel_initializer_is_for_all_kernels() -> None:
    cell = AttentionDecoderCell(Y, H, kernel_initializer=lambda s: np.full(s, 2.0), bias_initializer="ones", name="c")
    cell(nn.Variable((B, T, D)), cell.initial_state(B))
    for name, array in weights("c").items():
        assert (array == (1 if name.endswith("b") else 2)).all(), name
    cell = LSTMDecoderCell(Y, H, recurrent_initializer=lambda s: np.full(s, 3.0), kernel_initializer="ones", name="d")
    cell(nn.Variable((B, D)), cell.initial_state(B))
    assert [weights("d")[f"{name}/W"].mean() for name in ("x2h", "h2h", "h2y")] == [1, 3, 1]


def test_activations_of_a_cell() -> None:
    cell = LSTMDecoderCell(Y, H, activation="linear", recurrent_activation="sigmoid", name="c")
    x, (h, c) = variable(B, D), cell.initial_state(B)
    y, (h, c) = cell(x, (h, c))
    randomize()
    w = weights("c")
    i, _, g, o = np.split(x.d @ w["x2h/W"] + w["b"], 4, axis=1)
    expected = reference.sigmoid(i) * g
    assert_same(values(c)[0], expected)
    assert_same(values(y)[0], (reference.sigmoid(o) * expected) @ w["h2y/W"] + w["h2y/b"])


def test_rules_of_a_cell_are_for_its_kernels_its_recurrent_kernel_and_its_biases() -> None:
    rules = {"kernel_regularizer": l1(1.0), "recurrent_regularizer": l2(1.0), "bias_constraint": MaxNorm(0.5)}
    rnn = RecurrentSequential(decode=True, output_length=L, name="rnn")
    rnn.add(AttentionDecoderCell(Y, H, name="c", bias_initializer="ones", **rules))
    rnn(nn.Variable((B, T, D)))
    w = weights("rnn/c")
    penalties = regularization_losses(rnn)
    by_name = {name: value for name, value in zip(penalties, values(*penalties.values()))}
    expected = {f"rnn/c/{n}/W": np.abs(w[f"{n}/W"]).sum() for n in ("score", "x2h", "h2y")}
    expected["rnn/c/h2h/W"] = (w["h2h/W"] ** 2).sum()
    assert_same(by_name, expected)
    apply_constraints(rnn)
    assert weights("rnn/c")["h2h/b"][0] == 1 / (4 * H) ** 0.5 * 0.5


def test_a_cell_takes_what_it_was_made_for() -> None:
    fits = [{"input_shape": (T, D)}, {"input_dim": D}, {"batch_input_shape": (None, T, D)}]
    for options in fits:
        cell = AttentionDecoderCell(Y, H, name="c", **options)
        assert output_shape(cell, nn.Variable((B, T, D))) == (Y,)
        with pytest.raises(ValueError, match=r"AttentionDecoderCell.*got \(.*4\)"):
            cell(nn.Variable((B, T, D + 1)), cell.initial_state(B))
    with pytest.raises(ValueError, match=r"attends to a whole sequence \(B, T, D\) at every step; got \(3, 3\).*decode=True"):
        run(AttentionDecoderCell(Y, H), nn.Variable((B, T, D)))
    with pytest.raises(ValueError, match=r"LSTMDecoderCell.* was made for inputs of shape \(3,\) a step; got \(4,\)"):
        run(LSTMDecoderCell(Y, H, input_dim=D), nn.Variable((B, T, D + 1)))
    assert not all_parameters()


def test_a_cell_stands_in_the_core_too() -> None:
    cell = readout(LSTMDecoderCell(Y, H), (Y,), lambda x, last: F.concatenate(x, last, axis=1))
    ys, _ = run(cell, nn.Variable((B, T, D)))
    assert ys.shape == (B, T, Y)


# Weights and configs

LSTM_ORDER = ("x2h/W", "b", "h2h/W")
DECODER_ORDER = ("x2h/W", "h2h/W", "b", "h2y/W", "h2y/b")
ATTENTION_ORDER = ("score/W", "score/b", "x2h/W", "b", "h2h/W", "h2h/b", "h2y/W", "h2y/b")


def below(scope: str, names: tuple) -> list[str]:
    return [f"m/{scope}/{name}" for name in names]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (SimpleSeq2Seq, [("encoder/cell_0", LSTM_ORDER), ("encoder/cell_1", LSTM_ORDER), ("decoder/cell_0", LSTM_ORDER),
                         ("decoder/cell_1", LSTM_ORDER)]),
        (Seq2Seq, [("project/affine", ("W", "b")), ("encoder/cell_0", LSTM_ORDER), ("encoder/cell_1", LSTM_ORDER),
                   ("context/affine", ("W", "b")), ("decoder/cell_0", DECODER_ORDER), ("decoder/cell_1", DECODER_ORDER)]),
        (AttentionSeq2Seq, [("encoder/cell_0", LSTM_ORDER), ("encoder/cell_1", LSTM_ORDER),
                            ("backward_encoder/cell_0", LSTM_ORDER), ("backward_encoder/cell_1", LSTM_ORDER),
                            ("decoder/cell_0", ATTENTION_ORDER), ("decoder/cell_1", DECODER_ORDER)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_weights_in_keras_order(kind: type, expected: list, dropout: float) -> None:
    model = make(kind, depth=2, dropout=dropout)
    with pytest.raises(ValueError, match="m: has no weights before its first call"):
        places(model)
    model(nn.Variable((B, T, D)))
    found = places(model)
    assert [place.name for place in found] == [name for part in expected for name in below(*part)]
    assert sorted(all_parameters()) == sorted(place.name for place in found)
    arrays = [np.random.RandomState(i).randn(*all_parameters()[p.name].shape) for i, p in enumerate(found)]
    load_recurrentshop_weights(model, arrays)
    for place, array in zip(found, arrays):
        np.testing.assert_array_equal(all_parameters()[place.name].d[..., place.columns()], array.astype(np.float32))
    with pytest.raises(ValueError, match=rf"m: these weights are of another architecture: {found[-1].name} is missing"):
        load_recurrentshop_weights(model, arrays[:-1])


def test_the_gates_of_the_encoder_and_of_the_decoder_are_in_different_orders_in_keras() -> None:
    model = make(Seq2Seq)
    model(nn.Variable((B, T, D)))
    arrays = [np.random.RandomState(i).randn(*all_parameters()[p.name].shape) for i, p in enumerate(places(model))]
    load_recurrentshop_weights(model, arrays)
    f, i, o, g = np.split(arrays[2].astype(np.float32), 4, axis=1)
    np.testing.assert_array_equal(all_parameters()["m/encoder/cell_0/x2h/W"].d, np.concatenate([i, f, g, o], axis=1))
    np.testing.assert_array_equal(all_parameters()["m/decoder/cell_0/x2h/W"].d, arrays[7].astype(np.float32))


@models
def test_it_comes_back_from_its_config_and_its_saved_weights(
    kind: type, by_hand: Callable, options: dict, tmp_path: Any
) -> None:
    model, x = make(kind, **options, dropout=0.25, stateful=True, input_shape=(None, D)), variable(B, T, D)
    y = model(x, training=False)
    randomize()
    (expected,) = values(y)
    text = json.dumps(model.get_config())
    nn.save_parameters(str(tmp_path / "weights.h5"))
    nn.clear_parameters()
    nn.load_parameters(str(tmp_path / "weights.h5"))
    back = from_config(json.loads(text))
    assert type(back) is kind
    assert json.dumps(back.get_config()) == text
    assert back.arguments() == model.arguments()
    with no_new_parameters():
        again = back(x, training=False)
    np.testing.assert_array_equal(values(again)[0], expected)


def test_a_layer_of_the_cells_comes_back() -> None:
    rnn = RecurrentSequential(decode=True, output_length=L)
    rnn.add(AttentionDecoderCell(Y, H, recurrent_initializer="orthogonal"))
    rnn.add(LSTMDecoderCell(H, Y, use_bias=False))
    back = from_config(json.loads(json.dumps(rnn.get_config())))
    assert back.cells == rnn.cells


def test_names_and_scopes() -> None:
    model = make(SimpleSeq2Seq, name=None)
    assert model.name.startswith("simple_seq2seq")
    assert repr(model) == f"SimpleSeq2Seq({model.name!r})"
    x = nn.Variable((B, T, D))
    with nn.parameter_scope("here"):
        model(x)
    with nn.parameter_scope("elsewhere"), no_new_parameters():
        model(x)
    assert all(name.startswith(f"here/{model.name}/") for name in all_parameters())
    nn.clear_parameters()
    model(x)
    assert all(name.startswith(f"here/{model.name}/") for name in all_parameters())
    (a, b) = (make(SimpleSeq2Seq, name=name) for name in ("a", "b"))
    a(x)
    b(x)
    assert len({name.split("/")[0] for name in all_parameters()}) == 3


# Stateful


@pytest.mark.parametrize("broadcast_state", [True, False])
def test_a_stateful_encoder_goes_on_and_its_decoder_starts_from_it(broadcast_state: bool) -> None:
    """Two halves are one sequence."""
    whole, half = variable(B, 2 * T, D), nn.Variable((B, T, D))
    model = make(Seq2Seq, stateful=True, broadcast_state=broadcast_state)
    y = model(half)
    plain = make(Seq2Seq, broadcast_state=broadcast_state)
    expected = plain(whole)
    randomize()
    half.d = whole.d[:, :T]
    y.forward()
    model.carry()
    half.d = whole.d[:, T:]
    assert_same(values(y)[0], values(expected)[0])
    model.reset_states()
    assert_same(values(y)[0], values(plain(half))[0])


@pytest.mark.parametrize(("kind", "options"), [(SimpleSeq2Seq, {}), (AttentionSeq2Seq, {"bidirectional": False})])
def test_encoder_and_decoder_both_go_on_where_none_tells_the_other_where_to_start(kind: type, options: dict) -> None:
    model, x = make(kind, stateful=True, **options), variable(B, T, D)
    y = model(x)
    randomize()
    (first,) = values(y)
    model.carry()
    (second,) = values(y)
    assert (first != second).any()
    assert all(kept.any() for layer in (model.encoder, model.decoder) for kept in layer._carried[0].get())
    model.reset_states(rows=[1])
    (third,) = values(y)
    np.testing.assert_allclose(third[1], first[1], rtol=1e-6)
    np.testing.assert_allclose(third[[0, 2]], second[[0, 2]], rtol=1e-6)
    model.reset_states()
    np.testing.assert_allclose(values(y)[0], first, rtol=1e-6)


def test_a_backward_encoder_starts_anew() -> None:
    model = make(AttentionSeq2Seq, stateful=True)
    assert [layer.stateful for layer in (model.encoder, model.backward_encoder, model.decoder)] == [True, False, True]
    y = model(variable(B, T, D))
    y.forward()
    model.carry()


def test_keeping_states_of_a_model_that_is_not_stateful() -> None:
    model = make(SimpleSeq2Seq)
    for what in (model.carry, model.reset_states):
        with pytest.raises(ValueError, match=r"m: .* is about states that are kept; make the model with stateful=True"):
            what()


# Mistakes


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"output_dim": 0}, "needs output_dim >= 1, a whole number; got 0"),
        ({"output_length": None}, "needs output_length >= 1, a whole number; got None"),
        ({"hidden_dim": -1}, "needs hidden_dim >= 1, a whole number; got -1"),
        ({"depth": 0}, "needs depth of the encoder >= 1, a whole number; got 0"),
        ({"depth": (1, 0.5)}, "needs depth of the decoder >= 1, a whole number; got 0.5"),
        ({"depth": (1, 2, 3)}, r"needs depth=n, or depth=\(of the encoder, of the decoder\); got \(1, 2, 3\)"),
        ({"dropout": 1}, "needs 0 <= dropout < 1, the share that is dropped; got 1"),
        ({"input_shape": (D,)}, r"takes input_shape=\(T, D\), or batch_input_shape=\(B, T, D\); got input_shape"),
        ({"batch_input_shape": (T, D)}, r"takes input_shape=\(T, D\), or batch_input_shape=\(B, T, D\); got batch_input_shape"),
        ({"input_shape": (T, D), "input_dim": 9}, "input_dim says 9 for D of the input; before it was 3"),
        ({"batch_size": 2, "batch_input_shape": (B, None, None)}, "batch_size.* says 2 for B of the input; before it was 3"),
    ],
)
@kinds
def test_settings_that_do_not_fit(kind: type, options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}:? .*{match}"):
        make(kind, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, r"\(B, T, D\)"),
        ({"input_shape": [T, D]}, rf"\(B, {T}, {D}\)"),
        ({"batch_input_shape": (B, None, D)}, rf"\({B}, T, {D}\)"),
        ({"batch_size": B, "input_length": T, "input_dim": D}, rf"\({B}, {T}, {D}\)"),
        ({"input_dim": D, "input_shape": (None, D)}, rf"\(B, T, {D}\)"),
    ],
)
@kinds
def test_an_input_that_is_not_what_was_said(kind: type, options: dict, expected: str) -> None:
    model = make(kind, **options)
    wrong = [nn.Variable((B, T)), nn.Variable((B, D)), (nn.Variable((B, T, D)),) * 2]
    if options:
        wrong += [nn.Variable((B + 1, T + 1, D + 1))]
    for x in wrong:
        with pytest.raises(ValueError, match=rf"m: takes one sequence {expected}; got "):
            model(x)
    with pytest.raises(TypeError, match="a sequence must be a Variable; got ndarray"):
        model(np.zeros((B, T, D)))
    assert not all_parameters()
    assert model(nn.Variable((B, T, D))).shape == (B, L, Y)


def test_a_ground_truth_that_does_not_fit() -> None:
    x, truth = nn.Variable((B, T, D)), nn.Variable((B, L, Y))
    for model in (make(SimpleSeq2Seq), make(Seq2Seq), make(AttentionSeq2Seq)):
        with pytest.raises(ValueError, match=r"m: ground_truth is for Seq2Seq\(teacher_force=True\)"):
            model(x, ground_truth=truth)
    model = make(Seq2Seq, teacher_force=True)
    with pytest.raises(ValueError, match="m: teacher forcing needs ground_truth in training; or call it with training=False"):
        model(x)
    for shape in ((B, L + 1, Y), (B, L, Y + 1), (B + 1, L, Y), (B, L)):
        with pytest.raises(ValueError, match=r"m: ground_truth must have the shape of the outputs, \(3, 5, 2\)"):
            model(x, ground_truth=nn.Variable(shape))
    assert not all_parameters()


def test_states_of_one_cell_for_several() -> None:
    """The original fails in an assertion."""
    with pytest.raises(ValueError, match=r"2 states of the encoder's last cell.*a depth of 3 it has 6.*depth=\(2, 1\)"):
        make(Seq2Seq, depth=(2, 3), inner_broadcast_state=False)
    make(Seq2Seq, depth=(2, 1), inner_broadcast_state=False)(nn.Variable((B, T, D)))


@pytest.mark.parametrize("wrong", [{"foo": 1}, {"teacher_force": True}, {"peek": True}])
def test_an_argument_that_a_model_does_not_have(wrong: dict) -> None:
    for kind in (SimpleSeq2Seq, AttentionSeq2Seq):
        with pytest.raises(TypeError, match="unexpected keyword"):
            make(kind, **wrong)
    with pytest.raises(TypeError, match="positional"):
        Seq2Seq(Y, L, (B, T, D))
