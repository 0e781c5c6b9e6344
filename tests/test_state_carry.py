"""State carried from batch to batch: what was measured to be exact stays exact.

A text is cut into batches. The loss of a batch starts from the state where the batch before ended, and its gradient stops
there (truncated backpropagation through time). One long NumPy run gives both.
"""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
import reference
from cells_table import MEMORY_STATE, memory, numpy_memory
from measuring import assert_same, prepare, variables, weights

from nnshop import (
    AbstractCell,
    CarriedState,
    GRUCell,
    LSTMCell,
    SimpleRNNCell,
    StateSpec,
    residual,
    run,
    stack,
    tree_leaves,
    tree_map,
)
from nnshop.core import Cell

BATCHES, B, T, D, H = 4, 2, 3, 3, 3
CELLS = {
    "lstm": (LSTMCell(H), reference.lstm()),
    "gru": (GRUCell(H), reference.gru()),
    "simple_rnn": (SimpleRNNCell(H), reference.simple_rnn()),
    "stack": (
        stack(LSTMCell(H), residual(GRUCell(H))),
        reference.stacked(reference.lstm(), reference.residual(reference.gru())),
    ),
    "nested": (Cell(memory, MEMORY_STATE), numpy_memory),
}
each_cell = pytest.mark.parametrize("kind", CELLS)


def text() -> np.ndarray:
    return np.random.RandomState(5).randn(BATCHES, B, T, D)


def numpy_loss(ys: np.ndarray) -> float:
    return float(np.sum(np.sin(ys) * np.arange(1, 1 + ys[0].size).reshape(ys[0].shape)))


def loss_of(ys: nn.Variable) -> nn.Variable:
    return F.sum(F.sin(ys) * variables(np.arange(1, 1 + ys.size // ys.shape[0]).reshape(1, *ys.shape[1:]), False))


def start_of(cell: AbstractCell) -> Any:
    return tree_map(lambda spec: np.zeros((B, *spec.shape)) + spec.initializer((1,)), cell.state)


def expected(kind: str) -> list[tuple]:
    """Of each batch its loss, its final state, and the gradients of its weights with the initial state held constant."""
    cell, step = CELLS[kind]
    state, found = start_of(cell), []
    for x in text():
        before = state
        ys, state = reference.run(step, weights(), x, before)
        slopes = reference.gradients(lambda w, x=x, s=before: numpy_loss(reference.run(step, w, x, s)[0]), weights())
        found.append((np.asarray(numpy_loss(ys)), state, slopes))
    return found


def train_batch(x: nn.Variable, data: np.ndarray, loss: nn.Variable) -> tuple[np.ndarray, dict]:
    """As a training does it: buffers are freed as soon as NNabla can."""
    x.d = data
    for parameter in nn.get_parameters().values():
        parameter.grad.zero()
    loss.forward(clear_no_need_grad=True)
    value = loss.d.copy()
    loss.backward(clear_buffer=True)
    return value, {name: v.g.copy() for name, v in nn.get_parameters().items()}


@each_cell
def test_copying_persistent_final_states_is_exact(kind: str) -> None:
    """The mechanism, in plain NNabla: `persistent`, and a copy after backward."""
    cell, _ = CELLS[kind]
    prepare(cell, D)
    x, initial = nn.Variable((B, T, D)), cell.initial_state(B)
    ys, final = run(cell, x, initial)
    loss = loss_of(ys)
    for leaf in tree_leaves(final):
        leaf.persistent = True
    for data, (value, state, slopes) in zip(text(), expected(kind)):
        actual, gradients = train_batch(x, data, loss)
        for before, after in zip(tree_leaves(initial), tree_leaves(final)):
            before.d = after.d.copy()
        assert_same((actual, tree_map(lambda v: v.d, initial)), (value, state))
        assert_same(gradients, slopes)


def test_one_long_graph_cut_between_batches_is_the_same() -> None:
    """The expectation once more, by NNabla: `need_grad=False` on a state between batches stops the gradient there."""
    cell, _ = CELLS["stack"]
    prepare(cell, D)
    state, losses = cell.initial_state(B), []
    for data in text():
        ys, state = run(cell, variables(data, False), state)
        losses.append(loss_of(ys))
        state = tree_map(F.identity, state)  # the final state may be the last output itself, whose gradient must pass
        for leaf in tree_leaves(state):
            leaf.need_grad = False
    for loss, (value, _, slopes) in zip(losses, expected("stack")):
        for parameter in nn.get_parameters().values():
            parameter.grad.zero()
        loss.forward()
        loss.backward()
        assert_same(loss.d, value)
        assert_same({name: v.g for name, v in nn.get_parameters().items()}, slopes)


@pytest.mark.parametrize("metric", [False, True], ids=["training", "with_a_metric"])
@each_cell
def test_carried_state_is_exact(kind: str, metric: bool) -> None:
    """Over several batches and two epochs, with and without a second forward of each batch."""
    cell, _ = CELLS[kind]
    prepare(cell, D)
    x, carried = nn.Variable((B, T, D)), CarriedState(cell, B)
    ys, final = run(cell, x, carried.initial)
    carried.follow(final)
    loss = loss_of(ys)
    for _ in range(2):
        assert_same(tree_map(lambda v: v.d, carried.initial), start_of(cell))
        for data, (value, state, slopes) in zip(text(), expected(kind)):
            actual, gradients = train_batch(x, data, loss)
            if metric:
                loss.forward(clear_buffer=True)
            carried.carry()
            assert_same((actual, tree_map(lambda v: v.d, carried.initial)), (value, state))
            assert_same(gradients, slopes)
        carried.reset()


def test_two_graphs_take_turns() -> None:
    """A validation graph of the same weights has a carried state of its own."""
    cell, _ = CELLS["lstm"]
    prepare(cell, D)
    graphs = []
    for _ in range(2):
        x, carried = nn.Variable((B, T, D)), CarriedState(cell, B)
        ys, final = run(cell, x, carried.initial)
        carried.follow(final)
        graphs.append((x, carried, loss_of(ys)))
    for data, (value, _, _) in zip(text(), expected("lstm")):
        for x, carried, loss in graphs:
            actual, _ = train_batch(x, data, loss)
            carried.carry()
            assert_same(actual, value)


def test_carried_values_can_be_kept_and_put_back() -> None:
    cell, _ = CELLS["nested"]
    carried = CarriedState(cell, B)
    kept = carried.get()
    assert [array.shape for array in kept] == [leaf.shape for leaf in tree_leaves(carried.initial)]
    carried.set([array + 1 for array in kept])
    for leaf, array in zip(tree_leaves(carried.initial), kept):
        np.testing.assert_allclose(leaf.d, array + 1, rtol=1e-6)
    carried.reset()
    for leaf, array in zip(carried.get(), kept):
        np.testing.assert_array_equal(leaf, array)


def test_a_cell_without_a_state_carries_nothing() -> None:
    carried = CarriedState(Cell(lambda x, state: (x, state)), B)
    carried.carry()
    assert carried.get() == []
    assert StateSpec((1,)) not in tree_leaves(carried.initial)
