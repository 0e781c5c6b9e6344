"""What is refused at the door: Variables with an axis of size 0, of which NNabla's functions die, and flags that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

import nnshop
from nnshop import GRUCell, LSTMCell, SimpleRNNCell, StateSpec, decoding, recurrentshop, run
from nnshop.functions import linear_cross_entropy
from nnshop.seq2seq import EncoderDecoder, SimpleSeq2Seq

V = nn.Variable
WAYS = ["auto", "unrolled", "loop"]


def total(x: Any, y: Any) -> Any:
    return x + y, x + y


# Each ended the process, raised from below NNabla's surface, or passed.
EMPTY: dict[str, Callable[[], Any]] = {
    "no width with peepholes": lambda: run(LSTMCell(4, peephole=True), V((2, 3, 0))),
    **{f"no width, {way}": lambda way=way: run(GRUCell(4), V((2, 3, 0)), way=way) for way in WAYS},
    **{f"no steps, {way}": lambda way=way: run(SimpleRNNCell(4), V((2, 0, 3)), way=way) for way in WAYS},
    **{f"no rows, {way}": lambda way=way: run(LSTMCell(4), V((0, 3, 3)), way=way) for way in WAYS},
    **{f"iterate, {way}": lambda way=way: nnshop.iterate(total, V((3, 0)), V((0,)), way=way) for way in WAYS},
    **{f"a state, {way}": lambda way=way: nnshop.iterate(total, None, V((0, 4)), length=3, way=way) for way in WAYS},
    "layer": lambda: nnshop.lstm(V((2, 3, 0)), 4),
    "bidirectional": lambda: nnshop.bidirectional(V((2, 3, 0)), GRUCell(4), GRUCell(4), "sum"),
    "step": lambda: GRUCell(4)(V((0, 3)), V((0, 4))),
    "function of a step": lambda: nnshop.lstm_cell(V((0, 3)), V((0, 4)), V((0, 4)), 4),
    "output_shape": lambda: nnshop.output_shape(LSTMCell(4), V((2, 0))),
    "TimeDistributed": lambda: nnshop.TimeDistributed(PF.affine)(V((2, 3, 0)), 4),
    "TimeDistributed of another": lambda: nnshop.TimeDistributed(F.add2)(V((2, 3, 4)), nnshop.each(V((2, 3, 0)))),
    "embed": lambda: nnshop.embed(V((2, 0)), 5, 4),
    "attention": lambda: nnshop.attend(GRUCell(4), V((2, 0, 4))),
    "sequence_loss of no rows": lambda: nnshop.sequence_loss(V((0, 3, 5)), V((0, 3))),
    "sequence_loss of no classes": lambda: nnshop.sequence_loss(V((2, 3, 0)), V((2, 3))),
    "linear_cross_entropy": lambda: linear_cross_entropy(V((2, 3, 0)), V((0, 5)), None, V((2, 3))),
    "linear_cross_entropy of no classes": lambda: linear_cross_entropy(V((2, 3, 4)), V((4, 0)), None, V((2, 3))),
    "linear_cross_entropy with its weights": lambda: nnshop.linear_cross_entropy(V((2, 3, 0)), V((2, 3)), 5),
    "scan": lambda: nnshop.scan(lambda x, y: x + y, V((3, 0)), V((0,))),
    "reduce": lambda: nnshop.reduce(lambda x, y: x + y, V((3, 4)), V((0,))),
    "shift": lambda: nnshop.shift(V((2, 0, 3))),
    "unstack": lambda: nnshop.unstack(V((2, 0, 3)), 1),
    "tile": lambda: decoding.tile(V((0, 3)), 2),
    "EncoderDecoder": lambda: EncoderDecoder(5, 5, 3, 4, GRUCell(4), GRUCell(4)).loss(V((2, 0)), V((2, 3))),
    "SimpleSeq2Seq": lambda: SimpleSeq2Seq(output_dim=4, output_length=3)(V((2, 3, 0))),
    **{
        f"recurrentshop's {kind.__name__}": lambda kind=kind: kind(4).get_layer()(V((2, 3, 0)))
        for kind in (recurrentshop.LSTMCell, recurrentshop.GRUCell, recurrentshop.SimpleRNNCell, recurrentshop.RHNCell)
    },
    "recurrentshop decodes": lambda: recurrentshop.GRUCell(4).get_layer(decode=True, output_length=3)(V((0, 4))),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_what_is_empty_is_refused_before_there_are_weights(kind: str) -> None:
    with pytest.raises(ValueError, match=r"must not be empty: each size must be at least 1; got the shape \(.*0.*\)"):
        EMPTY[kind]()
    assert not nn.get_parameters()


@pytest.mark.parametrize("length", [0, -1, 2.5, True, 2**31, None])
def test_a_mask_has_a_step(length: Any) -> None:
    for lengths in ([0, 0], V((2,))):
        with pytest.raises(ValueError, match="max_length must be"):
            nnshop.length_mask(lengths, length)
    with pytest.raises(ValueError, match="lengths must be whole numbers"):
        nnshop.length_mask(np.array([], int), 3)


@pytest.mark.parametrize("flag", [1, 0, "no", None, V((1,))])
def test_a_direction_is_true_or_false(flag: Any) -> None:
    """`reverse="no"` was taken for true, and its compiled function for another one's."""
    for call in (
        lambda: run(GRUCell(4), V((2, 3, 4)), reverse=flag),
        lambda: nnshop.iterate(total, V((3, 4)), V((4,)), reverse=flag),
        lambda: nnshop.gru(V((2, 3, 4)), 4, go_backwards=flag),
    ):
        with pytest.raises(TypeError, match="is True or False; got"):
            call()


