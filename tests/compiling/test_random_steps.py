"""Random steps, compiled: equal to the unrolled graph in values and gradients, whatever is around them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measuring import assert_same, factors, variables
from nnabla.parameter import get_parameter_or_create

from nnshop import Cell, StateSpec, run, tree_leaves, tree_map
from nnshop.functions import stop_gradient
from nnshop.running import WAYS

Values = list[nn.Variable]  # of a step so far, each `(B, n)`


def shared(*shape: int) -> nn.Variable:
    """A weight, the same wherever a step asks for this shape."""
    rng = np.random.RandomState(sum(shape))
    return get_parameter_or_create("x".join(map(str, shape)), shape, rng.uniform(-1, 1, shape))


def fit(v: nn.Variable, n: int) -> nn.Variable:
    """The first n numbers of a row, which is repeated where it is shorter."""
    return v if v.shape[1] == n else F.tile(v, (1, -(-n // v.shape[1])))[:, :n]


def matrix(v: nn.Variable) -> nn.Variable:
    n = v.shape[1]
    return F.reshape(v, (v.shape[0], 2, n // 2) if n % 2 == 0 else (v.shape[0], 1, n), inplace=False)


def flat(v: nn.Variable) -> nn.Variable:
    return F.reshape(v, (v.shape[0], -1), inplace=False)


def part(a: nn.Variable, n: int) -> nn.Variable:
    start, step = n % a.shape[1], 1 + n % 3
    return a[:, start::step]


# Each takes two values and a number; what it gives stays small.
FUNCTIONS: dict[str, Callable[[nn.Variable, nn.Variable, int], nn.Variable]] = {
    "affine": lambda a, b, n: F.affine(a, shared(a.shape[1], 1 + n % 5)) * 0.5,
    "affine with bias": lambda a, b, n: F.affine(a, shared(a.shape[1], 3), shared(3)) * 0.5,
    "two affines": lambda a, b, n: F.tanh(F.affine(a, shared(a.shape[1], 4)) + F.affine(b, shared(b.shape[1], 4))),
    "product": lambda a, b, n: F.affine(F.concatenate(a, b, axis=1), shared(a.shape[1] + b.shape[1], 2)) * 0.5,
    "tanh": lambda a, b, n: F.tanh(a),
    "sigmoid": lambda a, b, n: F.sigmoid(a),
    "sin": lambda a, b, n: F.sin(a),
    "add": lambda a, b, n: 0.5 * (a + fit(b, a.shape[1])),
    "mul": lambda a, b, n: a * F.tanh(fit(b, a.shape[1])),
    "sub": lambda a, b, n: 1 - fit(a, b.shape[1]) * 0.5 - b,
    "shared": lambda a, b, n: a * shared(1, a.shape[1]),
    "slice": lambda a, b, n: part(a, n),
    "two slices": lambda a, b, n: F.concatenate(part(a, n), part(F.tanh(a), n + 1), axis=1),
    "gates": lambda a, b, n: F.sigmoid(fit(a, 4)[:, :2]) * F.tanh(fit(a, 4)[:, 2:]),
    "flip": lambda a, b, n: F.flip(a, [1]),
    "concatenate": lambda a, b, n: F.concatenate(a, b, axis=1)[:, : 8 + n % 2],
    "mean": lambda a, b, n: F.mean(a, axis=1, keepdims=True) * b,
    "max": lambda a, b, n: F.max(a, axis=1, keepdims=True) - b,
    "softmax": lambda a, b, n: F.softmax(a),
    "softmax of a part": lambda a, b, n: flat(F.softmax(matrix(a), axis=1 + n % 2)),
    "layer norm": lambda a, b, n: F.layer_normalization(a, None, None, eps=0.1),
    "outer": lambda a, b, n: flat(F.batch_matmul(F.reshape(fit(a, 3), (-1, 3, 1)), F.reshape(fit(b, 2), (-1, 1, 2)))) * 0.5,
    "rows": lambda a, b, n: flat(F.batch_matmul(matrix(a), matrix(fit(b, a.shape[1])), transpose_b=True)) * 0.2,
    "transpose": lambda a, b, n: flat(F.transpose(matrix(a), (0, 2, 1))),
    "inner sum": lambda a, b, n: F.mean(matrix(a), axis=1 + n % 2),
    "where": lambda a, b, n: F.where(F.greater_scalar(stop_gradient(a), 0.1), a, fit(b, a.shape[1])),
    "stack": lambda a, b, n: flat(F.stack(a, F.sin(a), axis=1 + n % 2))[:, :8],
    "pad": lambda a, b, n: F.pad(a, (n % 3, 1))[:, :8],
    "cumsum": lambda a, b, n: F.cumsum(a, axis=1, reverse=bool(n % 2)) * 0.3,
}


def step(x: nn.Variable, states: Any, program: list, ends: list[int]) -> tuple[Any, Any]:
    """Computes one value after another, each of two that are there."""
    leaves = tree_leaves(states)
    made: Values = [x, *leaves]
    for name, i, j, n in program:
        # the last value often, any other at times
        a, b = made[-1 - i % min(len(made), 3)], made[j % len(made)]
        made.append(FUNCTIONS[name](a, b, n))
    after = [F.tanh(fit(made[-1 - end % len(made)], h.shape[1])) for end, h in zip(ends, leaves)]
    remaining = iter(after)
    return (made[-1], made[ends[-1] % len(made)]), tree_map(lambda _: next(remaining), states)


calls = st.tuples(st.sampled_from(sorted(FUNCTIONS)), st.integers(0, 5), st.integers(0, 9), st.integers(0, 9))
sizes = st.sampled_from([1, 2, 3, 4, 5, 17])
Problem = dict[str, Any]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    batch, length = draw(st.sampled_from([1, 2, 3, 4, 7, 10])), draw(st.integers(1, 5))
    widths = draw(st.lists(sizes, min_size=1, max_size=2))
    mask = draw(st.none() | st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=batch, max_size=batch))
    return {
        "program": draw(st.lists(calls, min_size=3, max_size=12)),
        "ends": draw(st.lists(st.integers(0, 9), min_size=3, max_size=3)),  # which values are the states and the output
        "batch": batch,
        "length": length,
        "width": draw(sizes),
        "states": widths,
        "mask": mask,
        "reverse": draw(st.booleans()),
        "every": draw(st.sampled_from([None, 1, 2, 3])),
    }


def solve(problem: Problem, way: str) -> dict[str, np.ndarray]:
    """Values; gradients added to what is there; and once more, without another forward pass."""
    nn.clear_parameters()
    rng = np.random.RandomState(2)
    batch, length, mask = problem["batch"], problem["length"], problem["mask"]
    x = rng.randn(batch, length, problem["width"])
    if mask is not None:
        x[~np.array(mask)] = np.nan
        mask = nn.Variable.from_numpy_array(np.array(mask, float))
    specs = tuple(StateSpec((n,)) for n in problem["states"])
    cell = Cell(partial(step, program=problem["program"], ends=problem["ends"]), specs)
    x, states = variables((x, tuple(rng.randn(batch, n) for n in problem["states"])))
    every = problem["every"]
    chosen = WAYS[way](checkpoint_every=every) if every and way != "unrolled" else way
    made = run(cell, x, states, mask=mask, reverse=problem["reverse"], way=chosen)
    outputs = [v.apply(persistent=True) for v in tree_leaves(made)]
    terms = [F.sum(v * nn.Variable.from_numpy_array(f)) for v, f in zip(outputs, tree_leaves(factors(made)))]
    leaves = {"x": x, **{f"state{i}": v for i, v in enumerate(states)}, **nn.get_parameters()}
    for v in leaves.values():
        v.grad.fill(0.5)
    loss = sum(terms[1:], terms[0])
    loss.forward()
    found = {f"output{i}": v.d.copy() for i, v in enumerate(outputs)}
    for once in ("first", "second"):
        loss.backward()
        found.update({f"{once} {name}": v.g.copy() for name, v in leaves.items()})
    return found


@settings(
    deadline=None,
    max_examples=settings.default.max_examples if settings.default.max_examples > 1000 else 40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(problem=problems())
def test_random_steps_equal_the_unrolled_graph(problem: Problem, guards: Any, share_all: Callable[[int], None]) -> None:
    share_all(1)
    alone = solve(problem, "compiled")
    assert_same(alone, solve(problem, "unrolled"), 2e-5)
    share_all(3)
    assert_same(solve(problem, "compiled"), alone, 0)
