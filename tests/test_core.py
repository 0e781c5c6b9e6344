"""Trees, specs, and the contract of a cell."""

from __future__ import annotations

import pickle
from collections import namedtuple
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from nnabla.initializer import ConstantInitializer, NormalInitializer

from nnshop import (
    AbstractCell,
    Cell,
    GRUCell,
    LSTMCell,
    SimpleRNNCell,
    StateSpec,
    bidirectional,
    gru_cell,
    lstm,
    lstm_cell,
    no_new_parameters,
    output_shape,
    run,
    tree_leaves,
    tree_map,
)
from nnshop.core import batch_size_of, shapes

Pair = namedtuple("Pair", "first second")


def test_tree_map_keeps_the_structure() -> None:
    tree = (1, (2, None, ()), Pair(3, [4]))
    doubled = tree_map(lambda leaf: leaf * 2, tree)
    assert doubled == (2, (4, None, ()), (6, [4, 4]))
    assert isinstance(doubled[2], Pair)
    assert tree_map(lambda a, b, c: a + b + c, (1, (2,)), (10, (20,)), (100, (200,))) == (111, (222,))
    assert tree_map(abs, None) is None
    assert tree_map(abs, -1) == 1


def test_tree_leaves_go_from_left_to_right() -> None:
    assert tree_leaves((1, (2, None, ()), Pair(3, [4]))) == [1, 2, 3, [4]]
    assert tree_leaves(None) == []
    assert tree_leaves(5) == [5]


def test_shapes_for_messages() -> None:
    assert shapes((nn.Variable((2, 3)), (None, nn.Variable(())), "a")) == ((2, 3), (None, ()), "str")


def test_batch_size_is_that_of_the_first_leaf_that_has_one() -> None:
    assert batch_size_of(None, (nn.Variable(()), nn.Variable((4, 2)))) == 4
    assert batch_size_of(None, ()) is None


@pytest.mark.parametrize("shape", [8, [8], (0,), (-1,), (8.0,), ("8",), (None,)])
def test_bad_specs_are_named(shape: Any) -> None:
    with pytest.raises(ValueError, match=r"tuple of positive sizes .* got "):
        StateSpec(shape)


def test_specs_compare() -> None:
    assert StateSpec((8,)) == StateSpec((8,))
    assert StateSpec((8,)) != StateSpec((8, 1))
    assert StateSpec(()).shape == ()
    assert StateSpec((np.int64(3),)).shape == (3,)


def test_initial_state_is_what_the_initializers_say() -> None:
    specs = (StateSpec((3,)), (StateSpec((2, 3), ConstantInitializer(0.25)), StateSpec((), lambda shape: np.arange(4))))
    zeros, (quarters, numbers) = Cell(lambda x, state: (x, state), specs).initial_state(4)
    np.testing.assert_array_equal(zeros.d, np.zeros((4, 3)))
    np.testing.assert_array_equal(quarters.d, np.full((4, 2, 3), 0.25))
    np.testing.assert_array_equal(numbers.d, np.arange(4))
    assert not any(leaf.need_grad for leaf in (zeros, quarters, numbers))


def test_initial_state_broadcasts_a_value_for_one_row() -> None:
    row = np.random.randn(3)
    state = Cell(lambda x, state: (x, state), StateSpec((3,), lambda shape: row)).initial_state(2)
    np.testing.assert_allclose(state.d, [row, row], rtol=1e-6)


def test_initial_state_draws_anew_each_time() -> None:
    cell = Cell(lambda x, state: (x, state), StateSpec((3,), NormalInitializer()))
    assert not np.allclose(cell.initial_state(2).d, cell.initial_state(2).d)


@pytest.mark.parametrize("batch", [0, -1, 2.5, True])
def test_a_batch_has_a_row(batch: int) -> None:
    with pytest.raises(ValueError, match=f"1 or more; got {batch}"):
        LSTMCell(3).initial_state(batch)


