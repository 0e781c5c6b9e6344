"""The loop: equal to the unrolled way, whatever the step is made of and however the graph is run."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from measuring import Measured, assert_same, constant, factors, measure, randomize, variable, weights

from nnshop import Cell, LSTMCell, StateSpec, iterate, run, tree_leaves
from nnshop.kernels.array_function import ArrayFunction
from nnshop.portable import portable
from nnshop.running import WAYS, Auto, Compiled, Fused, Loop, Unrolled, Way, ways
from nnshop.running.loop import LoopFunction

T, B, D = 5, 2, 3
rng = np.random.RandomState(0)
XS, STATE = rng.randn(T, B, D), rng.randn(B, D)
PAIR = (STATE, rng.randn(B, D))
CLOSED = constant(rng.randn(B, D))


def dense(v: nn.Variable, name: str = "dense") -> nn.Variable:
    return F.tanh(PF.affine(v, D, name=name))


def lstm(x: Any, state: Any) -> tuple:
    """A user's own."""
    h, c = state
    z = PF.affine(x, 4 * D, name="x2h", with_bias=False) + PF.affine(h, 4 * D, name="h2h")
    i, f, g, o = F.split(F.reshape(z, (B, 4, D), inplace=False), axis=1)
    c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
    h = F.sigmoid(o) * F.tanh(c)
    return h, (h, c)


def no_gradient(v: nn.Variable) -> nn.Variable:
    v.need_grad = False
    return v


def ids_as_state(x: Any, ids: Any) -> tuple:
    """Greedy decoding: what is chosen comes back as an id."""
    z = PF.affine(F.concatenate(x, PF.embed(ids, 4, D), axis=1), 4)
    return z, no_gradient(F.max(z, axis=1, only_index=True))


STEPS: dict[str, tuple[Callable, Any, Any]] = {
    "lstm": (lstm, XS, PAIR),
    "echo": (lambda x, h: (dense(x + h), h * 0.5), XS, STATE),
    "the output is the input": (lambda x, h: (x, dense(x + h)), XS, STATE),
    "the output is the state": (lambda x, h: (h, dense(x + h)), XS, STATE),
    "the output is the new state": (lambda x, h: (lambda y: (y, y))(dense(x + h)), XS, STATE),
    "the output is twice the same": (lambda x, h: (lambda y: ((y, (y, h)), y))(dense(x * h)), XS, STATE),
    "the output is constant": (lambda x, h: (F.constant(2, (4,)), dense(x + h)), XS, STATE),
    "the output is a closure": (lambda x, h: (CLOSED, dense(x + CLOSED)), XS, STATE),
    "the output is a weight": (lambda x, h: (nn.parameter.get_parameter_or_create("w", (B, D)), h + x), XS, STATE),
    "the output is invariant": (lambda x, h: (dense(CLOSED), h + dense(CLOSED)), XS, STATE),
    "the state is unchanged": (lambda x, h: (x * h, h), XS, STATE),
    "the state is the input": (lambda x, h: (h * x, x), XS, STATE),
    "the state is a closure": (lambda x, h: (h * x, CLOSED), XS, STATE),
    "the states swap": (lambda x, s: (x * s[0], (s[1], s[0] * 0.9)), XS, PAIR),
    "the states swap, in place": (
        lambda x, s: (x * s[0], tuple(F.reshape(F.reshape(v, (-1,)), (B, D)) for v in s[::-1])),
        XS,
        PAIR,
    ),
    "a state feeds nothing": (lambda x, s: (dense(x + s[0]), (s[0] * 0.5, dense(s[1], "other"))), XS, PAIR),
    "no state": (lambda x, s: (dense(x), ()), XS, ()),
    "no output": (lambda x, h: (None, dense(x + h)), XS, STATE),
    "no input": (lambda x, s: (dense(s[0]), (s[0] + dense(s[1]), s[1] * 0.5)), None, PAIR),
    "no weight, input or state": (lambda x, s: (F.arange(0, 3), ()), None, ()),
    "a weight used twice": (lambda x, h: (dense(x), dense(dense(h) + x)), XS, STATE),
    "trees": (lambda x, s: ((dense(x[0]), (x[1] * s[1], None)), (s[0] + x[0], s[1])), (XS, XS**2), (STATE, STATE)),
    "scalars": (lambda x, s: (s * x, F.sin(s + x)), np.arange(5.0), np.array(0.5)),
    "in place": (lambda x, h: (F.reshape(x, (B * D,)), F.reshape(F.reshape(h, (D, B)) * 2, (B, D))), XS, STATE),
    "a stopped gradient": (lambda x, h: (dense(x + h), dense(no_gradient(h * 0.9) + x)), XS, STATE),
    "split": (lambda x, h: (F.split(x, axis=1)[1], h + F.stack(*F.split(x, axis=1)[::-1], axis=1)), XS, STATE),
    "slices": (lambda x, h: (x[:, :2], F.concatenate(h[:, 1:], x[:, :1], axis=1)), XS, STATE),
}
each_step = pytest.mark.parametrize("name", STEPS)


