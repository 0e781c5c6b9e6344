"""Each score against its equation in NumPy: values, gradients, names and first values of the weights."""

from __future__ import annotations

from typing import Any

import attention_reference
import nnabla as nn
import numpy as np
import pytest
import reference
from measuring import assert_same, factors, measure, randomize, values, variable, weights

from nnshop import tree_leaves, tree_map
from nnshop.portable import portable
from nnshop.scores import SCORES, Concat, Dot, General, Location, Score, find_score

B, S, M, Q = 3, 4, 5, 2
SMALL: dict[str, Score] = {**SCORES, "location": Location(filters=2, kernel_size=3)}
each_score = pytest.mark.parametrize("name", SMALL)


def arrays(name: str, batch: int = B, length: int = S, width: int = M) -> tuple[np.ndarray, ...]:
    """A query, a memory and the sum of former alignments."""
    rng = np.random.RandomState(1)
    query = width if "dot" in name else Q
    return rng.randn(batch, query), rng.randn(batch, length, width), rng.rand(batch, length)


def compute(score: Score, query: nn.Variable, memory: nn.Variable, cumulated: nn.Variable) -> nn.Variable:
    return score(query, score.prepare(memory), *([cumulated] if score.cumulates else []))


def measured(score: Score, given: tuple[np.ndarray, ...], make: bool = True, **options: Any) -> Any:
    """The scores, their gradients with respect to query, memory and former alignments, and to the weights."""
    if make:
        with nn.auto_forward(False):
            compute(score, *map(nn.Variable.from_numpy_array, given))
        randomize()
    return measure(lambda x, _: (compute(score, *x), ()), given, (), **options)


def by_the_equation(name: str, given: tuple[np.ndarray, ...]) -> tuple:
    score = attention_reference.SCORES[name]
    inputs = {str(i): array for i, array in enumerate(given)}
    own = {f"weight:{key}": array for key, array in weights().items()}

    def forward(named: dict[str, np.ndarray]) -> np.ndarray:
        return score({key[7:]: array for key, array in named.items() if key[:7] == "weight:"}, *(named[i] for i in inputs))

    ys = forward({**inputs, **own})
    ys_factors = factors((ys,))[0]
    found = reference.gradients(lambda named: float((forward(named) * ys_factors).sum()), {**inputs, **own})
    return ys, tuple(found[i] for i in inputs), {key[7:]: array for key, array in found.items() if key[:7] == "weight:"}


def test_every_score_has_an_equation() -> None:
    assert list(SCORES) == list(attention_reference.SCORES)


@pytest.mark.parametrize("shape", [(B, S, M), (1, S, M), (B, 1, M), (1, 1, 1)], ids=str)
@each_score
def test_values_and_gradients_are_those_of_the_equation(name: str, shape: tuple[int, int, int]) -> None:
    given = arrays(name, *shape)
    actual = measured(SMALL[name], given)
    ys, slopes, weight_slopes = by_the_equation(name, given)
    assert_same(actual.ys, ys)
    assert_same(actual.x_grad[: 3 if SMALL[name].cumulates else 2], slopes[: 3 if SMALL[name].cumulates else 2])
    assert_same(actual.weight_grads, weight_slopes)


@each_score
def test_auto_forward_and_portable_compute_the_same(name: str) -> None:
    given = arrays(name)
    expected = measured(SMALL[name], given)
    assert_same(measured(SMALL[name], given, make=False, auto_forward=True), expected)
    with portable():
        assert_same(measured(SMALL[name], given, make=False), expected)


@each_score
def test_all_queries_at_once_are_each_alone(name: str) -> None:
    score, queries = SMALL[name], 6
    query, memory = nn.Variable((B, queries, arrays(name)[0].shape[1])), nn.Variable((B, S, M))
    query.d, memory.d = np.random.randn(*query.shape), np.random.randn(*memory.shape)
    keys = score.prepare(memory)
    together = score.over(query, keys)
    if together is None:
        assert name in ("concat", "normalized_concat", "location")
        return
    alone = [score(query[:, t], keys) for t in range(queries)]
    assert together.shape == (B, queries, S)
    got = values(together, *alone)
    np.testing.assert_allclose(got[0], np.stack(got[1:], axis=1), rtol=1e-5, atol=1e-6)


