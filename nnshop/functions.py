"""Weightless helpers on Variables: time axes, masks, activations, sequence losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import nnabla as nn
import nnabla.functions as F
import numpy as np

from .checks import check_count, check_variable, is_whole
from .context import in_float32
from .ids import checked_ids
from .kernels import why_not_compiled
from .portable import is_portable

ACTIVATIONS: dict[str, Callable[[nn.Variable], nn.Variable]] = {
    "elu": F.elu,
    "hard_sigmoid": F.hard_sigmoid,
    "linear": lambda x: x,
    "relu": F.relu,
    "selu": F.selu,
    "sigmoid": F.sigmoid,
    "softmax": F.softmax,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "swish": F.swish,
    "tanh": F.tanh,
}


def activation(name: str | Callable) -> Callable[[nn.Variable], nn.Variable]:
    """Finds an activation by its name; a function passes through.

    Raises:
        ValueError: The name is not one of `ACTIVATIONS`.

    Example:
        >>> activation("relu") is F.relu
        True
    """
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be a function or one of {', '.join(sorted(ACTIVATIONS))}; got {name!r}.")
    return ACTIVATIONS[name]


def reshape(x: nn.Variable, shape: Sequence[int]) -> nn.Variable:
    """Gives a Variable another shape, with exact gradients in auto-forward mode too.

    There NNabla frees the buffer of a Variable that Python no longer holds; `F.reshape` in place, its default, would go on
    sharing that buffer, and the gradients of what uses it would be wrong.
    """
    if not nn.get_auto_forward():
        return F.reshape(x, shape, inplace=True)
    with in_float32():  # a copy must be exact
        return F.reshape(x, shape, inplace=False)


def unstack(x: nn.Variable, axis: int = 0) -> list[nn.Variable]:
    """Splits a Variable along an axis into Variables without it; the inverse of `F.stack`.

    Differs from `F.split` in that it takes an axis of length 1 too.

    Example:
        >>> [v.shape for v in unstack(nn.Variable((4, 1, 3)), axis=1)]
        [(4, 3)]
    """
    check_variable("unstack: x", x)
    if not is_whole(axis) or not -x.ndim <= axis < x.ndim:
        raise ValueError(f"unstack needs an axis of x, which has the shape {x.shape}; got {axis!r}.")
    axis %= x.ndim
    if x.shape[axis] == 1:
        return [reshape(x, x.shape[:axis] + x.shape[axis + 1 :])]
    with in_float32(x.ndim < 3):  # one number for each step and row may be an id
        return list(F.split(x, axis=axis))


def swap_time(x: nn.Variable) -> nn.Variable:
    """Turns `(B, T, ...)` into `(T, B, ...)`, and back."""
    with in_float32(x.ndim < 3):  # one number for each step and row may be an id
        return F.transpose(x, (1, 0, *range(2, x.ndim)))


def shift(x: nn.Variable, first: nn.Variable | None = None) -> nn.Variable:
    """Delays a sequence by one step: `y[:, t] = x[:, t - 1]`, and `y[:, 0] = first`.

    Args:
        x: `(B, T, ...)`.
        first: `(B, ...)`; zeros by default.

    Returns:
        `(B, T, ...)`.

    Example:
        >>> y = shift(nn.Variable.from_numpy_array(np.array([[1., 2., 3.]])))
        >>> y.forward(); y.d
        array([[0., 1., 2.]], dtype=float32)
    """
    check_variable("shift: x", x)
    if x.ndim < 2:
        raise ValueError(f"shift needs a sequence (B, T, ...); got the shape {x.shape}.")
    if first is None:
        first = F.constant(0, (x.shape[0], *x.shape[2:]))
    check_variable("shift: first", first)
    if first.shape != (x.shape[0], *x.shape[2:]):
        raise ValueError(
            f"shift needs `first` of shape {(x.shape[0], *x.shape[2:])}, one step of x {x.shape}; got {first.shape}."
        )
    first = reshape(first, (x.shape[0], 1, *x.shape[2:]))
    with in_float32(x.ndim < 3):  # one number for each step and row may be an id
        return first if x.shape[1] == 1 else F.concatenate(first, x[:, :-1], axis=1)


def where(condition: nn.Variable, yes: nn.Variable, no: nn.Variable) -> nn.Variable:
    """Chooses row by row: `yes` where the condition `(B,)` is not zero, else `no`; both `(B, ...)`.

    The condition may have further axes that the others have too, as a mask `(B, T)` of sequences `(B, T, ...)`.

    What is not chosen may be NaN: it reaches neither the value nor the gradient. In `portable()` it must be finite, since the
    choice is arithmetic there: NNabla's C runtime has neither Where nor a comparison, but broadcasts axes of size 1.
    """
    if not is_portable():
        with in_float32(yes.ndim == condition.ndim):  # one number for each condition may be an id
            return F.where(condition, yes, no)
    sign = F.sign(condition, alpha=0)  # alpha is the sign of 0
    chosen = reshape(sign * sign, (*condition.shape, *[1] * (yes.ndim - condition.ndim)))
    return chosen * yes + (1 - chosen) * no


def stop_gradient(x: nn.Variable) -> nn.Variable:
    """Returns the same values; no gradient flows back through it.

    Example:
        >>> x = nn.Variable.from_numpy_array(3.).apply(need_grad=True)
        >>> y = x * stop_gradient(x)
        >>> y.forward(); y.backward(); float(x.g)
        3.0
    """
    same = F.mul_scalar(x, 1)  # unlike F.identity it has an array of its own
    same.need_grad = False
    return same


def without_padding(mask: nn.Variable | None, x: nn.Variable) -> nn.Variable:
    """Puts zeros where the mask has them, `(B,)` or `(B, T)`: a NaN there would come back in gradients, as 0 * NaN."""
    return x if mask is None else where(mask, x, F.constant(0, x.shape))


def length_mask(lengths: nn.Variable | np.ndarray | Sequence[int], max_length: int) -> nn.Variable:
    """Makes the mask `(B, T)` of sequences of given lengths: 1 for the first `lengths[b]` steps, else 0.

    Args:
        lengths: `(B,)`. Numbers are checked; a Variable is fed when the graph runs, and cannot be.
        max_length: T.

    Raises:
        ValueError: A length is no whole number, or not between 0 and T; there is none; or T is no number of steps.

    Example:
        >>> mask = length_mask([1, 3], 3)
        >>> mask.forward(); mask.d
        array([[1., 0., 0.],
               [1., 1., 1.]], dtype=float32)
    """
    check_count("max_length", max_length)
    if not isinstance(lengths, nn.Variable):
        numbers = np.asarray(lengths)
        if numbers.ndim != 1 or not numbers.size or not np.issubdtype(numbers.dtype, np.integer):
            raise ValueError(f"lengths must be whole numbers of shape (B,); got {lengths!r}.")
        if numbers.min(initial=0) < 0 or numbers.max(initial=0) > max_length:
            raise ValueError(f"lengths must lie between 0 and the sequence length T={max_length}; got {numbers.tolist()}.")
        lengths = nn.Variable.from_numpy_array(numbers)
    check_variable("lengths", lengths)
    if lengths.ndim != 1:
        raise ValueError(f"lengths must have the shape (B,); got {lengths.shape}.")
    with in_float32():
        steps = reshape(F.arange(0, max_length), (1, max_length))
        return F.less(steps, reshape(lengths, (-1, 1)))


# So many multiplications in one product pay for the time that a function in Python takes: at (32, 128, 512) both take as long.
_WORTH_A_KERNEL = 1_500_000


def faster(y: nn.Variable) -> nn.Variable:
    """Returns what is to be used in place of y: where it is a large `F.affine`, on the CPU, one by a compiled product.

    The graph must be new: nothing may use y yet. In auto-forward mode, where y is computed already, it is y.
    """
    if y.parent is None or y.parent.name != "Affine" or nn.get_auto_forward() or why_not_compiled():
        return y
    x, weight, *bias = y.parent.inputs
    base_axis = y.parent.info.args["base_axis"]
    if weight.ndim != 2 or math.prod(x.shape[:base_axis]) * weight.shape[0] * weight.shape[1] < _WORTH_A_KERNEL:
        return y
    from .kernels.dense import Affine  # here, since llvmlite takes time to import

    return Affine(base_axis)(x, weight, *bias)


REDUCTIONS = ("mean", "time_mean", "batch_mean", "sum", "none")


def sequence_loss(
    logits: nn.Variable,
    targets: nn.Variable,
    weights: nn.Variable | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> nn.Variable:
    """Computes the softmax cross entropy of each step of a sequence, in nats.

    Args:
        logits: `(B, T, V)`.
        targets: Class ids, `(B, T)` or `(B, T, 1)`: whole numbers below V. A negative one has the loss 0. On the CPU they are
            checked when the graph runs; on a device, and in `portable()`, they are not, and NNabla reads foreign memory.
        weights: `(B, T)`, by what each loss is multiplied; a mask has 1 for the steps that count and 0 for the others, where
            logits and targets may be anything. All count by default.
        reduction: "mean" over the steps that count, by their weights (0 where none does); "time_mean", that of each sequence,
            `(B,)`; "batch_mean", the sum over time averaged over the batch (the loss of Zaremba et al. 2014 and of
            TensorFlow's ptb_word_lm); "sum"; "none", the `(B, T)` losses with masked ones 0.
        ignore_index: Steps of this target do not count.
        label_smoothing: e, from 0 to below 1: the target is met by 1 - e, and by e shared among all classes (C. Szegedy et
            al., Rethinking the inception architecture, 2016).

    Returns:
        A scalar `()`, `(B,)` for "time_mean", or `(B, T)` for "none".

    Raises:
        ValueError: Shapes do not fit or are empty, the reduction is not known, or label_smoothing is out of its range.
        SystemError: When it runs, by NNabla, with a ValueError as its cause: a target that counts is no class id.

    Example:
        >>> logits, targets = nn.Variable.from_numpy_array(np.zeros((2, 3, 4))), nn.Variable.from_numpy_array(np.ones((2, 3)))
        >>> loss = sequence_loss(logits, targets)
        >>> loss.forward(); round(float(loss.d), 4)  # log 4
        1.3863
    """
    check_variable("sequence_loss: logits", logits)
    if logits.ndim != 3:
        raise ValueError(f"sequence_loss needs logits of shape (B, T, V); got {logits.shape}.")
    check_loss("sequence_loss", "logits", logits, targets, weights, reduction, label_smoothing)
    steps = logits.shape[:2]
    targets, weights = _counting("sequence_loss", targets, logits.shape[2], weights, steps, ignore_index)
    if weights is not None:  # a NaN among the logits of padding would come back in the gradient
        logits = F.where(weights, logits, F.constant(0, logits.shape))
    losses = reshape(F.softmax_cross_entropy(logits, reshape(targets, (*steps, 1)), axis=2), steps)
    if label_smoothing:
        with in_float32():
            spread = -F.mean(F.log_softmax(logits, axis=2), axis=2)
            losses = (1 - label_smoothing) * losses + label_smoothing * spread * F.greater_equal_scalar(targets, 0)
    return _reduce(losses, weights, reduction)


def check_loss(
    who: str,
    of: str,
    x: nn.Variable,
    targets: nn.Variable,
    weights: nn.Variable | None,
    reduction: str,
    label_smoothing: float,
) -> None:
    """Raises ValueError or TypeError where what the losses have in common does not fit; `who` begins the message."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be from 0 to below 1; got {label_smoothing}.")
    for name, v in {of: x, "targets": targets, **({} if weights is None else {"weights": weights})}.items():
        check_variable(f"{who}: {name}", v)
    if x.ndim < 2:
        raise ValueError(f"{who} needs {of} of shape (B, T, D), or any (..., D); got {x.shape}.")
    steps = x.shape[:-1]
    if targets.shape not in (steps, (*steps, 1)):
        raise ValueError(f"{who} needs targets of shape {steps} for {of} {x.shape}; got {targets.shape}.")
    if weights is not None and weights.shape != steps:
        raise ValueError(f"{who} needs weights of shape {steps} for {of} {x.shape}; got {weights.shape}.")


