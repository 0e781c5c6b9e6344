"""strict=True: which Variables a function may read, and how those that it may not are named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from checking import Counted, computed, each_way
from measuring import constant

from nnshop import scan, until
from nnshop.parameters import all_parameters

X = np.ones((4, 2))
GLOBAL = constant(np.ones(2))


def strict(fn: Callable, *arguments: Any, **options: Any) -> Any:
    return scan(fn, *(arguments or (X,)), strict=True, **options)


def refused(fn: Callable, *arguments: Any, **options: Any) -> str:
    """What the message says is read."""
    with pytest.raises(ValueError, match="strict=True") as error:
        strict(fn, *arguments, **options)
    start, end = (
        "strict=True: the function of the scan reads ",
        ", which it was not given; pass what it needs as non_sequences.",
    )
    message = str(error.value)
    assert message.startswith(start)
    assert message.endswith(end)
    return message[len(start) : -len(end)]


# Refused


def test_a_variable_is_named_as_python_names_it() -> None:
    weight = constant(np.ones(2))
    assert refused(lambda x: x * weight) == "weight (2,)"
    assert refused(lambda x: x * GLOBAL) == "GLOBAL (2,)"


def test_all_of_them_are_named() -> None:
    weight, bias = constant(np.ones(2)), constant(np.zeros((1,)))
    assert refused(lambda x: x * weight + bias) == "weight (2,), bias (1,)"


def test_a_parameter_is_named_by_its_name() -> None:
    PF.affine(nn.Variable((1, 2)), 2, name="dense")
    held = SimpleNamespace(W=nn.get_parameters()["dense/affine/W"])
    assert refused(lambda x: F.affine(F.reshape(x, (1, 2), inplace=False), held.W)) == "dense/affine/W (2, 2)"
    with nn.parameter_scope("elsewhere"):
        assert (
            refused(lambda x: F.affine(F.reshape(x, (1, 2), inplace=False), held.W), X, name="rnn") == "dense/affine/W (2, 2)"
        )


def test_what_has_no_name_is_told_by_its_shape() -> None:
    weights = [constant(np.ones(2))]
    assert refused(lambda x: x * weights[0]) == "a Variable of shape (2,)"


def test_what_is_computed_outside() -> None:
    k = constant(np.ones(2))
    computed_outside = k * 2
    assert refused(lambda x: x * computed_outside) == "computed_outside (2,)"
    assert refused(lambda x: computed_outside, X) == "computed_outside (2,)"


@pytest.mark.parametrize(
    "step",
    [
        lambda x: [x * 2, GLOBAL],
        lambda x: (x, until(F.sum(GLOBAL))),
        lambda x: (x, until(F.reshape(GLOBAL[:1], (), inplace=False))),
        lambda x: (x, {nn.Variable.from_numpy_array(X[0]): GLOBAL * 1}),
        lambda x: PF.affine(F.reshape(x * GLOBAL, (1, 2), inplace=False), 3),
        lambda x: Counted()(x * GLOBAL),
    ],
)
def test_wherever_it_is_read(step: Callable) -> None:
    assert refused(step) == "GLOBAL (2,)"


@pytest.mark.parametrize("way", ["unrolled", "loop"])
def test_what_a_scan_in_it_reads(way: str) -> None:
    """Python tells no names of what functions in functions see."""
    weight = constant(np.ones(2))
    found = refused(lambda x: scan(lambda y: y + weight, outputs_info=x, n_steps=2, way=way)[0][-1])
    assert found in ("weight (2,)", "a Variable of shape (2,)")


def test_functions_of_other_kinds() -> None:
    """Python tells no names of what some of them see."""
    weight = constant(np.ones(2))

    class Step:
        def __call__(self, x: Any) -> Any:
            return x * weight

        def method(self, x: Any) -> Any:
            return x * weight

    assert refused(partial(lambda k, x: x * k, weight)) in ("a Variable of shape (2,)", "weight (2,)")
    assert refused(Step()) in ("a Variable of shape (2,)", "weight (2,)")
    assert refused(Step().method) == "weight (2,)"


def test_a_mistake_leaves_nothing() -> None:
    state = nn.random.prng.get_state()[1].tolist()
    refused(lambda x: PF.affine(F.reshape(x * GLOBAL, (1, 2), inplace=False), 3))
    assert not all_parameters()
    assert nn.random.prng.get_state()[1].tolist() == state


# Accepted


@each_way
def test_what_is_given(way: str) -> None:
    weight, first = constant(np.full(2, 3.0)), constant(np.zeros(2))
    ys, _ = strict(lambda x, y, w: y + x * w, X, first, weight, way=way)
    assert computed(ys)[0].tolist() == [[3, 3], [6, 6], [9, 9], [12, 12]]


@each_way
def test_what_is_given_and_read_as_a_closure_too(way: str) -> None:
    """Theano's users list shared variables in non_sequences, and go on to read them by their names."""
    weight = constant(np.full(2, 3.0))
    ys, _ = strict(lambda x, _: x * weight, X, None, weight, way=way)
    assert computed(ys)[0].tolist() == [[3, 3]] * 4