def test_scores_stay_right_where_tanh_is_at_its_ends() -> None:
    """The sigmoid in place of tanh must not overflow."""
    given = arrays("concat")
    query, memory = given[0] * 1e4, given[1]
    score = Concat()
    compute(score, *map(nn.Variable.from_numpy_array, given))
    randomize()
    actual = measured(score, (query, memory, given[2]), make=False)
    assert_same(actual.ys, by_the_equation("concat", (query, memory, given[2]))[0])
    assert all(np.isfinite(leaf).all() for leaf in tree_leaves(actual.x_grad))


# Weights

PROJECTED = {"memory/W": (M, 7), "b": (7,), "v": (7, 1), "query/W": (Q, 7)}


@pytest.mark.parametrize(
    ("score", "shapes"),
    [
        (Dot(), {}),
        (General(), {"query/W": (Q, M)}),
        (Concat(units=7), PROJECTED),
        (Concat(units=7, normalize=True), {**PROJECTED, "g": (1,)}),
        (Location(7, 4, 3), {**PROJECTED, "location/filters": (4, 1, 3), "location/W": (4, 7)}),
        (Concat(), {"memory/W": (M, M), "b": (M,), "v": (M, 1), "query/W": (Q, M)}),
    ],
    ids=str,
)
def test_weights_have_these_names_and_shapes(score: Score, shapes: dict[str, tuple]) -> None:
    query = variable(B, M if isinstance(score, Dot) else Q)
    compute(score, query, variable(B, S, M), variable(B, S))
    assert {name: v.shape for name, v in nn.get_parameters().items()} == shapes


def test_weights_begin_where_they_should() -> None:
    compute(Concat(units=9, normalize=True), variable(B, Q), variable(B, S, M), variable(B, S))
    compute(Location(9, 16, 5), variable(B, Q), variable(B, S, M), variable(B, S))
    start = weights()
    assert start["g"] == pytest.approx(1 / 3)
    assert not start["b"].any()
    limits = {"memory/W": 6 / (M + 9), "query/W": 6 / (Q + 9), "v": 6 / 10, "location/W": 6 / 25}
    limits["location/filters"] = 6 / (5 + 5 * 16)
    for name, limit in limits.items():
        assert 0.5 * limit**0.5 < np.abs(start[name]).max() <= limit**0.5, name


def test_what_prepare_gives_is_computed_once() -> None:
    """The step of an additive score does not multiply by the memory's matrix."""
    keys = Concat(normalize=True).prepare(variable(B, S, M))
    cut = tree_map(lambda v: v.get_unlinked_variable(), keys)  # the same values, without the graph that computes them
    kinds: list[str] = []
    Concat()(variable(B, Q), cut).visit(lambda f: kinds.append(f.info.type_name))
    assert sorted(kinds) == ["Add2", "Affine", "Affine", "BatchMatmul", "Reshape", "Reshape", "Sigmoid"]


# Values and mistakes


@each_score
def test_scores_are_values(name: str) -> None:
    score = SMALL[name]
    assert find_score(score) is score
    assert eval(repr(score), {"Dot": Dot, "General": General, "Concat": Concat, "Location": Location}) == score
    assert find_score(name) == SCORES[name]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"score must be a Score, such as Concat\(units=128\), or one of dot, .*; got 'dott'"):
        find_score("dott")
    with pytest.raises(ValueError, match="got <function"):
        find_score(lambda query, keys: query)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a query as wide as the memory; .* has width 2, the memory 5. Use score='general'"):
        Dot()(variable(B, 2), variable(B, S, M))
    with pytest.raises(ValueError, match="Concat needs units >= 1, a whole number; got 0"):
        Concat(units=0)
    with pytest.raises(ValueError, match=r"Location needs filters >= 1, a whole number; got 2.5"):
        Location(filters=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Location\(.*\) needs an odd kernel_size, .*; got 4"):
        Location(kernel_size=4)
    assert not nn.get_parameters()
