"""Scores of attention: how well a query fits each position of a memory, and the weights that this takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import nnabla as nn
import nnabla.functions as F
from nnabla.initializer import ConstantInitializer, UniformInitializer, calc_uniform_lim_glorot
from nnabla.parameter import get_parameter_or_create

from .checks import check_given_sizes, check_sizes
from .core import Tree
from .functions import faster, reshape


class Score(ABC):
    """What every score is: `keys = score.prepare(memory)` once, and `score(query, keys)`, `(B, S)`, at each step.

    A subclass is a frozen dataclass that defines `__call__`, and `prepare` where something can be done for all steps at once.
    Weights are made by name, in the scope that `nnshop.attend` opens around both. What it is given for padding is zeros, and
    what it gives there counts for nothing, but must be finite.

    Attributes:
        cumulates: It takes the sum of the alignments so far, `(B, S)`, as a third argument.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Near(Score):
        ...     rate: float = 1.0
        ...
        ...     def __call__(self, query, keys):
        ...         batch, _, width = keys.shape
        ...         away = keys - F.reshape(query, (batch, 1, width), inplace=False)
        ...         return -self.rate * F.sum(away * away, axis=2)
        >>> cell = nnshop.attend(nnshop.GRUCell(6), nn.Variable((4, 9, 6)), Near(0.5))
        >>> ys, _ = nnshop.run(cell, nn.Variable((4, 7, 3)))
        >>> ys.shape
        (4, 7, 12)
    """

    cumulates: ClassVar[bool] = False

    def prepare(self, memory: nn.Variable) -> Tree:
        """Computes once, of the memory `(B, S, M)`, what the steps need; the memory itself by default."""
        return memory

    @abstractmethod
    def __call__(self, query: nn.Variable, keys: Tree) -> nn.Variable:
        """Computes the scores `(B, S)` of a query `(B, Q)`."""

    def over(self, queries: nn.Variable, keys: Tree) -> nn.Variable | None:
        """Computes the scores `(B, T, S)` of all queries `(B, T, Q)` at once, where that is faster; else None."""
        return None


def weight(name: str, shape: tuple[int, ...], init: Any = None) -> nn.Variable:
    """Makes a weight in the open scope, or finds it there. A matrix is drawn by Glorot's uniform rule by default."""
    return get_parameter_or_create(name, shape, UniformInitializer(calc_uniform_lim_glorot(*shape)) if init is None else init)


class _Product(Score):
    """A score that is a matrix product, so that one step is as many."""

    def __call__(self, query: nn.Variable, keys: nn.Variable) -> nn.Variable:
        scores = self.over(reshape(query, (query.shape[0], 1, query.shape[1])), keys)
        return reshape(scores, (scores.shape[0], scores.shape[2]))

    @abstractmethod
    def over(self, queries: nn.Variable, keys: nn.Variable) -> nn.Variable: ...


@dataclass(frozen=True)
class Dot(_Product):
    """The product of query and memory, `q . m`; both have one width.

    Args:
        scaled: Divided by the square root of the width, so that wide ones do not begin with a hard choice.

    Raises:
        ValueError: In the step, if the query has another width than the memory.

    References:
        M.-T. Luong, H. Pham, C. Manning, Effective approaches to attention-based neural machine translation, 2015; scaled:
        A. Vaswani et al., Attention is all you need, 2017.

    Example:
        >>> score = Dot(scaled=True)
        >>> score(nn.Variable((4, 6)), nn.Variable((4, 9, 6))).shape
        (4, 9)
    """

    scaled: bool = False

    def over(self, queries: nn.Variable, keys: nn.Variable) -> nn.Variable:
        width = keys.shape[2]
        if queries.shape[2] != width:
            raise ValueError(
                f"a dot score needs a query as wide as the memory; the query, the cell's output, has width {queries.shape[2]}, "
                f"the memory {width}. Use score='general', which has a matrix in between, or give one of them a PF.affine."
            )
        # 50 times as fast on the CPU, forward and backward, as to multiply with broadcasting and to sum: (64, 30, 256) takes
        # 0.1 ms forward and 0.3 ms backward, in place of 5.6 and 10.9.
        scores = F.batch_matmul(queries, keys, transpose_b=True)
        return scores * width**-0.5 if self.scaled else scores


