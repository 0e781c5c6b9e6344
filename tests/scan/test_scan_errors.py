"""Mistakes, and what scan says about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from checking import each_way
from measuring import constant

from nnshop import foldl, reduce, scan, until
from nnshop import map as scan_map

X = np.ones((5, 2))


def double(x: Any) -> Any:
    return x * 2


def says(message: str, *arguments: Any, error: type = ValueError, **options: Any) -> None:
    with pytest.raises(error, match=message):
        scan(*arguments, **options)


# Numbers of steps


def test_a_sequence_that_is_too_short_is_named_with_its_taps_and_how_long_it_lasts() -> None:
    entries = [X, {"input": np.ones(6), "taps": [-2, 0, 1]}]
    message = r"n_steps=4 is too long: sequence 1 of 6 entries lasts 3 steps with taps \[-2, 0, 1\]\.$"
    says(message, lambda x, a, b, c: a, entries, n_steps=4)
    says(r"n_steps=6 is too long: sequence 0 of 5 entries lasts 5 steps with taps \[0\]", double, X, n_steps=6)


@pytest.mark.parametrize("n_steps", [0, -1, -3, 2.0, 2.5, True, "3", [3], np.ones(1), nn.Variable(())])
def test_numbers_of_steps_that_are_none(n_steps: Any) -> None:
    """0 steps: Theano#3276. -1 is 1 step in Theano."""
    says("n_steps must be a whole number, 1 or more; got ", double, X, n_steps=n_steps)
    says("n_steps must be a whole number, 1 or more; got ", double, outputs_info=1.0, n_steps=n_steps)


def test_no_number_of_steps() -> None:
    says("scan needs sequences, or n_steps", double, outputs_info=1.0)
    says("scan needs sequences, or n_steps", lambda: None, [])


def test_sequences_without_a_step() -> None:
    says(r"sequence 0 must not be empty: .* got the shape \(0, 3\)", double, nn.Variable((0, 3)))
    says(r"at least one step; sequence 1 of 2 entries lasts 0 steps with taps \[-1, 1\]", lambda x, a, b: a, [
        X, {"input": [1.0, 2.0], "taps": [-1, 1]},
    ])  # fmt: skip
    says(r"n_steps=1 is too long: sequence 0 of 2 entries lasts -1 steps", double, {"input": [1, 2], "taps": 3}, n_steps=1)


# Sequences and taps


def test_sequences_without_time() -> None:
    says(r"sequence 0 needs its time on axis 0; it has the shape \(\)", double, 5.0)
    says(r"sequence 1 needs its time on axis 0; it has the shape \(\)", lambda x, y: x, (X, 5.0))
    says(r"sequence 0 needs its time on axis 1; it has the shape \(5,\)", double, np.ones(5), time_axis=1)


@pytest.mark.parametrize("taps", [[], "ab", [0.5], [None], [True], 0.5, [[0]], {"a": 1}])
def test_taps_that_are_no_whole_numbers(taps: Any) -> None:
    says("sequence 0 needs taps that are whole numbers, such as", double, {"input": X, "taps": taps})
    says("output 0 needs taps that are whole numbers, such as", double, None, {"initial": X, "taps": taps}, n_steps=2)


@pytest.mark.parametrize("entry", [X, 1.0])
def test_unknown_keys(entry: Any) -> None:
    says("sequence 0 is a dictionary with 'input' and 'taps'; it has 'tap' too", double, {"input": X, "tap": [0]})
    says("sequence 0 is a dictionary with 'input' and 'taps'; it has 'initial' too", double, {"initial": X, "taps": [0]})
    info = {"initial": entry, "tap": [-1], "return_steps": 1}
    says(
        "output 1 is a dictionary with 'initial' and 'taps'; it has 'tap', 'return_steps' too",
        double,
        None,
        [entry if entry is X else None, info],
        n_steps=2,
    )


def test_a_dictionary_without_a_sequence() -> None:
    says("sequence 0 has taps, and no 'input'", double, {"taps": [0]})


# Initial values


def test_taps_without_an_initial_value() -> None:
    says(r"output 1 has taps \[-1\], and no 'initial' value", double, X, [None, {"taps": [-1]}])
    says(r"output 0 has taps \[-2\], and no 'initial' value", double, X, {"initial": None, "taps": [-2]})


@pytest.mark.parametrize("taps", [[0], [-1, 0], [1], [-2, 3]])
def test_outputs_are_read_from_the_past_only(taps: list) -> None:
    message = rf"output 0 needs taps below 0, which read its past; got \[{', '.join(map(str, taps))}\]"
    says(message, double, None, {"initial": X, "taps": taps}, n_steps=2)


