"""A cell one step at a time: it is the run over the sequence, whatever happens between steps."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest
from cells_table import Row, each_row
from measuring import constant, prepare, randomize, start, variable

from nnshop import Cell, GRUCell, LSTMCell, StateSpec, Stepper, attend, lift, portable, run, stack, tree_leaves, tree_map
from nnshop.kernels import why_not_compiled
from nnshop.kernels.array_function import ArrayFunction, array_of
from nnshop.running import explaining

Tree = Any
needs_compiler = pytest.mark.skipif(bool(why_not_compiled()), reason=why_not_compiled())
ENGINES = {"compiled": nullcontext, "functions": portable}
each_engine = pytest.mark.parametrize("engine", ENGINES)


def steps(stepper: Stepper, x: np.ndarray) -> Tree:
    """The outputs of steps over a sequence `(B, T, ...)`."""
    ys = [stepper.step(x[:, t]) for t in range(x.shape[1])]
    return tree_map(lambda *leaves: np.stack(leaves, axis=1), ys[0], *ys[1:])


def over(cell: Any, x: np.ndarray, state: Tree = None) -> tuple[Tree, Tree]:
    """The same by NNabla's functions, and the state after it."""
    if state is not None:
        state = tree_map(lambda array: nn.Variable.from_numpy_array(array), state)
    with nn.auto_forward(False), nn.no_grad():
        ys, after = run(cell, constant(x), state, way="unrolled")
    nn.forward_all(tree_leaves((ys, after)))
    return tree_map(lambda v: v.d.copy(), ys), tree_map(lambda v: v.d.copy(), after)


def assert_near(found: Tree, expected: Tree) -> None:
    assert len(tree_leaves(found)) == len(tree_leaves(expected))
    for a, b in zip(tree_leaves(found), tree_leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def lstm(batch: int = 3, engine: str = "compiled") -> tuple[Any, Stepper]:
    cell = stack(LSTMCell(4), lift(PF.affine, 5))
    prepare(cell, 3)
    with ENGINES[engine]():
        return cell, Stepper(cell, np.zeros((batch, 3)))


def sequence(batch: int = 3, length: int = 4, seed: int = 1) -> np.ndarray:
    return np.float32(np.random.RandomState(seed).randn(batch, length, 3))


# ------------------------------------------------------------------------------------------------------- what a step gives


@each_row()
def test_steps_are_the_run_over_the_sequence(row: Row) -> None:
    cell, x, state = start(row, length=3)
    stepper = Stepper(cell, x[:, 0])
    stepper.begin(tree_map(np.float32, state))
    ys, after = over(cell, x, state)
    assert_near(steps(stepper, x), ys)
    assert_near(stepper.state, after)


@each_engine
def test_it_begins_from_the_initial_state(engine: str) -> None:
    cell = Cell(lambda x, h: (h + x, h + x), StateSpec((3,), lambda shape: np.full(shape, 2.0)))
    with ENGINES[engine]():
        stepper = Stepper(cell, np.zeros((3, 3)))
    x = sequence()
    assert_near(steps(stepper, x), 2 + x.cumsum(axis=1))
    stepper.reset()
    assert_near(stepper.state, np.full((3, 3), 2.0))


@needs_compiler
def test_it_is_compiled_where_it_can_be() -> None:
    assert lstm()[1].compiled
    assert not lstm(engine="functions")[1].compiled


class Twice(ArrayFunction):
    """A function in Python, which the compiler knows nothing of."""

    def setup_impl(self, inputs: Any, outputs: Any) -> None:
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs: Any, outputs: Any) -> None:
        outputs[0].data.cast(np.float32)[...] = 2 * array_of(inputs[0])

    def backward_impl(self, *_: Any) -> None:
        raise NotImplementedError


@needs_compiler
def test_what_is_not_translated_is_run_by_functions_and_noted() -> None:
    cell = Cell(lambda x, h: (Twice()(h + x), h + x), StateSpec((3,)))
    with explaining.noting() as notes:
        stepper = Stepper(cell, np.zeros((3, 3)))
    assert not stepper.compiled
    assert [way for way, _ in notes[0].refused] == ["compiled"]
    x = sequence()
    assert_near(steps(stepper, x), 2 * x.cumsum(axis=1))