@dataclass(frozen=True)
class General(_Product):
    """The product with a matrix in between, `q W . m`. W is on the query's side, so the memory needs no projected copy.

    Its weights are `query/W (Q, M)`, made in the step.

    References:
        M.-T. Luong, H. Pham, C. Manning, Effective approaches to attention-based neural machine translation, 2015.

    Example:
        >>> General()(nn.Variable((4, 5)), nn.Variable((4, 9, 6))).shape
        (4, 9)
    """

    def over(self, queries: nn.Variable, keys: nn.Variable) -> nn.Variable:
        projected = F.affine(queries, weight("query/W", (queries.shape[2], keys.shape[2])), base_axis=2)
        return Dot().over(projected if queries.shape[1] == 1 else faster(projected), keys)  # a step is of NNabla's functions


class _Projected(NamedTuple):
    """What the steps of an additive score need. They compute tanh(z) as `2 sigmoid(2 z) - 1`, so all is here twice."""

    memory: nn.Variable  # (B, S, U), 2 (m W_m + b)
    twos: nn.Variable  # (B, S, 1)
    v: nn.Variable  # (U, 1), 2 v
    offset: nn.Variable  # (1,), -sum(v)


def _project(memory: nn.Variable, units: int, normalize: bool) -> _Projected:
    w, b = weight("memory/W", (memory.shape[2], units)), weight("b", (units,), ConstantInitializer(0))
    v = weight("v", (units, 1))
    if normalize:
        g = weight("g", (1,), ConstantInitializer(units**-0.5))
        v = v * reshape(g * F.sum(v * v, axis=0) ** -0.5, (1, 1))
    projected = faster(F.affine(memory, w, b, base_axis=2))
    return _Projected(2 * projected, F.constant(2, (*memory.shape[:2], 1)), 2 * v, -1 * F.sum(v, axis=0))


def _additive(query: nn.Variable, keys: _Projected, more: nn.Variable | None = None) -> nn.Variable:
    """Computes `v . tanh(q W_q + m W_m + b + more / 2)`; more is `(B, S, U)`.

    NNabla's tanh takes 16 ns a number on the CPU, its sigmoid 1.8; and a sum with broadcasting takes 11 ns a number, and twice
    that backward, where a matrix product that repeats the query takes 1.
    """
    batch, length, units = keys.memory.shape
    q = F.affine(query, weight("query/W", (query.shape[1], units)))
    z = keys.memory + F.batch_matmul(keys.twos, reshape(q, (batch, 1, units)))
    z = z if more is None else z + more
    return reshape(F.affine(F.sigmoid(z), keys.v, keys.offset, base_axis=2), (batch, length))


@dataclass(frozen=True)
class Concat(Score):
    """The additive score of Bahdanau et al., `v . tanh(q W_q + m W_m + b)`.

    Its weights are `memory/W (M, U)`, `b (U,)` and `v (U, 1)`, made where `attend` is called, and `query/W (Q, U)`, made in
    the step; normalized also `g (1,)`, as `memory/W`.

    Args:
        units: U; the memory's width M by default.
        normalize: `g v / |v|` in place of v; g begins at `sqrt(1 / U)`.

    Raises:
        ValueError: units is no positive number.

    References:
        D. Bahdanau, K. Cho, Y. Bengio, Neural machine translation by jointly learning to align and translate, 2015;
        normalized: T. Salimans, D. Kingma, Weight normalization, 2016, as in TensorFlow Addons' `BahdanauAttention`.

    Example:
        >>> score = Concat(units=16)
        >>> keys = score.prepare(nn.Variable((4, 9, 6)))
        >>> score(nn.Variable((4, 5)), keys).shape, list(nn.get_parameters())
        ((4, 9), ['memory/W', 'b', 'v', 'query/W'])
    """

    units: int | None = None
    normalize: bool = False

    def __post_init__(self) -> None:
        check_given_sizes("Concat", units=self.units)

    def prepare(self, memory: nn.Variable) -> _Projected:
        return _project(memory, self.units or memory.shape[2], self.normalize)

    def __call__(self, query: nn.Variable, keys: _Projected) -> nn.Variable:
        return _additive(query, keys)