def test_output_taps_twice() -> None:
    says(r"output 0 needs taps that differ; got \[-1, -2, -1\]", double, None, {"initial": X, "taps": [-1, -2, -1]}, n_steps=2)


@pytest.mark.parametrize("initial", [np.ones((1, 2)), np.ones(1), 1.0])
def test_initial_values_that_are_too_few(initial: Any) -> None:
    """Theano returns too few steps, or garbage."""
    shape = str(np.shape(initial)).replace("(", r"\(").replace(")", r"\)")
    message = (
        r"output 0 with taps \[-2\] needs an initial value of at least 2 entries on axis 0, those of steps -2 to -1; "
        rf"got the shape {shape}"
    )
    says(message, double, None, {"initial": initial, "taps": [-2]}, n_steps=2)


def test_initial_values_that_are_too_few_on_the_second_axis() -> None:
    info = {"initial": np.ones((3, 2)), "taps": [-3, -1]}
    says(r"at least 3 entries on axis 1.* got the shape \(3, 2\)", lambda a, b: a, None, info, n_steps=2, time_axis=1)


def test_an_output_of_another_shape_than_its_initial_value() -> None:
    message = r"output 1 has the shape \(2,\), and its initial value \(\); they must be the same\.$"
    says(message, lambda x, a, b: (a, x), X, (np.ones(2), 0.0))
    with_time = (
        r"output 0 has the shape \(\), and its initial value \(2,\); .* With these taps the initial value has a time axis"
    )
    says(with_time, lambda y: F.sum(y), None, {"initial": np.ones((3, 2)), "taps": [-2]}, n_steps=2)


# What the function takes and returns


def test_a_function_of_too_few_arguments_is_told_what_it_would_be_called_with() -> None:
    info = [None, {"initial": np.ones((3, 2)), "taps": [-3, -1]}]
    message = (
        r"the function of a scan is called with 6 arguments \(sequence 0 at tap -1, sequence 0 at tap 1, sequence 1 at tap 0, "
        r"output 1 at tap -3, output 1 at tap -1, non_sequence 0\), which it does not take: too many positional arguments\.$"
    )
    says(message, lambda a, b, c: a, [{"input": X, "taps": [-1, 1]}, X], info, 3.0, error=TypeError)


def test_a_function_of_too_many_arguments() -> None:
    message = r"called with 1 arguments? \(sequence 0 at tap 0\), which it does not take: missing a required argument: 'y'"
    says(message, lambda x, y: x, X, error=TypeError)


def test_no_function() -> None:
    says("scan takes a function of one step first; got", X, double, error=TypeError)


def test_another_number_of_outputs() -> None:
    message = "the function of the scan returned {} outputs?, and outputs_info has {} entr"
    says(message.format(2, 1), lambda x, y: (x, y), X, np.ones(2))
    says(message.format(1, 2), lambda x, y: x, X, [None, np.ones(2)])
    says(message.format(0, 1), lambda x, y: None, X, np.ones(2))
    says("A list of numbers is one initial value, a tuple of numbers several", lambda y: (y, y), None, [0.0, 1.0], n_steps=2)


@pytest.mark.parametrize("output", [None, "text", object(), [None]])
def test_outputs_that_are_none(output: Any) -> None:
    says("what the function of a scan returns must be", lambda x: [x, output], X, error=TypeError)


def test_arguments_that_are_none() -> None:
    says("non_sequence 1 must be a Variable, an array or numbers", lambda x, a, b: x, X, None, [1.0, None], error=TypeError)
    says("non_sequence 0 must be a Variable, an array or numbers; got str", lambda x, a: x, X, None, "text", error=TypeError)
    says("sequence 1 must be a Variable, an array or numbers", lambda x, y: x, [X, None], error=TypeError)
    says("sequence 0 must be a Variable, an array or numbers; got list", double, [[[1.0, 2.0], [3.0]]], error=TypeError)
    says("the initial value of output 0 must be", double, X, object(), error=TypeError)


@pytest.mark.parametrize("kind", ["unrolled", "loop"])
def test_a_mistake_in_the_function_is_the_functions_own(kind: str) -> None:
    def step(x: Any) -> Any:
        raise KeyError("mine")

    says("mine", step, X, way=kind, error=KeyError)


# Options


