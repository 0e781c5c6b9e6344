"""Variables that a scan updates: what its steps read, what it gives, and gradients through them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from checking import MODES, agrees, assert_close, computed, each_mode, each_way, measured
from measuring import constant

from nnshop import scan, until
from nnshop.scanning import Updates

rng = np.random.RandomState(3)


def number(value: float) -> nn.Variable:
    return nn.Variable.from_numpy_array(value)


# What the steps read


@each_mode
def test_gradients_through_updated_variables(mode: str) -> None:
    def build(x: Any, a: Any, **way: str) -> Any:
        return scan(lambda x: (x * a, {a: a * 0.5 + F.sin(x)}), x, **way)

    def expected(x: Any, a: Any) -> list:
        ys = []
        for value in x:
            ys.append(value * a)
            a = a * 0.5 + np.sin(value)
        return [np.array(ys), a]

    agrees(mode, build, expected, rng.randn(5), 2.0)


@each_mode
def test_a_recurrent_output_that_reads_an_updated_variable(mode: str) -> None:
    def build(y: Any, a: Any, **way: str) -> Any:
        return scan(lambda y: (y + a, {a: a * 2}), outputs_info=y, n_steps=3, **way)

    found = agrees(mode, build, lambda y, a: [y + a * np.array([1, 3, 7]), a * 8], 0.0, 1.0)
    assert found.values[0].tolist() == [1, 3, 7]


@each_mode
def test_a_recurrent_output_and_an_updated_variable_that_read_each_other(mode: str) -> None:
    def build(x: Any, y: Any, a: Any, **way: str) -> Any:
        def step(x: Any, y: Any) -> Any:
            y = F.tanh(y * a + x)
            return y, {a: a * 0.5 + y}

        return scan(step, x, y, **way)

    def expected(x: Any, y: Any, a: Any) -> list:
        ys = []
        for value in x:
            y = np.tanh(y * a + value)
            a = a * 0.5 + y
            ys.append(y)
        return [np.array(ys), a]

    agrees(mode, build, expected, rng.randn(4, 2), rng.randn(2), rng.randn(2))


@each_mode
def test_variables_that_are_updated_by_each_other_change_at_once(mode: str) -> None:
    def build(a: Any, b: Any, **way: str) -> Any:
        return scan(lambda: (a * b, {a: b, b: a + b}), n_steps=5, **way)

    def expected(a: Any, b: Any) -> list:
        products = []
        for _ in range(5):
            products.append(a * b)
            a, b = b, a + b
        return [np.array(products), np.array(a), np.array(b)]

    found = agrees(mode, build, expected, 0.0, 1.0)
    assert [float(v) for v in found.values[1:]] == [5, 8]


@each_mode
def test_an_update_may_read_nothing_or_be_a_number(mode: str) -> None:
    a, b, c = number(1.0), number(2.0), number(3.0)
    found = measured(mode, lambda x, **way: scan(lambda x: (x * a, {a: x, b: 5.0, c: c}), x, **way), [2.0, 3.0, 4.0])
    assert [v.tolist() for v in found.values] == [[2, 6, 12], 4, 5, 3]


@each_mode
def test_what_is_computed_of_it_outside_is_passed_as_it_was(mode: str) -> None:
    """Sequences, initial values and non-sequences are computed once."""

    def build(a: Any, **way: str) -> Any:
        xs = F.concatenate(F.reshape(a, (1,), inplace=False), F.reshape(a * 2, (1,), inplace=False), axis=0)
        return scan(lambda x, y, k: ([x * a, y + k * a], {a: a + 1}), xs, (None, a * 3), a * 10, **way)

    def expected(a: Any) -> list:
        first = 3 * a + 10 * a * a
        return [np.array([a * a, 2 * a * (a + 1)]), np.array([first, first + 10 * a * (a + 1)]), a + 2]

    agrees(mode, build, expected, 1.5)


@each_mode
def test_it_may_be_passed_as_a_non_sequence(mode: str) -> None:
    found = agrees(
        mode,
        lambda a, **way: scan(lambda k: (k * 1, {a: a * 2}), None, None, a, n_steps=3, **way),
        lambda a: [a * np.array([1, 2, 4]), a * 8],
        1.0,
    )
    assert found.values[0].tolist() == [1, 2, 4]


@each_mode
def test_it_may_be_the_initial_value(mode: str) -> None:
    def build(a: Any, **way: str) -> Any:
        return scan(lambda y: (y * 2 + a, {a: a + 1}), outputs_info=a, n_steps=3, **way)

    agrees(mode, build, lambda a: [np.array([3 * a, 7 * a + 1, 15 * a + 4]), a + 3], 1.5)


@each_way
def test_what_reads_it_outside_remains_as_it_is(way: str) -> None:
    """Theano computes anew what a step reads of it through something outside; that something is for others too."""
    a = constant(np.array(1.0)).apply(need_grad=True)
    outside = a * 3 + 0.5
    ys, _ = scan(lambda: (outside * 1, {a: a * 2}), n_steps=3, way=way)
    total = F.sum(ys) + outside
    found = computed(outside, ys)
    assert found[0] == 3.5
    assert found[1].tolist() == [3.5, 6.5, 12.5]
    a.grad.zero()
    total.forward()
    total.backward()
    assert a.g == 3 * (1 + 2 + 4) + 3


@each_way
def test_an_older_graph_remains_as_it_is(way: str) -> None:
    a = number(1.0)
    x = F.broadcast(F.reshape(a, (1,), inplace=False), (3,)) * 2
    before, _ = scan(lambda x: x + a, x, way=way)
    after, _ = scan(lambda x: (x + a, {a: a * 2}), before, way=way)
    assert [y.tolist() for y in computed(before, after)] == [[3, 3, 3], [4, 5, 7]]


@each_mode
@pytest.mark.parametrize("kind", ["constant", "function of a closure", "random", "entry"])
def test_what_does_not_depend_on_it_is_computed_beside(mode: str, kind: str) -> None:
    """In auto-forward mode too, where NNabla frees what Python no longer holds."""

    def build(x: Any, a: Any, w: Any, **way: str) -> Any:
        beside = {
            "constant": lambda x: F.constant(3, ()) * 1,
            "function of a closure": lambda x: F.exp(F.log(w)),
            "random": lambda x: F.randint(3, 4, shape=()) * 1,
            "entry": lambda x: F.exp(F.log(x)),
        }[kind]
        return scan(lambda x: (a + beside(x), {a: a * 2 + beside(x)}), x, **way)

    def expected(x: Any, a: Any, w: Any) -> list:
        ys = []
        for value in x:
            k = {"entry": value, "function of a closure": w}.get(kind, 3.0)
            ys.append(a + k)
            a = a * 2 + k
        return [np.array(ys), a]

    agrees(mode, build, expected, [1.0, 2.0, 4.0, 0.5], 1.0, 3.0, tolerance=1e-4)


@each_mode
def test_running_statistics_are_updated_once_in_each_step(mode: str) -> None:
    way, eager = MODES[mode]
    x, a, found = rng.randn(3, 4, 2), constant(np.zeros((4, 2))), []
    for step in (lambda x: PF.batch_normalization(x), lambda x: (PF.batch_normalization(x + a), {a: a * 1})):
        nn.clear_parameters()
        with nn.auto_forward(eager):
            ys, updates = scan(step, constant(x), way=way)
        computed(ys, *updates.values())
        found.append([v.d.copy() for v in nn.get_parameters(grad_only=False).values()])
    assert_close(found[1], found[0])


@each_mode
def test_functions_with_weights_and_random_ones_of_it(mode: str) -> None:
    way, eager = MODES[mode]
    a = constant(np.ones((2, 50)))

    def step() -> Any:
        dropped = F.dropout(a, 0.5)
        return [dropped, PF.affine(a, 3)], {a: a + 1}

    with nn.auto_forward(eager):
        (dropped, dense), updates = scan(step, n_steps=3, way=way)
    found = computed(dropped, dense, *updates.values())
    for t in range(3):
        assert set(np.unique(found[0][t])) == {0, 2 * (t + 1)}
    W, b = (v.d for v in nn.get_parameters().values())
    assert_close([found[1]], [np.stack([np.full((2, 50), t + 1) @ W + b for t in range(3)])])
    assert (found[2] == 4).all()


@each_mode
@pytest.mark.parametrize("n_steps", [1, 2])
def test_what_is_given_keeps_its_value_where_it_is_the_update_itself(mode: str, n_steps: int) -> None:
    way, eager = MODES[mode]
    x, k, y, w, a, b, c, d, e = (number(value) for value in range(2, 11))
    xs = constant([2.0] * n_steps)
    new = {a: k, b: c, c: b, e: w}
    with nn.auto_forward(eager):
        _, updates = scan(lambda x, y, k: (y, {**new, d: x}), xs, y, k, way=way)
    found = [float(v) for v in computed(*updates.values())]
    assert [float(v.d) for v in (x, k, y, w, a, b, c, d, e)] == list(range(2, 11))
    assert xs.d.tolist() == [2] * n_steps
    assert found == [3, *((8, 7) if n_steps == 1 else (7, 8)), 5, 2]


# Parameters


@each_mode
def test_a_parameter_that_is_found_by_its_name(mode: str) -> None:
    nn.parameter.get_parameter_or_create("steps", (), nn.initializer.ConstantInitializer(1))
    way, eager = MODES[mode]

    def step() -> Any:
        steps = nn.parameter.get_parameter_or_create("steps", ())
        return steps * 1, {steps: steps * 2}

    with nn.auto_forward(eager):
        ys, updates = scan(step, n_steps=3, way=way)
    assert computed(ys, *updates.values())[0].tolist() == [1, 2, 4]
    updates.apply()
    assert nn.get_parameters()["steps"].d == 8


@each_mode
def test_a_parameter_that_the_step_makes(mode: str) -> None:
    way, eager = MODES[mode]

    def step() -> Any:
        steps = nn.parameter.get_parameter_or_create("steps", (), nn.initializer.ConstantInitializer(1))
        return steps * 1, {steps: steps * 2}

    with nn.auto_forward(eager):
        ys, updates = scan(step, n_steps=3, way=way, name="made")
    assert computed(ys, *updates.values())[0].tolist() == [1, 2, 4]
    updates.apply()
    assert nn.get_parameters()["made/steps"].d == 8


# How they are returned


def written() -> dict[str, Callable]:
    """Outputs, updates and a condition in each order, as a dictionary and as pairs."""
    return {
        " ".join(names): lambda parts, names=names: tuple(parts[name] for name in names)
        for kind in ("updates", "pairs")
        for outputs in ("outputs", "list")
        for names in permutations((outputs, kind, "until"))
    }


@pytest.mark.parametrize("order", list(written()))
@each_way
def test_they_may_stand_anywhere(order: str, way: str) -> None:
    a, b = number(1.0), number(10.0)

    def step(y: Any, z: Any) -> Any:
        new = {a: a + 1, b: b * 2}
        end = until(F.greater_scalar(a, 1.5))
        outputs = (y + a, z * 2)
        return written()[order](
            {"outputs": outputs, "list": list(outputs), "updates": new, "pairs": list(new.items()), "until": end}
        )

    (y, z), updates = scan(step, outputs_info=(0, 1), n_steps=4, way=way)
    y, z, new_a, new_b, lengths = computed(y, z, updates[a], updates[b], updates.lengths)
    assert (y.tolist(), z.tolist()) == ([1, 3, 3, 3], [2, 4, 4, 4])
    assert (new_a, new_b, lengths) == (3, 40, 2)


@each_way
def test_updates_alone(way: str) -> None:
    a = number(1.0)
    for step in (lambda: {a: a + 1}, lambda: [(a, a + 1)], lambda: ([], {a: a + 1}), lambda: ({a: a + 1}, [])):
        outputs, updates = scan(step, n_steps=3, way=way)
        assert outputs is None
        assert computed(updates[a])[0] == 4


@each_way
def test_several_pairs_and_an_empty_dictionary(way: str) -> None:
    a, b = number(1.0), number(2.0)
    ys, updates = scan(lambda x: (x, [(a, a + x), (b, b * x)]), [1, 2, 3], way=way)
    assert list(updates) == [a, b]
    assert [float(v) for v in computed(*updates.values())] == [7, 12]
    for nothing in ({}, []):
        ys, updates = scan(lambda x, nothing=nothing: (x * 2, nothing), [1, 2, 3], way=way)
        assert computed(ys)[0].tolist() == [2, 4, 6]
        assert len(updates) == 0


@each_way
def test_one_output_beside_updates_is_not_a_list(way: str) -> None:
    a = number(1.0)
    assert isinstance(scan(lambda x: (x, {a: a + x}), [1, 2], way=way)[0], nn.Variable)
    assert isinstance(scan(lambda x: ([x], {a: a + x}), [1, 2], way=way)[0], nn.Variable)
    assert isinstance(scan(lambda x: ([x], {a: a + x}), [1, 2], return_list=True, way=way)[0], list)


# What comes back


def test_it_is_a_mapping() -> None:
    a, b = number(1.0), number(2.0)
    _, updates = scan(lambda: {a: a + 1, b: b + a}, n_steps=2)
    assert isinstance(updates, Updates)
    assert (len(updates), list(updates), a in updates, number(1.0) in updates) == (2, [a, b], True, False)
    assert updates.lengths is None
    assert [v.shape for v in updates.values()] == [(), ()]
    assert dict(updates) == {a: updates[a], b: updates[b]}
    assert "Updates(" in repr(updates)


@each_way
def test_each_run_goes_on_from_what_was_applied(way: str) -> None:
    a = number(0.0)
    ys, updates = scan(lambda x: (a * 1, {a: a + x}), [1, 2, 3], way=way)
    for start in (0, 6, 12):
        assert computed(ys, *updates.values())[0].tolist() == [start, start + 1, start + 3]
        assert a.d == start
        updates.apply()
        assert a.d == start + 6
    updates.apply()  # there was no run since
    assert a.d == 18


@each_way
def test_applying_before_the_graph_has_run(way: str) -> None:
    a = constant(np.ones(2))
    ys, updates = scan(lambda x: (x, {a: a + 1}), [1, 2], way=way)
    message = r"Updates\.apply: values of shapes \[\(2,\)\] have not been computed.*nn\.forward_all\(\[loss, \*updates"
    with pytest.raises(ValueError, match=message):
        updates.apply()
    if way == "unrolled":  # the loop is one function of both
        ys.forward()
        with pytest.raises(ValueError, match="have not been computed"):
            updates.apply()
    assert a.d.tolist() == [1, 1]
    nn.forward_all([ys, *updates.values()])
    updates.apply()
    assert a.d.tolist() == [3, 3]


@each_way
def test_values_remain_when_buffers_are_freed(way: str) -> None:
    a, x = number(1.0), constant([1.0, 2.0]).apply(need_grad=True)
    ys, updates = scan(lambda x: (x * a, {a: a + x}), x, way=way)
    loss = F.sum(ys) + F.sum(updates[a])
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    updates.apply()
    assert a.d == 4


def test_in_auto_forward_mode_they_are_there_at_once() -> None:
    a = number(1.0)
    with nn.auto_forward():
        _, updates = scan(lambda: {a: a * 3}, n_steps=2)
        assert a.d == 1
        updates.apply()
        assert a.d == 9


@each_mode
def test_updates_of_a_scan_within_a_scan(mode: str) -> None:
    """The inner scan's are returned, and so the outer one's."""

    def build(table: Any, a: Any, **way: str) -> Any:
        def outer(row: Any, y: Any) -> Any:
            ys, updates = scan(lambda x, y: (y * a + x, {a: a * 0.5}), row, y, **way)
            return ys[-1], updates

        return scan(outer, table, 1.0, **way)

    def expected(table: Any, a: Any) -> list:
        y, ys = 1.0, []
        for row in table:
            for x in row:
                y = y * a + x
                a = a * 0.5
            ys.append(y)
        return [np.array(ys), a]

    agrees(mode, build, expected, rng.randn(3, 2), 4.0)


@pytest.mark.parametrize("n_steps", [100, 600])
def test_many_steps(n_steps: int) -> None:
    a, calls = number(1.0), []

    def step(y: Any) -> Any:
        calls.append(1)
        return y * 0.5 + a, {a: a + 1}

    ys, updates = scan(step, outputs_info=0.0, n_steps=n_steps)
    found = computed(ys, *updates.values())
    y, expected = 0.0, []
    for t in range(n_steps):
        y = y * 0.5 + t + 1
        expected.append(y)
    assert_close(found, [np.array(expected), np.array(n_steps + 1.0)])
    assert len(calls) < n_steps + 10
