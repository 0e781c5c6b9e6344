"""Dense layers and the softmax cross entropy of an output layer, against NumPy in float64 and NNabla's own functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
import reference
from measuring import assert_same, constant, randomize
from scipy.special import logsumexp

pytest.importorskip("llvmlite")

import nnshop
from nnshop import sequence_loss
from nnshop.functions import REDUCTIONS, linear_cross_entropy
from nnshop.kernels.dense import BLOCK, Affine, LinearCrossEntropy
from nnshop.portable import portable

Arrays = dict[str, np.ndarray]


def problem(batch: int = 3, length: int = 4, width: int = 5, classes: int = 7, bias: bool = True, seed: int = 0) -> Arrays:
    rng = np.random.RandomState(seed)
    arrays = {"h": rng.randn(batch, length, width), "W": rng.randn(width, classes)}
    return {**arrays, "b": rng.randn(classes)} if bias else arrays


def targets_for(batch: int = 3, length: int = 4, classes: int = 7, seed: int = 1) -> np.ndarray:
    return np.random.RandomState(seed).randint(classes, size=(batch, length))


def numpy_losses(arrays: Arrays, targets: np.ndarray) -> np.ndarray:
    """0 where a target is negative."""
    logits = arrays["h"] @ arrays["W"] + arrays.get("b", 0)
    chosen = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return np.where(targets < 0, 0, logsumexp(logits, axis=-1) - chosen)


def reduced(losses: np.ndarray, weights: np.ndarray | None, reduction: str) -> Any:
    weights = np.ones_like(losses) if weights is None else weights
    losses = np.where(weights != 0, losses * weights, 0)
    if reduction == "none":
        return losses
    if reduction == "time_mean":
        counts = weights.reshape(len(weights), -1).sum(axis=1)
        return losses.reshape(len(losses), -1).sum(axis=1) / (counts + (counts == 0))
    divisor = {"mean": weights.sum() or 1, "batch_mean": len(losses), "sum": 1}[reduction]
    return losses.sum() / divisor


def computed(build: Callable[..., nn.Variable], arrays: Arrays, given: np.ndarray | None = None) -> tuple[np.ndarray, Arrays]:
    """What `build(h, W, b)` gives, and the gradients of its product with `given`."""
    inputs = {name: nn.Variable.from_numpy_array(array, need_grad=True) for name, array in arrays.items()}
    out = build(*inputs.values(), *[None] * ("b" not in arrays)).apply(persistent=True)
    loss = F.sum(out if given is None else out * constant(given))
    for v in inputs.values():
        v.grad.zero()
    loss.forward()
    loss.backward()
    return out.d.copy(), {name: v.g.copy() for name, v in inputs.items()}


def turned(arrays: Arrays) -> Arrays:
    return {**arrays, "W": arrays["W"].T}


# Affine


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5), (40, 300, 37), (1, 5, 600), (33, 1, 2)])
def test_affine_is_a_product_and_a_sum(shape: tuple, bias: bool) -> None:
    n, inputs, outputs = shape
    rng = np.random.RandomState(0)
    arrays = {"h": rng.randn(n, inputs), "W": rng.randn(inputs, outputs), **({"b": rng.randn(outputs)} if bias else {})}
    given = rng.randn(n, outputs)
    y, gradients = computed(lambda h, w, b: Affine()(h, w, *([] if b is None else [b])), arrays, given)
    assert_same(y, arrays["h"] @ arrays["W"] + arrays.get("b", 0))
    expected = {"h": given @ arrays["W"].T, "W": arrays["h"].T @ given, "b": given.sum(axis=0)}
    assert_same(gradients, {name: expected[name] for name in arrays})


def test_affine_adds_to_gradients_and_leaves_out_what_needs_none() -> None:
    rng = np.random.RandomState(0)
    x, w, b = (nn.Variable.from_numpy_array(rng.randn(*s), need_grad=True) for s in ((3, 4), (4, 5), (5,)))
    x.need_grad = False
    x.grad.fill(3)
    w.grad.fill(2)
    b.grad.fill(1)
    loss = F.sum(Affine()(x, w, b) + Affine()(x, w, b))
    loss.forward()
    loss.backward()
    assert_same(w.g, 2 + 2 * np.broadcast_to(x.d.sum(axis=0)[:, None], (4, 5)))
    assert_same(b.g, np.full(5, 7.0))
    assert np.all(x.g == 3)


# The cross entropy of an output layer

each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
either_way_round = pytest.mark.parametrize("transpose", [False, True], ids=["DxV", "VxD"])


def loss_of(targets: np.ndarray, weights: np.ndarray | None = None, **options: Any) -> Callable[..., nn.Variable]:
    given = None if weights is None else constant(weights)
    return lambda h, w, b: linear_cross_entropy(h, w, b, constant(targets), given, **options)


@either_way_round
@with_and_without_bias
@each_reduction
def test_every_gradient_is_that_of_the_equation(reduction: str, bias: bool, transpose: bool) -> None:
    arrays, targets = problem(bias=bias), targets_for()
    weights = np.array([[1, 0.5, 0, 2], [0, 0, 0, 0], [1, 1, 3, 0]])
    given = np.random.RandomState(3).randn(*{"none": (3, 4), "time_mean": (3,)}.get(reduction, ()))

    def numpy_loss(arrays: Arrays) -> float:
        return float(np.sum(reduced(numpy_losses(arrays, targets), weights, reduction) * given))

    slopes = reference.gradients(numpy_loss, arrays)
    build = loss_of(targets, weights, reduction=reduction, transpose=transpose)
    value, gradients = computed(build, turned(arrays) if transpose else arrays, given)
    assert_same(value, np.asarray(reduced(numpy_losses(arrays, targets), weights, reduction)), 2e-6)
    assert_same(gradients, turned(slopes) if transpose else slopes, 5e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@either_way_round
@with_and_without_bias
@each_reduction
def test_it_is_the_sequence_loss_of_the_logits(reduction: str, bias: bool, transpose: bool, masked: bool) -> None:
    arrays, targets = problem(bias=bias), targets_for()
    mask = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]]) if masked else None
    given = np.random.RandomState(3).randn(3, 4) if reduction == "none" else None

    def explicit(h: nn.Variable, w: nn.Variable, b: nn.Variable | None) -> nn.Variable:
        logits = F.affine(h, F.transpose(w, (1, 0)) if transpose else w, b, base_axis=2)
        return sequence_loss(logits, constant(targets), None if mask is None else constant(mask), reduction=reduction)

    arrays = turned(arrays) if transpose else arrays
    expected = computed(explicit, arrays, given)
    assert_same(computed(loss_of(targets, mask, reduction=reduction, transpose=transpose), arrays, given), expected)


@each_reduction
def test_portable_is_equal_and_of_ordinary_functions(reduction: str) -> None:
    arrays, targets, weights = problem(), targets_for(), np.array([[1, 0.5, 0, 2], [0, 0, 0, 0], [1, 1, 3, 0]])
    given = np.random.RandomState(3).randn(3, 4) if reduction == "none" else None
    build = loss_of(targets, weights, reduction=reduction, ignore_index=3)

    def in_portable(*arguments: Any) -> nn.Variable:
        with portable():
            return build(*arguments)

    assert_same(computed(in_portable, arrays, given), computed(build, arrays, given))
    names = []
    for make in (in_portable, build):
        found: set[str] = set()
        make(nn.Variable((3, 4, 5)), nn.Variable((5, 7)), nn.Variable((7,))).visit(lambda f, found=found: found.add(f.name))
        names.append(found)
    assert "Callback" not in names[0]
    assert "Callback" in names[1]


@pytest.mark.parametrize("rows", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1])
@either_way_round
@with_and_without_bias
def test_any_number_of_rows(rows: int, bias: bool, transpose: bool) -> None:
    """They go in blocks of 512."""
    arrays, targets = problem(1, rows, bias=bias), targets_for(1, rows)
    given = np.random.RandomState(3).randn(1, rows)
    p = arrays["h"][0] @ arrays["W"] + arrays.get("b", 0)
    p = np.exp(p - logsumexp(p, axis=1, keepdims=True)) - np.eye(7)[targets[0]]
    p *= given[0, :, None]
    slopes = {"h": (p @ arrays["W"].T)[None], "W": arrays["h"][0].T @ p, "b": p.sum(axis=0)}
    slopes = {name: slopes[name] for name in arrays}
    build = loss_of(targets, reduction="none", transpose=transpose)
    value, gradients = computed(build, turned(arrays) if transpose else arrays, given)
    assert_same(value, numpy_losses(arrays, targets), 5e-6)
    assert_same(gradients, turned(slopes) if transpose else slopes)


@pytest.mark.parametrize("rows", [5, BLOCK, BLOCK + 1, 2 * BLOCK + 1])
@either_way_round
def test_gradients_add_up_and_backward_may_come_twice(rows: int, transpose: bool) -> None:
    arrays, targets = problem(1, rows), targets_for(1, rows)
    arrays = turned(arrays) if transpose else arrays
    _, once = computed(loss_of(targets, transpose=transpose), arrays)
    inputs = {name: nn.Variable.from_numpy_array(array, need_grad=True) for name, array in arrays.items()}
    loss = loss_of(targets, transpose=transpose)(*inputs.values())
    for v in inputs.values():
        v.grad.fill(5)
    for _ in range(2):
        loss.forward()
        loss.backward(clear_buffer=True)
    loss.forward()
    loss.backward()
    loss.backward()
    assert_same({name: v.g for name, v in inputs.items()}, {name: 5 + 4 * g for name, g in once.items()})


@pytest.mark.parametrize("rows", [5, BLOCK + 1])
@pytest.mark.parametrize("only", ["h", "W", "b"])
@either_way_round
def test_what_needs_no_gradient_gets_none(rows: int, only: str, transpose: bool) -> None:
    arrays, targets = problem(1, rows), targets_for(1, rows)
    arrays = turned(arrays) if transpose else arrays
    _, expected = computed(loss_of(targets, transpose=transpose), arrays)
    inputs = {name: nn.Variable.from_numpy_array(array, need_grad=name == only) for name, array in arrays.items()}
    loss = loss_of(targets, transpose=transpose)(*inputs.values())
    for name, v in inputs.items():
        v.grad.fill(0 if name == only else 4)
    loss.forward()
    loss.backward()
    for name, v in inputs.items():
        assert_same(v.g, expected[name] if name == only else np.full(v.shape, 4.0))


def test_the_graph_runs_again_with_other_data() -> None:
    """Also after a forward pass that was not followed by a backward pass."""
    arrays, targets = problem(2, BLOCK), targets_for(2, BLOCK)
    h, w, b = inputs = [nn.Variable.from_numpy_array(array, need_grad=True) for array in arrays.values()]
    t = constant(targets)
    loss = linear_cross_entropy(h, w, b, t)
    for seed in range(3):
        other, t.d = problem(2, BLOCK, seed=seed), targets_for(2, BLOCK, seed=seed + 5)
        value, gradients = computed(loss_of(t.d.copy()), other)
        for v, array in zip(inputs, other.values()):
            v.d = array
            v.grad.zero()
        loss.forward(clear_no_need_grad=True)
        if seed != 1:
            loss.backward(clear_buffer=True)
            assert_same({name: v.g for name, v in zip(other, inputs)}, gradients)
        loss.forward()
        assert_same(loss.d, value)


def test_more_than_one_loss_shares_a_weight() -> None:
    arrays, other = problem(1, BLOCK + 3), problem(2, 4, seed=9)
    targets, others = targets_for(1, BLOCK + 3), targets_for(2, 4)
    one, two = computed(loss_of(targets), arrays), computed(loss_of(others), {**other, "W": arrays["W"], "b": arrays["b"]})

    def both(h: nn.Variable, w: nn.Variable, b: nn.Variable) -> nn.Variable:
        return loss_of(targets)(h, w, b) + loss_of(others)(constant(other["h"]), w, b)

    value, gradients = computed(both, arrays)
    assert_same(value, one[0] + two[0])
    assert_same(gradients, {"h": one[1]["h"], **{name: one[1][name] + two[1][name] for name in "Wb"}})


@pytest.mark.parametrize("way", ["compiled", "portable"])
@each_reduction
def test_ignored_targets_do_not_count(reduction: str, way: str) -> None:
    arrays, targets = problem(), targets_for()
    for index in (2, -1, 0, 99):
        ignored = targets == 2
        marked = np.where(ignored, index, np.where(targets == index, 1, targets))
        weights = np.random.RandomState(4).rand(3, 4)
        for extra in (None, weights):
            expected = reduced(
                numpy_losses(arrays, np.where(ignored, 0, marked)), ~ignored * (1.0 if extra is None else extra), reduction
            )
            build = loss_of(marked, extra, reduction=reduction, ignore_index=index)
            if way == "portable":
                with portable():
                    value, gradients = computed(build, arrays)
            else:
                value, gradients = computed(build, arrays)
            assert_same(value, np.asarray(expected), 2e-6)
            np.testing.assert_array_equal(gradients["h"][ignored], 0)


@each_reduction
def test_where_no_step_counts_all_is_zero(reduction: str) -> None:
    arrays, targets = problem(), np.full((3, 4), 2)
    for options in ({"ignore_index": 2}, {"weights": np.zeros((3, 4))}):
        value, gradients = computed(loss_of(targets, reduction=reduction, **options), arrays)
        assert not np.any(value)
        assert not any(np.any(gradient) for gradient in gradients.values())


def test_a_negative_target_has_no_loss_and_no_gradient() -> None:
    """As in NNabla's softmax_cross_entropy."""
    arrays, targets = problem(), targets_for()
    targets[0, 1] = targets[2, 3] = -1
    given = np.random.RandomState(3).randn(3, 4)

    def in_portable(*arguments: Any) -> nn.Variable:
        with portable():
            return loss_of(targets, reduction="none")(*arguments)

    value, gradients = computed(loss_of(targets, reduction="none"), arrays, given)
    assert_same(value, numpy_losses(arrays, targets), 2e-6)
    assert_same((value, gradients), computed(in_portable, arrays, given))
    assert not np.any(gradients["h"][targets < 0])


