"""Threads that build, what one of them leaves of another's, and what is said where a name is taken."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from nnabla.function import PythonFunction

import nnshop
from nnshop import Cell, GRUCell, LSTMCell, TimeDistributed, building, lift, lstm, no_new_parameters, output_shape, run, stack
from nnshop.graphs.tracing import noting_python_functions
from nnshop.parameters import all_parameters

X = np.random.RandomState(0).randn(2, 5, 4)


@pytest.fixture
def _hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def in_thread(call: Callable) -> None:
    """Calls a function in another thread, and waits for it."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(call).result()


# ------------------------------------------------------------------------------------------------------------- many threads


def network(name: str) -> list[np.ndarray]:
    """Builds a network in each way, and computes it."""
    x, found = nn.Variable.from_numpy_array(X), []
    for way in ("loop", "unrolled", "auto"):
        y = lstm(x, 4, return_sequences=True, name=name, way=way)
        y, _ = run(stack(GRUCell(4), lift(PF.affine, 3), name=name), y, way=way)
        y.forward()
        found.append(y.d.copy())
    return found


@pytest.mark.usefixtures("_hasty")
def test_each_thread_builds_what_it_would_build_alone() -> None:
    names = [f"n{i}" for i in range(8)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(network, names))
    assert len(all_parameters()) == 8 * (3 + 4 + 2)
    for name, found in zip(names, together):
        for a, b in zip(found, network(name)):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[0], found[2], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_hasty")
def test_scopes_in_blocks_of_building_are_each_threads_own() -> None:
    def build(name: str) -> None:
        with building(), nn.parameter_scope(name):
            PF.affine(lstm(nn.Variable((2, 5, 3)), 4, way="loop"), 2)

    names = [f"n{i}" for i in range(8)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(build, names))
    weights = ("lstm/x2h/W", "lstm/b", "lstm/h2h/W", "affine/W", "affine/b")
    assert sorted(all_parameters()) == sorted(f"{name}/{weight}" for name in names for weight in weights)


def test_a_scope_outside_of_the_block_is_refused_where_threads_meet() -> None:
    building_now, go_on = threading.Event(), threading.Event()

    def first() -> None:
        with building():
            building_now.set()
            go_on.wait(10)

    def second() -> None:
        lstm(nn.Variable((2, 5, 3)), 4)

    with nn.parameter_scope("open"), ThreadPoolExecutor(2) as threads:
        one = threads.submit(first)
        building_now.wait(10)
        other = threads.submit(second)
        threading.Timer(0.2, go_on.set).start()  # the other one waits meanwhile
        one.result()
        with pytest.raises(RuntimeError, match=r"several threads .* one of them has opened a parameter scope"):
            other.result()
    assert not all_parameters()


def test_a_scope_that_is_left_open_meanwhile_is_refused() -> None:
    scope = nn.parameter_scope("other")

    def build() -> None:
        with building():
            in_thread(scope.__enter__)
            PF.affine(nn.Variable((2, 3)), 3)

    with pytest.raises(RuntimeError, match="has opened a parameter scope"):
        build()
    scope.__exit__(None, None, None)
    assert not all_parameters()


# ------------------------------------------------------------------------------------------- what one leaves of the other's


def test_no_new_parameters_counts_for_its_own_thread() -> None:
    with no_new_parameters():
        in_thread(lambda: PF.affine(nn.Variable((2, 3)), 4, name="other"))
    assert sorted(all_parameters()) == ["other/affine/W", "other/affine/b"]


def test_what_fails_takes_nothing_of_another_thread_with_it() -> None:
    def step(x: nn.Variable, state: tuple) -> tuple:
        in_thread(lambda: PF.affine(nn.Variable((2, 3)), 4, name="other"))
        PF.affine(x, 3, name="own")
        raise OSError("in the step")

    with pytest.raises(OSError, match="in the step"):
        run(Cell(step), nn.Variable((2, 5, 3)))
    assert sorted(all_parameters()) == ["other/affine/W", "other/affine/b"]


