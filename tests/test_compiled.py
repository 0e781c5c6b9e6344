"""The compiled way, where it is more than the law that all ways are equal: what is asked for when, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from measuring import assert_same, constant, measure, randomize, variable

from nnshop import Cell, GRUCell, LSTMCell, StateSpec, explain, iterate, lift, run, scan, stack
from nnshop.compiling.engine import text_of
from nnshop.compiling.memory import Memory
from nnshop.graphs import functions_of
from nnshop.running import Compiled, Way, compiled, parts
from nnshop.running.recipe import Recipe
from nnshop.running.tracing import trace

B, T, D = 3, 7, 4


def minimal(x: Any, h: Any) -> tuple:
    u = F.sigmoid(PF.affine(x, D, name="x") + PF.affine(h, D, name="h"))
    h = u * h + (1 - u) * F.tanh(x)
    return h, h


CELL = Cell(minimal, StateSpec((D,)))


def built(way: str, **options: Any) -> tuple[nn.Variable, nn.Variable, nn.Variable]:
    """x, the initial state, and a loss."""
    x, h = variable(B, T, D), variable(B, D, seed=1)
    ys, after = run(CELL, x, h, way=way, **options)
    loss = F.sum(ys * ys) + F.sum(F.sin(after))
    if way == "unrolled":
        randomize()
    return x, h, loss


def gradients(x: nn.Variable, h: nn.Variable, loss: nn.Variable, forward: bool = True, zero: bool = True) -> list[np.ndarray]:
    leaves = [x, h, *nn.get_parameters().values()]
    for leaf in leaves if zero else []:
        leaf.grad.zero()
    if forward:
        loss.forward()
    loss.backward()
    return [leaf.g.copy() for leaf in leaves if leaf.need_grad]


def test_a_second_backward_pass_without_a_forward_pass_gives_the_same() -> None:
    built("unrolled")
    graph = built("compiled")
    once = gradients(*graph)
    assert_same(tuple(gradients(*graph, forward=False)), tuple(once), rtol=0)


def test_gradients_are_added_up() -> None:
    built("unrolled")
    graph = built("compiled")
    once = gradients(*graph)
    assert_same(tuple(gradients(*graph, zero=False)), tuple(2 * g for g in once), rtol=1e-6)


@pytest.mark.parametrize("asked", ["x", "h", "weights"])
def test_a_gradient_that_is_asked_for_only_after_the_forward_pass(asked: str) -> None:
    expected = gradients(*built("unrolled"))
    x, h, loss = built("compiled")
    for leaf in (x, h, *nn.get_parameters().values()):
        leaf.need_grad = False
    ys, after = run(CELL, x, h, way="compiled")
    loss = F.sum(ys * ys) + F.sum(F.sin(after))
    loss.forward()
    chosen = {"x": [x], "h": [h], "weights": [*nn.get_parameters(grad_only=False).values()]}[asked]
    for leaf in chosen:
        leaf.need_grad = True
        leaf.grad.zero()
    loss.backward()
    at = {"x": slice(0, 1), "h": slice(1, 2), "weights": slice(2, None)}[asked]
    assert_same(tuple(leaf.g for leaf in chosen), tuple(expected[at]))


def test_without_gradients_nothing_is_kept_and_no_backward_pass_is_planned() -> None:
    x, h = nn.Variable((B, D)), nn.Variable((B, D))
    recipe = Recipe(trace(minimal, x, h, hoist=True)[0], 1, 1)
    lean, full = recipe.engine(frozenset()).plan, recipe.engine(frozenset({0, 1})).plan
    assert not lean.backward
    assert not lean.saved
    assert full.backward
    assert lean.bytes_of_a_step(B) < full.bytes_of_a_step(B)


def test_one_structure_is_planned_once() -> None:
    engines = []
    for _ in range(2):
        nn.clear_parameters()
        graph = trace(minimal, nn.Variable((B, D)), nn.Variable((B, D)), hoist=True)[0]
        engines.append(Recipe(graph, 1, 1).engine(frozenset({0})))
    assert engines[0] is engines[1]


def test_settings_are_data_and_need_no_new_program() -> None:
    def text(temperature: float) -> str:
        step = lambda x, h: (h, F.softmax((x + h) / temperature))  # noqa: E731
        graph = trace(step, nn.Variable((B, D)), nn.Variable((B, D)), hoist=True)[0]
        return text_of(Recipe(graph, 1, 1).engine(frozenset()).plan.forward)

    assert text(0.7) == text(0.3)


@pytest.mark.parametrize("length", [1, 4, 12])
def test_a_sequence_may_change_its_length_after_the_graph_is_built(length: int) -> None:
    built("unrolled")
    x, h, loss = built("compiled")
    gradients(x, h, loss)
    x.reset_shape((B, length, D), True)
    x.d = np.random.RandomState(2).randn(B, length, D)
    got = gradients(x, h, loss)
    again, state = nn.Variable.from_numpy_array(x.d, need_grad=True), variable(B, D, seed=1)
    ys, after = run(CELL, again, state, way="unrolled")
    expected = gradients(again, state, F.sum(ys * ys) + F.sum(F.sin(after)))
    assert_same(tuple(got), tuple(expected))


@pytest.mark.parametrize("shape", [(B, T, D + 1), (B + 1, T, D)])
def test_another_width_or_batch_is_refused(shape: tuple) -> None:
    x, _, loss = built("compiled")
    x.reset_shape(shape, True)
    x.d = 1
    with pytest.raises((SystemError, RuntimeError)):
        loss.forward()


def test_a_long_sequence_is_done_in_parts_whose_buffers_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients(*built("unrolled"))
    monkeypatch.setattr(parts, "BUDGET", 2000)
    made: list[compiled.CompiledFunction] = []
    monkeypatch.setattr(compiled, "CompiledFunction", lambda *args: made.append(compiled_class(*args)) or made[-1])
    assert_same(tuple(gradients(*built("compiled"))), tuple(expected))
    (function,) = made
    assert len(function.parts.all) > 1
    assert not function.spaces


compiled_class = compiled.CompiledFunction


def test_one_variable_may_be_several_inputs() -> None:
    """A closure, both states, and a part of the input."""
    shared = variable(B, D)

    def build(way: str) -> Callable:
        def step(x: Any, state: Any) -> tuple:
            h, c = state
            c = F.tanh(c + x * shared)
            return h + c, (F.sin(h + shared), c)

        return lambda x, _: run(Cell(step, (StateSpec((D,)), StateSpec((D,)))), x, (shared, shared), way=way)

    found = []
    for way in ("unrolled", "compiled"):
        shared.grad.zero()
        measured = measure(build(way), np.random.RandomState(0).randn(B, T, D), ())
        found.append((measured.ys, measured.x_grad, shared.g.copy()))
    assert_same(found[1], found[0])


def test_weights_that_layers_share_get_the_gradients_of_all() -> None:
    """The gradients of the gates of both are put together in several phases, row by row."""
    cell = GRUCell(D, reset_after=False)
    found = {}
    for way in ("unrolled", "compiled"):
        x = variable(B, T, D)
        ys, _ = run(stack(cell, cell), x, way=way)
        if way == "unrolled":
            randomize()
        leaves = [x, *nn.get_parameters().values()]
        for leaf in leaves:
            leaf.grad.zero()
        loss = F.sum(ys * ys)
        loss.forward()
        loss.backward()
        found[way] = tuple(leaf.g.copy() for leaf in leaves)
    assert_same(found["compiled"], found["unrolled"])


def test_stacked_layers_have_loops_of_their_own() -> None:
    """So the products between them are done for all times at once."""
    step = stack(LSTMCell(D), lift(F.tanh), GRUCell(D))
    state = step.initial_state(B)
    graph = trace(step, nn.Variable((B, D)), state, hoist=True)[0]
    plan = Recipe(graph, 1, 1).engine(frozenset({0})).plan
    loops = [[program.name for program in programs if "loop" in program.name] for programs in (plan.forward, plan.backward)]
    assert list(map(len, loops)) == [2, 2]
    flat = [program for program in plan.forward if program.flat]
    assert sum(len(products) for program in flat for products in program.schedule.products.values()) == 2


@pytest.mark.parametrize("read", [(0,), (1,), (2,), (0, 1, 2), ()])
def test_states_of_any_shapes(read: tuple[int, ...]) -> None:
    """Where only some of them are read, and have a gradient."""

    def step(x: Any, state: Any) -> tuple:
        a, b, c = state
        b = b * 0.5 + F.reshape(F.concatenate(x, F.tanh(x), axis=1), (B, 2, D))
        a = F.tanh(a + F.sum(b, axis=(1, 2)))
        c = F.sin(c + x * F.reshape(a, (B, 1)))
        return c * 2, (a, b, c)

    cell = Cell(step, (StateSpec(()), StateSpec((2, D)), StateSpec((D,))))
    found = []
    for way in ("unrolled", "compiled"):
        x, state = variable(B, T, D), (variable(B, seed=1), variable(B, 2, D, seed=2), variable(B, D, seed=3))
        ys, after = run(cell, x, state, way=way)
        loss = F.sum(ys * ys) + sum(F.sum(F.exp(after[i])) for i in read)
        for leaf in (x, *state):
            leaf.grad.zero()
        for v in after:
            v.persistent = True
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
        found.append((*(leaf.g.copy() for leaf in (x, *state)), *(after[i].d.copy() for i in read)))
        assert [v.shape for v in after] == [(B,), (B, 2, D), (B, D)]
    assert_same(found[1], found[0])


def test_weights_of_the_forward_pass_are_those_of_the_backward_pass() -> None:
    """All of one pass is the gradient of what was computed, though the weights have changed since."""
    built("unrolled")
    graph = built("compiled")
    once = gradients(*graph)
    graph[-1].forward()
    for v in nn.get_parameters().values():
        v.d = 2 * v.d
    assert_same(tuple(gradients(*graph, forward=False)), tuple(once))


def test_masks_are_selects() -> None:
    x = variable(B, T, D)
    x.d[1, 4:] = np.nan
    ys, after = run(CELL, x, lengths=[7, 4, 0], way="compiled")
    loss = F.sum(ys * ys) + F.sum(after * after)
    x.grad.zero()
    loss.forward()
    loss.backward()
    assert np.isfinite(loss.d)
    assert np.isfinite(x.g).all()
    assert not x.g[1, 4:].any()


def test_explain_names_what_is_not_translated(capsys: pytest.CaptureFixture[str]) -> None:
    explain(Cell(lambda x, h: (F.sort(x + h), h), StateSpec((D,))), nn.Variable((B, 90, D)))
    told = capsys.readouterr().out
    assert "steps: unrolled" in told
    assert "not compiled: Sort is not translated" in told
    explain(stack(LSTMCell(D), GRUCell(D)), nn.Variable((B, 20, D)))
    assert "20 steps: compiled" in capsys.readouterr().out
    assert not nn.get_parameters()


def test_a_missing_translation_is_an_error_where_compiling_is_asked_for() -> None:
    with pytest.raises(ValueError, match="Sort is not translated"):
        iterate(lambda x, h: (F.sort(x + h), h), nn.Variable((T, B, D)), constant(np.zeros((B, D))), way="compiled")


@pytest.mark.parametrize("auto_forward", [False, True])
@pytest.mark.parametrize("way", ["loop", "compiled"])
def test_what_is_unlinked_within_a_step_stops_the_gradient(way: str, auto_forward: bool) -> None:
    def step(x: Any, h: Any) -> tuple:
        u = F.sigmoid(PF.affine(h, D, name="u") + x)
        still, fed = (v.get_unlinked_variable(need_grad=False) for v in (u, x))
        h = u * h + F.tanh(x * still) + fed
        return h, h

    x, h = np.random.RandomState(0).randn(T, B, D), np.random.RandomState(1).randn(B, D)
    measure(lambda x, h: iterate(step, x, h, way="unrolled"), x, h)
    randomize()
    expected = measure(lambda x, h: iterate(step, x, h, way="unrolled"), x, h)
    assert_same(measure(lambda x, h: iterate(step, x, h, way=way), x, h, auto_forward=auto_forward), expected)


def test_a_scan_of_a_batch_first_transposes_nothing() -> None:
    """The compiled function reads and writes `(B, T, ...)` itself: NNabla's transposes took as long as the rest."""
    ys, _ = scan(lambda x, h: F.tanh(x + h), variable(B, T, D), constant(np.zeros((B, D))), time_axis=1, way="compiled")
    assert [function.name for function in functions_of([ys])] == ["Callback"]  # NNabla's name of a function in Python
    assert ys.shape == (B, T, D)