def test_masked_steps_may_hold_anything() -> None:
    arrays, targets, mask = problem(), targets_for(), np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]])
    expected = computed(loss_of(targets, mask), arrays)
    for bad, target in ((np.nan, 10**6), (np.inf, -5), (-np.inf, np.nan)):
        spoilt = {**arrays, "h": np.where(mask[:, :, None], arrays["h"], bad)}
        assert_same(computed(loss_of(np.where(mask, targets, target), mask), spoilt), expected, 1e-7)


@pytest.mark.parametrize("scale", [1e4, 1e30, -1e4])
def test_huge_logits_do_not_overflow(scale: float) -> None:
    arrays, targets = problem(), targets_for()
    arrays = {name: array.astype(np.float32).astype(np.float64) for name, array in arrays.items()}
    arrays["h"] = np.eye(5)[np.arange(12).reshape(3, 4) % 5]
    arrays["W"] *= scale
    value, gradients = computed(loss_of(targets, reduction="none"), arrays, np.ones((3, 4)))
    np.testing.assert_allclose(value, numpy_losses(arrays, targets), rtol=1e-5, atol=abs(scale) * 1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert abs(gradients["b"]).max() <= 12


def test_nan_and_infinity_stay_in_their_row() -> None:
    arrays, targets = problem(1, BLOCK + 2), targets_for(1, BLOCK + 2)
    expected, slopes = computed(loss_of(targets, reduction="none"), arrays, np.ones((1, BLOCK + 2)))
    for row in (0, 13, BLOCK - 1, BLOCK + 1):
        for bad in (np.nan, np.inf):
            h = arrays["h"].copy()
            h[0, row, 2] = bad
            value, gradients = computed(loss_of(targets, reduction="none"), {**arrays, "h": h}, np.ones((1, BLOCK + 2)))
            assert np.isnan(value[0, row])
            np.testing.assert_array_equal(np.delete(value, row, 1), np.delete(expected, row, 1))
            np.testing.assert_array_equal(np.delete(gradients["h"], row, 1), np.delete(slopes["h"], row, 1))


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 3, 2), (1, 1)])
def test_any_leading_axes_and_a_last_axis_of_one(shape: tuple) -> None:
    rng = np.random.RandomState(0)
    arrays = {**problem(), "h": rng.randn(*shape, 5)}
    targets = rng.randint(7, size=shape)
    for given in (targets, targets[..., None]):
        for reduction in REDUCTIONS:
            value, _ = computed(loss_of(given, reduction=reduction), arrays)
            assert_same(value, np.asarray(reduced(numpy_losses(arrays, targets), None, reduction)), 2e-6)