@pytest.mark.parametrize("make", [LSTMCell, GRUCell, SimpleRNNCell])
@pytest.mark.parametrize("units", [0, -3, 2.0, "8", None, (4,), True, 2**31, 10**30])
def test_units_are_a_positive_number(make: Any, units: Any) -> None:
    with pytest.raises(ValueError, match=rf"{make.__name__} needs units (>= 1, a whole number|< 2 \*\* 31, .*); got "):
        make(units)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="projection_size >= 1, a whole number; got 0"):
        LSTMCell(3, projection_size=0)
    with pytest.raises(ValueError, match="got 'tahn'"):
        GRUCell(3, activation="tahn")
    with pytest.raises(ValueError, match="got 'hard'"):
        LSTMCell(3, recurrent_activation="hard")
    with pytest.raises(ValueError, match=r"forget_bias=1.0 needs biases; leave with_bias=True"):
        LSTMCell(3, forget_bias=1.0, with_bias=False)
    with pytest.raises(TypeError, match="units_"):
        SimpleRNNCell(3, units_=4)


def test_numpy_units_are_units() -> None:
    ys, _ = GRUCell(np.int64(4))(nn.Variable((2, 3)), nn.Variable((2, 4)))
    assert ys.shape == (2, 4)


def test_cells_are_values() -> None:
    assert LSTMCell(8) == LSTMCell(8)
    assert LSTMCell(8) != LSTMCell(8, name="a")
    assert LSTMCell(8) != GRUCell(8)
    assert len({LSTMCell(8), LSTMCell(8), GRUCell(8)}) == 2
    with pytest.raises(FrozenInstanceError):
        LSTMCell(8).units = 9


def test_repr_shows_what_is_not_the_default() -> None:
    assert repr(LSTMCell(8, peephole=True, forget_bias=1.0)) == "LSTMCell(8, forget_bias=1.0, peephole=True)"
    assert repr(GRUCell(8, reset_after=False, name="a")) == "GRUCell(8, reset_after=False, name='a')"
    assert repr(SimpleRNNCell(8, activation="tanh")) == "SimpleRNNCell(8)"


@pytest.mark.parametrize("shape", [(2, 3, 4), (2,), (2, 3, 1, 1)])
def test_a_step_is_a_matrix(shape: tuple) -> None:
    cell = LSTMCell(8)
    with pytest.raises(ValueError, match=r"LSTMCell\(8\) takes one step of shape \(B, D\); got \(2"):
        cell(nn.Variable(shape), cell.initial_state(2))
    assert not nn.get_parameters()


@pytest.mark.parametrize(
    "state",
    [
        nn.Variable((2, 8)),
        (nn.Variable((2, 8)),),
        (nn.Variable((2, 8)), nn.Variable((2, 7))),
        (nn.Variable((3, 8)), nn.Variable((3, 8))),
        (nn.Variable((2, 8)), nn.Variable((3, 8))),
        ((nn.Variable((2, 8)), nn.Variable((2, 8))),),
        (nn.Variable((2, 8)), None),
        [nn.Variable((2, 8)), nn.Variable((2, 8))],
        (np.zeros((2, 8)), 0),
        None,
        (),
    ],
)
def test_a_state_of_another_kind_names_both(state: Any) -> None:
    expected = r"LSTMCell\(8\) needs a state of shapes \(\(2, 8\), \(2, 8\)\); got .*initial_state\(batch_size\) makes one"
    with pytest.raises(ValueError, match=expected):
        LSTMCell(8)(nn.Variable((2, 3)), state)
    assert not nn.get_parameters()


def test_a_cell_must_return_its_own_state() -> None:
    x = nn.Variable((2, 3))
    for after in (x, (x, x), (), None, (nn.Variable((1, 3)),)):
        cell = Cell(lambda x, state, after=after: (x, after), (StateSpec((3,)),))
        with pytest.raises(ValueError, match=r"Cell\(.*\) must return a state of shapes \(\(2, 3\),\); got "):
            cell(x, cell.initial_state(2))


