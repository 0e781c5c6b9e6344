"""The two decoder cells of seq2seq, with its equations and its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nnabla as nn

from ..checks import check_sizes
from ..core import StateSpec, Tree
from ..functions import activation as find_activation
from ..recurrentshop.cells import Layout, RNNCell
from ..recurrentshop.config import TABLE
from .parametric_functions import attention_decoder_cell, lstm_decoder_cell


@dataclass(frozen=True, repr=False, init=False)
class DecoderCell(RNNCell):
    """What the decoder cells have in common: a memory `(h, c)` of one width, and an output of another."""

    recurrent_initializer: Any = None
    hidden_dim: int | None = None

    def __init__(self, output_dim: int | None = None, hidden_dim: int | None = None, **options: Any) -> None:
        object.__setattr__(self, "hidden_dim", hidden_dim)
        options.setdefault("recurrent_initializer", None)
        super().__init__(output_dim=output_dim, **options)

    def __post_init__(self) -> None:
        if self.recurrent_initializer is None:
            object.__setattr__(self, "recurrent_initializer", self.kernel_initializer)
        super().__post_init__()
        if self.hidden_dim is None:
            object.__setattr__(self, "hidden_dim", self.units)
        check_sizes(type(self).__name__, hidden_dim=self.hidden_dim)

    @property
    def state(self) -> Tree:
        assert self.hidden_dim is not None
        return StateSpec((self.hidden_dim,)), StateSpec((self.hidden_dim,))

    def share_of(self, name: str) -> str:
        return "bias" if name.split("/")[-1] == "b" else "recurrent" if name == "h2h/W" else "kernel"

    def _settings(self) -> tuple[Any, ...]:
        act, gate = find_activation(self.activation), find_activation(self.recurrent_activation)
        return self.size, act, gate, *self.initializers, self.use_bias

    def _layout(self, *names: str) -> Layout:
        """The gates stand in Keras' order already."""
        return [(name, None) for name in names if self.use_bias or name.split("/")[-1] != "b"]


@dataclass(frozen=True, repr=False, init=False)
class LSTMDecoderCell(DecoderCell):
    """A long short-term memory with an output layer: `y = act(h' W_y + b_y)`; states h and c.

    .. code-block:: text

        i, f, g, o = split(x W + h U + b)
        c' = gate(f) * c + gate(i) * act(g)
        h' = gate(o) * act(c')

    Unlike `nnshop.recurrentshop.LSTMCell` it carries the cell state as it is, and squashes it for h only: it is the
    textbook's, but for its gates, which are hard sigmoids. The original fails without hidden_dim.

    Args:
        output_dim (int): O, the size of y.
        hidden_dim (int): H, the size of the states; O by default.
        recurrent_initializer: For U; kernel_initializer by default, as in the original.
        **options: Those of `nnshop.recurrentshop.RNNCell`: `activation, recurrent_activation, use_bias,
            kernel_initializer, bias_initializer, ..., name`.

    Raises:
        ValueError: A size is not a positive number, or an activation or an initializer is not known.

    References:
        The cell of seq2seq's decoders (F. Rahman, https://github.com/farizrahman4u/seq2seq), by its equations.

    Example:
        >>> from nnshop.seq2seq import LSTMDecoderCell
        >>> cell = LSTMDecoderCell(5, hidden_dim=8)
        >>> y, (h, c) = cell(nn.Variable((2, 3)), cell.initial_state(2))
        >>> y.shape, h.shape
        ((2, 5), (2, 8))
    """

    def call(self, x: nn.Variable, *states: nn.Variable) -> tuple[nn.Variable, ...]:
        h, c = states
        return lstm_decoder_cell(x, h, c, *self._settings())

    @property
    def layout(self) -> Layout:
        return self._layout("x2h/W", "h2h/W", "b", "h2y/W", "h2y/b")


@dataclass(frozen=True, repr=False, init=False)
class AttentionDecoderCell(DecoderCell):
    """An `LSTMDecoderCell` whose input is what it attends to of a whole sequence, `(B, T, D)`, at every step.

    .. code-block:: text

        a = softmax over t of ([x_t ; c] W_a + b_a)
        i, f, g, o = split((sum_t a_t x_t) W + b + h U + b_h)

    and on as there. It is the cell state c that asks, not h. b_a shifts all scores alike, to no effect, and b and b_h are one
    bias in two; the original has them, and its weights can be loaded.

    Args:
        output_dim (int): O, the size of y.
        hidden_dim (int): H, the size of the states; O by default.
        input_shape (tuple): `(T, D)`; with input_dim, D alone is checked.
        **options: As for `LSTMDecoderCell`.

    Raises:
        ValueError: As for `LSTMDecoderCell`; when it runs, if its input is no sequence.

    References:
        As for `LSTMDecoderCell`; D. Bahdanau et al., Neural machine translation by jointly learning to align and translate,
        2014, where a layer with a tanh stands between.

    Example:
        >>> from nnshop.recurrentshop import RecurrentSequential
        >>> from nnshop.seq2seq import AttentionDecoderCell
        >>> decoder = RecurrentSequential(decode=True, output_length=6)
        >>> decoder.add(AttentionDecoderCell(5, hidden_dim=8))
        >>> decoder(nn.Variable((2, 7, 3))).shape
        (2, 6, 5)
    """

    def call(self, x: nn.Variable, *states: nn.Variable) -> tuple[nn.Variable, ...]:
        h, c = states
        return attention_decoder_cell(x, h, c, *self._settings())

    @property
    def layout(self) -> Layout:
        return self._layout("score/W", "score/b", "x2h/W", "b", "h2h/W", "h2h/b", "h2y/W", "h2y/b")

    @property
    def declared_input(self) -> tuple[int, ...] | None:
        return None if self.input_dim else super().declared_input

    def _check_input(self, x: nn.Variable) -> None:
        if x.ndim != 3 or self.input_dim not in (None, x.shape[-1]):
            width = "D" if self.input_dim is None else self.input_dim
            raise ValueError(
                f"{self} attends to a whole sequence (B, T, {width}) at every step; got {x.shape}. "
                "In a RecurrentSequential use decode=True."
            )
        super()._check_input(x)


TABLE.update({kind.__name__: kind for kind in (LSTMDecoderCell, AttentionDecoderCell)})
