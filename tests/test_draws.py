"""Random numbers in a step: all ways draw the same from the same seed, and a backward pass gets those of its forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from measuring import assert_same, measure, randomize, variable

from nnshop import iterate
from nnshop.running import draws

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