class Twice(PythonFunction):
    name = "Twice"

    def min_outputs(self) -> int:
        return 1

    def setup_impl(self, inputs: list, outputs: list) -> None:
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs: list, outputs: list) -> None:
        outputs[0].d = 2 * inputs[0].d

    def backward_impl(self, inputs: list, outputs: list, propagate_down: list, accum: list) -> None:
        inputs[0].g = 2 * outputs[0].g


def test_notes_of_python_functions_leave_nnabla_as_it_is() -> None:
    """Two threads whose blocks overlap once put back each other's."""
    call, found, other = PythonFunction.__call__, {}, {}  # type: ignore[var-annotated]
    notes = noting_python_functions(other)
    with noting_python_functions(found):
        assert PythonFunction.__call__ is call
        in_thread(notes.__enter__)
        y = Twice()(nn.Variable((2, 3)))
    notes.__exit__(None, None, None)
    assert PythonFunction.__call__ is call
    assert list(found) == [y.parent]
    assert not other
    Twice()(nn.Variable((2, 3)))
    assert len(found) == 1


# --------------------------------------------------------------------------------------------------------- names that are taken


def twice(*functions: Callable) -> None:
    for function in functions:
        function()


def in_a_scope(call: Callable) -> Callable:
    def called() -> None:
        with nn.parameter_scope("outer"):
            call()

    return called


x = nn.Variable((2, 5, 8))
BOTH_SHAPES = r"the parameter {} has the shape \({}\), and \({}\) is wanted here.*Give one of them name="
IS_A = "{} is a {}, and a {} of that name is wanted here.*Give it another name="


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: twice(lambda: run(LSTMCell(8), x), lambda: run(GRUCell(8), x)), BOTH_SHAPES.format("x2h/W", "8, 32", "8, 24")),
        (lambda: lstm(lstm(x, 9, return_sequences=True), 9), BOTH_SHAPES.format("lstm/x2h/W", "8, 36", "9, 36")),
        (
            in_a_scope(lambda: TimeDistributed(PF.affine)(TimeDistributed(PF.affine)(x, 7), 5)),
            BOTH_SHAPES.format("outer/affine/W", "8, 7", "7, 5"),
        ),
        (
            in_a_scope(
                lambda: output_shape(
                    Cell(lambda x, s: (PF.affine(PF.affine(x, 4), 5), s), name="c"),
                    nn.Variable((2, 3)),
                )
            ),
            BOTH_SHAPES.format("outer/c/affine/W", "3, 4", "4, 5"),
        ),
        (
            lambda: nnshop.scan(lambda x: F.sum(PF.affine(PF.affine(x, 4), 5)), nn.Variable((2, 3, 6)), name="s"),
            BOTH_SHAPES.format("s/affine/W", "6, 4", "4, 5"),
        ),
        (
            lambda: [nnshop.linear_cross_entropy(x, nn.Variable((2, 5)), n, name="out") for n in (3, 4)],
            BOTH_SHAPES.format("out/affine/W", "8, 3", "8, 4"),
        ),
        (
            lambda: twice(lambda: run(LSTMCell(8, name="b"), x), lambda: run(LSTMCell(8), x)),
            IS_A.format("b", "scope", "parameter"),
        ),
        (
            in_a_scope(lambda: twice(lambda: run(LSTMCell(8), x), lambda: run(LSTMCell(8, name="b"), x))),
            IS_A.format("outer/b", "parameter", "scope"),
        ),
        (
            lambda: twice(lambda: PF.affine(nn.Variable((2, 3)), 3), lambda: lstm(x, 8, name="affine/W")),
            IS_A.format("affine/W", "parameter", "scope"),
        ),
    ],
)
def test_a_name_that_is_taken_is_said_in_full(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_other_errors_of_a_step_are_its_own() -> None:
    def step(x: nn.Variable, state: tuple) -> tuple:
        assert x.shape == (2, 9), "mine"
        return x, state

    with pytest.raises(AssertionError, match="mine"):
        run(Cell(step), x)
