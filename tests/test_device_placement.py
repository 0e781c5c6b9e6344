"""Where functions are placed in a CUDA context: checked without a device, since NNabla computes a hand-made one on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest
from cells_table import ROWS, Row, each_row
from measuring import assert_same, constant, inputs, measure, prepare, randomize, runs, start, variable

import nnshop
from nnshop import (
    CarriedState,
    Cell,
    GRUCell,
    LSTMCell,
    SimpleRNNCell,
    StateSpec,
    TimeDistributed,
    bidirectional,
    clip_grad_by_global_norm,
    decoding,
    iterate,
    lift,
    linear_cross_entropy,
    run,
    stack,
    tree_leaves,
)
from nnshop.functions import faster
from nnshop.graphs import functions_of
from nnshop.graphs.replaying import DrawBits
from nnshop.graphs.tracing import noting_python_functions
from nnshop.running import Loop, fused
from nnshop.running.loop import LoopFunction
from nnshop.running.moving import Mover

CUDNN = nn.Context(["cudnn:float", "cuda:float", "cpu:float"], "CpuCachedArray", device_id="0")
CUDA = nn.Context(["cuda:float", "cpu:float"], "CpuCachedArray", device_id="0")
HALF = nn.Context(["cudnn:half", "cuda:half", "cpu:half", "cpu:float"], "CpuCachedArray", device_id="0")
KINDS: dict[str, Callable] = {
    "lstm": LSTMCell,
    "gru": GRUCell,
    "rnn": SimpleRNNCell,
    "rnn_relu": partial(SimpleRNNCell, activation="relu"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
BOTH_DIRECTIONS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
MASK = np.array([[1, 1, 0, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
WHOLE_SEQUENCE = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "rnn_relu": "RNN"}


def names(*outputs: nn.Variable) -> set[str]:
    return {function.name for function in functions_of(outputs)}


def in_python(*outputs: nn.Variable) -> bool:
    return "Callback" in names(*outputs)  # NNabla's name for a function that is computed in Python


def placed_elsewhere(outputs: list[nn.Variable], context: nn.Context) -> list[tuple[str, list[str]]]:
    """The functions of a graph that do not have this context's backends, but for those in Python, such as the loop.

    NNabla gives those a context of its own; what they compute is computed by the functions inside of them.
    """
    found = [function for function in functions_of(outputs) if function.name != "Callback"]
    return [(function.name, function.context.backend) for function in found if function.context.backend != context.backend]


# ------------------------------------------------------------------------------------------------------ what is chosen there


@BOTH_DIRECTIONS
@each_kind
def test_cudnn_has_a_whole_layer_in_one_function(kind: str, reverse: bool) -> None:
    with nn.context_scope(CUDNN):
        ys, state = run(KINDS[kind](4), nn.Variable((2, 5, 3)), reverse=reverse)
    assert WHOLE_SEQUENCE[kind] in names(ys)
    assert not in_python(ys, *tree_leaves(state))


@each_kind
def test_without_cudnn_a_layer_is_a_graph(kind: str) -> None:
    """NNabla has its whole-sequence functions in cuDNN's form only, and on the CPU, where they would be computed."""
    with nn.context_scope(CUDA):
        ys, state = run(KINDS[kind](4), nn.Variable((2, 5, 3)))
        with pytest.raises(ValueError, match=r"no fused form here: the context is cuda:float, not cpu:float"):
            run(KINDS[kind](4), nn.Variable((2, 5, 3)), way="fused")
    assert not names(ys, *tree_leaves(state)) & {"LSTM", "GRU", "RNN", "Callback"}


def test_a_mask_is_told_as_the_reason_against_cudnn() -> None:
    with nn.context_scope(CUDNN), pytest.raises(ValueError, match=r"no fused form here: cuDNN's functions take no mask"):
        run(LSTMCell(4), nn.Variable((2, 5, 3)), lengths=[5, 2], way="fused")


@pytest.mark.parametrize("context", [CUDNN, CUDA, HALF], ids=["cudnn", "cuda", "half"])
@each_row()
def test_no_cell_computes_in_python_there(row: Row, context: nn.Context) -> None:
    with nn.context_scope(context):
        for options in ({}, {"lengths": [3, 0], "reverse": True}):
            ys, state = run(row.make(), nn.Variable((2, 3, row.width)), **options)
            assert not in_python(ys, *tree_leaves(state))


