"""RecurrentShop's words by their laws and equations: what the recorded cases do not hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from measuring import named, values, variable
from nnabla.initializer import ConstantInitializer
from nnabla.parameter import get_parameter_or_create

import nnshop.recurrentshop as rs
from nnshop import run
from nnshop.parameters import all_parameters
from nnshop.recurrentshop.weights import places

B, T, D = 2, 5, 3


def sequential(*parts: Any, **options: Any) -> rs.RecurrentSequential:
    """Cells, functions, and tuples of a function and its arguments, in a row."""
    rnn = rs.RecurrentSequential(**options)
    for part in parts:
        rnn.add(*part) if isinstance(part, tuple) else rnn.add(part)
    return rnn


def same(got: list, expected: list, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def arrays_of(rnn: Any) -> list[np.ndarray]:
    """Its weights in Keras' order."""
    parameters = all_parameters()
    return [parameters[place.name].d[..., place.columns()].copy() for place in places(rnn)]


def gradients_of(rnn: Any) -> list[np.ndarray]:
    parameters = all_parameters()
    return [parameters[place.name].g[..., place.columns()].copy() for place in places(rnn)]


def backward(*outputs: nn.Variable) -> None:
    """From a loss in which all outputs count, each entry for itself."""
    for v in all_parameters().values():
        v.g = 0
    terms = [F.sum(v * nn.Variable.from_numpy_array(np.cos(np.arange(v.d.size)).reshape(v.shape))) for v in outputs]
    loss = sum(terms[1:], terms[0])
    loss.forward()
    loss.backward()


def simple_step(cell: rs.SimpleRNNCell) -> Callable:
    """The step of a SimpleRNNCell in NumPy, on the weights that the cell has now."""
    found = {k.split(f"{cell.name}/")[1]: v.d.astype(np.float64) for k, v in all_parameters().items() if f"{cell.name}/" in k}
    w, b, u = (found[name] for name in ("x2h/W", "b", "h2h/W"))
    return lambda x, h: np.tanh(x @ w + b + h @ u)


# ------------------------------------------------------------------------------------------------------------------ nesting


@pytest.mark.parametrize("options", [{}, {"unroll": True}, {"go_backwards": True}], ids=named)
@pytest.mark.parametrize("depth", [1, 2])
def test_nesting_equals_flattening(depth: int, options: dict) -> None:
    """Outputs, all states in order, and gradients of all weights in order."""
    options = {"return_sequences": True, "return_states": True, **options}
    inner = sequential(rs.LSTMCell(6), (PF.affine, 5), rs.GRUCell(4))
    middle = inner if depth == 1 else sequential(inner.get_cell(), F.tanh)
    nested = sequential(middle.get_cell(), rs.SimpleRNNCell(6), **options)
    between = [] if depth == 1 else [F.tanh]
    flat = sequential(rs.LSTMCell(6), (PF.affine, 5), rs.GRUCell(4), *between, rs.SimpleRNNCell(6), **options)
    x = variable(B, T, D)
    ys, expected = nested(x), flat(x)
    assert [v.shape for v in ys] == [(B, T, 6), (B, 6), (B, 6), (B, 4), (B, 6)]
    rs.load_recurrentshop_weights(flat, arrays_of(nested))
    same(values(*ys), values(*expected))
    backward(*ys)
    got = gradients_of(nested)
    backward(*expected)
    same(got, gradients_of(flat), rtol=1e-4)


def test_get_cell_works_before_any_call_and_shares_the_weights() -> None:
    inner = sequential(rs.GRUCell(4), return_sequences=True)
    outer = sequential(inner.get_cell(), (F.mul_scalar, 2.0), return_sequences=True)
    x = variable(B, T, D)
    doubled = outer(x)
    names = sorted(all_parameters())
    assert all(f"{inner.name}/{inner.cells[0].name}/" in name for name in names)
    ys = inner(x)
    assert sorted(all_parameters()) == names
    same(values(doubled), [2 * v for v in values(ys)])


def test_an_inner_layer_advances_by_one_step_a_step_whatever_its_options() -> None:
    plain, odd = sequential(rs.GRUCell(4)), sequential(rs.GRUCell(4), return_sequences=True, unroll=True, go_backwards=True)
    x, made = variable(B, T, D), []
    for inner in (plain, odd):
        made.append(sequential(inner.get_cell(), return_sequences=True))
    first, second = made[0](x), made[1](x)
    rs.load_recurrentshop_weights(made[1], arrays_of(made[0]))
    same(values(first), values(second))


def test_nesting_one_layer_twice_shares_weights_and_keeps_two_states() -> None:
    cell = rs.SimpleRNNCell(D)
    inner = sequential(cell)
    outer = sequential(inner.get_cell(), inner.get_cell(), return_sequences=True, return_states=True)
    x = variable(B, T, D)
    ys, *after = outer(x)
    got = values(ys, *after)
    step = simple_step(cell)
    h1, h2, expected = np.zeros((B, D)), np.zeros((B, D)), []
    for t in range(T):
        h1 = step(x.d[:, t], h1)
        h2 = step(h1, h2)
        expected.append(h2)
    same(got, [np.stack(expected, axis=1), h1, h2])
    assert len(arrays_of(outer)) == 3


@pytest.mark.parametrize("unroll", [True, False])
def test_a_nested_readout_is_what_one_does_by_hand(unroll: bool) -> None:
    """The original lost it. The last output is one more state of the inner layer, after its own."""
    first, second = rs.SimpleRNNCell(D), rs.SimpleRNNCell(4)
    inner = sequential(first, readout="add", readout_activation="sigmoid")
    outer = sequential(inner.get_cell(), second, return_sequences=True, return_states=True, unroll=unroll)
    x = variable(B, T, D)
    got = values(*outer(x))
    step, top = simple_step(first), simple_step(second)
    h, r, g, expected = np.zeros((B, D)), np.zeros((B, D)), np.zeros((B, 4)), []
    for t in range(T):
        h = r = step(x.d[:, t] + 1 / (1 + np.exp(-r)), h)
        g = top(h, g)
        expected.append(g)
    same(got, [np.stack(expected, axis=1), h, r, g])


@pytest.mark.parametrize("declared", [{"input_shape": (D,)}, {"batch_input_shape": (B, D)}, {"input_dim": D}], ids=named)
def test_a_nested_readout_of_a_cell_that_declares_its_input(declared: dict) -> None:
    cell = rs.GRUCell(D, **declared)
    if "input_dim" in declared:  # one layer further in
        cell = sequential(cell).get_cell()
    outer = sequential(sequential(cell, readout=True).get_cell(), return_sequences=True)
    assert outer(variable(B, T, D)).shape == (B, T, D)


