"""Random numbers in a step: all ways draw the same from the same seed, and a backward pass gets those of its forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from measuring import assert_same, constant, measure, randomize, variable, weights

from nnshop import Cell, StateSpec, Stepper, iterate, portable, run
from nnshop.running import draws
from nnshop.running.recipe import Recipe
from nnshop.running.tracing import trace

B, T, D = 3, 7, 5
rng = np.random.RandomState(0)
XS, STATE = rng.randn(T, B, D), rng.randn(B, D)


def dense(h: Any) -> Any:
    return F.tanh(PF.affine(h, D))


def total(h: Any) -> Any:
    return F.sum(h, axis=1, keepdims=True)


def of(draw: Callable) -> Callable:
    """A step that draws before it computes, as the unrolled graph does at any order of its functions."""

    def step(x: Any, h: Any) -> tuple:
        h = draw(dense(x + h))
        return h * x, h

    return step


def several(x: Any, h: Any) -> tuple:
    """In the unrolled graph each of these depends on the one before."""
    h = F.dropout(dense(F.dropout(x + h, 0.4)), 0.4)
    h = F.dropout(h + F.randn(0, 1, (B, D)) * total(h), 0.2)
    return h, h


STEPS = {
    "dropout": of(lambda h: F.dropout(h, 0.4)),
    "no dropout": of(lambda h: F.dropout(h, 0)),
    "neighbours": of(lambda h: F.dropout(F.dropout(total(F.dropout(h, 0.4)), 0.4) + h, 0.4)),
    "two shares": of(lambda h: F.dropout(F.dropout(h, 0.4), 0.3)),
    "rand": of(lambda h: h * F.rand(-1, 1, (B, D))),
    "rand of all rows": of(lambda h: h * F.rand(-1, 1, (1, D))),
    "randn of an odd size": of(lambda h: h + F.randn(1, 2, (B, D))),
    "randn of an even size": of(lambda h: h + total(F.randn(1, 2, (B, 4)))),
    "randint": of(lambda h: h + F.randint(-2, 9, (B, D))),
    "rand_binomial": of(lambda h: h * F.rand_binomial(3, 0.5, (B, D))),
    "rand_binomial of many": of(lambda h: h + F.rand_binomial(50, 0.5, (B, D))),
    "rand_gamma": of(lambda h: h * F.rand_gamma(2, 0.5, (B, D))),
    "rand_beta": of(lambda h: h * F.rand_beta(0.5, 2, (B, D))),
    "seeded": of(lambda h: F.dropout(h, 0.4, seed=3) + F.randn(0, 1, (B, D), seed=4)),
    "seeded among others": of(lambda h: F.dropout(F.dropout(F.dropout(h, 0.4), 0.4, seed=3), 0.4)),
    "several": several,
}
each_step = pytest.mark.parametrize("name", STEPS)


def following() -> np.ndarray:
    """What is drawn next."""
    noise = F.rand(shape=(4,))
    noise.forward()
    return noise.d.copy()


@pytest.mark.parametrize(("at_once", "reverse"), [(2**16, False), (40, True), (40, False)])
@each_step
def test_a_compiled_step_draws_as_the_unrolled_graph(
    name: str, at_once: int, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn afterwards, too: no number is left over, and none is drawn that nobody needs."""
    monkeypatch.setattr(draws, "AT_ONCE", at_once)
    build = lambda way: lambda x, h: iterate(STEPS[name], x, h, reverse=reverse, way=way)  # noqa: E731
    measure(build("unrolled"), XS, STATE)
    randomize()
    found = []
    for way in ("unrolled", "compiled"):
        nn.random.set_function_seed(1)
        found.append((measure(build(way), XS, STATE), following()))
    assert_same(found[1], found[0])


def rounds(name: str, way: str, backward_passes: int = 2, **options: Any) -> list[list[tuple]]:
    """The loss and all gradients of three forward passes, after each of their backward passes."""
    x, h = variable(T, B, D), variable(B, D, seed=1)
    ys, after = iterate(STEPS[name], x, h, way=way, **options)
    randomize()
    loss = F.sum(ys) + F.sum(after * after)
    leaves = [x, h, *nn.get_parameters().values()]
    nn.random.set_function_seed(2)
    found = []
    for _ in range(3):
        loss.forward(clear_no_need_grad=True)
        found.append([])
        for _ in range(backward_passes):
            for leaf in leaves:
                leaf.grad.zero()
            loss.backward()
            found[-1].append((loss.d.copy(), *(leaf.g.copy() for leaf in leaves)))
    return found


@pytest.mark.parametrize(("way", "every"), [("loop", 2), ("compiled", None), ("compiled", 2)])
@each_step
def test_each_forward_pass_draws_anew_and_its_backward_passes_replay(name: str, way: str, every: int | None) -> None:
    """In the unrolled graph there is one: it uses up the masks of NNabla's dropout."""
    found, expected = rounds(name, way, checkpoint_every=every), rounds(name, "unrolled", backward_passes=1)
    for got, (right,) in zip(found, expected):
        for backward_pass in got:
            assert_same(backward_pass, right)
    assert name == "no dropout" or not np.array_equal(found[0][0][1], found[1][0][1])