def large_parts() -> list[nn.Variable]:
    """What has a kernel on the CPU: a large dense layer in three forms, an output layer with its loss, layers."""
    x, targets = nn.Variable((8, 32, 64)), nn.Variable((8, 32))
    weight, bias = variable(64, 128), variable(128)
    return [
        TimeDistributed(PF.affine)(x, 128),
        faster(F.affine(x, weight, bias, base_axis=2)),
        linear_cross_entropy(x, targets, 128),
        nnshop.functions.linear_cross_entropy(x, weight, bias, targets, ignore_index=0, label_smoothing=0.1),
        bidirectional(x, LSTMCell(4), GRUCell(4), lengths=[32] * 8),
        nnshop.simple_rnn(x, 4),
        nnshop.lstm(x, 4, go_backwards=True),
        nnshop.gru(x, 4, return_sequences=True, lengths=[3] * 8),
    ]


def test_no_kernel_for_the_cpu_is_taken_there() -> None:
    pytest.importorskip("llvmlite")
    assert all(map(in_python, large_parts()))  # else the test could not fail
    with nn.context_scope(CUDNN):
        parts = large_parts()
    assert not in_python(*parts)


# -------------------------------------------------------------------------------------------------- where functions compute


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("way", ["auto", "unrolled", "loop"])
@each_row()
def test_every_function_of_a_run_is_in_the_context_of_the_call(row: Row, way: str, masked: bool) -> None:
    python: dict[Any, Any] = {}
    with nn.context_scope(CUDNN), noting_python_functions(python):
        mask = {"mask": nn.Variable((2, 3))} if masked else {}
        ys, state = run(row.make(), nn.Variable((2, 3, row.width)), way=way, **mask)
    check_contexts([ys, *tree_leaves(state)], python)


def check_contexts(outputs: list[nn.Variable], python: dict[Any, Any]) -> None:
    assert not placed_elsewhere(outputs, CUDNN)
    for computed in python.values():
        if isinstance(computed, LoopFunction):
            assert not placed_elsewhere([computed.sink], CUDNN)
            ports = [*computed.x, *computed.states, *computed.y]
            movers = [function for port in ports for function in (port.mover._copy, port.mover._add)]
            assert all(function.context.backend == CUDNN.backend for function in movers)
            sources = [drawing.source for drawing in computed.graph.drawing if hasattr(drawing, "source")]
            assert not placed_elsewhere(sources, CUDNN)


def test_what_was_built_there_is_computed_there_wherever_it_runs() -> None:
    python: dict[Any, Any] = {}
    cell = stack(LSTMCell(4), lift(F.dropout, 0.5), GRUCell(3))
    x = nn.Variable((2, 6, 3), need_grad=True)
    with nn.context_scope(CUDNN), noting_python_functions(python):
        ys, state = run(cell, x, way=Loop(checkpoint_every=2))
        loss = F.sum(ys)
    x.d = 1
    loss.forward()
    loss.backward()
    assert any(isinstance(computed, LoopFunction) for computed in python.values())
    check_contexts([loss, *tree_leaves(state)], python)


def test_all_of_a_decoding_step_is_in_the_context_of_its_making() -> None:
    cell = speaker(LSTMCell(4), GRUCell(4))
    with nn.context_scope(CUDNN):
        step = decoding.Step(cell, 4)
    decoding.beam_search(step, 0, max_length=3, width=2)
    engine = step._stepper._engine
    assert not placed_elsewhere([engine._sink, *engine._taken], CUDNN)
    assert not in_python(engine._sink)


def test_half_there_has_floats_for_what_must_be_exact() -> None:
    with nn.context_scope(HALF):
        mask = nnshop.length_mask([3, 2], 3)
        y, _ = run(lift(PF.embed, 5000, 4), nn.Variable((2, 3)), way="unrolled")
    backends = {function.name: function.context.backend[0] for function in functions_of([mask, y])}
    assert backends["Less"] == backends["Split"] == "cudnn:float"
    assert backends["Embed"] == backends["Stack"] == "cudnn:half"