def _counting(
    who: str, targets: nn.Variable, classes: int, weights: nn.Variable | None, steps: tuple, ignore_index: int | None
) -> tuple[nn.Variable, nn.Variable | None]:
    """The targets `(B, T)`, checked where they count, 0 elsewhere, and by what each loss is multiplied."""
    targets = targets if targets.shape == steps else reshape(targets, steps)
    if ignore_index is not None:
        with in_float32():
            counts = F.not_equal_scalar(targets, ignore_index)
            weights = counts if weights is None else weights * counts
    if weights is not None:
        targets = where(weights, targets, F.constant(0, steps))
    return checked_ids(targets, classes, f"{who}: a target", negative=True), weights


def _reduce(losses: nn.Variable, weights: nn.Variable | None, reduction: str) -> nn.Variable:
    """Sums up losses, or their weighted mean; where a weight is 0, the loss may be anything."""
    with in_float32():
        return _reduced(losses, weights, reduction)


def _reduced(losses: nn.Variable, weights: nn.Variable | None, reduction: str) -> nn.Variable:
    if weights is not None:
        losses = F.where(weights, losses * weights, F.constant(0, losses.shape))
    if reduction == "none":
        return losses
    if reduction == "time_mean":
        rows = (losses.shape[0], -1)
        if weights is None:
            return F.mean(reshape(losses, rows), axis=1)
        return F.sum(reshape(losses, rows), axis=1) / _or_one(F.sum(reshape(weights, rows), axis=1))
    total = F.sum(losses)
    if reduction == "mean":
        return total * (1 / np.prod(losses.shape)) if weights is None else total / _or_one(F.sum(weights))
    return total * (1 / losses.shape[0]) if reduction == "batch_mean" else total