@pytest.mark.parametrize("part", [None, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_what_only_loops_read_is_read_where_it_lies(reverse: bool, part: int | None) -> None:
    """x and the gradient of y come in the order of samples, also in parts of the sequence; values and gradients are right."""
    x, state = np.random.RandomState(0).randn(B, T, D), np.zeros((B, D))
    copies: list[int] = []

    def step(x: nn.Variable, h: nn.Variable) -> tuple:
        h = F.tanh(x * x + PF.affine(h, D, name="h"))
        return h, h

    def built(way: str | Way) -> Callable:
        return lambda x, h: iterate(step, x, h, reverse=reverse, way=way, time_axis=1)

    measure(built("unrolled"), x, state)
    randomize()
    expected = measure(built("unrolled"), x, state)
    give = Memory.give
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Memory, "give", lambda self, *given: (give(self, *given), copies.append(len(self._copies))))
        assert_same(measure(built(Compiled(checkpoint_every=part)), x, state), expected)
    assert copies
    assert not any(copies)


def test_a_product_reads_rows_where_they_lie() -> None:
    """Beside a closure of each sample it is done step by step: of x `(B, T, D)`, whose rows are T D numbers apart then.

    After the loop backwards, its carried gradient is needed of all times, which once was that of two.
    """
    rng = np.random.RandomState(0)
    x, state, scale, weight = rng.randn(B, T, D), np.zeros((B, D)), constant(rng.randn(B, D)), constant(rng.randn(D, D))

    def step(x: nn.Variable, h: nn.Variable) -> tuple:
        h = F.tanh(F.affine(x, weight) + F.affine(x * scale, weight) + h)
        return h, h

    def built(way: str) -> Callable:
        return lambda x, h: iterate(step, x, h, way=way, time_axis=1)

    assert_same(measure(built("compiled"), x, state), measure(built("unrolled"), x, state))


@pytest.mark.parametrize("way", ["unrolled", "loop", "compiled", "fused"])
def test_explain_tells_of_a_way_that_was_asked_for(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    explain(CELL, nn.Variable((B, T, D)), way=way, lengths=[T] * B)
    taken = "compiled" if way == "fused" else way
    assert capsys.readouterr().out == f"{CELL}, {T} steps: {taken}\n"