@each_engine
def test_trees_no_input_and_outputs_that_are_states(engine: str) -> None:
    """States change places; one output is the state before, one the input."""
    swap = Cell(lambda x, state: ((state[0], x[1], x[0] + state[1]), (state[1], state[0])), (StateSpec((3,)), StateSpec((3,))))
    count = Cell(lambda _, n: (n + 1, n + 1), StateSpec((2,)))
    with ENGINES[engine]():
        stepper, counter = Stepper(swap, (np.zeros((2, 3)), np.zeros((2, 1)))), Stepper(count, batch_size=2)
    a, b, (p, q) = np.ones((2, 3)), np.full((2, 1), 3.0), np.random.RandomState(0).randn(2, 2, 3)
    stepper.begin((p, q))
    for before, other in ((p, q), (q, p), (p, q)):
        assert_near(stepper.step((a, b)), (before, b, a + other))
    for n in (1, 2, 3):
        np.testing.assert_array_equal(counter.step(), np.full((2, 2), n))


@each_engine
def test_a_batch_of_one_and_ids(engine: str) -> None:
    cell = stack(lift(PF.embed, 5000, 4), GRUCell(4), lift(PF.affine, 3))
    with nn.auto_forward(False):
        cell(nn.Variable((1,)), cell.initial_state(1))
    randomize()
    with ENGINES[engine]():
        stepper = Stepper(cell, np.zeros(1, int))
    ids = np.array([[4999, 0, 2049]])
    assert_near(steps(stepper, ids), over(cell, ids)[0])


@each_engine
def test_a_cell_without_a_state(engine: str) -> None:
    cell = lift(lambda x: 3 * x)
    with ENGINES[engine]():
        stepper = Stepper(cell, np.zeros((2, 3)))
    for n in (1, 2):
        np.testing.assert_array_equal(stepper.step(np.full((2, 3), n)), np.full((2, 3), 3 * n))
        stepper.gather([1, 0])
        stepper.refresh()
    stepper.reset(rows=[1])
    assert stepper.state == ()


def test_outputs_are_copies_unless_asked_for() -> None:
    _, stepper = lstm()
    x = sequence()
    kept = [stepper.step(x[:, t]) for t in range(4)]
    stepper.reset()
    for t in range(4):
        np.testing.assert_array_equal(stepper.step(x[:, t], copy=False), kept[t])


@each_engine
def test_dropout_draws_at_each_step(engine: str) -> None:
    cell = lift(F.dropout, 0.5)
    with ENGINES[engine]():
        stepper = Stepper(cell, np.zeros((50, 40)))
    first, second = stepper.step(np.ones((50, 40))), stepper.step(np.ones((50, 40)))
    for drawn in (first, second):
        assert set(drawn.ravel()) == {0, 2}
        assert 0.4 < (drawn > 0).mean() < 0.6
    assert not np.array_equal(first, second)


def test_it_is_the_same_in_auto_forward_mode() -> None:
    cell, stepper = lstm()
    x = sequence()
    expected = steps(stepper, x)
    with nn.auto_forward(True):
        eager = Stepper(cell, x[:, 0])
        for _ in range(2):
            assert_near(steps(eager, x), expected)
            eager.reset()
        randomize(seed=8)
        eager.refresh()
        assert_near(steps(eager, x), over(cell, x)[0])


# ---------------------------------------------------------------------------------------------------------- between steps


@each_engine
def test_the_state_is_kept_and_set_again(engine: str) -> None:
    _, stepper = lstm(engine=engine)
    x = sequence(length=6)
    steps(stepper, x[:, :2])
    kept = stepper.state
    expected = steps(stepper, x[:, 2:])
    tree_map(lambda array: array.fill(np.nan), stepper.state)  # copies
    steps(stepper, x)
    stepper.state = kept
    np.testing.assert_array_equal(steps(stepper, x[:, 2:]), expected)
    stepper.state = tree_map(lambda array: nn.Variable.from_numpy_array(array), kept)
    np.testing.assert_array_equal(steps(stepper, x[:, 2:]), expected)


@each_engine
def test_rows_are_reset_alone(engine: str) -> None:
    """Also of one that has become NaN, which the others know nothing of."""
    _, stepper = lstm(engine=engine)
    x = sequence(length=5)
    expected = steps(stepper, x)
    for rows in ([1], np.array([False, True, False])):
        stepper.reset()
        spoilt = x[:, :2].copy()
        spoilt[1] = np.nan
        assert np.isnan(steps(stepper, spoilt)[1]).all()
        stepper.reset(rows=rows)
        np.testing.assert_array_equal(stepper.state[0][0][1], 0)
        found = steps(stepper, np.stack([x[0, 2:5], x[1, :3], x[2, 2:5]]))
        np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2], 2:])
        np.testing.assert_array_equal(found[1], expected[1, :3])