def forward(way: str | Way, name: str, **options: Any) -> Callable:
    step, xs, _ = STEPS[name]
    length = T if xs is None else None
    return lambda xs, state: iterate(step, xs, state, length, way=way, **options)


def compare(build: Callable[[str], Callable], x: Any, state: Any, **options: Any) -> Measured:
    """Asserts that the loop is equal to the unrolled way, in values and gradients, those of closures too."""
    for way in ("unrolled", "loop"):
        CLOSED.need_grad = True
        CLOSED.grad.zero()
        nn.random.set_function_seed(1)
        measured = (measure(build(way), x, state, **options), CLOSED.g.copy())
        if way == "unrolled":
            expected = measured
    assert_same(measured, expected)
    return measured[0]


def prepared(name: str) -> tuple[Any, Any]:
    _, xs, state = STEPS[name]
    measure(forward("unrolled", name), xs, state)
    randomize()
    return xs, state


# The step


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@each_step
def test_the_loop_is_the_unrolled_graph(name: str, reverse: bool) -> None:
    compare(lambda way: forward(way, name, reverse=reverse), *prepared(name))


@each_step
def test_in_auto_forward_mode(name: str) -> None:
    compare(lambda way: forward(way, name), *prepared(name), auto_forward=True)


@each_step
def test_inputs_that_need_no_gradient(name: str) -> None:
    compare(lambda way: forward(way, name), *prepared(name), x_need_grad=False)


@pytest.mark.parametrize("every", [1, 2, 3, 5, 100])
def test_checkpoints(every: int) -> None:
    xs, state = prepared("lstm")
    expected = measure(forward("unrolled", "lstm", reverse=True), xs, state)
    assert_same(measure(forward(Loop(checkpoint_every=every), "lstm", reverse=True), xs, state), expected)


def test_length_one() -> None:
    xs, state = prepared("lstm")
    compare(lambda way: forward(way, "lstm"), xs[:1], state)


def test_greedy_decoding() -> None:
    """A state of ids that no gradient goes to: F.embed refuses one."""
    build = lambda way: lambda xs, _: iterate(ids_as_state, xs, constant(np.array([1, 3])), way=way)  # noqa: E731
    build("unrolled")(constant(XS), None)
    randomize()
    compare(build, XS, None)


def test_ids_that_come_out_need_no_gradient() -> None:
    """F.embed refuses one here too."""

    def build(way: str) -> Callable:
        def chosen(xs: Any, h: Any) -> tuple:
            ids, h = iterate(lambda x, h: (no_gradient(F.max(dense(h + x), axis=1, only_index=True)), h * x), xs, h, way=way)
            return PF.embed(ids, D, 2), h

        return chosen

    measure(build("unrolled"), XS, STATE)
    compare(build, XS, STATE)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.int8, np.float64, np.bool_])
def test_inputs_of_other_types(kind: Any) -> None:
    ids = np.array([[0, 3], [1, 0], [1, 1]]).astype(kind)
    step = lambda x, h: (lambda y: (y, y))(dense(h + PF.embed(x, 4, D)))  # noqa: E731
    build = lambda way: lambda _, h: iterate(step, constant(ids), h, way=way)  # noqa: E731
    measure(build("unrolled"), None, STATE)
    randomize()
    compare(build, None, STATE)


@pytest.mark.parametrize("fill", [lambda v: v.data.zero(), lambda v: v.data.fill(3), lambda v: None])
def test_inputs_that_are_filled_later(fill: Callable) -> None:
    x = nn.Variable((T, 2))
    ys, total = iterate(lambda x, s: (x, s + x), x, constant(np.zeros(2)), way="loop")
    fill(x)
    nn.forward_all([ys, total])
    np.testing.assert_array_equal(ys.d, x.d)
    np.testing.assert_array_equal(total.d, x.d.sum(axis=0))


def test_parameters_are_made_as_in_the_unrolled_graph() -> None:
    made = {}
    for way in ("unrolled", "loop"):
        nn.clear_parameters()
        nn.seed(3)
        with nn.parameter_scope("outer"):
            iterate(lstm, constant(XS), tuple(map(constant, PAIR)), way=way)
        made[way] = weights()
    assert list(made["loop"]) == list(made["unrolled"])
    assert_same(made["loop"], made["unrolled"], rtol=0)