def test_a_nested_readout_of_another_width() -> None:
    inner = sequential(rs.LSTMCell(8), readout="add")
    refused(
        r"needs the output width to equal the input width.*\(8,\).*\(3,\)",
        lambda: sequential(inner.get_cell())(variable(B, T, D)),
    )


def test_a_readout_nested_in_a_readout() -> None:
    cell = rs.SimpleRNNCell(D)
    inner = sequential(cell, readout="mul")
    outer = sequential(inner.get_cell(), (F.mul_scalar, 0.5), readout="max", return_sequences=True)
    x, r0 = variable(B, T, D), variable(B, D, seed=1)
    (got,) = values(outer(x, initial_readout=r0))
    step, h, r, outermost, expected = simple_step(cell), np.zeros((B, D)), np.zeros((B, D)), r0.d, []
    for t in range(T):
        h = r = step(np.maximum(x.d[:, t], outermost) * r, h)
        outermost = 0.5 * r
        expected.append(outermost)
    same([got], [np.stack(expected, axis=1)])


def feedback_step(x: nn.Variable, h: nn.Variable, last: nn.Variable) -> tuple:
    h = F.tanh(PF.affine(x, 4, name="x") + PF.affine(h, 4, name="h") + PF.affine(last, 4, name="r"))
    return PF.affine(h, 2, name="y"), h


def test_a_nested_model_with_a_readout() -> None:
    model = rs.RecurrentModel(feedback_step, initial_states=[(4,)], readout_input=(2,), return_sequences=True)
    outer = sequential(model.get_cell(), (F.mul_scalar, 2.0), return_sequences=True)
    x = variable(B, T, D)
    ys, doubled = model(x), outer(x)
    same([2 * v for v in values(ys)], values(doubled))


def test_a_nested_cell_keeps_its_state_initializer() -> None:
    cell = rs.SimpleRNNCell(D)
    inner = sequential(cell, state_initializer="ones")
    outer = sequential(inner.get_cell(), return_sequences=True)
    x = variable(B, 1, D)
    (got,) = values(outer(x))
    same([got[:, 0]], [simple_step(cell)(x.d[:, 0], np.ones((B, D)))])


def test_a_nested_cell_shares_its_states_with_others() -> None:
    inner = sequential(rs.GRUCell(4), (PF.affine, 4))
    nested = sequential(rs.GRUCell(4), inner.get_cell(), state_sync=True, return_sequences=True)
    flat = sequential(rs.GRUCell(4), rs.GRUCell(4), (PF.affine, 4), state_sync=True, return_sequences=True)
    x = variable(B, T, D)
    ys, expected = nested(x), flat(x)
    rs.load_recurrentshop_weights(flat, arrays_of(nested))
    same(values(ys), values(expected))


# ---------------------------------------------------------------------------------------------------------- names, weights


def test_two_layers_of_one_cell_share_its_weights() -> None:
    cell, x = rs.LSTMCell(4), variable(B, T, D)
    one, other = cell.get_layer(return_sequences=True), cell.get_layer(return_states=True, go_backwards=True)
    ys, (last, *_) = one(x), other(F.flip(x, axes=[1]))
    assert sorted(all_parameters()) == [f"{cell.name}/{name}" for name in ("b", "h2h/W", "x2h/W")]
    got, expected = values(last, ys)
    same([got], [expected[:, -1]])


def test_a_layer_called_twice_has_one_set_of_weights() -> None:
    rnn, x = sequential(rs.GRUCell(4), (PF.affine, 5)), variable(B, T, D)
    with nn.parameter_scope("here"):
        first = rnn(x)
    names = sorted(all_parameters())
    assert all(name.startswith(f"here/{rnn.name}/") for name in names)
    with nn.parameter_scope("there"), nn.parameter_scope("deeper"):
        second = rnn(x)
    third = rnn(x)
    assert sorted(all_parameters()) == names
    a, b, c = values(first, second, third)
    same([a, a], [b, c], rtol=0, atol=0)


def test_a_layer_called_after_its_parameters_were_cleared_makes_them_where_they_were() -> None:
    rnn, x = sequential(rs.GRUCell(4), (PF.affine, 5)), variable(B, T, D)
    with nn.parameter_scope("here"):
        rnn(x)
    names = sorted(all_parameters())
    nn.clear_parameters()
    assert not all_parameters()
    first, second = rnn(x), rnn(x)
    assert sorted(all_parameters()) == names
    for v in all_parameters().values():
        v.d = v.d + 0.1
    same(values(first), values(second), rtol=0, atol=0)


def test_names_are_in_the_order_of_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnshop.recurrentshop.names._numbers", {})
    assert [rs.RecurrentSequential().name for _ in range(3)] == [
        "recurrent_sequential",
        "recurrent_sequential_1",
        "recurrent_sequential_2",
    ]
    model = rs.RecurrentModel(lambda x, h: (h, h), initial_states=[(2,)])
    assert (model.name, rs.LSTMCell(2).name, rs.LSTMCell(2).name) == ("recurrent_model", "lstm_cell", "lstm_cell_1")
    assert (rs.SimpleRNNCell(2).name, rs.RHNCell(2).name, rs.GRUCell(2).name) == ("simple_rnn_cell", "rhn_cell", "gru_cell")
    assert rs.RecurrentSequential(name="mine").name == "mine"
    assert rs.RecurrentSequential().name == "recurrent_sequential_3"


def test_the_order_of_the_calls_does_not_change_the_names() -> None:
    x, names = variable(B, T, D), []
    for order in ((0, 1), (1, 0)):
        nn.clear_parameters()
        rnns = [sequential(rs.GRUCell(4, name="cell"), name=name) for name in ("a", "b")]
        for i in order:
            rnns[i](x)
        names.append(sorted(all_parameters()))
    assert names[0] == names[1]


# ---------------------------------------------------------------------------------------------------- training=, dropout


def test_dropout_draws_a_new_mask_at_every_step_and_scales() -> None:
    constant = rs.SimpleRNNCell(
        40, activation="linear", kernel_initializer="zeros", recurrent_initializer="zeros", bias_initializer="ones"
    )
    rnn = sequential(constant, (F.dropout, 0.5), return_sequences=True)
    ys = rnn(variable(B, T, D))
    (got,) = values(ys)
    assert set(np.unique(got)) == {0.0, 2.0}
    assert len({step.tobytes() for step in got.swapaxes(0, 1)}) == T
    assert (values(ys)[0] != got).any()  # and anew in each forward