@each_engine
@pytest.mark.parametrize("rows", [[2, 2, 0], [1, 2, 0], [0, 1, 2]])
def test_rows_go_on_from_others(engine: str, rows: list[int]) -> None:
    _, stepper = lstm(engine=engine)
    x = sequence(length=5)
    steps(stepper, x[:, :2])
    state = stepper.state
    stepper.gather(rows)
    assert_near(stepper.state, tree_map(lambda array: array[rows], state))
    stepper.step(x[:, 2])
    found = [stepper.gather(rows), stepper.step(x[:, 3])][1]
    stepper.state = tree_map(lambda array: array[rows], state)
    stepper.step(x[:, 2])
    stepper.state = tree_map(lambda array: array[rows], stepper.state)
    np.testing.assert_array_equal(found, stepper.step(x[:, 3]))


@each_engine
def test_the_batch_changes(engine: str) -> None:
    cell, stepper = lstm(engine=engine)
    with ENGINES[engine]():
        for batch in (5, 1, 3):
            steps(stepper, sequence(stepper.batch_size))
            stepper.reset(batch_size=batch)
            x = sequence(batch, seed=batch)
            assert_near(steps(stepper, x), over(cell, x)[0])
    assert stepper.batch_size == 3


def change_by_solver() -> None:
    solver = S.Sgd(0.5)
    solver.set_parameters(nn.get_parameters())
    for parameter in nn.get_parameters().values():
        parameter.grad.fill(1)
    solver.update()


def change_by_copy() -> None:
    for parameter in nn.get_parameters().values():
        parameter.data.copy_from(nn.NdArray.from_numpy_array(-parameter.d))


def change_by_array() -> None:
    for parameter in nn.get_parameters().values():
        parameter.d[...] = 0.5 * parameter.d


def change_by_replacing() -> None:
    for parameter in nn.get_parameters().values():
        parameter.data = nn.NdArray.from_numpy_array(2 * parameter.d)