def test_the_graph_does_not_grow_with_the_length() -> None:
    def functions(length: int) -> list[str]:
        found: list[str] = []
        ys, _ = iterate(lstm, nn.Variable((length, B, D)), tuple(map(constant, PAIR)), way="loop")
        ys.visit(lambda function: found.append(function.info.type_name))
        return found

    assert functions(3) == functions(100_000) == ["nnshop.Loop"]


def test_a_loop_is_freed() -> None:
    gc.collect()
    count = lambda: sum(issubclass(type(o), ArrayFunction) for o in gc.get_objects())  # noqa: E731
    before = count()
    for _ in range(3):
        y, _ = iterate(lstm, nn.Variable((T, B, D)), tuple(map(constant, PAIR)), way="loop")
        y.forward()
    del y, _
    gc.collect()
    assert count() == before


# Closures


def test_gradients_of_closures() -> None:
    """A leaf, and what is computed of a weight outside, used in two loops and beside them."""
    leaf = variable(B, D)

    def build(way: str) -> Callable:
        def both(x: Any, h: Any) -> tuple:
            outside = dense(leaf, "outside")
            ys, h = iterate(lambda x, h: (lambda y: (y, y))(dense(x * outside + h) * leaf), x, h, way=way)
            zs, h = iterate(lambda x, h: (x * outside, dense(h + outside)), ys, h, way=way)
            return (zs, outside * 2), h

        return both

    measure(build("unrolled"), XS, STATE)
    randomize()
    gradients = []
    for way in ("unrolled", "loop"):
        leaf.grad.zero()
        gradients.append((measure(build(way), XS, STATE), leaf.g.copy()))
    assert_same(gradients[1], gradients[0])


def test_the_sequence_itself_is_a_closure() -> None:
    """Attention over all inputs; their gradient comes from two sides."""

    def build(way: str) -> Callable:
        def attend(xs: Any, h: Any) -> tuple:
            def step(x: Any, h: Any) -> tuple:
                scores = F.softmax(F.sum(xs * F.reshape(h, (1, B, D), inplace=False), axis=2), axis=0)
                read = F.sum(xs * F.reshape(scores, (T, B, 1), inplace=False), axis=0)
                return read, dense(read + x)

            return iterate(step, xs, h, way=way)

        return attend

    measure(build("unrolled"), XS, STATE)
    randomize()
    for auto_forward in (False, True):
        compare(build, XS, STATE, auto_forward=auto_forward)
        compare(lambda way: lambda xs, h: build(way)(xs * 1.0, h), XS, STATE, auto_forward=auto_forward)


def test_a_closure_that_was_not_computed_yet() -> None:
    """Made outside of auto-forward mode, used in it."""
    with nn.auto_forward(False):
        closed = F.tanh(constant(STATE))
    with nn.auto_forward():
        ys, _ = iterate(lambda x, h: (x * closed, h), constant(XS), (), way="loop")
    np.testing.assert_allclose(ys.d, XS * np.tanh(STATE), rtol=1e-5)


def test_what_was_computed_outside_is_not_computed_again() -> None:
    """In auto-forward mode: another draw would change what others use."""
    with nn.auto_forward():
        noise = F.dropout(constant(STATE), 0.5)
        before = noise.d.copy()
        ys, _ = iterate(lambda x, h: (F.exp(noise) + x, h), constant(np.zeros((20, B, D))), (), way="loop")
        np.testing.assert_array_equal(noise.d, before)
        np.testing.assert_allclose(ys.d, np.tile(np.exp(before), (20, 1, 1)), rtol=1e-5)


def test_one_sequence_and_one_state_given_twice() -> None:
    def build(way: str) -> Callable:
        return lambda x, h: iterate(lambda x, s: (x[0] * s[1], (s[0] + x[1], dense(s[1]))), (x, x), (h, h), way=way)

    measure(build("unrolled"), XS, STATE)
    compare(build, XS, STATE)