@pytest.mark.parametrize(("nested", "sync"), [(False, False), (True, False), (False, True)])
def test_without_training_there_is_no_dropout_and_every_name_stays(nested: bool, sync: bool) -> None:
    inner = sequential(rs.GRUCell(4), (F.dropout, 0.5)).get_cell() if nested else rs.GRUCell(4)
    rnn = sequential(
        rs.GRUCell(4), (F.dropout, 0.5), inner, (F.dropout, 0.9), (PF.affine, 5), state_sync=sync, return_sequences=True
    )
    x = variable(B, T, D)
    trained = rnn(x)
    names = sorted(all_parameters())
    calm = rnn(x, training=False)
    assert sorted(all_parameters()) == names
    without = sequential(rs.GRUCell(4), F.identity, rs.GRUCell(4), (PF.affine, 5), state_sync=sync, return_sequences=True)
    expected = without(x)
    rs.load_recurrentshop_weights(without, arrays_of(rnn))
    got = values(calm)
    same(got, values(expected))
    same(got, values(calm), rtol=0, atol=0)
    assert (values(trained)[0] != values(trained)[0]).any()


@pytest.mark.parametrize("wired", [False, True], ids=["function", "graph"])
def test_without_training_there_is_no_dropout_in_a_model(wired: bool) -> None:
    def step(x: nn.Variable, h: nn.Variable) -> tuple:
        h = F.tanh(PF.affine(F.dropout(x, 0.5), 4, name="x") + PF.affine(h, 4, name="h"))
        return h, h

    x, h = nn.Variable((1, D)), nn.Variable((1, 4))
    y, after = step(x, h)
    graph = {"input": x, "output": y, "initial_states": [h], "final_states": [after]}
    rnn = rs.RecurrentModel(**graph) if wired else rs.RecurrentModel(step, initial_states=[(4,)])
    ys = rnn(variable(B, T, D), training=False)
    same(values(ys), values(ys), rtol=0, atol=0)


CELLS: dict[str, Callable] = {
    "simple": lambda: rs.SimpleRNNCell(D),
    "lstm": lambda: rs.LSTMCell(D),
    "gru": lambda: rs.GRUCell(D),
    "rhn": lambda: rs.RHNCell(D, recurrence_depth=2),
}


@pytest.mark.parametrize("cell", CELLS)
def test_without_training_in_auto_forward_mode_too(cell: str) -> None:
    rnn, x = sequential(CELLS[cell](), (F.dropout, 0.5), return_sequences=True), variable(B, T, D)
    (expected,) = values(rnn(x, training=False))
    with nn.auto_forward():
        same([rnn(x, training=False).d], [expected])


def test_built_for_inference_first_it_has_the_same_names() -> None:
    names = []
    for training in (True, False):
        nn.clear_parameters()
        rnn = sequential(
            rs.GRUCell(D, name="g"), (F.dropout, 0.5), (PF.affine, D), readout=True, teacher_force=True, name="net"
        )
        rnn(variable(B, T, D), ground_truth=variable(B, T, D) if training else None, training=training)
        names.append(sorted(all_parameters()))
    assert names[0] == names[1]


# --------------------------------------------------------------------------------------------------------- teacher forcing


def as_sequential(**options: Any) -> tuple[Any, nn.Variable, int]:
    options = {"readout": "add", "return_sequences": True, **options}
    return sequential(rs.LSTMCell(4), (PF.affine, D), **options), variable(B, T, D), D


def as_decoder(**options: Any) -> tuple[Any, nn.Variable, int]:
    return as_sequential(decode=True, output_length=T, **options)[0], variable(B, D), D


def as_function(**options: Any) -> tuple[Any, nn.Variable, int]:
    options = {"return_sequences": True, **options}
    rnn = rs.RecurrentModel(feedback_step, initial_states=[(4,)], readout_input=(2,), **options)
    return rnn, variable(B, T, D), 2


def as_graph(**options: Any) -> tuple[Any, nn.Variable, int]:
    options = {"return_sequences": True, **options}
    x, h, last = nn.Variable((1, D)), nn.Variable((1, 4)), nn.Variable((1, 2))
    y, after = feedback_step(x, h, last)
    rnn = rs.RecurrentModel(x, y, initial_states=[h], final_states=[after], readout_input=last, **options)
    return rnn, variable(B, T, D), 2


def as_function_decoder(**options: Any) -> tuple[Any, nn.Variable, int]:
    return as_function(decode=True, output_length=T, **options)[0], variable(B, D), 2


KINDS = [as_sequential, as_decoder, as_function, as_graph, as_function_decoder]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@kinds
@pytest.mark.parametrize("t", range(T))
def test_changing_the_truth_at_t_changes_nothing_up_to_t(kind: Callable, t: int) -> None:
    """The original fed truth[t] at step t."""
    rnn, x, width = kind(teacher_force=True)
    truth = variable(B, T, width, seed=1)
    ys = rnn(x, ground_truth=truth)
    (before,) = values(ys)
    changed = truth.d.copy()
    changed[:, t] += 1
    truth.d = changed
    (after,) = values(ys)
    np.testing.assert_array_equal(before[:, : t + 1], after[:, : t + 1])
    if t + 1 < T:
        assert (before[:, t + 1] != after[:, t + 1]).any(axis=1).all()


@kinds
def test_forced_with_its_own_outputs_it_runs_free(kind: Callable) -> None:
    """From an initial readout, with all states."""
    rnn, x, width = kind(teacher_force=True, return_states=True)
    own, r0 = variable(B, T, width, seed=1), variable(B, width, seed=2)
    forced = rnn(x, ground_truth=own, initial_readout=r0)
    names = sorted(all_parameters())
    free = rnn(x, initial_readout=r0, training=False)
    assert sorted(all_parameters()) == names
    assert (values(free[0])[0] != values(forced[0])[0]).any()
    (own.d,) = values(free[0])
    same(values(*forced), values(*free))


@kinds
def test_it_predicts_without_a_ground_truth_and_ignores_one(kind: Callable) -> None:
    rnn, x, width = kind(teacher_force=True)
    truth = variable(B, T, width, seed=1)
    rnn(x, ground_truth=truth)
    ys, given = rnn(x, training=False), rnn(x, ground_truth=truth, training=False)
    plain, _, _ = kind()
    expected = plain(x)
    mine = {name: v for name, v in all_parameters().items() if name.startswith(rnn.name)}
    for name, v in mine.items():
        other = name.replace(rnn.name, plain.name, 1)
        if isinstance(rnn, rs.RecurrentSequential):
            other = other.replace(rnn.cells[0].name, plain.cells[0].name, 1)
        all_parameters()[other].d = v.d
    got, ignoring, free = values(ys, given, expected)
    same([got, got], [ignoring, free])
    truth.d = truth.d + 1
    same([got], values(given), rtol=0, atol=0)