@each_step
def test_in_auto_forward_mode(name: str) -> None:
    build = lambda way: lambda x, h: iterate(STEPS[name], x, h, way=way)  # noqa: E731
    measure(build("unrolled"), XS, STATE)
    randomize()
    found = []
    for way in ("unrolled", "loop", "compiled"):
        nn.random.set_function_seed(4)
        found.append(measure(build(way), XS, STATE, auto_forward=True))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def test_a_sequence_may_change_its_length() -> None:
    """In the compiled way; both lengths are drawn for as by a graph of that length."""
    x, h = variable(T, B, D), constant(STATE)
    ys, _ = iterate(STEPS["neighbours"], x, h, way="compiled")
    randomize()
    for length in (T, 3, 9):
        x.reset_shape((length, B, D), True)
        x.d = np.random.RandomState(length).randn(length, B, D)
        plain, _ = iterate(STEPS["neighbours"], constant(x.d), h, way="unrolled")
        found = []
        for out in (plain, ys):
            nn.random.set_function_seed(5)
            out.forward()
            found.append((out.d.copy(), following()))
        assert_same(found[1], found[0])


def test_any_number_of_lengths_takes_few_sources() -> None:
    """Each holds as many numbers as it draws."""
    graph = trace(STEPS["neighbours"], nn.Variable((B, D)), nn.Variable((B, D)), hoist=True)[0]
    drawing = draws.Draws(Recipe(graph, 1, 1).draws)
    for length in range(1, 100):
        drawing.draw(length)
    assert len(drawing._sources) == 7


@pytest.mark.parametrize("way", ["loop", "compiled"])
def test_steps_that_are_left_out_change_no_draw_before(way: str) -> None:
    length, end = 40, 20

    def step(x: Any, state: Any) -> tuple:
        h, left = state
        h = F.dropout(dense(F.dropout(x, 0.4) + h), 0.4)
        return h * F.greater_scalar(left, 0), (h, F.relu(left - 1))

    x, h = variable(length, B, D), constant(STATE)
    found = []
    for option in ({"way": "unrolled"}, {"way": way, "running": lambda state: state[1]}):
        ys, _ = iterate(step, x, (h, constant(np.full((B, 1), end))), **option)
        if not found:
            randomize()
        loss = F.sum(ys[:end] ** 2)
        nn.random.set_function_seed(6)
        x.grad.zero()
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
        found.append((loss.d.copy(), x.g.copy()))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("way", ["loop", "compiled"])
@pytest.mark.parametrize("name", ["dropout", "seeded", "seeded among others"])
def test_a_loop_in_a_loop(name: str, way: str) -> None:
    """What has a seed draws the same in all steps of both, and anew in each pass."""
    found = {}
    for outer, inner in (("unrolled", "unrolled"), ("unrolled", way), ("loop", way)):
        x, h = variable(4, T, B, D), variable(B, D, seed=1)
        ys, _ = iterate(lambda x, h, inner=inner: iterate(STEPS[name], x, h, way=inner), x, h, way=outer)  # type: ignore[misc]
        randomize()
        loss = F.sum(ys * ys)
        nn.random.set_function_seed(7)
        found[outer, inner] = []
        for _ in range(2):
            x.grad.zero()
            loss.forward(clear_no_need_grad=True)
            loss.backward(clear_buffer=True)
            found[outer, inner].append((loss.d.copy(), x.g.copy()))
    for passes in found.values():
        assert_same(tuple(passes), tuple(found["unrolled", "unrolled"]))


def normalized(x: Any, h: Any) -> tuple:
    h = F.tanh(PF.batch_normalization(PF.affine(x + h, D), decay_rate=0.5))
    return h, h


@pytest.mark.parametrize("all_of_it", [False, True], ids=["what follows", "all"])
@pytest.mark.parametrize(
    ("step", "way"),
    [(STEPS["dropout"], "loop"), (STEPS["dropout"], "compiled"), (normalized, "loop")],
    ids=["dropout-loop", "dropout-compiled", "statistics-loop"],
)
def test_nothing_is_drawn_or_counted_twice_where_nnabla_recomputes(step: Callable, way: str, all_of_it: bool) -> None:
    found = []
    for recompute in (False, True):
        nn.clear_parameters()
        x, h = variable(T, B, D), constant(STATE)
        with nn.recompute(recompute and all_of_it):
            ys, _ = iterate(step, x, h, way=way if recompute else "unrolled")
        randomize()
        with nn.recompute(recompute):
            loss = F.sum(F.sin(ys * 1.5))
        nn.random.set_function_seed(8)
        for _ in range(2):
            x.grad.zero()
            loss.forward(clear_no_need_grad=True)
            loss.backward(clear_buffer=True)
            found.append((x.g.copy(), weights()))
    assert_same(tuple(found[2:]), tuple(found[:2]))


@each_step
def test_a_stepper_draws_as_the_unrolled_graph(name: str) -> None:
    cell = Cell(STEPS[name], StateSpec((D,)))
    ys, _ = run(cell, constant(XS.swapaxes(0, 1)), way="unrolled")
    randomize()
    nn.random.set_function_seed(9)
    ys.forward()
    expected = ys.d.copy(), following()
    for engine in (nullcontext, portable):
        with engine():
            stepper = Stepper(cell, XS[0])
        nn.random.set_function_seed(9)
        stepped = np.stack([stepper.step(x) for x in XS], axis=1)
        assert_same((stepped, following()), expected)
        assert stepper.compiled == (engine is nullcontext)