class Counting(ArrayFunction):
    """A user's own function: twice its input."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0

    def setup_impl(self, inputs: Any, outputs: Any) -> None:
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs: Any, outputs: Any) -> None:
        self.forwards += 1
        outputs[0].data.cast(np.float32)[...] = 2 * inputs[0].data.data

    def backward_impl(self, inputs: Any, outputs: Any, propagate_down: Any, accum: Any) -> None:
        gradient = 2 * outputs[0].grad.data
        inputs[0].grad.data[...] = gradient + (inputs[0].grad.data if accum[0] else 0)


def test_what_does_not_depend_on_the_step_is_computed_once() -> None:
    def step(x: Any, h: Any) -> tuple:
        return invariant(dense(closed)) * h, dense(inner(x) + h)

    closed, found = variable(B, D), []
    for way in ("unrolled", "loop"):
        invariant, inner = Counting(), Counting()
        closed.grad.zero()
        measured = measure(lambda x, h, way=way: iterate(step, x, h, way=way), XS, STATE)  # type: ignore[misc]
        found.append((measured, closed.g.copy()))
        assert invariant.forwards == (T if way == "unrolled" else 1)
        assert inner.forwards == (T if way == "unrolled" else 2 * T)
    assert_same(found[1], found[0])


# How the graph is run


def trained(way: str, run_graph: Callable) -> tuple:
    """Gradients of x, initial states and weights after the graph was run in some manner; the loss sees part of the outputs."""
    nn.seed(5)
    nn.clear_parameters()
    x, h, c = variable(T, B, D), variable(B, D, seed=1), variable(B, D, seed=2)
    ys, (h_after, c_after) = iterate(lstm, F.tanh(x), (F.sin(h), c), way=way)
    randomize()
    leaves = [x, h, c, *nn.get_parameters().values()]
    for leaf in leaves:
        leaf.g = 0
    run_graph(ys, h_after, c_after)
    return tuple(leaf.g.copy() for leaf in leaves)


def plain(loss: nn.Variable) -> None:
    loss.forward()
    loss.backward()


def cleared(loss: nn.Variable) -> None:
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)


def backward_twice(loss: nn.Variable) -> None:
    loss.forward()
    loss.backward()
    loss.backward()


def forward_twice(loss: nn.Variable) -> None:
    loss.forward(clear_buffer=True)
    loss.forward()
    loss.backward()


def two_rounds(loss: nn.Variable) -> None:
    cleared(loss)
    cleared(loss)


RUNS = [plain, cleared, backward_twice, forward_twice, two_rounds]


@pytest.mark.parametrize("run_graph", RUNS)
@pytest.mark.parametrize("used", ["ys", "h", "c", "ys h", "h c", "ys h c", "last"])
def test_gradients_when_the_loss_sees_some_outputs(used: str, run_graph: Callable) -> None:
    def loss(ys: nn.Variable, h: nn.Variable, c: nn.Variable) -> None:
        parts = {"ys": ys * ys, "h": F.exp(h), "c": F.sin(c), "last": ys[-1]}
        run_graph(sum(F.sum(parts[name]) for name in used.split()))

    assert_same(trained("loop", loss), trained("unrolled", loss))


def test_two_losses_of_one_graph() -> None:
    def losses(ys: nn.Variable, h: nn.Variable, c: nn.Variable) -> None:
        first, second = F.sum(ys * ys), F.sum(F.exp(c))
        nn.forward_all([first, second])
        first.backward()
        second.backward()

    assert_same(trained("loop", losses), trained("unrolled", losses))


def test_gradients_are_written_or_added_as_asked() -> None:
    """The loop's function alone: what an array held is overwritten, or added to."""
    x, h = variable(T, B, D), variable(B, D)
    ys, after = iterate(lambda x, h: (x * h * dense(h), h * x), x, h, way="loop")
    nn.forward_all([ys, after])
    loop, found = ys.parent, {}
    for add in (False, True):
        for leaf, value in zip((*loop.outputs, *loop.inputs), (1, 1, *[7] * 4)):
            leaf.g = np.full(leaf.shape, value)
        loop.backward(loop.inputs, loop.outputs, [add] * 4)
        found[add] = tuple(leaf.g - 7 * add for leaf in loop.inputs)
    assert len(loop.inputs) == 4  # with the weight and the bias
    assert_same(found[True], found[False])


def test_parameters_that_need_no_gradient() -> None:
    def step(x: Any, h: Any) -> tuple:
        h = PF.affine(x, D, name="in", fix_parameters=True) + dense(h)
        return h, h

    build = lambda way: lambda x, h: iterate(step, x, h, way=way)  # noqa: E731
    measure(build("unrolled"), XS, STATE)
    randomize()
    compare(build, XS, STATE)


def test_nothing_needs_a_gradient() -> None:
    gc.collect()
    ys, h = iterate(
        lambda x, h: (x * h, h + CLOSED.get_unlinked_variable(need_grad=False)), constant(XS), constant(STATE), way="loop"
    )
    assert not ys.need_grad
    assert not h.need_grad
    loop = next(o for o in gc.get_objects() if isinstance(o, LoopFunction) and o.length == T)
    ys.forward()
    assert [kept.shape for kept in loop.kept] == [(1, B, D)]  # the others are for a backward pass