@pytest.mark.parametrize("backwards", [False, True])
def test_forced_by_its_equation(backwards: bool) -> None:
    """go_backwards turns the input round, and not the truth, which is in the order of the outputs."""
    cell = rs.SimpleRNNCell(D)
    rnn = sequential(
        cell, readout="add", readout_activation="tanh", teacher_force=True, return_sequences=True, go_backwards=backwards
    )
    x, truth, r0 = variable(B, T, D), variable(B, T, D, seed=1), variable(B, D, seed=2)
    (got,) = values(rnn(x, ground_truth=truth, initial_readout=r0))
    step, h, expected = simple_step(cell), np.zeros((B, D)), []
    for t in range(T):
        fed = truth.d[:, t - 1] if t else r0.d
        h = step(x.d[:, T - 1 - t if backwards else t] + np.tanh(fed), h)
        expected.append(h)
    same([got], [np.stack(expected, axis=1)])


def test_forced_with_a_mask() -> None:
    """A masked step holds states and output, and its truth counts for nothing. The original crashed."""
    cell = rs.SimpleRNNCell(D)
    rnn = sequential(cell, readout="add", teacher_force=True, return_sequences=True, return_states=True)
    x, truth, mask = variable(B, T, D), variable(B, T, D, seed=1), np.array([[0, 1, 1, 0, 1], [1, 0, 1, 1, 0]])
    got = values(*rnn(x, ground_truth=truth, mask=nn.Variable.from_numpy_array(mask)))
    step, h, y, fed, expected = simple_step(cell), np.zeros((B, D)), np.zeros((B, D)), np.zeros((B, D)), []
    for t in range(T):
        after, keep = step(x.d[:, t] + fed, h), mask[:, t : t + 1]
        h, y, fed = np.where(keep, after, h), np.where(keep, after, y), np.where(keep, truth.d[:, t], fed)
        expected.append(y)
    same(got, [np.stack(expected, axis=1), h])


@kinds
@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_scheduled_sampling_at_its_ends(kind: Callable, probability: float) -> None:
    """Never its own output, and always; training may change it."""
    p = nn.Variable((1,))
    p.d = probability
    rnn, x, width = kind(teacher_force=True, sampling_probability=p)
    truth, r0 = variable(B, T, width, seed=1), variable(B, width, seed=2)
    mixed, free = rnn(x, ground_truth=truth, initial_readout=r0), rnn(x, initial_readout=r0, training=False)
    rnn.sampling_probability = None
    forced = rnn(x, ground_truth=truth, initial_readout=r0)
    a, b, c = values(mixed, free, forced)
    assert (b != c).any()
    same([a], [b if probability else c])
    p.d = 1 - probability
    same(values(mixed), [c if probability else b])


