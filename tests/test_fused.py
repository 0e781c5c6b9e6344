"""The fused way equals the unrolled one in values and gradients, however NNabla drives the graph."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest
from cells_table import ROWS, Row, each_row
from measuring import Measured, assert_same, constant, factors, inputs, measure, prepare, randomize, runs, start, variables
from nnabla.ext_utils import get_extension_context

pytest.importorskip("llvmlite")

from nnshop import GRUCell, LSTMCell, SimpleRNNCell, bidirectional, lift, readout, residual, run, stack, tree_leaves, tree_map
from nnshop.functions import linear_cross_entropy, sequence_loss
from nnshop.ids import is_check
from nnshop.kernels.array_function import ArrayFunction, array_of, give_gradient, gradient_of
from nnshop.portable import portable
from nnshop.running import Fused, fused
from nnshop.running.recurrence import Recurrence

FUSED = {
    *("simple_rnn", "simple_rnn-relu", "simple_rnn-no_bias", "simple_rnn-one_unit", "simple_rnn-name"),
    *("lstm", "lstm-forget_bias", "lstm-no_bias", "lstm-name"),
    *("gru", "gru-before", "gru-no_bias", "gru-before-no_bias", "gru-one_unit", "gru-name", "lift", "lift-name"),
    *("stack-one", "stack", "stack-names", "stack-shared", "stack-lifted", "stack-nested", "stack-nested-names"),
    *("residual", "residual-name", "stack-residual"),
}
LONG = 80  # so many steps pay for a call
fused_rows = each_row(*[row for row in ROWS if row.id in FUSED])
KINDS: dict[str, Callable] = {
    "lstm": LSTMCell,
    "gru": GRUCell,
    "gru_before": lambda units, **options: GRUCell(units, reset_after=False, **options),
    "rnn": SimpleRNNCell,
    "rnn_relu": lambda units, **options: SimpleRNNCell(units, activation="relu", **options),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
BOTH_DIRECTIONS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
LENGTHS = [5, 2, 0, 1]
HOLES = np.array([[1, 1, 0, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
PADDING = {"whole": {}, "lengths": {"lengths": LENGTHS}, "holes": {"mask": HOLES}}


def in_python(*outputs: nn.Variable) -> int:
    """How many functions of the graph are computed in Python, as the compiled ones are, but for the check of ids."""
    found: set[Any] = set()
    for output in outputs:
        output.visit(lambda function: found.add(function) if function.name == "Callback" else None)
    return sum(not is_check(function) for function in found)


def options_of(padding: str, reverse: bool) -> dict[str, Any]:
    options = {name: constant(v) if name == "mask" else v for name, v in PADDING[padding].items()}
    return {**options, "reverse": reverse}


# Equal to the unrolled way


@pytest.mark.parametrize("padding", PADDING)
@BOTH_DIRECTIONS
@fused_rows
def test_fused_is_unrolled(row: Row, reverse: bool, padding: str) -> None:
    cell, x, state = start(row, batch=4)
    options = options_of(padding, reverse)
    expected = measure(runs(cell, way="unrolled", **options), x, state)
    assert_same(measure(runs(cell, way="fused", **options), x, state), expected)


@pytest.mark.parametrize("padding", ["whole", "holes"])
@fused_rows
def test_fused_is_unrolled_in_auto_forward_and_for_constant_inputs(row: Row, padding: str) -> None:
    cell, x, state = start(row, batch=4)
    options = options_of(padding, padding == "holes")
    expected = measure(runs(cell, way="unrolled", **options), x, state)
    assert_same(measure(runs(cell, way="fused", **options), x, state, auto_forward=True), expected)
    for auto_forward in (False, True):
        actual = measure(runs(cell, way="fused", **options), x, state, x_need_grad=False, auto_forward=auto_forward)
        assert_same(actual.weight_grads, expected.weight_grads)
        assert_same(actual[:2], expected[:2])


@each_row(*[row for row in ROWS if row.id not in FUSED])
def test_any_cell_has_a_fused_form(row: Row) -> None:
    cell, x, state = start(row, batch=4)
    expected = measure(runs(cell, way="unrolled", lengths=LENGTHS), x, state)
    assert_same(measure(runs(cell, way="fused", lengths=LENGTHS), x, state), expected)


@each_row(*ROWS)
def test_auto_takes_one_function_for_a_whole_sequence(row: Row) -> None:
    """But for sequences of few steps, which the fused way takes too."""
    cell = row.make()

    def count(way: str, length: int) -> int:
        ys, _ = run(cell, nn.Variable((2, length, row.width)), way=way)
        return in_python(*tree_leaves(ys))

    assert count("auto", LONG) == count("fused", LONG) == count("fused", 1) == 1
    assert count("auto", 1) == count("unrolled", 5) == 0


class Doubled(ArrayFunction):
    """A function that nobody can compile."""

    def setup_impl(self, inputs: list[nn.Variable], outputs: list[nn.Variable]) -> None:
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs: list[nn.Variable], outputs: list[nn.Variable]) -> None:
        outputs[0].data.cast(np.float32)[...] = 2 * array_of(inputs[0])

    def backward_impl(self, inputs: list[nn.Variable], outputs: list[nn.Variable], propagate: list, accum: list) -> None:
        give_gradient(inputs[0], 2 * gradient_of(outputs[0]), accum[0])


@BOTH_DIRECTIONS
def test_a_stack_is_compiled_where_it_can_be(reverse: bool) -> None:
    """Layer by layer, where a child cannot be compiled: that one runs in another way."""
    doubled = lift(lambda x: Doubled()(x), rowwise=True)
    cell = stack(LSTMCell(4), readout(GRUCell(4), (4,)), doubled, residual(GRUCell(4)), LSTMCell(2, peephole=True))
    prepare(cell, 3)
    x, state = inputs(cell, 3, batch=4)
    for padding in PADDING:
        options = options_of(padding, reverse)
        expected = measure(runs(cell, way="unrolled", **options), x, state)
        assert_same(measure(runs(cell, **options), x, state), expected)
    assert in_python(run(cell, nn.Variable((2, 40, 3)))[0]) == 5
    with pytest.raises(ValueError, match=r"Lifted.* has no fused form here: .*Use way='auto'"):
        run(stack(LSTMCell(4), lift(lambda x: Doubled()(x))), nn.Variable((2, 5, 3)), way="fused")


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 6, 3, 5), (3, 1, 5, 4), (17, 3, 4, 33), (2, 3, 5, 260), (31, 2, 300, 7)])
@each_kind
def test_all_sizes(kind: str, sizes: tuple) -> None:
    batch, length, width, units = sizes
    cell = KINDS[kind](units)
    prepare(cell, width)
    randomize(scale=1 / np.sqrt(units + width))
    x, state = inputs(cell, width, batch, length)
    mask = constant(np.random.RandomState(0).rand(batch, length) < 0.7)
    for options in ({}, {"mask": mask, "reverse": True}):
        expected = measure(runs(cell, way="unrolled", **options), x, state)
        assert_same(measure(runs(cell, way="fused", **options), x, state), expected)


def test_activations_given_as_functions_are_fused_too() -> None:
    for cell in (LSTMCell(4, activation=F.tanh, recurrent_activation=F.sigmoid), SimpleRNNCell(4, activation=F.relu)):
        nn.clear_parameters()
        prepare(cell, 3)
        x, state = inputs(cell, 3)
        assert_same(measure(runs(cell, way="fused"), x, state), measure(runs(cell, way="unrolled"), x, state))


@BOTH_DIRECTIONS
@each_kind
def test_what_padding_holds_changes_nothing(kind: str, reverse: bool) -> None:
    cell = stack(residual(KINDS[kind](3)), KINDS[kind](4))
    prepare(cell, 3)
    x, state = inputs(cell, 3, batch=4)
    build = runs(cell, mask=constant(HOLES), reverse=reverse, way="fused")
    expected = measure(build, np.where(HOLES[:, :, None], x, 0), state)
    for padding in (np.nan, np.inf, -np.inf, 1e30):
        assert_same(measure(build, np.where(HOLES[:, :, None], x, padding), state), expected, rtol=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_in_its_row_as_unrolled(kind: str, bad: float) -> None:
    cell = KINDS[kind](5)
    prepare(cell, 3)
    x, state = inputs(cell, 3, batch=20)
    expected, others = measure(runs(cell, way="unrolled"), x, state), np.arange(20) != 13
    x[13, 2, 1] = bad
    actual, graph = (measure(runs(cell, way=way), x, state) for way in ("fused", "unrolled"))
    for field in ("ys", "state", "x_grad", "state_grad"):
        for one, right in zip(tree_leaves((getattr(actual, field),)), tree_leaves((getattr(expected, field),))):
            assert_same(one[others], right[others])
    np.testing.assert_array_equal(np.isnan(actual.ys), np.isnan(graph.ys))


def test_bidirectional_layers_are_equal() -> None:
    x = np.random.RandomState(0).randn(4, 5, 3)
    results = []
    for way in ("unrolled", "fused"):

        def build(x: nn.Variable, state: Any, way: str = way) -> tuple:
            return bidirectional(x, GRUCell(4), LSTMCell(2), lengths=LENGTHS, way=way), state

        build(nn.Variable((4, 5, 3)), ())
        randomize()
        results.append(measure(build, x, ()))
    assert_same(results[1], results[0])


# However it is driven


@dataclass
class Graph:
    """A layer in one of the ways, its Variables, and the loss `sum(factor * ys) + sum(factor * state)`."""

    x: nn.Variable
    state: Any
    ys: nn.Variable
    after: Any
    terms: list[nn.Variable]
    loss: nn.Variable

    @property
    def leaves(self) -> list[nn.Variable]:
        return [self.x, *tree_leaves(self.state), *nn.get_parameters(grad_only=False).values()]

    def zero(self) -> None:
        for leaf in self.leaves:
            leaf.grad.zero()

    def outputs(self) -> list[np.ndarray]:
        return [v.d.copy() for v in (self.ys, *tree_leaves(self.after))]

    def gradients(self) -> list[np.ndarray]:
        return [leaf.g.copy() for leaf in self.leaves]

    def feed(self, seed: int) -> None:
        rng = np.random.RandomState(seed)
        for v in (self.x, *tree_leaves(self.state)):
            v.d = rng.randn(*v.shape)


def make_graph(cell: Any, way: str, x_need_grad: bool = True, masked: bool = False, only: int | None = None) -> Graph:
    """`only`: of ys and the states, which one alone is fed to the loss."""
    x, state = inputs(cell, 3, batch=4)
    x, state = variables(x, x_need_grad), variables(state)
    ys, after = run(cell, x, state, way=way, mask=constant(HOLES) if masked else None)
    ys, after = ys.apply(persistent=True), tree_map(lambda v: v.apply(persistent=True), after)
    outputs = [ys, *tree_leaves(after)]
    terms = [F.sum(v * constant(g)) for v, g in zip(outputs, tree_leaves(factors(tuple(outputs))))]
    chosen = terms if only is None else terms[only : only + 1]
    return Graph(x, state, ys, after, terms, sum(chosen[1:], chosen[0]))


def backward_twice(cell: Any, way: str) -> list:
    graph = make_graph(cell, way)
    graph.zero()
    graph.loss.forward()
    graph.loss.backward()
    once = graph.gradients()
    graph.loss.backward()
    return once + graph.gradients()


def backward_twice_at_a_masked_layer(cell: Any, way: str) -> list:
    graph = make_graph(cell, way, masked=True)
    graph.zero()
    graph.loss.forward()
    graph.loss.backward(grad=2.0)
    graph.loss.backward(grad=-0.5)
    return graph.gradients()


def forward_twice(cell: Any, way: str) -> list:
    graph = make_graph(cell, way)
    graph.zero()
    graph.loss.forward()
    graph.loss.forward()
    graph.loss.backward()
    return graph.outputs() + graph.gradients()


def forward_of_other_data_then_back(cell: Any, way: str) -> list:
    graph, found = make_graph(cell, way), []
    for seeds in ((1,), (2, 3), (1,)):
        for seed in seeds:
            graph.feed(seed)
            graph.loss.forward()
        graph.zero()
        graph.loss.backward()
        found += graph.outputs() + graph.gradients()
    return found


def inference(cell: Any, way: str) -> list:
    graph = make_graph(cell, way)
    graph.loss.forward(clear_buffer=True)
    first = graph.outputs()
    graph.feed(4)
    graph.loss.forward(clear_buffer=True)
    return first + graph.outputs()


def inference_then_training(cell: Any, way: str) -> list:
    graph = make_graph(cell, way)
    graph.loss.forward(clear_buffer=True)
    graph.feed(4)
    graph.zero()
    graph.loss.forward(clear_no_need_grad=True)
    graph.loss.backward(clear_buffer=True)
    return graph.outputs() + graph.gradients()


def all_at_once(cell: Any, way: str) -> list:
    graph = make_graph(cell, way)
    nn.forward_all([graph.ys, *tree_leaves(graph.after), *graph.terms])
    return graph.outputs() + [term.d.copy() for term in graph.terms]


def clearing_buffers(cell: Any, way: str) -> list:
    graph = make_graph(cell, way, masked=True)
    graph.zero()
    for _ in range(2):
        graph.loss.forward(clear_no_need_grad=True)
        graph.loss.backward(clear_buffer=True)
    return graph.gradients()


def gradient_accumulation(cell: Any, way: str) -> list:
    graph = make_graph(cell, way)
    for leaf in graph.leaves:
        leaf.grad.fill(3)
    for seed in range(3):
        graph.feed(seed)
        graph.loss.forward()
        graph.loss.backward(clear_buffer=True)
    return graph.gradients()


def gradients_by_nn_grad_of_leaves(cell: Any, way: str) -> list:
    graph = make_graph(cell, way)
    graph.zero()
    graph.loss.forward()
    for term in graph.terms:
        term.backward()
    return graph.gradients()


def only_ys(cell: Any, way: str) -> list:
    return one_output(cell, way, 0)


def only_h(cell: Any, way: str) -> list:
    return one_output(cell, way, 1)


def only_the_last_state(cell: Any, way: str) -> list:
    return one_output(cell, way, len(tree_leaves(cell.state)))


def one_output(cell: Any, way: str, only: int) -> list:
    graph = make_graph(cell, way, only=only)
    for v in (graph.ys, *tree_leaves(graph.after)):
        v.grad.fill(np.nan)  # what is not part of the loss must not count
    graph.zero()
    graph.loss.forward()
    graph.loss.backward()
    return graph.gradients()


def constant_inputs(cell: Any, way: str) -> list:
    graph = make_graph(cell, way, x_need_grad=False)
    graph.zero()
    graph.x.grad.fill(7)
    graph.loss.forward()
    graph.loss.backward()
    return graph.gradients()


def some_fixed_weights(cell: Any, way: str) -> list:
    found = []
    names = list(nn.get_parameters())
    for name in names:
        nn.get_parameters(grad_only=False)[name].need_grad = False
        graph = make_graph(cell, way)
        graph.zero()
        nn.get_parameters(grad_only=False)[name].grad.fill(5)
        graph.loss.forward()
        graph.loss.backward()
        found += graph.gradients()
        nn.get_parameters(grad_only=False)[name].need_grad = True
    return found


def training(cell: Any, way: str) -> list:
    graph, solver = make_graph(cell, way, masked=True), S.Sgd(0.05)
    start = {name: v.d.copy() for name, v in nn.get_parameters().items()}
    solver.set_parameters(nn.get_parameters())
    losses = []
    for seed in range(5):
        graph.feed(seed)
        solver.zero_grad()
        graph.loss.forward(clear_no_need_grad=True)
        graph.loss.backward(clear_buffer=True)
        solver.update()
        losses.append(graph.loss.d.copy())
    after = [v.d.copy() for v in nn.get_parameters().values()]
    for name, v in nn.get_parameters().items():
        v.d = start[name]
    return losses + after


def two_graphs(cell: Any, way: str) -> list:
    one, two = make_graph(cell, way), make_graph(cell, way, masked=True)
    two.feed(5)
    one.zero()
    two.zero()
    one.loss.forward()
    two.loss.forward()
    one.loss.backward()
    two.loss.backward()
    return one.gradients() + two.gradients() + one.outputs() + two.outputs()


def training_and_validation_graphs(cell: Any, way: str) -> list:
    train, valid = make_graph(cell, way), make_graph(cell, way, masked=True)
    train.zero()
    train.loss.forward(clear_no_need_grad=True)
    valid.feed(6)
    valid.loss.forward(clear_buffer=True)
    train.loss.backward(clear_buffer=True)
    return train.gradients() + train.outputs() + valid.outputs()


def one_layer_after_itself(cell: Any, way: str) -> list:
    """The same weights, by a second sequence that the first one gives the state."""
    x, state = inputs(cell, 3, batch=4)
    x, state = variables(x), variables(state)
    ys, middle = run(cell, x, state, way=way)
    again, after = run(cell, x * 0.5, middle, way=way, reverse=True)
    outputs = [ys, again, *tree_leaves(after)]
    loss = sum(F.sum(v * constant(g)) for v, g in zip(outputs, tree_leaves(factors(tuple(outputs)))))
    leaves = [x, *tree_leaves(state), *nn.get_parameters().values()]
    for leaf in leaves:
        leaf.grad.zero()
    loss.forward()
    loss.backward()
    return [leaf.g.copy() for leaf in leaves]


def unlinked_halves(cell: Any, way: str) -> list:
    """Truncated backpropagation: the state is handed on without its history."""
    x, state = inputs(cell, 3, batch=4)
    x, state = variables(x), variables(state)
    ys, middle = run(cell, x[:, :2], state, way=way)
    rest, after = run(cell, x[:, 2:], tree_map(lambda v: v.get_unlinked_variable(need_grad=False), middle), way=way)
    first, second = F.sum(ys**2), F.sum(rest**2) + sum(F.sum(v) for v in tree_leaves(after))
    leaves = [x, *tree_leaves(state), *nn.get_parameters().values()]
    for leaf in leaves:
        leaf.grad.zero()
    nn.forward_all([first, *tree_leaves(middle)])
    second.forward()
    second.backward()
    first.backward()
    return [first.d.copy(), second.d.copy(), *(leaf.g.copy() for leaf in leaves)]


def inputs_used_elsewhere(cell: Any, way: str) -> list:
    """Gradients are added to those that arrived by another path."""
    x, state = inputs(cell, 3, batch=4)
    x, state = variables(x), variables(state)
    doubled = x * 2
    ys, after = run(cell, doubled, state, way=way)
    leaves = [x, *tree_leaves(state), *nn.get_parameters().values()]
    loss = F.sum(ys**2) + F.sum(doubled**3) + sum(F.sum(v**2) for v in leaves) + sum(F.sum(v**2) for v in tree_leaves(after))
    for leaf in leaves:
        leaf.grad.zero()
    loss.forward()
    loss.backward()
    return [leaf.g.copy() for leaf in leaves]


DRIVERS = [
    backward_twice, backward_twice_at_a_masked_layer, forward_twice, forward_of_other_data_then_back, inference,
    inference_then_training, all_at_once, clearing_buffers, gradient_accumulation, gradients_by_nn_grad_of_leaves, only_ys,
    only_h, only_the_last_state, constant_inputs, some_fixed_weights, training, two_graphs, training_and_validation_graphs,
    one_layer_after_itself, unlinked_halves, inputs_used_elsewhere,
]  # fmt: skip


@pytest.mark.parametrize("drive", DRIVERS, ids=lambda drive: drive.__name__)
@each_kind
def test_nnabla_drives_it_as_the_unrolled_graph(kind: str, drive: Callable) -> None:
    cell = KINDS[kind](4)
    prepare(cell, 3)
    expected = drive(cell, "unrolled")
    assert_same(tuple(drive(cell, "fused")), tuple(expected), 2e-5)


@each_kind
def test_gradients_that_arrive_at_the_outputs_stay(kind: str) -> None:
    cell = KINDS[kind](4)
    prepare(cell, 3)
    graph = make_graph(cell, "fused")
    graph.zero()
    graph.loss.forward()
    for _ in range(2):
        graph.loss.backward()
        given = factors((graph.ys, *tree_leaves(graph.after)))
        assert_same(tuple(v.g for v in (graph.ys, *tree_leaves(graph.after))), given, 1e-6)


@each_kind
def test_a_layer_without_any_gradient_to_give(kind: str) -> None:
    cell = KINDS[kind](4, fix_parameters=True)
    ys, _ = run(cell, nn.Variable((2, 3, 3)), way="fused")
    assert not ys.parent.need_grad
    ys.forward(clear_buffer=True)


@pytest.mark.parametrize("drive", [backward_twice, training, clearing_buffers, two_graphs], ids=lambda drive: drive.__name__)
def test_stacks_are_driven_as_the_unrolled_graph(drive: Callable) -> None:
    cell = stack(LSTMCell(4), residual(GRUCell(4)), lift(PF.affine, 3), SimpleRNNCell(2, name="same"), SimpleRNNCell(2))
    prepare(cell, 3)
    assert_same(tuple(drive(cell, "fused")), tuple(drive(cell, "unrolled")), 2e-5)


# Where there are no compiled kernels


@contextmanager
def no_llvmlite() -> Iterator[None]:
    find = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "llvmlite" else find(name, *a))
        yield


def ways_are_equal_without_kernels(kind: str, inside: Callable[[], Any], match: str) -> None:
    cell = KINDS[kind](4)
    prepare(cell, 3)
    x, state = inputs(cell, 3, batch=4)
    for options in ({}, {"lengths": LENGTHS, "reverse": True}):
        expected = measure(runs(cell, way="fused", **options), x, state)
        with inside():
            assert_same(measure(runs(cell, way="auto", **options), x, state), expected)
            with pytest.raises(ValueError, match=match):
                run(cell, nn.Variable((4, 5, 3)), way="fused", **options)


@each_kind
def test_without_llvmlite_auto_is_the_graph(kind: str) -> None:
    ways_are_equal_without_kernels(kind, no_llvmlite, r"llvmlite is not installed.*nnshop\[fast\]")
    with no_llvmlite():
        ys, state = run(stack(KINDS[kind](4), GRUCell(3)), nn.Variable((2, 3, 5)))
    assert in_python(ys, *tree_leaves(state)) == 0


@each_kind
def test_in_portable_auto_is_the_graph(kind: str) -> None:
    ways_are_equal_without_kernels(kind, portable, "portable")
    with portable():
        ys, state = run(KINDS[kind](4), nn.Variable((4, 5, 3)), lengths=LENGTHS)
    assert in_python(ys, *tree_leaves(state)) == 0


def test_without_llvmlite_the_linear_cross_entropy_is_equal() -> None:
    rng = np.random.RandomState(0)
    arrays, targets = (rng.randn(3, 4, 5), rng.randn(5, 7), rng.randn(7)), rng.randint(7, size=(3, 4))
    weights = np.array([[1, 0.5, 0, 2], [0, 0, 0, 0], [1, 1, 3, 0]])

    def measured() -> tuple:
        h, w, b = variables(arrays)
        loss = linear_cross_entropy(h, w, b, constant(targets), constant(weights), ignore_index=2)
        for v in (h, w, b):
            v.grad.zero()
        loss.forward()
        loss.backward()
        return in_python(loss), (loss.d.copy(), h.g.copy(), w.g.copy(), b.g.copy())

    compiled = measured()
    with no_llvmlite():
        graph = measured()
    assert (compiled[0], graph[0]) == (1, 0)
    assert_same(graph[1], compiled[1])


def test_in_another_context_than_float_the_kernels_step_aside() -> None:
    cell = LSTMCell(4)
    prepare(cell, 3)
    with nn.context_scope(get_extension_context("cpu", type_config="half")):
        with pytest.raises(ValueError, match=r"the context is cpu:half, not cpu:float"):
            run(cell, nn.Variable((2, 5, 3)), way="fused")
        ys, state = run(cell, nn.Variable((2, 5, 3)), lengths=[2, 3])
        h, w, t = nn.Variable((2, 3, 4)), nn.Variable((4, 5)), nn.Variable((2, 3))
        loss = linear_cross_entropy(h, w, None, t)
    assert in_python(ys, *tree_leaves(state)) == 0
    assert in_python(loss) == 0


def test_halves_among_the_inputs_are_read_as_floats() -> None:
    cell = GRUCell(4)
    prepare(cell, 3)
    x, state = inputs(cell, 3)
    x = x.astype(np.float16)

    def build(way: str) -> np.ndarray:
        v = nn.Variable.from_numpy_array(x)
        v.data.cast(np.float16)[...] = x
        ys, _ = run(cell, v, variables(state), way=way)
        ys.forward()
        return ys.d.copy()

    assert_same(build("fused"), build("unrolled"))


# cuDNN's form, on the CPU


def by_cudnn(cell: Any, reverse: bool = False) -> Callable:
    """Builds what would be built in a context of cuDNN."""

    def build(x: nn.Variable, state: Any) -> tuple:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused, "is_on_cudnn", lambda: True)
            return cell.over(Recurrence(Fused(), cell, x, state, x.shape[1], reverse, batch_major=True))

    return build


CUDNN = [kind for kind in fused.KINDS if kind != "gru_before"]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@BOTH_DIRECTIONS
@pytest.mark.parametrize("kind", CUDNN)
def test_the_form_for_cudnn_is_unrolled(kind: str, reverse: bool, bias: bool) -> None:
    cell = KINDS[kind](4, with_bias=bias)
    prepare(cell, 3)
    x, state = inputs(cell, 3, batch=2)
    expected = measure(runs(cell, way="unrolled", reverse=reverse), x, state)
    assert_same(measure(by_cudnn(cell, reverse), x, state), expected)
    constant_x = measure(by_cudnn(cell, reverse), x, state, x_need_grad=False)
    assert_same(constant_x.weight_grads, expected.weight_grads)
    ys, _ = by_cudnn(cell, reverse)(nn.Variable((2, 5, 3)), cell.initial_state(2))
    names: set[str] = set()
    ys.visit(lambda function: names.add(function.name))
    assert names & {"LSTM", "GRU", "RNN"}


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 4, 2, 3), (3, 1, 2, 1), (2, 6, 5, 4)])
@pytest.mark.parametrize("kind", CUDNN)
def test_the_form_for_cudnn_has_all_sizes(kind: str, sizes: tuple) -> None:
    batch, length, width, units = sizes
    cell = KINDS[kind](units)
    prepare(cell, width)
    x, state = inputs(cell, width, batch, length)
    expected = measure(runs(cell, way="unrolled"), x, state)
    assert_same(measure(by_cudnn(cell), x, state), expected)


def test_in_a_cudnn_context_a_mask_or_a_reset_before_has_no_fused_form() -> None:
    with nn.context_scope(nn.Context(["cudnn:float", "cuda:float", "cpu:float"], array_class="CudaCachedArray", device_id="0")):
        for kind in fused.KINDS:
            assert bool(fused.why_not_cudnn(kind, None)) == (kind == "gru_before")
            assert "mask" in fused.why_not_cudnn(kind, nn.Variable((2, 3)))
        with portable():
            assert all("portable" in fused.why_not_cudnn(kind, None) for kind in fused.KINDS)


def test_the_loss_of_a_language_model_is_equal_in_all_its_forms() -> None:
    """Embedding, stack, output layer: fused and in one, or unrolled and of explicit logits."""
    cell = stack(LSTMCell(6), GRUCell(6))
    ids, targets = (np.random.RandomState(seed).randint(9, size=(4, 5)) for seed in (0, 1))
    results: list[Any] = []
    for way in ("unrolled", "fused"):
        x = PF.embed(constant(ids), 9, 6, name="words")
        ys, _ = run(cell, x, way=way, lengths=LENGTHS)
        with nn.parameter_scope("words"):
            table = nn.get_parameters()["embed/W"]
        mask = constant(np.arange(5) < np.array(LENGTHS)[:, None])
        if way == "unrolled":
            loss = sequence_loss(F.affine(ys, F.transpose(table, (1, 0)), base_axis=2), constant(targets), mask)
            randomize()
        else:
            loss = linear_cross_entropy(ys, table, None, constant(targets), mask, transpose=True)
        for v in nn.get_parameters().values():
            v.grad.zero()
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
        results.append((loss.d.copy(), *(v.g.copy() for v in nn.get_parameters().values())))
    assert_same(results[1], results[0])


def test_measured_is_whole() -> None:
    """A guard of this module's own helper: every field of Measured is compared."""
    cell = GRUCell(2)
    prepare(cell, 3)
    x, state = inputs(cell, 3)
    right = measure(runs(cell), x, state)
    for field in Measured._fields:
        wrong = right._replace(**{field: tree_map(lambda a: a + 1, getattr(right, field)) if field != "weight_grads" else {
            name: g + 1 for name, g in right.weight_grads.items()}})  # fmt: skip
        with pytest.raises(AssertionError):
            assert_same(wrong, right)