def test_a_gradient_that_is_asked_for_later() -> None:
    """The states were not kept then."""
    x, h = constant(XS), constant(STATE)
    ys, _ = iterate(lambda x, h: (x * h, F.sin(h + x)), x, h, way="loop")
    loss = F.sum(ys * ys)
    loss.forward()
    x.need_grad = True
    x.grad.zero()
    plain(loss)
    expected = measure(lambda x, h: (F.sum(iterate(lambda x, h: (x * h, F.sin(h + x)), x, h)[0] ** 2), None), XS, STATE)
    assert_same(x.g * factors(expected.ys), expected.x_grad)


def test_weights_and_inputs_are_read_at_each_run() -> None:
    x, h = variable(T, B, D), variable(B, D)
    graphs = {way: iterate(lambda x, h: (x * h, dense(h + x)), x, h, way=way)[0] for way in ("unrolled", "loop")}
    for seed in range(3):
        randomize(seed)
        x.d, h.data = np.random.randn(T, B, D), nn.NdArray.from_numpy_array(np.random.randn(B, D).astype(np.float32))
        nn.forward_all(list(graphs.values()))
        assert_same(graphs["loop"].d, graphs["unrolled"].d)


# Random numbers


def noisy(x: Any, h: Any) -> tuple:
    h = dense(F.dropout(x, 0.4) + F.dropout(h, 0.5) + F.randn(sigma=0.1, shape=(B, D)))
    h = h * F.randint(0, 3, shape=(B, D)) + F.rand(-1, 1, shape=(B, D))
    return h, h


def weight_dropout(x: Any, h: Any) -> tuple:
    """What draws anew at each step is not invariant."""
    w = nn.parameter.get_parameter_or_create("w", (D, D), initializer=lambda shape: np.eye(*shape))
    y = F.affine(x + h, F.dropout(w, 0.3))
    return y, y


def seeded(x: Any, h: Any) -> tuple:
    return F.dropout(x, 0.5, seed=4) + F.rand(shape=(B, D), seed=7), F.dropout(dense(h + x), 0.2, seed=5)


def choosing(x: Any, h: Any) -> tuple:
    chosen = F.random_choice(x, F.softmax(h), shape=(4,))
    few = F.random_choice(x, F.softmax(h), shape=(2,), replace=False)
    return F.concatenate(chosen, few * few, axis=1), dense(h + F.sum(chosen, axis=1, keepdims=True))


def rare(x: Any, h: Any) -> tuple:
    shape = (B, D)
    h = x * F.rand_beta(shape=shape) + h * F.rand_gamma(shape=shape) + F.rand_binomial(3, 0.5, shape=shape)
    return h, h


NOISY = [noisy, weight_dropout, seeded, choosing, rare]


@pytest.mark.parametrize("auto_forward", [False, True])
@pytest.mark.parametrize("step", NOISY)
def test_random_steps_draw_as_the_unrolled_graph(step: Callable, auto_forward: bool) -> None:
    """From one seed the same numbers, as far as both graphs run in one order; with them the same gradients."""
    build = lambda way: lambda x, h: iterate(step, x, h, way=way)  # noqa: E731
    measure(build("unrolled"), XS, STATE)
    randomize()
    compare(build, XS, STATE, auto_forward=auto_forward)


@pytest.mark.parametrize("step", NOISY)
def test_random_steps_in_reverse(step: Callable) -> None:
    def flipped(x: Any, h: Any) -> tuple:
        ys, h = iterate(step, F.flip(x, axes=[0]), h, way="loop")
        return F.flip(ys, axes=[0]), h

    measure(flipped, XS, STATE)
    randomize()
    compare(lambda way: flipped if way == "unrolled" else lambda x, h: iterate(step, x, h, reverse=True, way=way), XS, STATE)


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("step", NOISY)
def test_each_forward_draws_anew_and_its_backward_replays(step: Callable, every: int) -> None:
    found = []
    for way in ("unrolled", Loop(checkpoint_every=every)):
        x, h = variable(T, B, D), variable(B, D, seed=1)
        ys, after = iterate(step, x, h, way=way)
        randomize()
        loss = F.sum(F.sin(ys)) + F.sum(after * after)
        nn.random.set_function_seed(2)
        rounds = []
        for _ in range(2):
            for leaf in (x, h, *nn.get_parameters().values()):
                leaf.grad.zero()
            loss.forward(clear_no_need_grad=True)
            loss.backward(clear_buffer=True)
            rounds.append((loss.d.copy(), x.g.copy(), h.g.copy(), *(p.g.copy() for p in nn.get_parameters().values())))
        found.append(tuple(rounds))
    unrolled, looped = found
    assert_same(looped, unrolled)
    assert not np.array_equal(looped[0][1], looped[1][1])


