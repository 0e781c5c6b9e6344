"""What the laws do not say of stack, lift and residual."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from measuring import constant

from nnshop import (
    Cell,
    GRUCell,
    LSTMCell,
    RecurrentSequential,
    SimpleRNNCell,
    StateSpec,
    lift,
    output_shape,
    residual,
    run,
    stack,
    sync,
)
from nnshop.combinators import Lifted, Residual, Stack


def parameters(cell: Any, width: int = 3) -> list[str]:
    nn.clear_parameters()
    run(cell, nn.Variable((2, 4, width)))
    return sorted(nn.get_parameters())


def names(*scopes: str) -> list[str]:
    return sorted(f"{scope}/{name}" for scope in scopes for name in ("x2h/W", "h2h/W", "b"))


def test_each_child_has_the_scope_of_its_position_or_name() -> None:
    R = SimpleRNNCell
    assert parameters(stack(R(3), R(3))) == names("0", "1")
    assert parameters(stack(R(3, name="a"), R(3))) == names("a", "1")
    assert parameters(stack(R(3, name="a"), R(3, name="b"))) == names("a", "b")
    assert parameters(stack(R(3, name="a"), R(3, name="a"))) == names("a")
    assert parameters(stack(stack(R(3), R(3)), R(3))) == names("0/0", "0/1", "1")
    assert parameters(stack(stack(R(3), R(3), name="low"), R(3), name="all")) == names("all/low/0", "all/low/1", "all/1")
    assert parameters(stack(F.tanh, R(3), F.tanh, R(3))) == names("1", "3")
    assert parameters(stack(residual(R(3)), residual(R(3, name="a")))) == names("0", "a")
    assert parameters(R(3)) == sorted(["x2h/W", "h2h/W", "b"])


def test_one_cell_twice_has_weights_twice() -> None:
    """Weights are found by name, never by object."""
    cell = SimpleRNNCell(3)
    assert parameters(stack(cell, cell)) == names("0", "1")


def test_lifted_functions_have_a_scope_too() -> None:
    assert parameters(stack(lift(PF.affine, 4), lift(PF.affine, 4, name="out"), partial(PF.affine, n_outmaps=2))) == [
        "0/affine/W",
        "0/affine/b",
        "2/affine/W",
        "2/affine/b",
        "out/affine/W",
        "out/affine/b",
    ]


def test_lift_passes_arguments_and_options() -> None:
    def scale(x: nn.Variable, factor: float, plus: float = 0) -> nn.Variable:
        return x * factor + plus

    x = np.random.randn(2, 3)
    for cell, expected in [(lift(scale, 2), x * 2), (lift(scale, 2, plus=1), x * 2 + 1), (lift(scale, factor=3), x * 3)]:
        y, state = cell(constant(x), ())
        y.forward()
        np.testing.assert_allclose(y.d, expected, rtol=1e-6)
        assert state == ()
    assert lift(scale, 2, plus=1) == lift(scale, 2, plus=1)
    assert lift(scale, 2) != lift(scale, 3)
    assert isinstance(lift(scale, 2), Lifted)


def test_a_stack_has_the_states_of_its_cells() -> None:
    cell = stack(LSTMCell(4), F.tanh, GRUCell(3))
    assert cell.state == ((StateSpec((4,)), StateSpec((4,))), (), StateSpec((3,)))
    assert repr(stack(LSTMCell(4), GRUCell(3), name="a")) == "Stack((LSTMCell(4), GRUCell(3)), name='a')"
    assert isinstance(cell, Stack)


def test_nothing_to_stack() -> None:
    with pytest.raises(ValueError, match="at least one cell"):
        stack()


@pytest.mark.parametrize("part", [3, "tanh", None, (LSTMCell(3), LSTMCell(3)), nn.Variable((2, 3))])
def test_what_is_no_cell_is_named(part: Any) -> None:
    with pytest.raises(TypeError, match=r"stack takes cells and functions of a Variable; got "):
        stack(LSTMCell(3), part)


def test_residual_of_another_width_names_both() -> None:
    with pytest.raises(ValueError, match=r"output of the input's shape \(2, 3\); LSTMCell\(4\) gives \(2, 4\)"):
        run(residual(LSTMCell(4)), nn.Variable((2, 5, 3)))


def test_residual_of_a_tree() -> None:
    cell = residual(Cell(lambda pair, s: ((pair[0] * 2, pair[1] * 3), s)))
    (a, b), _ = cell((constant(np.ones((2, 3))), constant(np.ones((2, 4)))), ())
    nn.forward_all([a, b])
    assert (a.d.tolist(), b.d.tolist()) == ([[3.0] * 3] * 2, [[4.0] * 4] * 2)
    assert isinstance(cell, Residual)


def test_a_wrapper_has_the_name_of_its_cell() -> None:
    assert residual(LSTMCell(3, name="a")).name == "a"
    assert residual(stack(LSTMCell(3))).name is None


def test_dropout_draws_anew_at_each_step() -> None:
    nn.set_auto_forward(False)
    ys, _ = run(stack(lift(F.dropout, 0.5)), constant(np.ones((3, 20, 30))))
    ys.forward()
    assert set(np.unique(ys.d)) == {0.0, 2.0}
    assert all(not np.array_equal(ys.d[:, 0], ys.d[:, t]) for t in range(1, 20))
    assert 0.4 < (ys.d == 0).mean() < 0.6


def test_shapes_of_deep_wirings() -> None:
    x = nn.Variable((1, 3))
    assert output_shape(stack(residual(GRUCell(3)), lift(PF.affine, (2, 4))), x) == (2, 4)
    assert output_shape(residual(stack(LSTMCell(8, projection_size=3))), x) == (3,)


def test_names_that_would_share_weights_by_accident_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stack: the name '1' of GRUCell\(3, name='1'\) is empty, or the scope of an unnamed"):
        stack(GRUCell(3, name="1"), GRUCell(3))
    with pytest.raises(ValueError, match=r"stack: the name '' of GRUCell"):
        stack(GRUCell(3, name=""), GRUCell(3, name=""))
    stack(GRUCell(3, name="0"), GRUCell(3))  # no part is unnamed at position 0


def test_residual_takes_a_cell() -> None:
    with pytest.raises(TypeError, match=r"a cell is what .* returns; got 3"):
        residual(3)


@pytest.mark.parametrize("join", [stack, sync])
def test_parts_that_own_their_weights_are_of_different_layers(join: Callable) -> None:
    def rnn() -> RecurrentSequential:
        made = RecurrentSequential()
        made.add(GRUCell(3))
        return made

    one = rnn()
    with pytest.raises(ValueError, match="two of its cells are of RecurrentSequential"):
        join(one.get_cell(), residual(one.get_cell()))
    run(join(one.get_cell(), rnn().get_cell()), nn.Variable((2, 5, 3)))
    assert len(nn.get_parameters()) == 8