def test_a_cell_without_input() -> None:
    cell = Cell(lambda _, n: (n * 2, n + 1), StateSpec((1,)))
    y, n = cell(None, constant_state(cell, 3.0))
    nn.forward_all([y, n])
    np.testing.assert_array_equal(y.d, [[6], [6]])
    np.testing.assert_array_equal(n.d, [[4], [4]])
    with pytest.raises(ValueError, match=r"got \(\)"):
        cell(None, ())


def constant_state(cell: AbstractCell, number: float) -> Any:
    state = cell.initial_state(2)
    for leaf in tree_leaves(state):
        leaf.d = number
    return state


def test_a_cell_of_trees() -> None:
    """Several inputs and several outputs."""
    cell = Cell(lambda pair, s: ((pair[0] + s, pair[1][0] * s), s + 1), StateSpec((3,)))
    a, b = (nn.Variable.from_numpy_array(np.random.randn(2, 3)) for _ in range(2))
    (plus, times), _ = cell((a, (b,)), constant_state(cell, 3.0))
    nn.forward_all([plus, times])
    np.testing.assert_allclose(plus.d, a.d + 3, rtol=1e-6)
    np.testing.assert_allclose(times.d, b.d * 3, rtol=1e-6)
    assert output_shape(cell, (a, (b,))) == ((3,), (3,))


def test_a_named_tuple_is_a_state() -> None:
    cell = Cell(lambda x, pair: (x + pair.first, Pair(pair.second, pair.first)), Pair(StateSpec((3,)), StateSpec((3,))))
    _, state = cell(nn.Variable((2, 3)), cell.initial_state(2))
    assert isinstance(state, Pair)


@dataclass(frozen=True, repr=False)
class Decay(AbstractCell):
    """What a user writes for a cell with settings."""

    units: int
    rate: float = 0.5

    @property
    def state(self) -> Any:
        return StateSpec((self.units,))

    def step(self, x: Any, state: Any) -> tuple:
        h = self.rate * state + PF.affine(x, self.units)
        return h, h


def test_a_user_s_class_is_a_cell() -> None:
    cell = Decay(4, rate=0.25)
    assert repr(cell) == "Decay(4, rate=0.25)"
    assert (cell, cell.name) == (pickle.loads(pickle.dumps(cell)), None)
    assert output_shape(cell, nn.Variable((2, 3))) == (4,)
    with pytest.raises(TypeError, match="abstract"):
        AbstractCell()


@pytest.mark.parametrize("name", [None, "a", "a/b"])
def test_a_name_is_a_scope(name: str | None) -> None:
    prefix = f"{name}/" if name else ""
    for cell, own in [
        (SimpleRNNCell(2, name=name), ["x2h/W", "b", "h2h/W"]),
        (LSTMCell(2, name=name, peephole=True, with_bias=False), ["x2h/W", "h2h/W", "peephole/W"]),
        (GRUCell(2, name=name), ["x2h/W", "b", "h2h/W", "h2h/b"]),
        (Cell(lambda x, s: (PF.affine(x, 2), s), (), name), ["affine/W", "affine/b"]),
    ]:
        nn.clear_parameters()
        cell(nn.Variable((1, 3)), cell.initial_state(1))
        assert sorted(nn.get_parameters()) == sorted(prefix + one for one in own)


def test_output_shape_computes_nothing() -> None:
    """Neither values nor random numbers, also in auto-forward mode.

    It is at the caller's batch size, since a cell may hold a memory of that.
    """
    seen = []

    def look(x: nn.Variable, state: Any) -> tuple:
        seen.append((x.shape, nn.get_auto_forward()))
        return F.dropout(PF.affine(x, 2), 0.5), state

    before = nn.random.prng.get_state()[1].copy()
    with nn.auto_forward():
        assert output_shape(Cell(look), nn.Variable((7, 3))) == (2,)
    assert seen == [((7, 3), False)]
    np.testing.assert_array_equal(nn.random.prng.get_state()[1], before)