# -------------------------------------------------------------------------------------------------------- values are the same


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("length", [5, 1])
@BOTH_DIRECTIONS
@each_kind
def test_values_and_gradients_of_cudnns_form(kind: str, reverse: bool, length: int, bias: bool) -> None:
    cell = KINDS[kind](4, with_bias=bias)
    prepare(cell, 3)
    x, state = inputs(cell, 3, 4, length)
    expected = measure(runs(cell, way="unrolled", reverse=reverse), x, state)
    with nn.context_scope(CUDNN):
        assert_same(measure(runs(cell, way="fused", reverse=reverse), x, state), expected)
        unasked = measure(runs(cell, way="fused", reverse=reverse), x, state, x_need_grad=False)
        eager = measure(runs(cell, way="fused", reverse=reverse), x, state, auto_forward=True)
    assert_same(unasked.weight_grads, expected.weight_grads)
    assert_same(eager, expected)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("way", ["auto", "loop"])
@each_row()
def test_values_and_gradients_of_all_cells(row: Row, way: str, masked: bool) -> None:
    cell, x, state = start(row, batch=4)
    options = {"mask": constant(MASK), "reverse": True} if masked else {}
    expected = measure(runs(cell, way="unrolled", **options), x, state)
    with nn.context_scope(CUDNN):
        assert_same(measure(runs(cell, way=way, **options), x, state), expected)


def test_gradients_of_cudnns_form_add_up() -> None:
    """Over two backward passes, also of a state that is a leaf: the function itself must never be asked to add."""
    cell = LSTMCell(4)
    prepare(cell, 3)
    results = []
    for context in (nn.Context(), CUDNN):
        x, state = variable(2, 5, 3), (variable(2, 4), variable(2, 4))
        leaves = [x, *state, *nn.get_parameters().values()]
        with nn.context_scope(context):
            ys, _ = run(cell, x, state)
            loss = F.sum(ys)
        for leaf in leaves:
            leaf.grad.zero()
        for _ in range(2):  # as cuDNN, NNabla's LSTM on the CPU goes back once for each time it went forward
            loss.forward()
            loss.backward()
        results.append(tuple(leaf.g.copy() for leaf in leaves))
    assert_same(results[1], results[0])
    (function,) = (function for function in functions_of([ys]) if function.name == "LSTM")
    assert all(v.parent is not None for v in function.inputs)


def speaker(*cells: Any) -> Any:
    cell = stack(lift(PF.embed, 9, 4), *cells, lift(PF.affine, 9))
    cell(nn.Variable((1,)), cell.initial_state(1))
    randomize()
    return cell


@pytest.mark.parametrize("auto_forward", [False, True], ids=["static", "eager"])
def test_what_is_said_is_the_same(auto_forward: bool) -> None:
    cell = speaker(LSTMCell(4), GRUCell(4))
    h, c, other = (np.random.RandomState(i).randn(3, 4) for i in range(3))
    state = ((), (h, c), other, ())
    searches: list[Callable] = [
        partial(decoding.greedy, start=0, end=1, max_length=8),
        partial(decoding.sample, start=0, max_length=8, seed=3, temperature=0.5),
        partial(decoding.beam_search, start=[0, 1, 2], end=1, max_length=8, width=4, n_best=3, length_penalty=0.5),
    ]
    for search in searches:
        expected = search(cell, state=state)
        with nn.context_scope(CUDNN), nn.auto_forward(auto_forward):
            actual = search(cell, state=state)
        np.testing.assert_array_equal(actual.ids, expected.ids)
        np.testing.assert_allclose(actual.scores, expected.scores, rtol=1e-5)


@pytest.mark.parametrize("auto_forward", [False, True], ids=["static", "eager"])
def test_a_step_is_used_again_and_again(auto_forward: bool) -> None:
    """Also for states that change places, or stay."""

    def change(x: nn.Variable, state: Any) -> tuple:
        a, b, c = state
        return PF.affine(PF.embed(x, 9, 4) + a + c, 9), (b, a, c)

    cell = Cell(change, (StateSpec((4,)),) * 3)
    cell(nn.Variable((1,)), cell.initial_state(1))
    randomize()
    states = [tuple(np.random.RandomState(3 * seed + i).randn(2, 4) for i in range(3)) for seed in range(2)]
    expected = [decoding.beam_search(cell, 0, state, max_length=6, width=3) for state in states]
    with nn.context_scope(CUDNN), nn.auto_forward(auto_forward):
        step = decoding.Step(cell, 6)
        for state, said in zip(states * 2, expected * 2):
            np.testing.assert_array_equal(decoding.beam_search(step, 0, state, max_length=6, width=3).ids, said.ids)