def test_dropout_s_gradient_is_its_mask() -> None:
    """Without the unrolled graph: y = mask * x / (1 - p), so the gradient is y / x, and about p of them are zero."""
    x = nn.Variable((50, 20), need_grad=True)
    x.d = np.random.rand(50, 20) + 1
    ys, _ = iterate(lambda x, s: (F.dropout(x, 0.3), s), x, (), way="loop")
    loss = F.sum(ys)
    for _ in range(2):
        x.grad.zero()
        loss.forward()
        loss.backward()
        y = ys.d.copy()
        loss.backward()
        np.testing.assert_array_equal(ys.d, y)
        np.testing.assert_allclose(x.g, 2 * y / x.d, rtol=1e-6)
        assert set(np.unique(x.g.round(4))) == {0, np.float32(2 / 0.7).round(4)}
        assert 0.2 < (y == 0).mean() < 0.4
        assert len({row.tobytes() for row in y == 0}) == 50


def test_gradients_of_noise_are_those_of_finite_differences() -> None:
    """The draws are made the same by the seed."""
    x, h = variable(T, B, D), variable(B, D, seed=1)
    ys, after = iterate(noisy, x, h, way=Loop(checkpoint_every=2))
    randomize()
    loss = F.sum(ys) + F.sum(after)

    def value() -> float:
        nn.random.set_function_seed(8)
        loss.forward()
        return float(loss.d)

    for leaf in (x, h):
        leaf.grad.zero()
    value()
    loss.backward()
    for leaf in (x, h):
        slopes = np.zeros_like(leaf.d)
        for i in np.ndindex(*leaf.shape):
            middle = leaf.d[i]
            leaf.d[i] = middle + 1e-2
            above = value()
            leaf.d[i] = middle - 1e-2
            slopes[i] = (above - value()) / 2e-2
            leaf.d[i] = middle
        np.testing.assert_allclose(leaf.g, slopes, atol=2e-2)


def test_a_random_variable_from_outside_is_one_draw() -> None:
    noise = F.randn(shape=(B, D))
    ys, _ = iterate(lambda x, h: (noise + x, h), constant(np.zeros((T, B, D))), (), way="loop")
    nn.forward_all([ys, noise])
    for y in ys.d:
        np.testing.assert_array_equal(y, noise.d)


@pytest.mark.parametrize("function", [
    lambda x: F.random_flip(x, base_axis=0),
    lambda x: F.random_shift(x, base_axis=0),
    lambda x: PF.mean_subtraction(x),
    lambda x: F.affine(x, PF.spectral_norm(nn.parameter.get_parameter_or_create("w", (D, D)))),
])  # fmt: skip
def test_what_cannot_be_computed_twice_is_refused(function: Callable) -> None:
    step = lambda x, h: (function(x), h + x)  # noqa: E731
    with pytest.raises(ValueError, match=r"way='loop' cannot run a step with \w+: .* use way='unrolled'"):
        iterate(step, constant(XS), constant(STATE), way="loop")
    x = constant(np.tile(XS, (ways.LOOP_FROM, 1, 1)))
    if function(constant(STATE)).parent.info.type_name == "RandomFlip":  # one is enough: it takes a second
        ys, _ = iterate(step, x, constant(STATE))
        assert ys.parent.info.type_name == "Stack"


# Statistics


@pytest.mark.parametrize("batch_stat", [True, False])
def test_batch_normalization(batch_stat: bool) -> None:
    """Its running mean and variance move once for each step of the forward pass."""

    def step(x: Any, h: Any) -> tuple:
        h = F.tanh(PF.batch_normalization(PF.affine(x + h, D), batch_stat=batch_stat, decay_rate=0.5))
        return h, h

    statistics = []
    for way in ("unrolled", Loop(checkpoint_every=2)):
        nn.clear_parameters()
        nn.seed(1)
        build = lambda x, h, way=way: iterate(step, x, h, way=way)  # noqa: E731
        statistics.append((measure(build, XS, STATE), weights(), measure(build, XS, STATE), weights()))
    assert_same(statistics[1], statistics[0])
    moved = np.abs(statistics[0][3]["bn/mean"] - statistics[0][1]["bn/mean"]).max()
    assert (moved > 1e-3) == batch_stat


# Loops in loops


def nested(inner: Callable, way: str) -> Callable:
    """A step that runs a loop over its input `(3, B, D)`, from its state."""
    closed = variable(B, D, seed=4)

    def step(x: Any, h: Any) -> tuple:
        ys, after = iterate(lambda x, h: inner(x * closed, h), x, h, way=way)
        return F.sum(ys, axis=0) * dense(h, "after"), dense(after)

    return step


