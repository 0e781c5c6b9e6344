"""Laws at random sizes, lengths and masks."""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import assert_same, constant, measure, prepare, runs, weights

from nnshop import (
    AbstractCell,
    GRUCell,
    LSTMCell,
    SimpleRNNCell,
    TimeDistributed,
    from_fused,
    length_mask,
    run,
    sequence_loss,
    shift,
    stack,
    to_fused,
    tree_map,
    unstack,
)

CELLS = {
    "simple_rnn": (SimpleRNNCell, reference.simple_rnn()),
    "lstm": (LSTMCell, reference.lstm()),
    "lstm-peephole": (lambda units: LSTMCell(units, peephole=True, projection_size=units + 1), reference.lstm()),
    "gru": (GRUCell, reference.gru()),
    "gru-before": (lambda units: GRUCell(units, reset_after=False), reference.gru(reset_after=False)),
    "stack": (
        lambda units: stack(GRUCell(units), LSTMCell(2), F.tanh),
        reference.stacked(reference.gru(), reference.lstm(), lambda w, x, s: (np.tanh(x), s)),
    ),
}
sizes = st.integers(1, 4)
repeatable = settings(deadline=None, derandomize=True, max_examples=25)


@st.composite
def problems(draw: st.DrawFn) -> tuple[AbstractCell, Any, np.ndarray, Any, np.ndarray, bool]:
    """A cell with random weights, its step in NumPy, x, an initial state, a mask, a direction."""
    make, step = CELLS[draw(st.sampled_from(sorted(CELLS)))]
    batch, length, width, units = draw(sizes), draw(st.integers(1, 6)), draw(sizes), draw(sizes)
    mask = np.array(draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=batch, max_size=batch)))
    nn.clear_parameters()
    cell = make(units)
    prepare(cell, width)
    rng = np.random.RandomState(draw(st.integers(0, 99)))
    x = rng.randn(batch, length, width)
    state = tree_map(lambda spec: rng.randn(batch, *spec.shape), cell.state)
    return cell, step, x, state, mask, draw(st.booleans())


@repeatable
@given(problems())
def test_each_row_of_a_masked_batch_is_its_valid_steps_alone(problem: tuple) -> None:
    """By the NumPy reference; NaN in the padding."""
    cell, step, x, state, mask, reverse = problem
    x = np.where(mask[:, :, None], x, np.nan)
    ys, after = measure(runs(cell, mask=constant(mask), reverse=reverse), x, state)[:2]
    for b, keep in enumerate(mask):
        alone, final = (
            reference.run(step, weights(), x[b : b + 1, keep], cut(state, b), reverse=reverse)
            if keep.any()
            else (
                ys[b : b + 1, keep],
                cut(state, b),
            )
        )
        assert_same((ys[b : b + 1, keep], cut(after, b)), (alone, final))


def cut(tree: Any, b: int) -> Any:
    return tree_map(lambda leaf: leaf[b : b + 1], tree)


@repeatable
@given(problems())
def test_gradients_of_a_batch_with_lengths_are_those_of_its_rows(problem: tuple) -> None:
    cell, _, x, state, mask, reverse = problem
    lengths = mask.sum(axis=1).tolist()
    x = np.where(np.asarray(length_values(lengths, x.shape[1]))[:, :, None], x, np.inf)
    build = runs(cell, lengths=lengths, reverse=reverse)
    padded = measure(build, x, state)
    total = {name: 0 * gradient for name, gradient in padded.weight_grads.items()}
    for b, length in enumerate(lengths):
        row = measure(
            runs(cell, lengths=[length], reverse=reverse),
            x[b : b + 1],
            cut(state, b),
            cut(factors_like(padded.ys), b),
            cut(factors_like(padded.state), b),
        )
        assert_same(row[:4], tuple(cut(tree, b) for tree in padded[:4]))
        total = {name: total[name] + gradient for name, gradient in row.weight_grads.items()}
        assert not padded.x_grad[b, length:].any()
    assert_same(total, padded.weight_grads)


def factors_like(tree: Any) -> Any:
    """Those that `measure` gives a tree by default."""
    rng = np.random.RandomState(7)
    return tree_map(lambda leaf: rng.randn(*leaf.shape), tree)


def length_values(lengths: list[int], length: int) -> np.ndarray:
    mask = F.identity(length_mask(lengths, length))
    mask.forward()
    return mask.d > 0


