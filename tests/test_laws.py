"""The laws of cells and of running them; each walks the table of cells."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
import reference
from cells_table import BUILT_IN, ROWS, Louder, Row, each_row
from measuring import (
    Measured,
    assert_same,
    constant,
    factors,
    inputs,
    measure,
    measure_reference,
    prepare,
    runs,
    start,
    weights,
)

import nnshop
from nnshop import GRUCell, LSTMCell, lift, output_shape, readout, residual, run, stack, tree_leaves, tree_map
from nnshop.combinators import Readout, Residual, Stack, Sync
from nnshop.running import WAYS

LENGTHS = [5, 2, 0, 1]
HOLES = np.array([[1, 1, 0, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
BOTH_DIRECTIONS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def rows_of(measured: Measured, b: int) -> tuple:
    """What belongs to row b of the batch: all but the gradients of the weights, which are sums over rows."""
    return tuple(tree_map(lambda leaf: leaf[b], tree) for tree in measured[:4])


def lengths_mask(lengths: list[int], length: int) -> np.ndarray:
    return (np.arange(length) < np.array(lengths)[:, None]).astype(int)


def time(ys: Any, steps: Any) -> Any:
    return tree_map(lambda y: y[:, steps], ys)


def sum_of_rows(results: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: sum(result[name] for result in results) for name in results[0]}


def leaf_parameters(output: nn.Variable) -> list[nn.Variable]:
    """All Variables of the graph that ends here."""
    found: list[nn.Variable] = []
    output.visit(lambda function: found.extend([*function.inputs, *function.outputs]))
    return found


# Against NumPy


@each_row()
def test_values_and_gradients_are_those_of_the_equations(row: Row) -> None:
    cell, x, state = start(row, batch=2, length=4)
    assert_same(measure(runs(cell), x, state), measure_reference(row.step, x, state))


@BOTH_DIRECTIONS
@each_row()
def test_masked_values_and_gradients_are_those_of_the_equations(row: Row, reverse: bool) -> None:
    """With holes in the masks: a masked step keeps the state, and repeats the last output."""
    cell, x, state = start(row, batch=4)
    actual = measure(runs(cell, mask=constant(HOLES), reverse=reverse), x, state)
    assert_same(actual, measure_reference(row.step, x, state, HOLES, reverse))


def test_every_row_has_an_id_of_its_own_and_a_reference() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert all(row.step for row in ROWS)


# Running


@BOTH_DIRECTIONS
@each_row()
def test_run_is_the_loop_by_hand(row: Row, reverse: bool) -> None:
    cell, x, state = start(row)

    def by_hand(x: nn.Variable, state: Any) -> tuple:
        ys = []
        for t in reversed(range(5)) if reverse else range(5):
            y, state = cell(x[:, t], state)
            ys.append(y)
        return F.stack(*(reversed(ys) if reverse else ys), axis=1), state

    assert_same(measure(runs(cell, reverse=reverse), x, state), measure(by_hand, x, state))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("way", sorted({*WAYS} - {"unrolled"}))
@each_row()
def test_all_ways_are_equal(row: Row, way: str, masked: bool) -> None:
    cell, x, state = start(row, batch=4)
    options = {"mask": constant(HOLES)} if masked else {}
    expected = measure(runs(cell, way="unrolled", **options), x, state)
    assert_same(measure(runs(cell, way=way, **options), x, state), expected)
    unasked = measure(runs(cell, way=way, **options), x, state, x_need_grad=False)
    assert_same(unasked.weight_grads, expected.weight_grads)


@each_row()
def test_the_number_of_threads_changes_no_bit(row: Row, share_all: Callable[[int], None]) -> None:
    cell, x, state = start(row, batch=7)
    mask = constant(np.random.RandomState(2).rand(7, tree_leaves(x)[0].shape[1]) < 0.7)
    found = []
    for n in (1, 2, 5):
        share_all(n)
        found.append(measure(runs(cell, mask=mask, way="compiled"), x, state))
    for other in found[1:]:
        assert_same(other, found[0], rtol=0)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@each_row()
def test_without_a_state_it_starts_from_the_initializers(row: Row, reverse: bool) -> None:
    cell, x, _ = start(row)
    state = tree_map(lambda spec: np.zeros((3, *spec.shape)) + spec.initializer((1,)), cell.state)
    ys, after = measure(lambda x, _: run(cell, x, reverse=reverse), x, ())[:2]
    assert_same((ys, after), reference.run(row.step, weights(), x, state, reverse=reverse))


@each_row()
def test_two_steps_then_three_are_five(row: Row) -> None:
    cell, x, state = start(row)

    def in_parts(x: nn.Variable, state: Any) -> tuple:
        first, state = run(cell, x[:, :2], state)
        second, state = run(cell, x[:, 2:], state)
        return F.concatenate(first, second, axis=1), state

    assert_same(measure(in_parts, x, state), measure(runs(cell), x, state))


@each_row()
def test_length_one_is_one_step(row: Row) -> None:
    cell, x, state = start(row, length=1)

    def one_step(x: nn.Variable, state: Any) -> tuple:
        y, state = cell(x[:, 0], state)
        return F.reshape(y, (y.shape[0], 1, *y.shape[1:])), state

    expected = measure(one_step, x, state)
    assert expected.ys.shape[1] == 1
    for reverse in (False, True):
        assert_same(measure(runs(cell, reverse=reverse), x, state), expected)
        assert_same(measure(runs(cell, reverse=reverse, lengths=[1, 1, 1]), x, state), expected)


@each_row()
def test_a_batch_of_one_is_a_row_of_a_batch(row: Row) -> None:
    cell, x, state = start(row)
    whole = measure(runs(cell), x, state)
    ys_factors, state_factors = factors(whole.ys), factors(whole.state)
    alone = []
    for b in range(3):
        one = slice(b, b + 1)
        cut = [tree_map(lambda leaf, one=one: leaf[one], tree) for tree in (x, state, ys_factors, state_factors)]
        alone.append(measure(runs(cell), *cut))
        assert_same(rows_of(alone[-1], 0), rows_of(whole, b))
    assert_same(sum_of_rows([measured.weight_grads for measured in alone]), whole.weight_grads)


@each_row()
def test_reverse_is_flip_run_flip(row: Row) -> None:
    cell, x, state = start(row)

    def flipped(x: nn.Variable, state: Any) -> tuple:
        ys, state = run(cell, F.flip(x, axes=[1]), state)
        return F.flip(ys, axes=[1]), state

    assert_same(measure(runs(cell, reverse=True), x, state), measure(flipped, x, state))


@each_row()
def test_reverse_with_a_mask_is_flip_run_flip(row: Row) -> None:
    cell, x, state = start(row, batch=4)

    def flipped(x: nn.Variable, state: Any) -> tuple:
        ys, state = run(cell, F.flip(x, axes=[1]), state, mask=constant(HOLES[:, ::-1]))
        return F.flip(ys, axes=[1]), state

    assert_same(measure(runs(cell, mask=constant(HOLES), reverse=True), x, state), measure(flipped, x, state))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@each_row()
def test_auto_forward_gives_the_same(row: Row, masked: bool) -> None:
    cell, x, state = start(row, batch=4)
    options = {"lengths": LENGTHS, "reverse": True} if masked else {}
    static = measure(runs(cell, **options), x, state)
    assert_same(measure(runs(cell, **options), x, state, auto_forward=True), static)


@each_row()
def test_gradients_reach_the_parameters_of_constant_inputs(row: Row) -> None:
    cell, x, state = start(row)
    expected = measure(runs(cell), x, state)
    actual = measure(runs(cell), x, state, x_need_grad=False)
    assert_same(actual.weight_grads, expected.weight_grads)
    assert row.weightless or all(np.abs(gradient).max() > 0 for gradient in actual.weight_grads.values())


# Padding


@BOTH_DIRECTIONS
@each_row()
def test_a_padded_row_is_its_sequence_alone(row: Row, reverse: bool) -> None:
    """Values, final states and gradients; the loss sees valid steps and final states."""
    cell, x, state = start(row, batch=4)
    ys_factors = factors(measure(runs(cell), x, state).ys) * lengths_mask(LENGTHS, 5)[:, :, None]
    state_factors = factors(state)
    padded = measure(runs(cell, lengths=LENGTHS, reverse=reverse), x, state, ys_factors, state_factors)
    alone = []
    for b, length in enumerate(LENGTHS):
        if length == 0:
            continue
        one = slice(b, b + 1)
        cut_state, cut_state_factors = (tree_map(lambda leaf, one=one: leaf[one], t) for t in (state, state_factors))
        build = runs(cell, reverse=reverse)
        alone.append(measure(build, x[one, :length], cut_state, ys_factors[one, :length], cut_state_factors))
        valid = padded._replace(ys=padded.ys[:, :length], x_grad=padded.x_grad[:, :length])
        assert_same(rows_of(valid, b), rows_of(alone[-1], 0))
    assert_same(sum_of_rows([measured.weight_grads for measured in alone]), padded.weight_grads)


@each_row()
def test_outputs_at_padding_repeat_the_last_or_are_zero(row: Row) -> None:
    cell, x, state = start(row, batch=4)
    forward = measure(runs(cell, lengths=LENGTHS), x, state).ys
    backward = measure(runs(cell, lengths=LENGTHS, reverse=True), x, state).ys
    for b, length in enumerate(LENGTHS):
        last = forward[b, length - 1] if length else np.zeros_like(forward[b, 0])
        np.testing.assert_array_equal(forward[b, length:], np.broadcast_to(last, forward[b, length:].shape))
        np.testing.assert_array_equal(backward[b, length:], 0)


@BOTH_DIRECTIONS
@each_row()
def test_what_padding_holds_changes_nothing(row: Row, reverse: bool) -> None:
    """NaN, infinities and huge numbers at the masked steps: values and gradients are those of zeros there."""
    cell, x, state = start(row, batch=4)
    build, valid = runs(cell, mask=constant(HOLES), reverse=reverse), HOLES[:, :, None]
    padding = np.array([np.inf, np.nan, 1e30, -np.inf, np.nan])[:, None]
    expected = measure(build, np.where(valid, x, 0), state)
    actual = measure(build, np.where(valid, x, padding), state)
    assert_same(actual, expected, rtol=1e-7)
    np.testing.assert_array_equal(actual.x_grad[HOLES == 0], 0)


@BOTH_DIRECTIONS
@each_row()
def test_a_row_of_padding_only_is_safe(row: Row, reverse: bool) -> None:
    """Its outputs are zero, its state is the initial one, and only that gets its gradient."""
    cell, x, state = start(row, batch=2)
    x[1] = np.nan
    measured = measure(runs(cell, lengths=[5, 0], reverse=reverse), x, state)
    np.testing.assert_array_equal(measured.ys[1], 0)
    np.testing.assert_array_equal(measured.x_grad[1], 0)
    passed = tree_map(lambda leaf: leaf[1], (measured.state, measured.state_grad))
    assert_same(passed, tree_map(lambda leaf: leaf[1], (state, factors(state))), rtol=1e-6)


@BOTH_DIRECTIONS
@each_row()
def test_masked_steps_are_as_if_not_there(row: Row, reverse: bool) -> None:
    cell, x, state = start(row, batch=4)
    measured = measure(runs(cell, mask=constant(HOLES), reverse=reverse), x, state)
    for b, keep in enumerate(HOLES.astype(bool)):
        if keep.any():
            one = tree_map(lambda leaf, b=b: leaf[b : b + 1], state)
            alone = measure(runs(cell, reverse=reverse), x[b : b + 1, keep], one)
            assert_same(measured.ys[b, keep], alone.ys[0])
            assert_same(tree_map(lambda leaf, b=b: leaf[b], measured.state), tree_map(lambda leaf: leaf[0], alone.state))


@BOTH_DIRECTIONS
@each_row()
def test_lengths_are_a_mask(row: Row, reverse: bool) -> None:
    cell, x, state = start(row, batch=4)
    expected = measure(runs(cell, mask=constant(lengths_mask(LENGTHS, 5)), reverse=reverse), x, state)
    assert_same(measure(runs(cell, lengths=LENGTHS, reverse=reverse), x, state), expected, rtol=1e-7)


@pytest.mark.parametrize("kind", [tuple, np.array, lambda n: np.array(n, np.int8), constant])
def test_lengths_of_all_kinds(kind: Any) -> None:
    cell, x, state = start(BUILT_IN[0], batch=4)
    expected = measure(runs(cell, lengths=LENGTHS), x, state)
    assert_same(measure(runs(cell, lengths=kind(LENGTHS)), x, state), expected, rtol=1e-7)


@each_row()
def test_a_mask_of_ones_changes_nothing(row: Row) -> None:
    cell, x, state = start(row)
    assert_same(measure(runs(cell, mask=constant(np.ones((3, 5)))), x, state), measure(runs(cell), x, state), rtol=1e-6)


# Combinators


@each_row()
def test_stack_is_associative(row: Row) -> None:
    """In values and gradients, the weights mapped by their order."""
    cell = row.make()
    second, third = GRUCell(3), LSTMCell(2)
    flat, right, left = stack(cell, second, third), stack(cell, stack(second, third)), stack(stack(cell, second), third)
    results = []
    for nested in (flat, right, left):
        nn.clear_parameters()
        prepare(nested, row.width)
        x, state = inputs(flat, row.width)
        a, b, c = state
        shaped = {id(flat): (a, b, c), id(right): (a, (b, c)), id(left): ((a, b), c)}[id(nested)]
        measured = measure(runs(nested), x, shaped, state_factors=variables_like(shaped, factors(state)))
        flattened = [np.concatenate([leaf.ravel() for leaf in tree_leaves(t)]) for t in measured[:4]]
        results.append((*flattened, *measured.weight_grads.values()))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def variables_like(tree: Any, values: Any) -> Any:
    """The leaves of `values` in the structure of `tree`."""
    return reference.refill(tree, tree_leaves(values))


@each_row()
def test_a_wrapper_changes_no_parameter_name(row: Row) -> None:
    cell = row.make()
    prepare(cell, row.width)
    names = set(nn.get_parameters())
    wrappers = [Louder(cell), Louder(Louder(cell))]
    if output_shape(cell, nn.Variable((1, row.width))) == (row.width,):
        wrappers += [residual(cell), Louder(residual(cell)), readout(cell, (row.width,))]
    for wrapper in wrappers:
        nn.clear_parameters()
        prepare(wrapper, row.width)
        assert set(nn.get_parameters()) == names
        nn.clear_parameters()
        prepare(stack(wrapper), row.width)
        in_stack = set(nn.get_parameters())
        nn.clear_parameters()
        prepare(stack(cell), row.width)
        assert set(nn.get_parameters()) == in_stack


# Cells are values


@each_row()
def test_a_cell_pickles_and_compares(row: Row) -> None:
    cell = row.make()
    back = pickle.loads(pickle.dumps(cell))
    if row.plain:
        assert row.make() == cell == back
        assert hash(row.make()) == hash(cell) == hash(back)
    prepare(cell, row.width)
    x, state = inputs(cell, row.width)
    assert_same(measure(runs(back), x, state), measure(runs(cell), x, state), rtol=1e-7)


@each_row(*[row for row in ROWS if row.plain])
def test_repr_makes_the_cell_again(row: Row) -> None:
    cell = row.make()
    names = {**vars(nnshop), "Stack": Stack, "Residual": Residual, "Sync": Sync, "Readout": Readout, "Louder": Louder}
    assert eval(repr(cell), names) == cell


@each_row(*BUILT_IN)
def test_replace_changes_one_setting(row: Row) -> None:
    cell = row.make()
    other = replace(cell, units=cell.units + 1)
    assert other.units == cell.units + 1
    assert other != cell
    assert replace(other, units=cell.units) == cell


def fixed(cell: Any) -> Any:
    """The cell with `fix_parameters=True` in all of its built-in cells."""
    names = {field.name for field in fields(cell)}
    if "fix_parameters" in names:
        return replace(cell, fix_parameters=True)
    if "cells" in names:
        return replace(cell, cells=tuple(map(fixed, cell.cells)))
    return replace(cell, cell=fixed(cell.cell)) if "cell" in names else cell


def has_fixed(cell: Any) -> bool:
    """Whether all that has weights in the cell can be fixed."""
    names = {field.name for field in fields(cell)}
    if "cells" in names:
        return all(map(has_fixed, cell.cells))
    return has_fixed(cell.cell) if "cell" in names else "fix_parameters" in names


@each_row(*[row for row in ROWS if has_fixed(row.make())])
def test_fixed_parameters_leave_no_need_grad(row: Row) -> None:
    cell = fixed(row.make())
    ys, state = run(cell, nn.Variable((2, 3, row.width)), lengths=[1, 2])
    for output in (ys, *tree_leaves(state)):
        assert not any(variable.need_grad for variable in leaf_parameters(output))
    assert nn.get_parameters(grad_only=False)


@each_row()
def test_a_fixed_cell_gives_the_same_values(row: Row) -> None:
    cell, x, state = start(row)
    expected = measure(runs(cell), x, state)
    actual = measure(runs(fixed(cell)), x, state)
    assert_same(actual[:4], expected[:4], rtol=1e-7)


@each_row()
def test_output_shape_leaves_no_trace(row: Row) -> None:
    """It tells the shape, makes no parameter, and the random weights that follow are the same."""
    cell, x = row.make(), nn.Variable((7, row.width))

    def make_weights(look: bool) -> dict[str, np.ndarray]:
        nn.clear_parameters()
        nn.seed(5)
        shape = None
        if look:
            with nn.parameter_scope("somewhere"):
                shape = output_shape(cell, x)
            assert not nn.get_parameters(grad_only=False)
        ys, _ = run(cell, nn.Variable((2, 4, row.width)))
        assert not look or shape == ys.shape[2:]
        return weights()

    expected = make_weights(look=False)
    assert_same(make_weights(look=True), expected, rtol=0)
    with nn.auto_forward():
        assert_same(make_weights(look=True), expected, rtol=0)


@each_row()
def test_a_wrong_state_is_refused(row: Row) -> None:
    cell = row.make()
    x, right = nn.Variable((2, row.width)), cell.initial_state(2)
    wrong = [(right, right), (*tree_leaves(right), nn.Variable((2, 4))), cell.initial_state(3), None]
    if tree_leaves(right):
        wrong += [(), tree_map(lambda leaf: nn.Variable((*leaf.shape[:-1], leaf.shape[-1] + 1)), right)]
        wrong += [tree_map(lambda leaf: nn.Variable((*leaf.shape, 1)), right), tree_map(lambda leaf: leaf.d, right)[:0]]
    wrong = [state for state in wrong if tree_leaves(right) or state != cell.initial_state(3)]
    for state in wrong:
        with pytest.raises(ValueError, match="a state of shapes"):
            cell(x, state)
        if state is not None:
            with pytest.raises(ValueError, match="a state of shapes"):
                run(cell, nn.Variable((2, 3, row.width)), state)
    assert not nn.get_parameters(grad_only=False)


LOADER = """
import pickle, sys
import nnabla as nn, numpy as np, nnshop
folder = sys.argv[1]
cell = pickle.load(open(folder + "/cell.pkl", "rb"))
nn.load_parameters(folder + "/weights.h5")
with nnshop.no_new_parameters():
    ys, state = nnshop.run(cell, nn.Variable.from_numpy_array(np.load(folder + "/x.npy")), lengths=[5, 3, 0])
outputs = [ys, *nnshop.tree_leaves(state)]
nn.forward_all(outputs)
np.savez(folder + "/out.npz", *[v.d for v in outputs])
"""


def test_saved_weights_give_the_same_in_a_new_process(tmp_path: Path) -> None:
    cell = stack(
        LSTMCell(4, name="lower", peephole=True), F.tanh, residual(GRUCell(4)), lift(nn.parametric_functions.affine, 2)
    )
    prepare(cell, 3)
    x, _ = inputs(cell, 3)
    ys, state = run(cell, nn.Variable.from_numpy_array(x), lengths=[5, 3, 0])
    outputs = [ys, *tree_leaves(state)]
    nn.forward_all(outputs)
    (tmp_path / "cell.pkl").write_bytes(pickle.dumps(cell))
    np.save(tmp_path / "x.npy", x)
    nn.save_parameters(str(tmp_path / "weights.h5"))
    subprocess.run([sys.executable, "-c", LOADER, str(tmp_path)], check=True, timeout=300)
    with np.load(tmp_path / "out.npz") as loaded:
        for expected, name in zip(outputs, loaded.files):
            np.testing.assert_allclose(loaded[name], expected.d, rtol=1e-6, atol=1e-7)