@pytest.mark.parametrize("auto_forward", [False, True])
@pytest.mark.parametrize("inner", [lambda x, h: (h * x, dense(h + x)), noisy], ids=["plain", "noisy"])
def test_nested_loops(inner: Callable, auto_forward: bool) -> None:
    xs = rng.randn(4, 3, B, D)
    found = []
    for outer_way, inner_way in (("unrolled", "unrolled"), ("loop", "unrolled"), ("unrolled", "loop"), ("loop", "loop")):
        nn.random.set_function_seed(6)
        step = nested(inner, inner_way)
        found.append(measure(lambda x, h: iterate(step, x, h, way=outer_way), xs, STATE, auto_forward=auto_forward))  # noqa: B023
    for other in found[1:]:
        assert_same(other, found[0])


def test_nested_loops_over_the_same_sequence() -> None:
    """Each step of the outer loop reads all of what it runs over."""

    def build(way: str) -> Callable:
        def pairs(xs: Any, h: Any) -> tuple:
            def step(x: Any, h: Any) -> tuple:
                _, total = iterate(lambda other, s: (s, s + F.tanh(other * x)), xs, h, way=way)
                return total, dense(total)

            return iterate(step, xs, h, way=way)

        return pairs

    measure(build("unrolled"), XS, STATE)
    randomize()
    compare(build, XS, STATE)


def test_batch_normalization_in_a_nested_loop() -> None:
    xs, found = rng.randn(2, 3, B, D), []
    for way in ("unrolled", "loop"):
        nn.clear_parameters()
        nn.seed(1)
        step = nested(lambda x, h: (h, PF.batch_normalization(h + x, decay_rate=0.5)), way)
        measured = measure(lambda x, h, step=step, way=way: iterate(step, x, h, way=way), xs, STATE)  # type: ignore[misc]
        found.append((measured, weights()))
    assert_same(found[1], found[0])


# Cells


@pytest.mark.parametrize("auto_forward", [False, True])
def test_a_cell_with_a_mask(auto_forward: bool) -> None:
    cell = Cell(lambda x, s: LSTMCell(4)(F.dropout(x, 0.2, seed=1), s), LSTMCell(4).state)
    x, state = rng.randn(B, T, D), tuple(rng.randn(2, B, 4))
    build = lambda way: lambda x, s: run(cell, x, s, lengths=[3, 5], reverse=True, way=way)  # noqa: E731
    compare(build, x, state, auto_forward=auto_forward)


def test_functions_of_our_own_in_the_step() -> None:
    """Whole layers run within each step, fused where they can be."""

    def build(way: str) -> Callable:
        return lambda x, h: iterate(lambda x, h: (run(LSTMCell(4), x, lengths=[1, 3])[0], h * 2), x, h, way=way)

    xs = rng.randn(2, B, 3, D)
    measure(build("unrolled"), xs, STATE)
    randomize()
    for auto_forward in (False, True):
        compare(build, xs, STATE, auto_forward=auto_forward)


def test_a_cell_with_a_batch_axis_only() -> None:
    ys, total = run(Cell(lambda x, s: (s, s + x), StateSpec(())), constant(np.ones((2, 4))), way="loop")
    nn.forward_all([ys, total])
    assert ys.d.tolist() == [[0, 1, 2, 3]] * 2
    assert total.d.tolist() == [4, 4]


