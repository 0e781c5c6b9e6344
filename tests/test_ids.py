"""Ids that a graph is fed: what is none is an error when the graph runs, and nothing reads or writes what it names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from measuring import constant, randomize

import nnshop
from nnshop import GRUCell, embed, iterate, lift, portable, run, save_nnp, sequence_loss, stack
from nnshop.decoding import Step, decode
from nnshop.functions import linear_cross_entropy
from nnshop.graphs import functions_of
from nnshop.ids import is_check, known_ids
from nnshop.recurrentshop import RecurrentSequential
from nnshop.seq2seq import EncoderDecoder

V, D = 5, 4
WRONG = [np.nan, np.inf, -np.inf, 1e30, -1e30, 1e9, 1e6, V, 2.7]
IDS = np.array([[1.0, 2.0, 4.0], [0.0, 3.0, 1.0]])


def value(v: nn.Variable) -> np.ndarray:
    v.forward()
    return v.d.copy()


def weights(*shape: int) -> nn.Variable:
    return nn.Variable.from_numpy_array(np.random.RandomState(1).randn(*shape), need_grad=True)


def losses(targets: nn.Variable, *rest: Any, **options: Any) -> dict[str, Callable[[], nn.Variable]]:
    h, w, b = weights(2, 3, D), weights(D, V), weights(V)
    return {
        "sequence_loss": lambda: sequence_loss(F.affine(h, w, b, base_axis=2), targets, *rest, **options),
        "linear": lambda: linear_cross_entropy(h, w, b, targets, *rest, **options),
        "tied": lambda: linear_cross_entropy(h, F.transpose(w, (1, 0)), None, targets, *rest, transpose=True, **options),
        "parametric": lambda: nnshop.linear_cross_entropy(h, targets, V, *rest, **options),
    }


LOSSES = list(losses(nn.Variable((2, 3))))
each_loss = pytest.mark.parametrize("kind", LOSSES)


def decoder() -> EncoderDecoder:
    return EncoderDecoder(V, V, 3, 4, GRUCell(4), GRUCell(4), width=3)


TABLES: dict[str, Callable[[nn.Variable], nn.Variable]] = {
    "embed": lambda ids: embed(ids, V, D),
    "TimeDistributed": lambda ids: nnshop.TimeDistributed(PF.embed)(ids, V, D),
    "fused": lambda ids: run(stack(lift(PF.embed, V, D), GRUCell(3)), ids)[0],
    "unrolled": lambda ids: run(lift(PF.embed, V, D), ids, way="unrolled")[0],
    "loop": lambda ids: run(stack(lift(PF.embed, V, D), GRUCell(3)), ids, way="loop")[0],
    "source": lambda ids: decoder().loss(ids, constant(IDS)),
    "target": lambda ids: decoder().loss(constant(IDS), ids),
    "sampled": lambda ids: decoder().loss(constant(IDS), ids, sampling_probability=constant(np.array([0.5]))),
    "forced": lambda ids: run(
        nnshop.teacher_forced(decode(stack(lift(PF.embed, V, D), lift(PF.affine, V)), 0)), (None, ids), length=3
    )[0],
}
each_table = pytest.mark.parametrize("kind", TABLES)


def causes(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield str(error)
        error = error.__cause__


def refused(run_it: Callable[[], Any], *words: str) -> None:
    with pytest.raises(SystemError) as caught:
        run_it()
    text = "\n".join(causes(caught.value))
    assert all(word in text for word in words), text


def fed(targets: nn.Variable, wrong: float) -> None:
    targets.d = np.where(IDS == 3, wrong, IDS)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@each_loss
def test_a_target_that_is_no_class_is_named(kind: str, smoothing: float, wrong: float) -> None:
    targets = nn.Variable((2, 3))
    loss = losses(targets, label_smoothing=smoothing)[kind]()
    fed(targets, wrong)
    refused(loss.forward, f"a target must be a whole number from 0 to {V - 1}", str(np.float32(wrong))[:4])
    targets.d = IDS
    assert np.isfinite(value(loss))  # the graph goes on with right ones


@each_loss
def test_a_target_that_does_not_count_may_be_anything(kind: str) -> None:
    ones = constant(np.where(IDS == 3, 0, 1))
    expected = value(losses(constant(IDS), ones, label_smoothing=0.1)[kind]())
    for wrong in (*WRONG, -7.0):
        targets = nn.Variable((2, 3))
        fed(targets, wrong)
        np.testing.assert_array_equal(value(losses(targets, ones, label_smoothing=0.1)[kind]()), expected)
        if np.isfinite(wrong):
            ignoring = losses(targets, ignore_index=wrong, label_smoothing=0.1)[kind]()
            np.testing.assert_array_equal(value(ignoring), expected)


@pytest.mark.parametrize("wrong", [*WRONG, -1.0])
@each_table
def test_an_id_that_is_not_in_the_table_is_named(kind: str, wrong: float) -> None:
    ids = nn.Variable((2, 3))
    y = TABLES[kind](ids)
    fed(ids, wrong)
    refused(y.forward, f"must be a whole number from 0 to {V - 1}")
    ids.d = IDS
    assert np.isfinite(value(y)).all()


@each_table
def test_a_checked_table_is_nnablas(kind: str) -> None:
    """Values, gradients and names, with the checks and without them."""
    found = []
    for checks in (True, False):
        nn.clear_parameters()
        np.random.seed(5)
        nn.seed(5)
        ids = nn.Variable.from_numpy_array(IDS)
        if checks:
            y = F.sum(TABLES[kind](ids) ** 2)
        else:
            with known_ids():
                y = F.sum(TABLES[kind](ids) ** 2)
        checked = any(map(is_check, functions_of([y])))
        randomize()
        for v in nn.get_parameters().values():
            v.grad.zero()
        y.forward()
        y.backward()
        found.append((y.d.copy(), {name: v.g.copy() for name, v in nn.get_parameters().items()}))
        assert kind in ("loop", "fused") or checked == checks  # those check within their function
    np.testing.assert_equal(found[0], found[1])


def test_ids_are_as_they_were_when_they_were_checked() -> None:
    """What is fed between the passes reaches no gradient."""
    targets, h, w = nn.Variable((2, 3)), weights(2, 3, D), weights(D, V)
    table = embed(targets, V, D, name="t")
    loss = linear_cross_entropy(h, w, None, targets) + F.sum(table)
    targets.d = IDS
    for v in (h, w, *nn.get_parameters().values()):
        v.grad.zero()
    loss.forward()
    targets.d = 1e9
    loss.backward()
    np.testing.assert_array_equal(nn.get_parameters()["t/embed/W"].g[:, 0], np.bincount(np.int64(IDS.ravel()), minlength=V))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16, np.float64])
def test_ids_of_any_type_are_read_as_they_are(dtype: type) -> None:
    ids = nn.Variable.from_numpy_array(IDS.astype(dtype))
    y = embed(ids, V, D)
    table = nn.get_parameters()["embed/W"].d
    np.testing.assert_array_equal(value(y), table[IDS.astype(int)])
    ids.data.cast(dtype)[0, 0] = 200 if dtype is np.uint8 else 2**14 if dtype is np.int16 else 2**33 + 1
    refused(y.forward, "from 0 to 4")


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_of_recurrentshop_checks_with_dropout_and_without(training: bool) -> None:
    rnn = RecurrentSequential(return_sequences=True, name="rnn")
    for part in (lift(lambda ids: F.reshape(ids, (2,), inplace=False)), lift(PF.embed, V, D), lift(F.dropout, 0.5), GRUCell(3)):
        rnn.add(part)
    ids = nn.Variable((2, 3, 1))
    y = rnn(ids, training=training)
    ids.d = IDS[..., None]
    assert np.isfinite(value(y)).all()
    ids.d[1, 2] = V
    refused(y.forward, "from 0 to 4")


def test_portable_has_no_checks(tmp_path: Any) -> None:
    ids = nn.Variable((2, 3))
    with portable():
        y = embed(ids, V, D)
        loss = sequence_loss(F.affine(y, weights(D, V), base_axis=2), ids)
    assert not [f for f in functions_of([loss]) if f.name == "Callback"]
    save_nnp(tmp_path / "embed.nnp", {"ids": ids}, {"y": y})


@pytest.mark.parametrize(("ids", "rows"), [([V, 0], None), ([-1, 0], None), ([0.5, 1], None), ([0], None), ([0, 1], [0, 2])])
def test_a_step_of_decoding_takes_ids_and_rows_that_are_there(ids: list, rows: list | None) -> None:
    cell = stack(lift(PF.embed, V, D), GRUCell(3), lift(PF.affine, V))
    cell(nn.Variable((2,)), cell.initial_state(2))
    step = Step(cell, 2)
    assert not any(map(is_check, functions_of(step._stepper.graph.outputs)))  # decoding knows its ids
    step.begin(cell.initial_state(2))
    logits, _ = step(np.array([0, 1]))
    assert logits.shape == (2, V)
    with pytest.raises(ValueError, match="must be 2 whole numbers from 0 to"):
        step(np.array(ids), rows)


def test_losses_have_gradient_graphs_where_their_functions_have() -> None:
    h = weights(2, 3, V)
    (dh,) = nn.grad([sequence_loss(h * 1, constant(IDS))], [h])
    assert np.isfinite(value(dh)).all()


@pytest.mark.parametrize("function", [sequence_loss, linear_cross_entropy, nnshop.linear_cross_entropy])
def test_losses_have_one_order_of_arguments(function: Callable) -> None:
    """Up to the weights by place; what comes after them has a name."""
    parameters = inspect.signature(function).parameters
    names, by_name = list(parameters), [n for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert by_name[:3] == ["reduction", "ignore_index", "label_smoothing"]
    assert names[names.index("reduction") - 1] in ("weights", "name")


@pytest.mark.parametrize("taken", ["reshaped", "transposed", "sliced"])
@pytest.mark.parametrize("way", ["auto", "loop", "unrolled"])
def test_ids_on_their_way_to_a_table_within_a_step_are_checked(taken: str, way: str) -> None:
    take = {
        "reshaped": lambda x: F.reshape(x, (2,), inplace=False),
        "transposed": lambda x: F.transpose(x, (1, 0)),
        "sliced": lambda x: x[:, 1],
    }[taken]
    width = 1 + (taken == "sliced")
    xs = nn.Variable((30, 2, width))
    ys, _ = iterate(lambda x, h: (F.sum(embed(take(x), V, D)) + h, h), xs, constant(np.zeros(())), way=way)
    xs.d = 2
    ys.forward()
    xs.d[..., 0] = V if taken != "sliced" else 2.5  # no id, but of the other column
    if taken == "sliced":
        ys.forward()
        xs.d[7, 1, 1] = V
    refused(ys.forward, "from 0 to 4")