@each_way
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("name", [None, "rnn"])
def test_what_parametric_functions_make(way: str, there: bool, name: str | None) -> None:
    def step(x: Any) -> Any:
        x = F.reshape(x, (1, 2), inplace=False)
        x = PF.batch_normalization(PF.affine(x, 2), batch_stat=False)
        x = PF.affine(x, 2, name="fixed", fix_parameters=True)
        return PF.embed(F.constant(1, (1,)), 3, 2) + x

    if there:
        with nn.parameter_scope(name or ""):
            step(nn.Variable((2,)))
    before = list(nn.get_parameters(grad_only=False))
    strict(step, X, name=name, way=way)
    assert len(nn.get_parameters(grad_only=False)) == 9
    assert not there or list(nn.get_parameters(grad_only=False)) == before


@each_way
def test_a_parameter_that_it_finds_by_its_name(way: str) -> None:
    nn.parameter.get_parameter_or_create("gain", (2,), nn.initializer.ConstantInitializer(3))
    ys, _ = strict(lambda x: x * nn.parameter.get_parameter_or_create("gain", (2,)), way=way)
    assert computed(ys)[0].tolist() == [[3, 3]] * 4


@each_way
def test_what_it_makes(way: str) -> None:
    """Constants, numbers, random numbers."""

    def step(x: Any) -> Any:
        made = nn.Variable.from_numpy_array(np.ones(2)) + F.constant(2, (2,)) + F.arange(0, 2)
        return [x * 2 + made, x + F.rand(shape=(2,)), F.dropout(x, 0.5)]

    ys, *_ = strict(step, X, way=way)[0]
    assert computed(ys)[0].tolist() == [[5, 6]] * 4


@each_way
def test_variables_that_it_updates(way: str) -> None:
    count = constant(np.zeros(2))
    ys, updates = strict(lambda x: (x + count, {count: count + 1}), way=way)
    assert computed(ys, *updates.values())[1].tolist() == [4, 4]


@each_way
def test_an_entry_of_its_own_arguments(way: str) -> None:
    assert computed(strict(lambda x: x, way=way)[0])[0].tolist() == X.tolist()


@each_way
def test_a_scan_in_it_that_closes_over_its_arguments(way: str) -> None:
    def step(x: Any, w: Any) -> Any:
        return scan(lambda y: y * w + x, outputs_info=x, n_steps=2, way=way, strict=False)[0][-1]

    ys, _ = strict(step, X, None, np.full(2, 2.0), way=way)
    assert computed(ys)[0].tolist() == [[7, 7]] * 4


def test_a_step_that_returns_nothing() -> None:
    assert strict(lambda x: None)[0] is None