def _or_one(count: nn.Variable) -> nn.Variable:
    return count + F.equal_scalar(count, 0)


def linear_cross_entropy(
    h: nn.Variable,
    weight: nn.Variable,
    bias: nn.Variable | None,
    targets: nn.Variable,
    weights: nn.Variable | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    transpose: bool = False,
) -> nn.Variable:
    """Computes an output layer and its softmax cross entropy in one, in nats: what `sequence_loss` gives of its logits.

    On the CPU, with llvmlite, one function does both, at several times the speed of NNabla's, and logits are never there for
    more than 512 steps at once. Elsewhere, and in `portable()`, it builds the ordinary functions.

    Args:
        h: `(B, T, D)`, or any `(..., D)`.
        weight: `(D, V)`.
        bias: `(V,)`, or None.
        targets: Class ids, `(B, T)` or `(B, T, 1)`, as in `sequence_loss`.
        weights: `(B, T)`, by what each loss is multiplied; a mask has 1 for the steps that count and 0 for the others, where h
            and the targets may be anything. All count by default.
        reduction: As in `sequence_loss`; "batch_mean" is the sum averaged over the first axis.
        ignore_index, label_smoothing: As in `sequence_loss`.
        transpose: weight is `(V, D)`, such as that of an embedding.

    Returns:
        A scalar `()`, `(B,)` for "time_mean", or `(B, T)` for "none".

    Raises:
        ValueError, SystemError: As `sequence_loss`.

    Example:
        >>> h, weight, targets = (nn.Variable.from_numpy_array(np.ones(s)) for s in ((2, 3, 5), (5, 4), (2, 3)))
        >>> loss = linear_cross_entropy(h, weight, None, targets)
        >>> loss.forward(); round(float(loss.d), 4)  # log 4
        1.3863
    """
    check_loss("linear_cross_entropy", "h", h, targets, weights, reduction, label_smoothing)
    _check_output_layer(h, weight, bias, transpose)
    classes = weight.shape[0 if transpose else 1]
    targets, weights = _counting("linear_cross_entropy", targets, classes, weights, h.shape[:-1], ignore_index)
    h = without_padding(weights, h)
    losses = _linear_losses(h, weight, bias, targets, transpose)
    if label_smoothing:
        with in_float32():
            losses = losses + label_smoothing * _above_the_mean(h, weight, bias, targets, transpose)
    return _reduce(losses, weights, reduction)


