"""Weightless helpers: time axes, masks, activations, losses."""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
import reference
from measuring import assert_same, constant, measure

from nnshop import length_mask, sequence_loss, shift, time_distributed_softmax_cross_entropy, unstack
from nnshop.functions import ACTIVATIONS, activation, linear_cross_entropy, reshape, swap_time, where

NUMPY_ACTIVATIONS = {
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "hard_sigmoid": reference.hard_sigmoid,
    "linear": reference.linear,
    "relu": reference.relu,
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (np.exp(x) - 1)),
    "sigmoid": reference.sigmoid,
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softsign": reference.softsign,
    "swish": lambda x: x * reference.sigmoid(x),
    "tanh": np.tanh,
}


def value(variable: nn.Variable) -> np.ndarray:
    variable.forward()
    return variable.d.copy()


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_against_numpy(name: str) -> None:
    x = np.linspace(-4, 4, 17)
    y = value(F.identity(activation(name)(constant(x))))
    np.testing.assert_allclose(y, NUMPY_ACTIVATIONS[name](x), rtol=1e-5, atol=1e-6)


def test_a_function_is_an_activation() -> None:
    assert activation(F.sin) is F.sin


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match=r"one of elu, .*tanh; got 'tanhh'"):
        activation("tanhh")


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (1, 3, 4), (2, 1, 4), (2, 3, 1)])
def test_unstack_is_the_inverse_of_stack(shape: tuple, axis: int) -> None:
    x = np.random.randn(*shape).astype(np.float32)
    parts = unstack(constant(x), axis)
    assert isinstance(parts, list)
    assert len(parts) == shape[axis]
    nn.forward_all(parts)
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part.d, np.take(x, i, axis))


def test_swap_time() -> None:
    x = np.random.randn(2, 3, 4, 5).astype(np.float32)
    np.testing.assert_array_equal(value(swap_time(constant(x))), x.swapaxes(0, 1))
    np.testing.assert_array_equal(value(swap_time(constant(x[..., 0, 0]))), x[..., 0, 0].T)


@pytest.mark.parametrize("auto_forward", [False, True])
def test_reshape_has_exact_gradients_in_auto_forward_mode(auto_forward: bool) -> None:
    """NNabla frees what Python no longer holds; the reshaped Variable must not live in that buffer."""

    def step(x: nn.Variable) -> nn.Variable:
        a, b = F.split(x, axis=0)  # (3,) each, and gone when the step is done
        return F.tanh(F.concatenate(reshape(a, (1, 3)) * reshape(b, (1, 3)), reshape(b, (1, 3)) * 2, axis=0)) + x

    def numpy_step(x: np.ndarray) -> np.ndarray:
        return np.tanh(np.stack([x[0] * x[1], x[1] * 2])) + x

    def repeat(step: Any, x: Any) -> Any:
        for _ in range(6):
            x = step(x)
        return x

    x = np.random.randn(2, 3)
    measured = measure(lambda x, _: (repeat(step, x), ()), x, (), auto_forward=auto_forward)
    weights = np.random.RandomState(7).randn(2, 3)
    slopes = reference.gradients(lambda arrays: float(np.sum(repeat(numpy_step, arrays["x"]) * weights)), {"x": x})
    assert_same(measured.x_grad, slopes["x"])


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3), (2, 1), (2, 1, 3), (1, 2, 3, 2)])
@pytest.mark.parametrize("given", [False, True])
def test_shift_delays_by_one(shape: tuple, given: bool) -> None:
    x, first = np.random.randn(*shape), np.random.randn(shape[0], *shape[2:])
    measured = measure(lambda x, first: (shift(x, first if given else None), ()), x, first)
    expected = np.concatenate([(first if given else 0 * first)[:, None], x[:, :-1]], axis=1)
    np.testing.assert_allclose(measured.ys, expected, rtol=1e-6)
    weights = np.random.RandomState(7).randn(*shape)
    x_grad = np.concatenate([weights[:, 1:], np.zeros_like(weights[:, :1])], axis=1)
    np.testing.assert_allclose(measured.x_grad, x_grad, rtol=1e-6)
    np.testing.assert_allclose(measured.state_grad, weights[:, 0] * given, rtol=1e-6)