@pytest.mark.parametrize("value", [0, -2, 1.0, True, "2", None])
def test_truncate_gradient(value: Any) -> None:
    says("truncate_gradient must be 1 or more steps, or -1 for all; got", double, X, truncate_gradient=value)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_bptt_window(value: Any) -> None:
    says("bptt_window must be 1 or more steps; got", double, X, bptt_window=value)


@pytest.mark.parametrize("value", [2, -1, None, "batch", 0.5])
def test_time_axis(value: Any) -> None:
    says(r"time_axis is 0 for \(T, B, \.\.\.\), or 1 for \(B, T, \.\.\.\); got", double, X, time_axis=value)


def test_way() -> None:
    says("way must be one of auto, unrolled, loop, compiled, fused; got 'rolled'", double, X, way="rolled")


def test_a_scalar_has_no_second_axis() -> None:
    says("output 0 is a scalar at each step, so with time_axis=1 it has no axis for the batch", F.sum, X, time_axis=1)


def test_options_of_theano_that_are_not_there() -> None:
    for option in ("mode", "profile", "allow_gc"):
        says(f"unexpected keyword argument '{option}'", double, X, error=TypeError, **{option: None})


def test_the_loop_needs_a_step_that_is_the_same_each_time() -> None:
    calls: list = []
    step: Callable = lambda x: calls.append(1) or x * len(calls)  # noqa: E731
    says("way='loop' needs a step that does the same at each time", step, X, way="loop")


# Updates


@each_way
def test_updates_that_cannot_be(way: str) -> None:
    a = constant(np.ones(2))
    twice = a * 2
    says(r"only Variables that are not computed can be updated", lambda x: (x, {twice: x}), X, way=way)
    says(r"only Variables that are not computed can be updated", lambda x: (x, {x * 2: x}), X, way=way)
    says(r"only Variables that are not computed can be updated.* got an update for 'a'", lambda x: (x, {"a": x}), X, way=way)
    says(r"an update must keep the shape of its Variable, \(2,\); got \(\)", lambda x: (x, {a: F.sum(x)}), X, way=way)
    says("an update must be", lambda x: (x, {a: "text"}), X, way=way, error=TypeError)
    says("an update must be", lambda x: (x, {a: None}), X, way=way, error=TypeError)


# until


def test_several_conditions() -> None:
    message = r"the function of a scan may return one until\(condition\); it returned 2"
    says(message, lambda x: (x, until(F.sum(x)), until(F.sum(x))), X)


@pytest.mark.parametrize("shape", [(2, 2), (1, 2), (2, 1, 1)])
def test_conditions_of_other_shapes(shape: tuple[int, ...]) -> None:
    message = r"the condition of until must have the shape \(\) or \(B,\); got \("
    says(message, lambda x: (x, until(F.constant(0, shape))), X)


def test_a_condition_that_is_none() -> None:
    says("the condition of until must be", lambda x: (x, until("end")), X, error=TypeError)
    says("the condition of until must be", lambda x: (x, until(None)), X, error=TypeError)


def test_a_condition_for_each_sample_where_something_has_no_batch_axis() -> None:
    total, ends = nn.Variable.from_numpy_array(1.0), until(F.constant(0, (2,)))
    start = r"until has a condition for each of 2 samples, so everything needs that batch axis first; "
    says(start + r"an output has the shape \(\) at each step", lambda x: (F.sum(x), ends), X)
    says(start + r"an output has the shape \(3,\) at each step", lambda x: ([x, F.constant(0, (3,))], ends), X)
    says(start + r"an update has the shape \(\) at each step", lambda x: (x, {total: total + 1}, ends), X)


def test_cut_at_end() -> None:
    ending: Callable = lambda x: (x, until(F.sum(x)))  # noqa: E731
    says(r"cut_at_end=True needs a function that returns nnshop\.until\(condition\)", double, X, cut_at_end=True)
    says(r"cut_at_end=True needs nn\.auto_forward\(\), to know the length", ending, X, cut_at_end=True)
    with nn.auto_forward():
        says(r"cut_at_end=True needs a function that returns nnshop\.until\(condition\)", double, X, cut_at_end=True)


# map, reduce, foldl, foldr


def test_folds_tell_the_same() -> None:
    with pytest.raises(TypeError, match=r"called with 1 arguments? \(sequence 0 at tap 0\)"):
        scan_map(lambda x, y: x, X)
    with pytest.raises(TypeError, match=r"sequence 0 at tap 0, output 0 at tap -1\)"):
        reduce(lambda x: x, X, np.ones(2))
    with pytest.raises(ValueError, match="too long"):
        foldl(lambda x, y: x, X, np.ones(2), n_steps=9)