def test_one_class_one_width_and_many() -> None:
    for width, classes in ((1, 1), (1, 9), (9, 1), (3, 1030), (300, 17)):
        arrays, targets = problem(2, 3, width, classes), targets_for(2, 3, classes)
        assert_same(computed(loss_of(targets), arrays)[0], np.asarray(numpy_losses(arrays, targets).mean()), 2e-6)


def test_what_does_not_fit_is_refused() -> None:
    h, w, b, t = (nn.Variable(s) for s in ((3, 4, 5), (5, 7), (7,), (3, 4)))
    for arguments, match in (
        ((h, w, b, nn.Variable((4, 3))), r"targets of shape \(3, 4\)"),
        ((h, nn.Variable((7, 5)), b, t), r"weight \(D, V\)"),
        ((h, w, nn.Variable((5,)), t), r"bias \(V,\)"),
        ((h, w, b, t, nn.Variable((3,))), r"weights of shape \(3, 4\)"),
    ):
        with pytest.raises(ValueError, match=match):
            linear_cross_entropy(*arguments)
    with pytest.raises(ValueError, match=r"weight \(V, D\)"):
        linear_cross_entropy(h, w, b, t, transpose=True)
    with pytest.raises(ValueError, match="reduction must be"):
        linear_cross_entropy(h, w, b, t, reduction="max")