def test_shift_names_a_first_step_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\), one step of x \(2, 4, 3\); got \(2, 4\)"):
        shift(nn.Variable((2, 4, 3)), nn.Variable((2, 4)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_where_lets_nothing_through_that_is_not_chosen(bad: float) -> None:
    yes, no = np.random.randn(2, 3, 4, 2)[0], np.random.randn(3, 4, 2)
    keep = np.array([1, 0, 1])
    yes[1], no[[0, 2]] = bad, bad
    measured = measure(lambda pair, _: (where(constant(keep), *pair), ()), (yes, no), ())
    np.testing.assert_allclose(measured.ys, np.stack([yes[0], no[1], yes[2]]), rtol=1e-6)
    weights = np.random.RandomState(7).randn(3, 4, 2)
    np.testing.assert_allclose(measured.x_grad[0], weights * keep[:, None, None], rtol=1e-6)
    np.testing.assert_allclose(measured.x_grad[1], weights * (1 - keep[:, None, None]), rtol=1e-6)


@pytest.mark.parametrize("kind", [list, tuple, np.array, constant])
@pytest.mark.parametrize(("lengths", "length"), [([0, 1, 2, 3], 3), ([1], 1), ([0], 1), ([4, 4], 4)])
def test_length_mask(kind: Any, lengths: list, length: int) -> None:
    expected = np.array([[float(t < n) for t in range(length)] for n in lengths])
    np.testing.assert_array_equal(value(length_mask(kind(lengths), length)), expected)


def test_lengths_can_be_fed() -> None:
    lengths = nn.Variable((2,))
    mask = length_mask(lengths, 3)
    for numbers in ([1, 3], [0, 2]):
        lengths.d = numbers
        np.testing.assert_array_equal(value(mask).sum(axis=1), numbers)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 4], r"between 0 and the sequence length T=3; got \[1, 4\]"),
        ([-1, 2], r"between 0 and the sequence length T=3; got \[-1, 2\]"),
        ([1.5, 2.0], r"whole numbers of shape \(B,\); got \[1.5, 2.0\]"),
        ([[1, 2]], r"whole numbers of shape \(B,\); got \[\[1, 2\]\]"),
        (2, r"whole numbers of shape \(B,\); got 2"),
        (nn.Variable((2, 1)), r"shape \(B,\); got \(2, 1\)"),
    ],
)
def test_bad_lengths_are_named(lengths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        length_mask(lengths, 3)


def numpy_losses(logits: np.ndarray, targets: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    logp = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    losses = -np.take_along_axis(logp, targets[..., None], axis=2)[..., 0]
    return losses if mask is None else losses * mask


REDUCTIONS = {
    "mean": lambda losses, count: losses.sum() / max(count, 1),
    "batch_mean": lambda losses, count: losses.sum() / losses.shape[0],
    "sum": lambda losses, count: losses.sum(),
    "none": lambda losses, count: losses,
}
LOSS_MASKS = {
    "all": None,
    "holes": np.array([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]),
    "nothing": np.zeros((3, 4)),
    "ones": np.ones((3, 4)),
}


@pytest.mark.parametrize("deep", [False, True], ids=["(B,T)", "(B,T,1)"])
@pytest.mark.parametrize("mask", LOSS_MASKS.values(), ids=LOSS_MASKS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sequence_loss_against_numpy(reduction: str, mask: np.ndarray | None, deep: bool) -> None:
    rng = np.random.RandomState(1)
    logits, targets = rng.randn(3, 4, 5) * 3, rng.randint(0, 5, (3, 4))
    count = 12 if mask is None else mask.sum()

    def numpy_loss(arrays: dict) -> np.ndarray:
        return REDUCTIONS[reduction](numpy_losses(arrays["logits"], targets, mask), count)

    def build(logits: nn.Variable, _: Any) -> tuple:
        given = constant(targets[..., None] if deep else targets)
        return sequence_loss(logits, given, None if mask is None else constant(mask), reduction=reduction), ()

    measured = measure(build, logits, ())
    expected = np.asarray(numpy_loss({"logits": logits}))
    assert measured.ys.shape == expected.shape
    np.testing.assert_allclose(measured.ys, expected, rtol=1e-5, atol=1e-6)
    weights = np.random.RandomState(7).randn(*expected.shape)
    slopes = reference.gradients(lambda arrays: float(np.sum(numpy_loss(arrays) * weights)), {"logits": logits})
    assert_same(measured.x_grad, slopes["logits"])


@pytest.mark.parametrize("padding", [-1, 4, 10**6, np.nan])
def test_targets_of_padding_may_be_any_id(padding: float) -> None:
    logits, targets, mask = np.random.randn(2, 3, 4), np.ones((2, 3)), np.array([[1, 1, 0], [1, 0, 0]])
    expected = measure(lambda x, _: (sequence_loss(x, constant(targets), constant(mask)), ()), logits, ())
    filled = np.where(mask, targets, padding)
    for given in (filled, filled[..., None]):
        actual = measure(lambda x, _, t=given: (sequence_loss(x, constant(t), constant(mask)), ()), logits, ())
        assert_same(actual, expected, rtol=1e-7)
    np.testing.assert_array_equal(actual.x_grad[mask == 0], 0)
    looked_up = ids_looked_up(sequence_loss(constant(logits), constant(filled), constant(mask)))
    assert looked_up.min() >= 0  # NNabla reads beyond the logits where an id is too large
    assert looked_up.max() < 4


def ids_looked_up(loss: nn.Variable) -> np.ndarray:
    loss.forward()
    found: list[nn.Variable] = []
    loss.visit(lambda f: found.append(f.inputs[1]) if f.info.type_name == "SoftmaxCrossEntropy" else None)
    (ids,) = found
    return ids.d


def test_losses_of_padding_may_be_nan() -> None:
    """Logits that overflow at the padding leave the loss alone."""
    logits, mask = np.zeros((2, 3, 4)), np.array([[1, 1, 0], [1, 0, 0]])
    logits[mask == 0] = np.nan
    loss = sequence_loss(constant(logits), constant(np.ones((2, 3))), constant(mask))
    np.testing.assert_allclose(value(loss), np.log(4), rtol=1e-6)


def test_mean_is_the_default_and_nlp_nnabla_has_another_name_for_it() -> None:
    assert time_distributed_softmax_cross_entropy is sequence_loss
    logits, targets = constant(np.random.randn(2, 3, 4)), constant(np.ones((2, 3)))
    np.testing.assert_allclose(
        value(sequence_loss(logits, targets)), value(sequence_loss(logits, targets, reduction="sum")) / 6, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 3), (2, 3)), {}, r"logits of shape \(B, T, V\); got \(2, 3\)"),
        (((2, 3, 4), (2, 4)), {}, r"targets of shape \(2, 3\) for logits \(2, 3, 4\); got \(2, 4\)"),
        (((2, 3, 4), (3, 2)), {}, r"targets of shape \(2, 3\) for logits \(2, 3, 4\); got \(3, 2\)"),
        (
            ((2, 3, 4), (2, 3)),
            {"weights": nn.Variable((2, 4))},
            r"weights of shape \(2, 3\) for logits \(2, 3, 4\); got \(2, 4\)",
        ),
        (((2, 3, 4), (2, 3)), {"reduction": "total"}, r"'mean', .*, 'none'; got 'total'"),
    ],
)
def test_bad_losses_are_named(shapes: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sequence_loss(*map(nn.Variable, shapes), **options)


SMOOTHED = {
    "logits": lambda h, w, b, t, **options: sequence_loss(F.affine(h, w, b, base_axis=2), t, **options),
    "linear": lambda h, w, b, t, **options: linear_cross_entropy(h, w, b, t, **options),
    "tied": lambda h, w, b, t, **options: linear_cross_entropy(h, F.transpose(w, (1, 0)), b, t, transpose=True, **options),
    "no bias": lambda h, w, b, t, **options: linear_cross_entropy(h, w, None, t, **options),
}


@pytest.mark.parametrize("kind", SMOOTHED)
@pytest.mark.parametrize("reduction", ["mean", "time_mean", "batch_mean", "sum", "none"])
def test_label_smoothing_ignored_targets_and_weights(reduction: str, kind: str) -> None:
    rng = np.random.RandomState(0)
    arrays = {"h": rng.randn(3, 4, 5), "w": rng.randn(5, 7), "b": rng.randn(7)}
    targets, weights = rng.randint(7, size=(3, 4)), rng.rand(3, 4)
    targets[1, :2] = 2  # ignored
    weights[2, 1:] = 0

    def expected(arrays: dict) -> np.ndarray:
        logits = arrays["h"] @ arrays["w"] + (0 if kind == "no bias" else arrays["b"])
        log_p = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
        wanted = 0.9 * np.eye(7)[targets] + 0.1 / 7
        counts = weights * (targets != 2)
        losses = -(wanted * log_p).sum(axis=2) * counts
        means = {"mean": losses.sum() / counts.sum(), "time_mean": losses.sum(axis=1) / counts.sum(axis=1)}
        return {**means, "batch_mean": losses.sum() / 3, "sum": losses.sum(), "none": losses}[reduction]

    variables = {name: nn.Variable.from_numpy_array(array, need_grad=True) for name, array in arrays.items()}
    options = {"weights": constant(weights), "reduction": reduction, "ignore_index": 2, "label_smoothing": 0.1}
    loss = SMOOTHED[kind](*variables.values(), constant(targets), **options)
    np.testing.assert_allclose(value(loss), expected(arrays), rtol=1e-5, atol=1e-6)
    for v in variables.values():
        v.grad.zero()
    factor = rng.randn(*loss.shape)
    total = F.sum(loss * constant(factor))
    total.forward()
    total.backward()
    slopes = reference.gradients(lambda arrays: float(np.sum(expected(arrays) * factor)), arrays)
    for name, v in variables.items():
        np.testing.assert_allclose(v.g, slopes[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SMOOTHED)
def test_a_negative_target_has_no_loss(kind: str) -> None:
    h, w, b = (constant(np.random.randn(*shape)) for shape in ((1, 3, 5), (5, 7), (7,)))
    losses = [
        SMOOTHED[kind](h, w, b, constant(np.array([[1, target, 2]])), reduction="none", label_smoothing=0.1)
        for target in (-1, -(10**6), 3)
    ]
    found = [value(loss)[0] for loss in losses]
    np.testing.assert_allclose(found[0], [found[2][0], 0, found[2][2]], rtol=1e-5)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_bad_smoothing_is_named(smoothing: float) -> None:
    with pytest.raises(ValueError, match=f"label_smoothing must be from 0 to below 1; got {smoothing}"):
        sequence_loss(nn.Variable((2, 3, 4)), nn.Variable((2, 3)), label_smoothing=smoothing)


@pytest.mark.parametrize("scale", [0.5, 2.0, 255.0, -1.0])
def test_a_mask_counts_where_it_is_not_zero(scale: float) -> None:
    logits = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 4, 5)).apply(need_grad=True)
    targets = nn.Variable.from_numpy_array(np.zeros((2, 4)))
    ones = np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
    losses = [sequence_loss(logits, targets, nn.Variable.from_numpy_array(m)) for m in (ones, scale * ones)]
    assert value(losses[0]) == pytest.approx(float(value(losses[1])))


def test_nan_among_the_logits_of_padding_matters_nowhere() -> None:
    numbers = np.random.RandomState(0).randn(1, 3, 4)
    numbers[0, 2] = np.nan
    logits = nn.Variable.from_numpy_array(numbers).apply(need_grad=True)
    mask = nn.Variable.from_numpy_array(np.array([[1, 1, 0]]))
    loss = sequence_loss(logits, nn.Variable.from_numpy_array(np.zeros((1, 3))), mask)
    logits.g = 0
    loss.forward()
    loss.backward()
    assert np.isfinite(loss.d)
    assert np.isfinite(logits.g).all()
    assert (logits.g[0, 2] == 0).all()