def test_scheduled_sampling_starts_from_the_initial_readout_either_way() -> None:
    p = nn.Variable((1,))
    rnn, x, _ = as_sequential(teacher_force=True, sampling_probability=p)
    ys = rnn(x, ground_truth=variable(B, T, D, seed=1), initial_readout=variable(B, D, seed=2))
    firsts = []
    for probability in (0.0, 0.5, 1.0):
        p.d = probability
        firsts.append(values(ys)[0][:, 0])
    same(firsts[1:], [firsts[0]] * 2, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------------------ decode


@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize("kind", [{}, {"readout": "add"}, {"readout": "readout_only"}, {"state_sync": True}], ids=named)
def test_decode_runs_on_the_same_input_at_every_step(kind: dict, unroll: bool) -> None:
    """Outputs, states and gradients; it returns sequences also where it was not asked to."""
    parts = [rs.GRUCell(D, name="lower"), rs.GRUCell(D, name="upper")]
    options = {"return_states": True, "name": "net", "unroll": unroll, **kind}
    decoder = sequential(*parts, decode=True, output_length=T, **options)
    repeated = sequential(*parts, return_sequences=True, **options)
    x = variable(B, D)
    made, expected = decoder(x), repeated(F.broadcast(F.reshape(x, (B, 1, D)), (B, T, D)))
    assert made[0].shape == (B, T, D)
    same(values(*made), values(*expected))
    found = []
    for outputs in (made, expected):
        x.g = 0
        backward(*outputs)
        found.append([x.g.copy(), *(v.g.copy() for v in all_parameters().values())])
    same(*found, rtol=1e-4)


def test_decode_may_be_given_a_whole_sequence_at_every_step() -> None:
    def attend(xs: nn.Variable, h: nn.Variable) -> tuple:  # xs (B, S, D), h (B, 4)
        query = F.reshape(PF.affine(h, D, name="query"), (h.shape[0], D, 1))
        weights = F.softmax(F.batch_matmul(xs, query), axis=1)  # (B, S, 1)
        h = F.tanh(PF.affine(F.sum(weights * xs, axis=1), 4, name="x") + PF.affine(h, 4, name="h"))
        return h, h

    rnn = rs.RecurrentModel(attend, initial_states=[(4,)], decode=True, output_length=T, name="attend")
    xs, expected = variable(B, 7, D), []
    ys = rnn(xs)
    assert ys.shape == (B, T, 4)
    h = F.constant(0, (B, 4))
    with nn.parameter_scope("attend"):
        for _ in range(T):
            y, h = attend(xs, h)
            expected.append(y)
    same(values(ys), values(F.stack(*expected, axis=1)))


def test_its_own_output_is_readout_only_with_the_vector_as_initial_readout() -> None:
    """What decode is not: the vector comes once, and then what was put out."""
    cell = rs.SimpleRNNCell(D)
    rnn = sequential(cell, decode=True, output_length=T, readout="readout_only")
    x = variable(B, D)
    (got,) = values(rnn(x, initial_readout=x))
    step, h, r, expected = simple_step(cell), np.zeros((B, D)), x.d, []
    for _ in range(T):
        h = r = step(r, h)
        expected.append(h)
    same([got], [np.stack(expected, axis=1)])


# ------------------------------------------------------------------------------------------------------- time, unroll, sync


def test_go_backwards_gives_outputs_in_the_order_of_computation() -> None:
    cell = rs.SimpleRNNCell(4)
    rnn = sequential(cell, return_sequences=True, return_states=True, go_backwards=True)
    x = variable(B, T, D)
    got = values(*rnn(x))
    step, h, expected = simple_step(cell), np.zeros((B, 4)), []
    for t in reversed(range(T)):
        h = step(x.d[:, t], h)
        expected.append(h)
    same(got, [np.stack(expected, axis=1), h])


def test_a_masked_step_repeats_the_last_output_also_where_it_is_not_the_first_state() -> None:
    """The original put out the first state there, and failed where it had another width."""
    lower, upper = rs.SimpleRNNCell(4), rs.SimpleRNNCell(6)
    rnn = sequential(lower, upper, return_sequences=True, return_states=True)
    x = variable(B, T, D)
    mask = np.array([[0, 1, 1, 0, 1], [1, 0, 1, 1, 0]])
    got = values(*rnn(x, mask=nn.Variable.from_numpy_array(mask)))
    low, up = simple_step(lower), simple_step(upper)
    h, g, y, expected = np.zeros((B, 4)), np.zeros((B, 6)), np.zeros((B, 6)), []
    for t in range(T):
        keep = mask[:, t : t + 1]
        after = low(x.d[:, t], h)
        top = up(after, g)
        h, g, y = (np.where(keep, a, b) for a, b in ((after, h), (top, g), (top, y)))
        expected.append(y)
    same(got, [np.stack(expected, axis=1), h, g])


def attention(x: nn.Variable, memory: nn.Variable) -> tuple:  # x (B, D), memory (B, 4, D)
    weights = F.softmax(F.batch_matmul(memory, F.reshape(x, (*x.shape, 1))), axis=1)
    return F.sum(weights * memory, axis=1), 0.5 * memory + F.reshape(F.tanh(PF.affine(x, 4 * D)), memory.shape)


NETS: dict[str, Callable] = {
    "stack": lambda **o: sequential(rs.LSTMCell(4), (PF.affine, 5), F.relu, rs.RHNCell(3, recurrence_depth=2), **o),
    "readout": lambda **o: sequential(rs.GRUCell(4), (PF.affine, D), readout="avg", readout_activation="softsign", **o),
    "function readout": lambda **o: sequential(
        rs.GRUCell(4), readout=lambda x, last: F.concatenate(x, F.tanh(last), axis=1), **o
    ),
    "sync": lambda **o: sequential(rs.LSTMCell(D), rs.LSTMCell(D), (PF.affine, D), state_sync=True, readout=True, **o),
    "matrix state": lambda **o: rs.RecurrentModel(attention, initial_states=[(4, D)], **o),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("options", [{}, {"go_backwards": True}, {"return_sequences": True}, {"steps": 1}], ids=named)
def test_unroll_changes_nothing(net: str, options: dict) -> None:
    """Two layers of one name are one: the same weights, run in two ways."""
    options = dict(options)
    x, outputs, found = variable(B, options.pop("steps", T), D), [], []
    for unroll in (False, True):
        nn.clear_parameters()
        nn.seed(0)
        np.random.seed(0)
        made = NETS[net](unroll=unroll, return_states=True, name="net", **options)(x)
        outputs.append(values(*made))
        x.g = 0
        backward(*made)
        found.append([x.g.copy(), *(v.g.copy() for v in all_parameters().values())])
    same(*outputs)
    same(*found, rtol=1e-4)


def test_state_sync_runs_the_states_through_the_cells_within_a_step() -> None:
    cells = [rs.SimpleRNNCell(4), rs.SimpleRNNCell(4)]
    rnn = sequential(cells[0], (PF.affine, 5), cells[1], state_sync=True, return_sequences=True, return_states=True)
    assert rnn.num_states == 1
    x = variable(B, T, D)
    ys, after = rnn(x)
    dense = {k.rsplit("/", 1)[1]: v.d.astype(np.float64) for k, v in all_parameters().items() if "affine" in k}
    got = values(ys, after)
    first, second = (simple_step(cell) for cell in cells)
    h, expected = np.zeros((B, 4)), []
    for t in range(T):
        h = first(x.d[:, t], h)
        h = second(h @ dense["W"] + dense["b"], h)
        expected.append(h)
    same(got, [np.stack(expected, axis=1), h])


# ---------------------------------------------------------------------------------------------------------------- stateful

STATEFUL = {
    "stack": lambda **o: sequential(rs.LSTMCell(4, name="l"), rs.GRUCell(D, name="g"), **o),
    "readout": lambda **o: sequential(rs.LSTMCell(D, name="l"), readout="add", **o),
    "sync": lambda **o: sequential(rs.GRUCell(4, name="l"), rs.GRUCell(4, name="g"), state_sync=True, **o),
    "model": lambda **o: rs.RecurrentModel(feedback_step, initial_states=[(4,)], readout_input=(2,), **o),
}


@pytest.mark.parametrize("net", STATEFUL)
def test_carried_over_three_batches_it_equals_one_long_run(net: str) -> None:
    """In values; and each batch has the exact gradients of a network that starts from the states it began with."""
    options = {"return_sequences": True, "return_states": True, "name": "net"}
    long = variable(B, 3 * T, D)
    whole = values(*STATEFUL[net](**options)(long))
    x = nn.Variable((B, T, D))
    rnn = STATEFUL[net](stateful=True, **options)
    made = rnn(x)
    loss = F.sum(F.sin(made[0]))
    outputs = []
    fresh = STATEFUL[net](**options)
    for batch in range(3):
        x.d = long.d[:, batch * T : (batch + 1) * T]
        start = [nn.Variable.from_numpy_array(value) for value in rnn._carried[-1].get()]
        for v in all_parameters().values():
            v.g = 0
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
        gradients = [v.g.copy() for v in all_parameters().values()]
        feeds = getattr(rnn, "readout", False) or getattr(rnn, "readout_shape", None)
        reference = fresh(x, initial_state=start[:-1] if feeds else start, initial_readout=start[-1] if feeds else None)
        expected = F.sum(F.sin(reference[0]))
        for v in all_parameters().values():
            v.g = 0
        expected.forward()
        expected.backward()
        same(gradients, [v.g for v in all_parameters().values()], rtol=1e-4, atol=1e-5)
        outputs.append(reference[0].d.copy())
        rnn.carry()
    same([np.concatenate(outputs, axis=1)], whole[:1])
    same([v.d for v in made[1:]], whole[1:])


def stateful_net() -> tuple[Any, nn.Variable, list]:
    rnn = STATEFUL["stack"](stateful=True, return_sequences=True, return_states=True)
    x = variable(B, T, D)
    return rnn, x, rnn(x)


def test_a_second_forward_advances_nothing() -> None:
    rnn, _, made = stateful_net()
    first = values(*made)
    same(values(*made), first, rtol=0, atol=0)
    rnn.carry()
    second = values(*made)
    assert all((a != b).any() for a, b in zip(first, second))
    same(values(*made), second, rtol=0, atol=0)


def test_reset_states_begins_anew() -> None:
    rnn, _, made = stateful_net()
    first = values(*made)
    rnn.carry()
    values(*made)
    rnn.carry()
    rnn.reset_states()
    same(values(*made), first, rtol=0, atol=0)


def test_reset_states_gives_back_what_the_initializers_say() -> None:
    rnn = STATEFUL["stack"](stateful=True, state_initializer=["ones"], return_sequences=True)
    ys = rnn(variable(B, T, D))
    (first,) = values(ys)
    rnn.carry()
    assert (values(ys)[0] != first).any()
    rnn.reset_states()
    same(values(ys), [first], rtol=0, atol=0)


def test_reset_states_to_values() -> None:
    """One number for all, or one number or array for each state: the original always raised a TypeError."""
    rnn, x, made = stateful_net()
    array = np.random.RandomState(1).randn(B, 4)
    plain = STATEFUL["stack"](return_sequences=True, return_states=True, name=rnn.name)
    for given, full in ((0.5, [0.5, 0.5, 0.5]), ([0.1, array, -1.0], [0.1, array, -1.0])):
        rnn.reset_states(given)
        shapes = (B, 4), (B, 4), (B, D)
        start = [nn.Variable.from_numpy_array(np.broadcast_to(value, shape)) for value, shape in zip(full, shapes)]
        same(values(*made), values(*plain(x, initial_state=start)))


def test_reset_states_of_single_samples() -> None:
    rnn, _, made = stateful_net()
    first = values(made[0])[0]
    rnn.carry()
    second = values(made[0])[0]
    rnn.reset_states(rows=[1])
    got = values(made[0])[0]
    same([got[0], got[1]], [second[0], first[1]])
    rnn.reset_states(0.5, rows=[0])
    mixed = values(made[0])[0]
    assert (mixed[0] != got[0]).any()
    same([mixed[1]], [got[1]])


def test_each_graph_has_a_state_of_its_own() -> None:
    """A graph for validation does not disturb the one for training."""
    rnn, x, made = stateful_net()
    other = rnn(variable(3, 2, D, seed=5), training=False)
    first = values(made[0])[0]
    values(other[0])
    rnn.carry()
    second = values(made[0])[0]
    alone = STATEFUL["stack"](return_sequences=True, name=rnn.name)(F.concatenate(x, x, axis=1))
    same([np.concatenate([first, second], axis=1)], values(alone))


def test_carry_leaves_alone_what_has_not_run() -> None:
    """A graph for validation that was reset begins anew, also where training went on in between."""
    rnn, _, made = stateful_net()
    other = rnn(variable(B, T, D, seed=5), training=False)
    (first,) = values(other[0])
    rnn.carry()
    rnn.reset_states()
    values(*made)
    rnn.carry()
    same(values(other[0]), [first], rtol=0, atol=0)


def test_a_call_that_failed_leaves_nothing_behind() -> None:
    rnn, x, made = stateful_net()
    values(*made)
    with pytest.raises(ValueError, match="is stateful"):
        rnn(x, initial_state=[variable(B, 4)])
    rnn.carry()


# ------------------------------------------------------------------------------------------------------- state initializers


def threes(shape: tuple) -> np.ndarray:
    return np.full(shape, 3.0)


@pytest.mark.parametrize(
    ("initializer", "starts"),
    [
        (None, (0, 0, 0)),
        ("ones", (1, 1, 1)),
        (threes, (3, 3, 3)),
        (ConstantInitializer(0.5), (0.5, 0.5, 0.5)),
        ([], (0, 0, 0)),
        (["ones"], (1, 0, 0)),
        ([None, "ones"], (0, 1, 0)),
        (("ones", None, threes), (1, 0, 3)),
    ],
    ids=named,
)
def test_state_initializer(initializer: Any, starts: tuple) -> None:
    """By name, a function, an initializer of NNabla, or a list of these by state; zeros for what a list leaves out."""
    parts = rs.LSTMCell(4, name="l"), rs.GRUCell(6, name="g")
    listed = list(initializer) if isinstance(initializer, list) else None
    x, options = variable(B, T, D), {"return_sequences": True, "name": "net"}
    ys = sequential(*parts, state_initializer=initializer, **options)(x)
    states = [nn.Variable.from_numpy_array(np.full((B, n), v)) for n, v in zip((4, 4, 6), starts)]
    expected = sequential(*parts, **options)(x, initial_state=states)
    same(values(ys), values(expected))
    assert listed is None or initializer == listed  # the original changed the caller's list


def test_an_initial_state_goes_before_the_initializer() -> None:
    rnn, x = sequential(rs.GRUCell(4), state_initializer="ones", return_sequences=True), variable(B, T, D)
    given, zeros = rnn(x, initial_state=[F.constant(0, (B, 4))]), sequential(*rnn.cells, name=rnn.name, return_sequences=True)
    same(values(given), values(zeros(x)))


def test_a_random_initializer_draws_for_each_sample() -> None:
    rnn = sequential(rs.GRUCell(4), state_initializer="random_uniform", return_sequences=True)
    (got,) = values(rnn(F.constant(1, (2, 1, D))))
    assert (got[0] != got[1]).any()


def test_the_initializer_leaves_the_readout_alone() -> None:
    cell = rs.SimpleRNNCell(D)
    rnn, x = sequential(cell, readout="add", state_initializer="ones", return_sequences=True), variable(B, 1, D)
    (got,) = values(rnn(x))
    same([got[:, 0]], [simple_step(cell)(x.d[:, 0], np.ones((B, D)))])


@pytest.mark.parametrize("unroll", [True, False])
def test_a_learned_initial_state_gets_a_gradient(unroll: bool) -> None:
    """By finite differences."""

    def learned(shape: tuple) -> nn.Variable:
        return F.broadcast(get_parameter_or_create("h0", (1, *shape[1:]), ConstantInitializer(0.5)), shape)

    rnn = sequential(rs.GRUCell(4), state_initializer=learned, unroll=unroll)
    loss = F.sum(rnn(variable(B, T, D)))
    (h0,) = (v for name, v in all_parameters().items() if name.endswith("h0"))
    h0.g = 0
    loss.forward()
    loss.backward()
    gradient, value, ends = h0.g.copy(), h0.d.copy(), []
    direction = np.random.RandomState(3).randn(*h0.shape)
    for sign in (1, -1):
        h0.d = value + sign * 1e-2 * direction
        ends.append(float(values(loss)[0]))
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float((gradient * direction).sum()), rel=2e-3)


def test_a_learned_initial_state_belongs_to_its_layer() -> None:
    def learned(shape: tuple) -> nn.Variable:
        return F.broadcast(get_parameter_or_create("h0", (1, *shape[1:]), ConstantInitializer(0.5)), shape)

    rnns = [sequential(rs.GRUCell(units), state_initializer=learned) for units in (4, 5)]
    for rnn in rnns:
        rnn(variable(B, T, D))
        with nn.parameter_scope("elsewhere"):
            rnn(variable(B, T, D))
    assert [name for name in all_parameters() if name.endswith("h0")] == [f"{rnn.name}/h0" for rnn in rnns]


def test_a_learned_initial_state_cannot_be_carried() -> None:
    """A clear error, or a carry that works; never a carry that does nothing."""

    def learned(shape: tuple) -> nn.Variable:
        return F.broadcast(get_parameter_or_create("h0", (1, *shape[1:]), ConstantInitializer(0.5)), shape)

    rnn = sequential(rs.GRUCell(4), state_initializer=learned, stateful=True)
    with pytest.raises(ValueError, match="stateful"):
        rnn(variable(B, T, D))


# --------------------------------------------------------------------------------------------------------------- bad input


def refused(match: str, build: Callable[[], Any], error: type[Exception] = ValueError) -> None:
    """A clear error, before any parameter was made."""
    nn.clear_parameters()
    with pytest.raises(error, match=match):
        build()
    assert not all_parameters()


def test_an_unknown_readout() -> None:
    refused(r"readout must be .*'readout_only'; got 'ad'", lambda: rs.RecurrentSequential(readout="ad"))


@pytest.mark.parametrize("word", ["add", "mul", "avg", "max", "readout_only", True])
def test_a_readout_of_another_width(word: Any) -> None:
    x = variable(B, T, D)
    refused(
        rf"readout={word!r} needs the output width to equal the input width.*\(8,\).*\(3,\).*PF.affine\(3\)",
        lambda: sequential(rs.LSTMCell(8), readout=word)(x),
    )


def test_teacher_forcing_without_a_readout() -> None:
    refused("teacher_force=True.*give the layer a readout", lambda: rs.RecurrentSequential(teacher_force=True))
    refused(
        "teacher_force=True.*give readout_input",
        lambda: rs.RecurrentModel(lambda x, h: (h, h), initial_states=[(4,)], teacher_force=True),
    )


def test_teacher_forcing_without_a_ground_truth() -> None:
    rnn, x, _ = as_sequential(teacher_force=True)
    refused(f"{rnn.name}: teacher forcing needs ground_truth in training.*training=False", lambda: rnn(x))


def test_a_ground_truth_for_a_layer_that_is_not_forced() -> None:
    rnn, x, _ = as_sequential()
    refused("ground_truth is for teacher_force=True", lambda: rnn(x, ground_truth=x))
    plain = sequential(rs.GRUCell(D))
    refused("ground_truth is about what is fed back", lambda: plain(x, ground_truth=x))
    refused("initial_readout is about what is fed back", lambda: plain(x, initial_readout=variable(B, D)))
    refused("sampling_probability is for teacher_force", lambda: rs.RecurrentSequential(sampling_probability=nn.Variable((1,))))


@kinds
def test_a_ground_truth_of_another_length_or_width(kind: Callable) -> None:
    rnn, x, width = kind(teacher_force=True)
    existing = set(all_parameters())  # a graph has its weights from where it was wired
    for shape in ((B, T - 1, width), (B, T, width + 1), (B + 1, T, width)):
        with pytest.raises(ValueError, match="ground_truth must have the shape of the outputs") as caught:
            rnn(x, ground_truth=variable(*shape))
        assert str((B, T, width)) in str(caught.value)
        assert str(shape) in str(caught.value)
    assert set(all_parameters()) == existing


@pytest.mark.parametrize("length", [None, 0, -1])
def test_decode_without_output_length(length: Any) -> None:
    match = f"decode=True needs output_length >= 1.*got {length!r}"
    refused(match, lambda: rs.RecurrentSequential(decode=True, output_length=length))
    refused(match, lambda: rs.LSTMCell(4).get_layer(decode=True, output_length=length))


def test_output_length_without_decode() -> None:
    refused("output_length is for decode=True", lambda: rs.RecurrentSequential(output_length=3))


def test_a_mask_with_decode() -> None:
    rnn = sequential(rs.GRUCell(D), decode=True, output_length=T)
    refused("mask .* decode", lambda: rnn(variable(B, D), mask=variable(B, T)))


@pytest.mark.parametrize(
    ("cells", "match"),
    [
        ([rs.LSTMCell(4), rs.GRUCell(4)], r"equal states.*\(\(4,\),\).*\(\(4,\), \(4,\)\)"),
        ([rs.GRUCell(4), rs.LSTMCell(4)], r"equal states.*\(\(4,\), \(4,\)\).*\(\(4,\),\)"),
        ([rs.GRUCell(4), rs.GRUCell(5)], r"equal states.*\(\(5,\),\).*\(\(4,\),\)"),
    ],
    ids=["numbers", "numbers turned", "widths"],
)
def test_state_sync_of_cells_whose_states_differ(cells: list, match: str) -> None:
    refused(match, lambda: sequential(*cells, state_sync=True)(variable(B, T, D)))


def test_a_partial_initial_state() -> None:
    rnn, x = sequential(rs.LSTMCell(4), rs.GRUCell(6)), variable(B, T, D)
    h = variable(B, 4)
    match = r"initial_state must list all states.*\[\(2, 4\), \(2, 4\), \(2, 6\)\]; got"
    refused(match + r" \[\(2, 4\)\]", lambda: rnn(x, initial_state=[h]))
    refused(match + r" \[\(2, 4\)\]", lambda: rnn(x, initial_state=h))
    refused(match + r" \[\(2, 4\), \(2, 4\), \(2, 4\)\]", lambda: rnn(x, initial_state=[h, h, h]))


def test_an_initial_readout_of_another_shape() -> None:
    rnn, x, _ = as_sequential()
    refused(r"initial_readout .*\(2, 3\); got \(2, 4\)", lambda: rnn(x, initial_readout=variable(B, 4)))


def test_add_after_the_first_call() -> None:
    rnn = sequential(rs.GRUCell(4))
    rnn(variable(B, T, D))
    with pytest.raises(ValueError, match=rf"{rnn.name}: add\(\) comes before the first call"):
        rnn.add(rs.GRUCell(4))
    assert len(rnn.cells) == 1


def test_adding_what_is_no_layer() -> None:
    rnn = rs.RecurrentSequential()
    refused("a cell or a function of a Variable; got 5", lambda: rnn.add(5), TypeError)
    refused(r"add\(cell\) takes no more arguments; got \(8,\)", lambda: rnn.add(rs.GRUCell(4), 8), TypeError)


def test_a_stack_of_no_cells() -> None:
    x = variable(B, T, D)
    for parts in ([], [(PF.affine, 5), F.tanh]):
        rnn = sequential(*parts)
        refused(f"{rnn.name}: has no cell", lambda rnn=rnn: rnn(x))
        refused(f"{rnn.name}: has no cell", lambda rnn=rnn: rnn.get_cell())


def test_an_initializer_list_longer_than_the_states() -> None:
    rnn = sequential(rs.LSTMCell(4), state_initializer=["ones", None, "ones"])
    refused("state_initializer lists 3 initializers for 2 states", lambda: rnn(variable(B, T, D)))


def test_an_unknown_state_initializer() -> None:
    rnn = sequential(rs.LSTMCell(4), state_initializer=["one"])
    refused("an initializer is .*zeros.*got 'one'", lambda: rnn(variable(B, T, D)))


def test_keeping_states_of_a_layer_that_is_not_stateful() -> None:
    rnn = sequential(rs.GRUCell(4))
    rnn(variable(B, T, D))
    for method in (rnn.reset_states, rnn.carry):
        with pytest.raises(ValueError, match=rf"{rnn.name}: {method.__name__} .*stateful=True"):
            method()


def test_keeping_states_before_the_first_call() -> None:
    rnn = sequential(rs.GRUCell(4), stateful=True)
    refused("reset_states comes after the first call", rnn.reset_states)
    refused("carry comes after the first call", rnn.carry)


def test_resetting_to_too_few_values() -> None:
    rnn, _, made = stateful_net()
    before = values(*made)
    with pytest.raises(ValueError, match="a value for each of 3 states; got 2"):
        rnn.reset_states([1.0, 2.0])
    same(values(*made), before, rtol=0, atol=0)


def test_an_initial_state_of_a_stateful_layer() -> None:
    rnn = sequential(rs.GRUCell(4), stateful=True)
    refused(r"is stateful.*reset_states\(values\)", lambda: rnn(variable(B, T, D), initial_state=[variable(B, 4)]))


def test_weights_of_another_architecture() -> None:
    """The message lists what is missing, superfluous and misshapen; nothing is changed."""
    rnn = sequential(rs.GRUCell(4), (PF.affine, 5))
    arrays = [np.zeros(shape) for shape in ((D, 12), (12,), (4, 8), (4, 4), (4, 5), (5,))]
    with pytest.raises(ValueError, match="no weights before its first call"):
        rs.load_recurrentshop_weights(rnn, arrays)
    rnn(variable(B, T, D))
    before = arrays_of(rnn)
    with pytest.raises(ValueError, match="another architecture") as caught:
        rs.load_recurrentshop_weights(rnn, [*arrays[:3], arrays[4]])
    for part in ("gru_cell", "h2h/W has the shape (4, 5), not (4, 4)", "affine/W is missing", "affine/b is missing"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"array 6 of shape \(7, 7\) is superfluous"):
        rs.load_recurrentshop_weights(rnn, [*arrays, np.zeros((7, 7))])
    same(arrays_of(rnn), before, rtol=0, atol=0)
    rs.load_recurrentshop_weights(rnn, arrays)
    same(arrays_of(rnn), arrays)


def test_a_cell_without_units_or_with_an_unknown_word() -> None:
    refused("LSTMCell needs units >= 1.*got None", lambda: rs.LSTMCell())
    refused("got 0", lambda: rs.GRUCell(0))
    refused("activation must be .*got 'tahn'", lambda: rs.GRUCell(4, activation="tahn"))
    refused("an initializer is .*got 'glorot'", lambda: rs.GRUCell(4, kernel_initializer="glorot"))
    refused("recurrence_depth >= 1.*got 0", lambda: rs.RHNCell(4, recurrence_depth=0))


def test_a_cell_made_for_other_inputs() -> None:
    refused(r"inputs of shape \(7,\).*got \(3,\)", lambda: sequential(rs.GRUCell(4, input_dim=7))(variable(B, T, D)))


# ---------------------------------------------------------------------------------------------------- a cell of one's own


def test_penalties_of_a_layer_with_a_cell_of_ones_own() -> None:
    class Own(rs.RNNCell):
        def call(self, x: nn.Variable, *states: nn.Variable) -> tuple[nn.Variable, ...]:
            h = F.tanh(PF.affine(F.concatenate(x, *states, axis=1), self.size))
            return h, h

    rnn = sequential(Own(4), rs.LSTMCell(4, kernel_regularizer=rs.l2(0.5), bias_constraint=rs.UnitNorm()))
    rnn(variable(B, T, D))
    (loss,) = rs.regularization_losses(rnn).values()
    kernel = next(v for name, v in all_parameters().items() if name.endswith("x2h/W"))
    same(values(loss), [0.5 * np.sum(kernel.d**2)])
    rs.apply_constraints(rnn)


def test_a_cell_of_ones_own_is_stacked_nested_and_decoded() -> None:
    """`call` and, for other states than one of the units' shape, `state`."""

    class MinimalCell(rs.RNNCell):
        def call(self, x: nn.Variable, *states: nn.Variable) -> tuple[nn.Variable, ...]:
            (h,) = states
            h = F.tanh(PF.affine(x, self.units, name="x") + PF.affine(h, self.units, name="h", with_bias=False))
            return h, h

    cell = MinimalCell(4)
    assert cell.name.startswith("minimal_cell")
    layer, x = cell.get_layer(return_sequences=True), variable(B, T, D)
    rnn = sequential(sequential(cell).get_cell(), cell, return_sequences=True, return_states=True)
    ys, *after = rnn(x)
    assert (ys.shape, [v.shape for v in after]) == ((B, T, 4), [(B, 4)] * 2)
    (got,) = values(layer(x))
    w = {k: v.d.astype(np.float64) for k, v in all_parameters().items() if k.startswith(f"{cell.name}/")}
    h, expected = np.zeros((B, 4)), []
    for t in range(T):
        base = f"{cell.name}/"
        h = np.tanh(x.d[:, t] @ w[f"{base}x/affine/W"] + w[f"{base}x/affine/b"] + h @ w[f"{base}h/affine/W"])
        expected.append(h)
    same([got], [np.stack(expected, axis=1)])


def test_the_cores_cells_stand_in_a_recurrent_sequential_and_its_cells_in_the_core() -> None:
    import nnshop

    x = variable(B, T, D)
    mixed = sequential(nnshop.LSTMCell(4, name="textbook"), rs.GRUCell(D, name="shop"), return_sequences=True, name="net")
    ys = mixed(x)
    names = sorted(all_parameters())
    with nn.parameter_scope("net"):
        by_core, _ = run(nnshop.stack(nnshop.LSTMCell(4, name="textbook"), rs.GRUCell(D, name="shop")), x)
    assert sorted(all_parameters()) == names
    same(values(ys), values(by_core))
