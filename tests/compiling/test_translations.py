"""Each function in a step, compiled: equal to NNabla's own, in values and all gradients."""

from __future__ import annotations

from typing import Any

import more_cases  # noqa: F401  (enters its cases into the table)
import nnabla as nn
import numpy as np
import pytest
from cases import CASES, B, Case, T
from measuring import Measured, assert_same, measure
from nnabla.parameter import get_parameter_or_create

from nnshop.compiling.translate import TRANSLATIONS
from nnshop.graphs import functions_of
from nnshop.running import iterate
from nnshop.running.compiled import Recipe
from nnshop.running.tracing import trace


def arrays(case: Case) -> tuple[Any, Any]:
    """Inputs `(T, ...)` and states; what is outside becomes parameters."""
    rng = np.random.RandomState(5)
    xs = tuple(case.numbers(rng.randn(T, *shape)) for shape in case.xs)
    states = tuple(case.numbers(rng.randn(*shape)) for shape in case.states)
    for i, shape in enumerate(case.outer):
        get_parameter_or_create(f"outer{i}", shape, np.asarray(rng.randn(*shape)))
    return xs, states


def outer(case: Case) -> tuple[nn.Variable, ...]:
    return tuple(nn.get_parameters()[f"outer{i}"] for i in range(len(case.outer)))


def run(case: Case, way: str, xs: Any, states: Any, **options: Any) -> Measured:
    nn.seed(3)
    step = lambda x, h: case.step(x, h, outer(case))  # noqa: E731
    return measure(lambda xs, h: iterate(step, xs, h, way=way, **options), xs, states)


@pytest.mark.parametrize("name", CASES)
def test_equals_nnabla(name: str, guards: object) -> None:
    case = CASES[name]
    xs, states = arrays(case)
    assert_same(run(case, "compiled", xs, states), run(case, "unrolled", xs, states))


def build(case: Case) -> tuple[Any, Any, Any, Any]:
    """One step, on Variables of its own."""
    arrays(case)
    x, h = (tuple(nn.Variable(shape) for shape in shapes) for shapes in (case.xs, case.states))
    return x, h, *case.step(x, h, outer(case))


@pytest.mark.parametrize("name", CASES)
def test_rows_are_computed_one_by_one_where_they_do_not_meet(name: str) -> None:
    case = CASES[name]
    x, h, _, _ = build(case)
    graph, ys, _ = trace(lambda x, h: case.step(x, h, outer(case)), x, h, hoist=True)
    assert Recipe(graph, len(x), len(ys)).batch == (B if case.rows else None)


def test_each_translation_has_a_case() -> None:
    found = set()
    for case in CASES.values():
        nn.clear_parameters()
        _, _, ys, after = build(case)
        found |= {function.info.type_name for function in functions_of([*ys, *after])}
    assert sorted(set(TRANSLATIONS) - found) == []