# ------------------------------------------------------------------------------------------------- nothing goes by the host


def test_accesses_are_counted(host_accesses: Callable) -> None:
    v = variable(2, 3)
    assert host_accesses(lambda: v.d) == host_accesses(lambda: v.data.get_data("r")) == 1
    assert host_accesses(lambda: v.data.copy_from(variable(2, 3).data)) == 1  # that of making the other one
    assert host_accesses(lambda: np.add(v.d, v.g)) == 2


def loop_of(cell: Any, length: int, **options: Any) -> Callable[[], None]:
    """Runs a loop forward and backward."""
    x = nn.Variable((4, length, 3), need_grad=True)
    x.d = np.random.RandomState(0).randn(4, length, 3)
    with nn.context_scope(CUDNN):
        ys, state = run(cell, x, **{"way": "loop", **options})
        loss = F.sum(ys) + sum(F.sum(v) for v in tree_leaves(state))

    def forward_and_backward() -> None:
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)

    forward_and_backward()  # what is made at first only
    return forward_and_backward


LOOPS: dict[str, Callable[[int], Callable]] = {
    "lstm": lambda length: loop_of(LSTMCell(4), length),
    "reverse": lambda length: loop_of(GRUCell(4), length, reverse=True),
    "mask": lambda length: loop_of(LSTMCell(4), length, lengths=[3, 0, 2, 1]),
    "dropout": lambda length: loop_of(stack(lift(F.dropout, 0.5), LSTMCell(4), lift(F.dropout, 0.2)), length),
    "checkpoints": lambda length: loop_of(stack(lift(F.dropout, 0.5), LSTMCell(4)), length, way=Loop(length // 2)),
    "noise": lambda length: loop_of(stack(lift(lambda x: x + F.randn(shape=x.shape)), GRUCell(4)), length),
}


@pytest.mark.parametrize("what", LOOPS)
def test_no_step_of_a_loop_goes_by_the_host(what: str, host_accesses: Callable) -> None:
    nn.clear_parameters()
    counts = [host_accesses(LOOPS[what](length)) for length in (4, 12)]
    assert counts[0] == counts[1]


def test_steps_that_go_by_the_host_would_be_found(host_accesses: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where masks of dropout are kept as bits in NumPy."""
    monkeypatch.setitem(globals(), "CUDNN", nn.Context())
    counts = [host_accesses(LOOPS["dropout"](length)) for length in (4, 12)]
    assert counts[1] - counts[0] >= 8


def test_what_ends_a_loop_is_all_that_is_read_at_each_step(host_accesses: Callable) -> None:
    def accesses(length: int) -> int:
        with nn.context_scope(CUDNN):
            x, go_on = variable(length, 2, 3), F.constant(1, (2,))
            ys, _ = iterate(
                lambda x, state: (x + state[0], (x, state[1])), x, (x[0], go_on), way="loop", running=lambda state: state[1]
            )
        return host_accesses(lambda: ys.forward())

    assert accesses(12) - accesses(4) == 8


def test_masks_stay_bits_on_the_cpu() -> None:
    python: dict[Any, Any] = {}
    with noting_python_functions(python):
        run(stack(lift(F.dropout, 0.5), GRUCell(4)), nn.Variable((2, 5, 3)), way="loop")
    (loop,) = (computed for computed in python.values() if isinstance(computed, LoopFunction))
    assert [type(drawing) for drawing in loop.graph.drawing] == [DrawBits]


def test_a_seeded_dropout_draws_the_same_at_all_steps_there_too() -> None:
    x, cell = variable(2, 5, 30), stack(lift(F.dropout, 0.5, seed=3), SimpleRNNCell(30))
    with nn.context_scope(CUDNN):
        loss = F.sum(run(cell, x, way="loop")[0])
    x.grad.zero()
    loss.forward()
    loss.backward()
    dropped = x.g == 0
    assert 0.2 < dropped.mean() < 0.8
    assert (dropped == dropped[:, :1]).all()


def test_states_are_carried_without_the_host(host_accesses: Callable) -> None:
    """But for one number of each, which tells whether it has been computed."""
    cell, x = LSTMCell(4), nn.Variable((2, 5, 3))
    x.d = 1
    with nn.context_scope(CUDNN):
        state = CarriedState(cell, 2)
        ys, final = run(cell, x, state.initial)
        state.follow(final)
        ys.forward()
        assert host_accesses(state.carry) == 2
    np.testing.assert_array_equal(state.initial[0].d, ys.d[:, -1])


def test_gradients_are_clipped_without_the_host(host_accesses: Callable) -> None:
    """But for their norm."""
    rng, norms = np.random.RandomState(0), []
    shapes = {"a": (3, 4), "b": (5,), "c": ()}
    gradients = {name: rng.randn(*shape) for name, shape in shapes.items()}
    for context in (nn.Context(), CUDNN, HALF):
        nn.clear_parameters()
        with nn.context_scope(context):
            solver = S.Sgd(1.0)
            solver.set_parameters({n: nn.parameter.get_parameter_or_create(n, shape) for n, shape in shapes.items()})
            for name, v in solver.get_parameters().items():
                v.g = gradients[name]
            accesses = host_accesses(lambda s=solver: norms.append(clip_grad_by_global_norm(s, 1.0)))
            assert context.backend[0].startswith("cpu") or accesses == 1
            after = np.sqrt(sum(np.sum(np.square(v.g)) for v in solver.get_parameters().values()))
            np.testing.assert_allclose(after, 1, rtol=1e-3)
    np.testing.assert_allclose(norms, np.sqrt(sum(np.sum(g**2) for g in gradients.values())), rtol=1e-6)


def test_a_norm_that_is_not_finite_scales_nothing_there() -> None:
    with nn.context_scope(CUDNN):
        solver = S.Sgd(1.0)
        solver.set_parameters({"w": nn.parameter.get_parameter_or_create("w", (2,))})
        solver.get_parameters()["w"].g = [np.inf, 3]
        assert np.isinf(clip_grad_by_global_norm(solver, 1.0))
        assert solver.get_parameters()["w"].g.tolist() == [np.inf, 3]


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_decoding_reads_logits_and_writes_ids_only(search: str, host_accesses: Callable) -> None:
    def accesses(layers: int, length: int) -> int:
        nn.clear_parameters()
        cell = speaker(*[LSTMCell(4, name=f"layer{i}") for i in range(layers)])
        with nn.context_scope(CUDNN):
            step = decoding.Step(cell, 6)
            if search == "greedy":
                return host_accesses(lambda: decoding.greedy(step, 0, max_length=length))
            return host_accesses(lambda: decoding.beam_search(step, 0, max_length=length, width=3))

    of_one, of_three = (accesses(layers, 12) - accesses(layers, 4) for layers in (1, 3))
    assert of_one == of_three  # whatever the state is
    assert of_one <= 8 * 6


def test_kinds_are_those_of_the_fused_way() -> None:
    assert {*KINDS, "gru_before"} == set(fused.KINDS)
    assert {row.id for row in ROWS} >= {"lstm", "gru", "simple_rnn"}


def test_a_sequence_is_brought_over_whole_and_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each step would be copied from the host by itself; and ids, counts and halves keep their type."""
    with nn.context_scope(CUDNN):
        mover = Mover((2,))
        for dtype in (np.int32, np.float32, np.float16):
            x = nn.NdArray.from_numpy_array(np.arange(6, dtype=dtype).reshape(3, 2))
            assert mover.local(x).dtype == dtype
            np.testing.assert_array_equal(x.data, [[0, 1], [2, 3], [4, 5]])
        empty = nn.NdArray((3, 2))
        empty.fill(4)
        np.testing.assert_array_equal(mover.local(empty).data, np.full((3, 2), 4))
        xs, brought = variable(3, 2), []
        ys, _ = iterate(lambda x, state: (x * 2, state), xs, (), way="loop")
    monkeypatch.setattr(Mover, "local", lambda self, array: brought.append(array) or array)
    ys.forward()
    ys.backward()
    assert brought[:2] == [xs.data] * 2
    assert [array.shape for array in brought] == [(3, 2)] * 3