# The choice, and what is refused


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps are a long sequence."""
    monkeypatch.setattr(ways, "LOOP_FROM", 4)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("length", "kind"), [(3, "Stack"), (5, "nnshop.Loop"), (90, "nnshop.Compiled")])
def test_auto_unrolls_short_sequences(length: int, kind: str) -> None:
    ys, _ = iterate(lambda x, h: (x + h, h), nn.Variable((length, 2)), nn.Variable((2,)))
    assert ys.parent.info.type_name == kind


@pytest.mark.usefixtures("short")
def test_portable_graphs_have_no_loop() -> None:
    x, h = nn.Variable((5, 2)), nn.Variable((2,))
    with portable():
        ys, _ = iterate(lambda x, h: (x + h, h), x, h)
        assert ys.parent.info.type_name == "Stack"
        with pytest.raises(ValueError, match=r"portable\(\).*Use way='auto', or 'unrolled'"):
            iterate(lambda x, h: (PF.affine(x, 2), h), x, h, way="loop")
    assert not nn.get_parameters()


@pytest.mark.parametrize("way", [Auto, Unrolled, Fused])
def test_only_some_ways_have_checkpoints(way: Any) -> None:
    with pytest.raises(TypeError, match="checkpoint_every"):
        way(checkpoint_every=2)


@pytest.mark.parametrize("way", [Loop, Compiled])
@pytest.mark.parametrize("every", [0, -1, 1.5, "2", True])
def test_bad_checkpoints_are_named(every: Any, way: Any) -> None:
    with pytest.raises(ValueError, match="checkpoint_every must be a number of steps, 1 or more; got"):
        way(checkpoint_every=every)


def test_ways_are_values() -> None:
    assert Loop(checkpoint_every=32) == Loop(32) != Loop()
    assert repr(Compiled(checkpoint_every=32)) == "Compiled(checkpoint_every=32)"
    assert {name: kind().name for name, kind in WAYS.items()} == {name: name for name in WAYS}


@pytest.mark.parametrize("way", [Loop, "Loop", None, 3, ["loop"]])
def test_what_is_no_way_is_named(way: Any) -> None:
    with pytest.raises(ValueError, match=r"one of auto, unrolled, loop, compiled, fused; got .*Loop\(checkpoint_every"):
        iterate(lstm, constant(XS), tuple(map(constant, PAIR)), way=way)


def test_a_step_that_returns_a_number_is_named() -> None:
    with pytest.raises(TypeError, match="a step returns Variables, or tuples of them; this one returned float"):
        iterate(lambda x, h: (1.0, h), constant(XS), constant(STATE), way="loop")


def test_an_unlinked_variable_is_refused_where_nothing_computes_it() -> None:
    step = lambda x, h: (x, dense(F.identity(h).get_unlinked_variable(need_grad=False) + x))  # noqa: E731
    with nn.auto_forward(), pytest.raises(ValueError, match=r"shape \(2, 3\) without a value .* need_grad=False"):
        iterate(step, constant(XS), constant(STATE), way="loop")


STEPS_BY_TIME = {
    "a constant": lambda t, x: x + float(t),
    "an array": lambda t, x: x + constant(np.full((B, D), t)),
    "a Variable": lambda t, x: x + LIST[t],
    "a function": lambda t, x: F.sin(x) if t % 2 else F.tanh(x),
    "more functions": lambda t, x: x if t % 2 else F.tanh(x),
    "another input": lambda t, x: x if t % 2 else LIST[0],
}
LIST = [constant(rng.randn(B, D)) for _ in range(10)]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("kind", STEPS_BY_TIME)
def test_a_step_that_is_not_the_same_at_each_time_is_refused(kind: str) -> None:
    """And "auto" unrolls it."""
    times = iter(range(100))
    step = lambda x, h: (STEPS_BY_TIME[kind](next(times), x), h)  # noqa: E731
    with pytest.raises(ValueError, match=r"called twice, .* two different graphs"):
        iterate(step, constant(XS), (), way="loop")
    ys, _ = iterate(step, constant(XS), ())
    assert ys.parent.info.type_name == "Stack"


def test_constants_of_the_step_are_the_same_each_time() -> None:
    step = lambda x, h: (x * constant(np.array([[1, np.nan, 3]])), h + F.constant(2, h.shape))  # noqa: E731
    ys, h = iterate(step, constant(XS), constant(STATE), way="loop")
    nn.forward_all([ys, h])
    np.testing.assert_allclose(ys.d, XS * [1, np.nan, 3], rtol=1e-6)
    np.testing.assert_allclose(h.d, STATE + 2 * T, rtol=1e-6)


def test_what_the_step_raises_is_not_hidden() -> None:
    def step(x: Any, h: Any) -> tuple:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        iterate(step, constant(XS), constant(STATE), way="loop")
    assert len(tree_leaves(iterate(lstm, constant(XS), tuple(map(constant, PAIR)), way="loop"))) == 3


@pytest.mark.parametrize("way", ["unrolled", "loop", "eager"])
def test_a_state_may_end_the_loop(way: str) -> None:
    """What is used of the state stays as it is then; where it is known in time, later steps are not computed."""
    calls: list[int] = []

    def step(x: Any, state: Any) -> tuple:
        calls.append(1)
        total, running = state
        total = total + x * running
        return total, (total, running * F.less_scalar(total, 5))

    with nn.auto_forward(way == "eager"):
        state = (constant(np.array(0.0)), constant(np.array(1.0)))
        xs = constant(np.arange(1.0, 9.0))
        _, (total, _) = iterate(step, xs, state, way="loop" if way == "loop" else "unrolled", running=lambda s: s[1])
    if way != "eager":
        total.forward()
    assert total.d == 6
    assert len(calls) == {"unrolled": 8, "loop": 2, "eager": 3}[way]


def test_what_ends_the_loop_is_a_leaf_of_the_state() -> None:
    state = (constant(np.array(0.0)), constant(np.array(1.0)))
    with pytest.raises(ValueError, match="running must tell a leaf of the state"):
        iterate(lambda _, s: (s[0], s), None, state, length=3, way="loop", running=lambda s: s[0] * s[1])