def _check_output_layer(h: nn.Variable, weight: nn.Variable, bias: nn.Variable | None, transpose: bool) -> None:
    for name, v in {"weight": weight, **({} if bias is None else {"bias": bias})}.items():
        check_variable(f"linear_cross_entropy: the {name}", v)
    width, classes = (weight.shape[::-1] if transpose else weight.shape) if weight.ndim == 2 else (None, None)
    if width != h.shape[-1] or (bias is not None and bias.shape != (classes,)):
        expected = ("(V, D)" if transpose else "(D, V)") + ("" if bias is None else " and a bias (V,)")
        given = f"{weight.shape}" + ("" if bias is None else f" and {bias.shape}")
        raise ValueError(f"linear_cross_entropy needs a weight {expected} for h {h.shape}; got {given}.")


def _above_the_mean(
    h: nn.Variable, weight: nn.Variable, bias: nn.Variable | None, targets: nn.Variable, transpose: bool
) -> nn.Variable:
    """By how much the target's logit is above the mean of all: for smoothing, no other logit is needed."""
    weight = weight if transpose else F.transpose(weight, (1, 0))  # (V, D)
    counts = F.greater_equal_scalar(targets, 0)
    targets = F.maximum_scalar(targets, 0)  # NNabla reads memory before the table for a negative id
    mean = reshape(F.mean(weight, axis=0), (*[1] * targets.ndim, weight.shape[1]))
    away = F.embed(targets, weight) - mean  # (..., D)
    above = F.sum(h * away, axis=h.ndim - 1)
    if bias is not None:
        above = above + F.gather(bias, targets, axis=0) - reshape(F.mean(bias), (1,) * targets.ndim)
    return above * counts


def _linear_losses(
    h: nn.Variable, weight: nn.Variable, bias: nn.Variable | None, targets: nn.Variable, transpose: bool
) -> nn.Variable:
    if why_not_compiled():
        weight = F.transpose(weight, (1, 0)) if transpose else weight
        logits = F.affine(h, weight, bias, base_axis=h.ndim - 1)
        losses = F.softmax_cross_entropy(logits, reshape(targets, (*targets.shape, 1)), axis=h.ndim - 1)
        return reshape(losses, targets.shape)
    from .kernels.dense import LinearCrossEntropy

    return LinearCrossEntropy(transpose)(h, weight, *([] if bias is None else [bias]), targets)


time_distributed_softmax_cross_entropy = sequence_loss  # nlp-nnabla's name