@dataclass(frozen=True)
class Location(Score):
    """The additive score that also sees where it has attended to: `v . tanh(q W_q + m W_m + f L + b)`.

    f is a convolution, over the positions, of the sum of all alignments so far. So it can go on from where it was, as a voice
    does in a text. Its weights are those of `Concat`, and `location/filters (F, 1, K)` and `location/W (F, U)`, made where
    `attend` is called.

    Args:
        units: U; the memory's width M by default.
        filters: F.
        kernel_size: K, an odd number of positions; beyond the ends there are zeros.

    Raises:
        ValueError: A size is no positive number, or kernel_size is even.

    References:
        J. Chorowski et al., Attention-based models for speech recognition, 2015, with the sum of alignments of J. Shen et al.,
        Natural TTS synthesis by conditioning WaveNet on mel spectrogram predictions (Tacotron 2), 2018.

    Example:
        >>> score = Location(units=16, filters=4, kernel_size=3)
        >>> keys = score.prepare(nn.Variable((4, 9, 6)))
        >>> score(nn.Variable((4, 5)), keys, nn.Variable((4, 9))).shape
        (4, 9)
    """

    units: int | None = None
    filters: int = 32
    kernel_size: int = 31
    cumulates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_given_sizes("Location", units=self.units)
        check_sizes("Location", filters=self.filters, kernel_size=self.kernel_size)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"{self} needs an odd kernel_size, as many positions before as behind; got {self.kernel_size}.")

    def prepare(self, memory: nn.Variable) -> tuple[_Projected, nn.Variable, nn.Variable]:
        units, size = self.units or memory.shape[2], (self.kernel_size,)
        projected = _project(memory, units, normalize=False)
        filters = weight(
            "location/filters", (self.filters, 1, *size), UniformInitializer(calc_uniform_lim_glorot(1, self.filters, size))
        )
        return projected, filters, 2 * weight("location/W", (self.filters, units))

    def __call__(
        self,
        query: nn.Variable,
        keys: tuple[_Projected, nn.Variable, nn.Variable],
        cumulated: nn.Variable | None = None,
    ) -> nn.Variable:
        projected, filters, w = keys
        if cumulated is None:  # nothing so far
            return _additive(query, projected)
        batch, length = cumulated.shape
        features = F.convolution(reshape(cumulated, (batch, 1, length)), filters, pad=(self.kernel_size // 2,))  # (B, F, S)
        return _additive(query, projected, F.affine(F.transpose(features, (0, 2, 1)), w, base_axis=2))


SCORES: dict[str, Score] = {
    "dot": Dot(),
    "scaled_dot": Dot(scaled=True),
    "general": General(),
    "concat": Concat(),
    "normalized_concat": Concat(normalize=True),
    "location": Location(),
}


def find_score(score: str | Score) -> Score:
    """Finds a score by its name; a Score passes through.

    Raises:
        ValueError: It is neither a Score nor one of `SCORES`.

    Example:
        >>> find_score("scaled_dot")
        Dot(scaled=True)
    """
    if isinstance(score, Score):
        return score
    if not isinstance(score, str) or score not in SCORES:
        raise ValueError(f"score must be a Score, such as Concat(units=128), or one of {', '.join(SCORES)}; got {score!r}.")
    return SCORES[score]