def test_output_shape_cleans_up_after_an_error() -> None:
    def fail(x: nn.Variable, state: Any) -> tuple:
        PF.affine(x, 2)
        raise KeyError("broken")

    before = nn.random.prng.get_state()[1].copy()
    with pytest.raises(KeyError, match="broken"):
        output_shape(Cell(fail), nn.Variable((7, 3)))
    assert not nn.get_parameters()
    np.testing.assert_array_equal(nn.random.prng.get_state()[1], before)
    PF.affine(nn.Variable((2, 3)), 2)
    assert list(nn.get_parameters()) == ["affine/W", "affine/b"]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Cell(5), r"Cell takes a function \(x, state\) -> \(y, new_state\); got 5"),
        (lambda: Cell(lambda x, s: (x, s), (64,)), r"is StateSpec\(\(units,\)\), or a tuple of them; got 64 in it"),
        (lambda: Cell(lambda x, s: x)(nn.Variable((2, 3)), ()), r"must return \(y, new_state\); it returned Variable"),
        (
            lambda: run(LSTMCell, nn.Variable((2, 5, 3))),
            r"a cell is what LSTMCell\(8\), stack\(...\) or lift\(function\) returns",
        ),
        (lambda: bidirectional(nn.Variable((2, 5, 3)), GRUCell(4), 8), r"a cell is what .* returns; got 8"),
        (lambda: lstm((nn.Variable((2, 5, 3)),) * 2, 8), "lstm: the sequence must be a Variable; got tuple"),
    ],
)
def test_what_is_no_cell_or_input_is_a_type_error(make: Callable, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        make()
    assert not nn.get_parameters()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: run(GRUCell(8), nn.Variable((4, 5, 3)), np.zeros((4, 8))), r"needs a state of shapes \(4, 8\); got ndarray"),
        (
            lambda: lstm(nn.Variable((4, 7, 0)), 8),
            r"must not be empty: each size must be at least 1; got the shape \(4, 7, 0\)",
        ),
        (lambda: gru_cell(nn.Variable((4, 3)), nn.Variable((1, 8)), 8), r"gru_cell needs h of shape \(4, 8\).*got \(1, 8\)"),
        (
            lambda: lstm_cell(nn.Variable((4, 3)), *[nn.Variable((4, 8))] * 2, 0),
            r"lstm_cell needs units >= 1, a whole number; got 0",
        ),
        (lambda: lstm(nn.Variable((4, 7, 3)), 8, w_init=np.ones((3, 8))), r"array for x2h/W must have the shape \(3, 32\)"),
        (
            lambda: lstm(nn.Variable((4, 7, 3)), 8, b_init=np.ones(8), forget_bias=1.0),
            r"array for b must have the shape \(32,\)",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_shapes(make: Callable, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_no_new_parameters_cleans_up_after_an_exception() -> None:
    def fail() -> None:
        with no_new_parameters():
            PF.affine(nn.Variable((2, 3)), 4, name="typo")
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert not nn.get_parameters()


class WithOption(AbstractCell):
    """A cell whose option stands in an `__init__`."""

    def __init__(self, hidden_dim: int = 8) -> None:
        self.hidden_dim = hidden_dim

    @property
    def state(self) -> StateSpec:
        return StateSpec((self.hidden_dim,))

    def step(self, x: nn.Variable, state: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
        return state, state


def test_an_option_that_is_no_field_is_refused() -> None:
    class Inherits(WithOption):
        pass

    for kind in (WithOption, Inherits):
        with pytest.raises(TypeError, match=r"its __init__ takes hidden_dim, which is no field.*`hidden_dim: \.\.\. = "):
            kind(4)