@each_engine
@pytest.mark.parametrize("change", [change_by_solver, change_by_copy, change_by_array, change_by_replacing])
@pytest.mark.parametrize("kind", ["lstm", "gru", "embed", "tied"])
def test_weights_are_read_again(kind: str, change: Callable, engine: str) -> None:
    """The compiled step keeps its own copies until then."""

    def tied(ids: nn.Variable, h: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
        table = nn.parameter.get_parameter_or_create("table", (7, 4))
        h = F.tanh(h + F.embed(ids, table))
        return F.affine(h, F.transpose(table, (1, 0))), h

    cell = {
        "lstm": stack(lift(PF.embed, 7, 3), LSTMCell(4)),
        "gru": stack(lift(PF.embed, 7, 3), GRUCell(4)),
        "embed": lift(PF.embed, 7, 3),
        "tied": Cell(tied, StateSpec((4,))),
    }[kind]
    with nn.auto_forward(False):
        cell(nn.Variable((3,)), cell.initial_state(3))
    randomize()
    with ENGINES[engine]():
        stepper = Stepper(cell, np.zeros(3, int))
    ids = np.random.RandomState(0).randint(7, size=(3, 3))
    before, state = steps(stepper, ids), stepper.state
    assert_near(before, over(cell, ids)[0])
    change()
    if engine == "compiled" and stepper.compiled:
        stepper.state = tree_map(np.zeros_like, state)
        np.testing.assert_array_equal(steps(stepper, ids), before)
        assert_near(stepper.state, state)
    stepper.refresh()
    assert_near(stepper.state, state if engine == "compiled" else stepper.state)
    expected = over(cell, ids, state)[0]
    found = steps(stepper, ids)
    assert_near(found, expected)
    assert not np.allclose(found, before, rtol=1e-3)
    stepper.reset()
    assert_near(steps(stepper, ids), over(cell, ids)[0])


@each_engine
def test_what_a_cell_holds_is_computed_at_the_beginning(engine: str) -> None:
    memory = variable(3, 4, 5)
    cell = attend(GRUCell(6), F.tanh(memory), "general", units=6, lengths=[4, 2, 3])
    with nn.auto_forward(False):
        cell(nn.Variable((3, 3)), cell.initial_state(3))
    randomize()
    with ENGINES[engine]():
        stepper = Stepper(cell, np.zeros((3, 3)))
    x = sequence()
    first = steps(stepper, x)
    assert_near(first, over(cell, x)[0])
    memory.d = -2 * memory.d
    stepper.reset()
    second = steps(stepper, x)
    assert_near(second, over(cell, x)[0])
    assert not np.allclose(first, second)


def test_another_batch_size_that_fails_changes_nothing() -> None:
    held = variable(3, 3)
    cell = Cell(lambda x, h: (x + h + held, h + x), StateSpec((3,)))
    stepper, x = Stepper(cell, np.zeros((3, 3))), sequence()
    expected = steps(stepper, x)
    stepper.reset()
    for batch, message in ((1, "gives outputs of 3 rows for a batch of 1"), (0, "batch_size must be a whole number")):
        with pytest.raises(ValueError, match=message):
            stepper.reset(batch_size=batch)
    np.testing.assert_array_equal(steps(stepper, x), expected)


def test_each_thread_has_its_stepper() -> None:
    cell, _ = lstm()
    xs = [sequence(length=40, seed=seed) for seed in range(4)]
    expected = [over(cell, x)[0] for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(lambda x: steps(Stepper(cell, x[:, 0]), x), xs), expected):
            assert_near(found, right)


def test_it_outlives_what_it_was_made_of() -> None:
    """Many other steps are compiled, weights are gone, and the cell too."""
    cell, stepper = lstm()
    x = sequence()
    expected = steps(stepper, x)
    del cell
    nn.clear_parameters()
    for units in range(1, 40):
        other = Cell(lambda x, h, n=units: (h * 2 + n, F.tanh(h + n)), StateSpec((units,)))
        Stepper(other, batch_size=2).step()
    gc.collect()
    stepper.reset()
    np.testing.assert_array_equal(steps(stepper, x), expected)


# --------------------------------------------------------------------------------------------------------------- mistakes

MISTAKES: dict[str, tuple[str, Callable[[], Any]]] = {
    "no batch": ("needs a batch size: give an example", lambda: Stepper(LSTMCell(4))),
    "empty batch": ("batch_size must be a whole number, 1 or more; got 0", lambda: Stepper(LSTMCell(4), batch_size=0)),
    "two batches": ("needs one batch size; it is 2", lambda: Stepper(LSTMCell(4), np.zeros((3, 3)), batch_size=2)),
    "no axis": (r"with a batch axis, \(B, ...\); got \(\)", lambda: Stepper(LSTMCell(4), np.zeros(()))),
    "no weights": ("no_new_parameters", lambda: Stepper(GRUCell(9, name="new"), np.zeros((3, 3)))),
    "statistics": ("collects statistics", lambda: Stepper(normalized(), np.zeros((3, 3)))),
    "another shape": (r"inputs of the shapes \(3, 3\); got \(3, 2\)", lambda: lstm()[1].step(np.zeros((3, 2)))),
    "another batch": (r"got \(2, 3\). .*reset\(batch_size", lambda: lstm()[1].step(np.zeros((2, 3)))),
    "no input": ("got None", lambda: lstm()[1].step()),
    "ids": (r"ids must be whole numbers from 0 to 6; got \[7\]", lambda: embedded().step(np.array([0, 7, 6]))),
    "ids below 0": ("from 0 to 6; got", lambda: embedded().step(np.array([0, -1, 6]))),
    "no ids": (r"from 0 to 6; got \[nan, 0.5\]", lambda: embedded().step(np.array([0, np.nan, 0.5]))),
    "rows and batch": ("got both", lambda: lstm()[1].reset(2, rows=[0])),
    "rows": (r"rows are whole numbers from 0 to 2, .*; got \[3\]", lambda: lstm()[1].reset(rows=[3])),
    "rows below 0": ("rows are whole numbers", lambda: lstm()[1].gather([0, 1, -1])),
    "rows of another batch": ("a row for each of the 3 rows; got 2", lambda: lstm()[1].gather([0, 1])),
    "state": ("needs? a state|goes on from a state", lambda: setattr(lstm()[1], "state", np.zeros((3, 4)))),
    "begin": ("begins with a state of shapes", lambda: lstm()[1].begin(None)),
}


def embedded() -> Stepper:
    cell = lift(PF.embed, 7, 3)
    cell(nn.Variable((3,)), ())
    return Stepper(cell, np.zeros(3, int))


def normalized() -> Any:
    cell = lift(PF.batch_normalization)
    with nn.auto_forward(False):
        cell(nn.Variable((3, 3)), ())
    return cell


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    message, mistaken = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        mistaken()


def test_what_is_no_cell_is_named() -> None:
    with pytest.raises(TypeError, match="a cell is what"):
        Stepper(F.tanh, np.zeros((2, 3)))