@repeatable
@given(problems(), st.integers(0, 6))
def test_a_sequence_may_be_split_anywhere(problem: tuple, at: int) -> None:
    """Masks are split with it."""
    cell, _, x, state, mask, _ = problem
    at = 1 + at % max(1, x.shape[1] - 1)
    if x.shape[1] == 1:
        return

    def in_parts(x: nn.Variable, state: Any) -> tuple:
        first, state = run(cell, x[:, :at], state, mask=constant(mask[:, :at]))
        second, state = run(cell, x[:, at:], state, mask=constant(mask[:, at:]))
        return (first, second), state

    first, second = measure(in_parts, x, state).ys
    whole = measure(runs(cell, mask=constant(mask)), x, state)
    assert_same(first, whole.ys[:, :at])
    begun = np.maximum.accumulate(mask[:, at:], axis=1)  # before its first valid step the second part repeats nothing
    assert_same(second * begun[:, :, None], whole.ys[:, at:] * begun[:, :, None])


@repeatable
@given(st.lists(sizes, min_size=2, max_size=4), st.integers(-4, 3))
def test_unstack_then_stack_is_nothing(shape: list[int], axis: int) -> None:
    axis = axis % len(shape) - (len(shape) if axis < 0 else 0)
    x = np.random.randn(*shape)
    y = F.identity(F.stack(*unstack(constant(x), axis), axis=axis % len(shape)))
    y.forward()
    np.testing.assert_array_equal(y.d, x.astype(np.float32))


@repeatable
@given(sizes, st.integers(1, 6), st.lists(sizes, max_size=2))
def test_shift_then_drop_is_drop(batch: int, length: int, rest: list[int]) -> None:
    x = np.random.randn(batch, length, *rest).astype(np.float32)
    y = F.identity(shift(constant(x)))
    y.forward()
    np.testing.assert_array_equal(y.d[:, 1:], x[:, :-1])
    assert not y.d[:, 0].any()


@repeatable
@given(problems(), st.integers(2, 5))
def test_losses_of_a_batch_are_those_of_its_valid_steps(problem: tuple, classes: int) -> None:
    _, _, x, _, mask, _ = problem
    rng = np.random.RandomState(0)
    logits, targets = rng.randn(*x.shape[:2], classes), rng.randint(0, classes, x.shape[:2])
    losses = [
        F.identity(sequence_loss(constant(logits), constant(targets), constant(mask), reduction=r))
        for r in ("sum", "mean", "none")
    ]
    nn.forward_all(losses)
    valid = np.log(np.exp(logits).sum(axis=2)) - np.take_along_axis(logits, targets[..., None], axis=2)[..., 0]
    valid = np.where(mask, valid, 0)
    expected = (valid.sum(), valid.sum() / max(1, mask.sum()), valid)
    assert_same(tuple(loss.d for loss in losses), tuple(map(np.asarray, expected)))


@repeatable
@given(sizes, sizes, st.lists(sizes, max_size=3), st.booleans())
def test_time_distributed_is_the_function_on_all(batch: int, length: int, rest: list[int], fold: bool) -> None:
    x = np.random.randn(batch, length, *rest)
    y = TimeDistributed(lambda step: F.tanh(step) * 2, fold=fold)(constant(x))
    y.forward()
    np.testing.assert_allclose(y.d, 2 * np.tanh(x), rtol=1e-5, atol=1e-6)


@repeatable
@given(st.sampled_from([("lstm", 4), ("gru", 3), ("rnn", 1)]), sizes, st.integers(1, 3), sizes, sizes)
def test_packed_weights_come_back(kind: tuple[str, int], layers: int, directions: int, width: int, units: int) -> None:
    name, gates = kind
    cells = []
    for layer in range(layers):
        shapes = {"x2h/W": (width if layer == 0 else directions * units, gates * units), "h2h/W": (units, gates * units)}
        shapes.update({"b": (gates * units,)}, **({"h2h/b": (units,)} if name == "gru" else {}))
        cells.append([{key: np.random.randn(*shape) for key, shape in shapes.items()} for _ in range(directions)])
    back = from_fused(name, to_fused(name, cells))
    for got, expected in zip([cell for layer in back for cell in layer], [cell for layer in cells for cell in layer]):
        assert_same(got, expected, rtol=0)