@pytest.mark.parametrize("size", [True, 2.0, 0, 2**31])
def test_a_size_is_a_whole_number(size: Any) -> None:
    for call in (
        lambda: StateSpec((size,)) if size != 2**31 else GRUCell(size),
        lambda: recurrentshop.LSTMCell(size),
        lambda: recurrentshop.RHNCell(4, recurrence_depth=size),
        lambda: nnshop.simple_rnn_cell(V((2, 3)), V((2, 4)), size),
        lambda: LSTMCell(4, projection_size=size),
        lambda: nnshop.embed(V((2, 3)), size, 4),
        lambda: nnshop.linear_cross_entropy(V((2, 3, 4)), V((2, 3)), size),
        lambda: SimpleSeq2Seq(output_dim=size, output_length=3),
    ):
        with pytest.raises(ValueError, match=r"whole number|positive sizes|what NNabla can count"):
            call()
    assert not nn.get_parameters()


@pytest.mark.parametrize("seed", ["x", -1, 1.5, 2**32, [[1], [2, 3]]])
def test_a_seed_is_a_number_or_a_generator(seed: Any) -> None:
    cell = nnshop.stack(nnshop.lift(PF.embed, 5, 4), nnshop.lift(PF.affine, 5))
    cell(V((1,)), cell.initial_state(1))
    with pytest.raises(ValueError, match="seed must be"):
        decoding.sample(cell, 0, max_length=2, seed=seed)


@pytest.mark.parametrize("name", [1, b"a", ("a",)])
def test_a_name_is_a_str(name: Any) -> None:
    for call in (
        lambda: GRUCell(4, name=name),
        lambda: nnshop.Cell(total, (), name),
        lambda: nnshop.lift(F.tanh, name=name),
        lambda: nnshop.stack(GRUCell(4), name=name),
    ):
        with pytest.raises(TypeError, match="needs a str as its name"):
            call()


def test_a_probability_needs_no_gradient() -> None:
    """A Variable that asks for one: NNabla's comparison has none."""
    cell, p = nnshop.readout(GRUCell(4), (4,)), V.from_numpy_array(np.array([0.5]), need_grad=True)
    x = V.from_numpy_array(np.ones((2, 3, 4)), need_grad=True)
    ys, _ = run(nnshop.teacher_forced(cell, p), (x, x))
    loss = F.sum(ys)
    x.grad.zero()
    loss.forward()
    loss.backward()
    assert np.isfinite(x.g).all()
    assert x.g.any()


def test_tile_takes_any_number_of_axes() -> None:
    x = np.arange(2.0**9).reshape((2,) * 9)
    y = decoding.tile(V.from_numpy_array(x), 3)
    y.forward()
    np.testing.assert_array_equal(y.d, x.repeat(3, axis=0))
