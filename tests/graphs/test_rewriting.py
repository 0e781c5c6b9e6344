"""Graphs that are built again on other Variables: values, gradients, and what stands still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

from nnshop import iterate, scan
from nnshop.graphs import Rule, Traced, again, functions_of, rewrite, trace
from nnshop.recurrentshop import RecurrentModel
from nnshop.running import WAYS

each_way = pytest.mark.parametrize("way", WAYS)


def variable(*numbers: float) -> nn.Variable:
    return nn.Variable.from_numpy_array(np.array(numbers, np.float32), need_grad=True)


def gradient(y: nn.Variable, *of: nn.Variable) -> list[list[float]]:
    for v in of:
        v.grad.zero()
    loss = F.sum(y)
    loss.forward()
    loss.backward()
    return [v.g.ravel().tolist() for v in of]


def test_a_graph_is_built_again_on_another_variable() -> None:
    x, w, other = variable(1, 2), variable(3, 4), variable(5, 6)
    graph = trace(lambda x: [F.tanh(w) * x, F.tanh(w)], [x])
    y, same = rewrite(graph, {x: other}, Rule())
    assert same == graph.outputs[1]  # what does not depend on x is as it was
    y.forward()
    assert np.allclose(y.d, np.tanh([3, 4]) * [5, 6])
    assert gradient(y, x, other)[0] == [0, 0]
    assert gradient(graph.outputs[0], other)[0] == [0, 0]  # the graph itself is as it was


def test_a_replacement_may_be_computed_in_the_graph() -> None:
    x, other = variable(1, 2), variable(5, 6)
    middle = x * x
    (y,) = rewrite(trace(lambda: [middle + x]), {middle: other}, Rule())
    y.forward()
    assert y.d.tolist() == [6, 8]


class Everything(Rule):
    """Applies all functions, and counts what comes from outside."""

    def __init__(self) -> None:
        self.leaves: list[nn.Variable] = []

    def wants(self, function: Any, depends: bool) -> bool:
        return True

    def leaf(self, v: nn.Variable) -> nn.Variable:
        self.leaves.append(v)
        return v


def test_each_variable_from_outside_is_asked_for_once() -> None:
    x, w = variable(1, 2), variable(3, 4)
    rule = Everything()
    rewrite(trace(lambda x: [F.tanh(w) * x + w * w], [x]), {x: x * 2}, rule)
    assert rule.leaves == [w]


def test_a_slice_is_applied_again_at_another_width() -> None:
    """Set up again, NNabla's function would count from the end twice, and keep its bounds."""
    x, wider = nn.Variable((2, 4)), nn.Variable.from_numpy_array(np.arange(12.0).reshape(2, 6))
    (y,) = rewrite(trace(lambda x: [x[:, -3:-1]], [x]), {x: wider}, Rule())
    y.forward()
    assert y.d.tolist() == [[3, 4], [9, 10]]


def test_dropout_that_is_applied_again_has_a_mask_of_its_own() -> None:
    x = nn.Variable.from_numpy_array(np.ones(1000))
    graph = trace(lambda x: [F.dropout(x, 0.5)], [x])
    (again_,) = rewrite(graph, {x: x * 1}, Rule())
    nn.forward_all([*graph.outputs, again_])
    assert (graph.outputs[0].d != again_.d).any()


@pytest.mark.parametrize("where", ["computed", "replaced"])
def test_what_is_unlinked_stays_so(where: str) -> None:
    """It equals what it was unlinked from, so it is easily taken for that."""
    x, other = variable(1, 2), variable(5, 6)

    def build(x: nn.Variable) -> list[nn.Variable]:
        y = x * 2 if where == "computed" else x
        return [y * y.get_unlinked_variable(need_grad=False)]

    (y,) = rewrite(trace(build, [x]), {x: other}, Rule())
    assert gradient(y, other)[0] == ([20, 24] if where == "computed" else [5, 6])


@each_way
def test_what_is_unlinked_in_a_scan_with_updates_stays_so(way: str) -> None:
    count, x = nn.Variable.from_numpy_array(0.0), variable(1, 3)

    def step(x: nn.Variable) -> tuple:
        y = x * 2
        return y * y.get_unlinked_variable(need_grad=False), {count: count + 1}

    ys, _ = scan(step, x, way=way)
    assert gradient(ys, x)[0] == [4, 12]


@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_unlinked_in_a_wired_step_stays_so(batch: int) -> None:
    x, h = nn.Variable((1, 3)), nn.Variable((1, 3))
    y = x * 2 + h
    squared = y * y.get_unlinked_variable(need_grad=False)
    rnn = RecurrentModel(x, squared, initial_states=[h], final_states=[y], return_sequences=True)
    xs = nn.Variable.from_numpy_array(np.ones((batch, 1, 3)), need_grad=True)
    assert gradient(rnn(xs), xs)[0] == [4] * 3 * batch


@each_way
@pytest.mark.parametrize("fixed_first", [False, True])
def test_a_closure_that_is_also_used_unlinked(fixed_first: bool, way: str) -> None:
    """As a weight that one layer trains, and another one has with fix_parameters=True."""
    xs, w = variable(1, 2), nn.Variable.from_numpy_array(3.0).apply(need_grad=True)
    fixed = w.get_unlinked_variable(need_grad=False)
    step: Callable = (lambda x, h: (x * fixed * w, h)) if fixed_first else (lambda x, h: (x * w * fixed, h))
    ys, _ = iterate(step, xs, nn.Variable.from_numpy_array(0.0), way=way)
    assert gradient(ys, w, xs) == [[9], [9, 9]]


def test_a_function_in_python_needs_its_object() -> None:
    from nnshop.kernels.hold import Hold

    given = [nn.Variable((1, 2)), nn.Variable((1, 2))]
    graph = trace(lambda: [Hold(False)(*given)])
    (function,) = graph.functions
    with pytest.raises(ValueError, match=r"nnshop.Hold is no function of NNabla's own"):
        again(function, given)
    (y,) = again(function, given, graph.python[function])
    assert y.shape == (1, 2)


def test_what_was_there_before_is_none_of_a_call() -> None:
    outside = F.tanh(variable(1, 2))

    def build() -> list[nn.Variable]:
        return [F.sin(outside)]

    first, second = trace(build), trace(build)
    assert [f.name for f in second.functions] == ["Tanh", "Sin"]
    assert [f.name for f in second.without(first).functions] == ["Sin"]


def test_a_graph_that_is_very_deep_is_rewritten() -> None:
    x, other = variable(1), variable(2)
    y = x
    for _ in range(2000):
        y = y + 1
    (made,) = rewrite(Traced([x], [y], functions_of([y]), {}), {x: other}, Rule())
    made.forward()
    assert made.d == 2002