@pytest.mark.parametrize("bias", [True, False])
def test_the_parametric_form_has_the_weights_of_affine(bias: bool) -> None:
    h, targets = np.random.RandomState(2).randn(3, 4, 5), targets_for()
    weights = np.array([[1, 0.5, 0, 2], [0, 0, 0, 0], [1, 1, 3, 0]])
    x = nn.Variable.from_numpy_array(h, need_grad=True)
    options = {"ignore_index": 3, "reduction": "sum", "with_bias": bias, "name": "out"}
    loss = nnshop.linear_cross_entropy(x, constant(targets), 7, constant(weights), **options)
    logits = PF.affine(x, 7, base_axis=2, with_bias=bias, name="out")
    parameters = nn.get_parameters()
    assert sorted(parameters) == ["out/affine/W", "out/affine/b"][: 1 + bias]
    randomize()
    explicit = F.sum(sequence_loss(logits, constant(targets), reduction="none") * constant(weights * (targets != 3)))
    results = []
    for one in (loss, explicit):
        for v in (x, *parameters.values()):
            v.grad.zero()
        one.forward()
        one.backward()
        results.append((one.d.copy(), x.g.copy(), *(v.g.copy() for v in parameters.values())))
    assert_same(results[0], results[1])


def test_auto_forward_gives_the_same() -> None:
    arrays, targets = problem(), targets_for()
    expected, _ = computed(loss_of(targets), arrays)
    with nn.auto_forward():
        loss = loss_of(targets)(*map(constant, arrays.values()))
        assert_same(loss.d, expected, 1e-7)


def test_the_function_itself_needs_no_helper() -> None:
    arrays, targets = problem(1, 6), targets_for(1, 6)
    losses = LinearCrossEntropy(False)(
        *(constant(arrays[n][0] if n == "h" else arrays[n]) for n in "hWb"), constant(targets[0])
    )
    losses.forward()
    assert_same(losses.d, numpy_losses(arrays, targets)[0], 2e-6)
