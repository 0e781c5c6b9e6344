"""The models of farizrahman4u/seq2seq, by their equations: an encoder and a decoder made of RecurrentShop's layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF

from ..building import building
from ..checks import check_sizes
from ..combinators import lift
from ..core import AbstractCell, check_variables
from ..recurrentshop.cells import LSTMCell
from ..recurrentshop.config import TABLE
from ..recurrentshop.engine import Layer, RecurrentSequential
from ..running import run
from .cells import AttentionDecoderCell, LSTMDecoderCell


class Seq2SeqModel(Layer):
    """What the models have in common: sequences `(B, T, D)` in, sequences `(B, output_length, output_dim)` out.

    Args:
        output_dim (int): O, the size of one output.
        output_length (int): L, the number of outputs.
        hidden_dim (int): H, the size of the cells; O by default.
        depth: The number of cells of the encoder and of the decoder, a pair, or one number for both.
        dropout (float): The share of what is set to zero of each cell's input, but for the first cell's; anew at each step.
        unroll (bool): Repeat the steps in the graph.
        stateful (bool): The next batch goes on from the states of the last, after `carry()`; see each model for which.
        input_shape, batch_input_shape, batch_size, input_dim, input_length: What the input looks like, `(T, D)`, `(B, T, D)`,
            B, D, T; not needed, and checked where given. None in a shape is any size.
        name (str): The scope of the weights; `seq2seq`, `seq2seq_1`, ... by default, in the order of construction.

    Attributes:
        encoder, decoder (RecurrentSequential): The layers.

    Raises:
        ValueError: A size is not a positive whole number, the dropout not a share, or the input is said to be of two sizes.
            When it is called, if the input is no sequence or not of the size that was said.
    """

    teacher_force = False

    def __init__(
        self,
        output_dim: int,
        output_length: int,
        *,
        hidden_dim: int | None = None,
        depth: int | Sequence[int] = 1,
        dropout: float = 0.0,
        unroll: bool = False,
        stateful: bool = False,
        input_shape: Sequence[int | None] | None = None,
        batch_input_shape: Sequence[int | None] | None = None,
        batch_size: int | None = None,
        input_dim: int | None = None,
        input_length: int | None = None,
        name: str | None = None,
    ) -> None:
        who = type(self).__name__
        self.output_dim, self.output_length, self.dropout = output_dim, output_length, dropout
        self.hidden_dim = output_dim if hidden_dim is None else hidden_dim
        self.depth = tuple(depth) if isinstance(depth, (list, tuple)) else (depth, depth)
        self.unroll, self.stateful = unroll, stateful
        check_sizes(who, output_dim=output_dim, output_length=output_length, hidden_dim=self.hidden_dim)
        if len(self.depth) != 2:
            raise ValueError(f"{who} needs depth=n, or depth=(of the encoder, of the decoder); got {depth!r}.")
        check_sizes(who, **{"depth of the encoder": self.depth[0], "depth of the decoder": self.depth[1]})
        if not 0 <= dropout < 1:
            raise ValueError(f"{who} needs 0 <= dropout < 1, the share that is dropped; got {dropout!r}.")
        said = {
            "batch_input_shape": batch_input_shape,
            "input_shape": None if input_shape is None else (None, *input_shape),
            "batch_size, input_length and input_dim": (batch_size, input_length, input_dim),
        }
        self.batch_input_shape = _put_together(who, said)
        self._build()
        super().__init__(name)

    # ------------------------------------------------------------------------------------------------- what a model says

    encoder: RecurrentSequential
    decoder: RecurrentSequential

    def _build(self) -> None:
        """Makes the layers."""
        raise NotImplementedError

    def _compute(self, x: nn.Variable, ground_truth: nn.Variable | None, training: bool) -> nn.Variable:
        """The outputs; x is checked, and the scope is open."""
        raise NotImplementedError

    def _parts(self) -> list[RecurrentSequential | AbstractCell]:
        """All that has weights, in Keras' order of the weights: recurrent layers, and cells in the model's own scope."""
        return [self.encoder, self.decoder]

    def parts(self) -> Iterator[tuple[AbstractCell, str]]:
        path = self.path
        for part in self._parts():
            yield from part.parts() if isinstance(part, RecurrentSequential) else [(part, path)]

    def _layer(self, cells: Sequence[AbstractCell], drop_first: bool, **options: Any) -> RecurrentSequential:
        """Makes a layer of cells, with dropout before each of them, or each but the first."""
        rnn = RecurrentSequential(unroll=self.unroll, **options)
        for i, cell in enumerate(cells):
            if self.dropout and (i or drop_first):
                rnn.add(F.dropout, self.dropout)
            rnn.add(cell)
        return rnn

    def _decoder(self, cells: Sequence[AbstractCell], **options: Any) -> RecurrentSequential:
        return self._layer(cells, True, name="decoder", decode=True, output_length=self.output_length, **options)

    # ------------------------------------------------------------------------------------------------------------- call

    @building()
    def __call__(self, x: nn.Variable, ground_truth: nn.Variable | None = None, training: bool = True) -> nn.Variable:
        """Runs the model.

        Args:
            x: `(B, T, D)`.
            ground_truth: With `Seq2Seq(teacher_force=True)`, the targets `(B, L, O)`; needed in training, else ignored.
            training: Whether dropout and teacher forcing act.

        Returns:
            `(B, L, O)`.

        Raises:
            ValueError: Arguments that do not fit the model, or each other.
        """
        self._check_input(x)
        self._check_truth(x, ground_truth, training)
        with self.scope():
            return self._compute(x, ground_truth, training)

    def _check_input(self, x: nn.Variable) -> None:
        check_variables(x)
        expected = self.batch_input_shape or (None, None, None)
        shape = getattr(x, "shape", ())
        if len(shape) != 3 or any(size not in (None, n) for size, n in zip(expected, shape)):
            sizes = ", ".join(letter if size is None else str(size) for letter, size in zip("BTD", expected))
            raise ValueError(f"{self.name}: takes one sequence ({sizes}); got {shape or type(x).__name__}.")

    def _check_truth(self, x: nn.Variable, truth: nn.Variable | None, training: bool) -> None:
        if truth is not None and not self.teacher_force:
            raise ValueError(f"{self.name}: ground_truth is for Seq2Seq(teacher_force=True), which this model is not.")
        if truth is None and self.teacher_force and training:
            raise ValueError(f"{self.name}: teacher forcing needs ground_truth in training; or call it with training=False.")
        expected = (x.shape[0], self.output_length, self.output_dim)
        check_variables(truth, f"{self.name}: ground_truth")
        if truth is not None and truth.shape != expected:
            raise ValueError(f"{self.name}: ground_truth must have the shape of the outputs, {expected}; got {truth.shape}.")

    # ------------------------------------------------------------------------------------------------------------ state

    def carry(self) -> None:
        """With stateful: the next batch of each graph goes on from the final states of the last; call it after a batch."""
        for layer in self._stateful_layers("carry"):
            layer.carry()

    def reset_states(self, rows: Sequence[int] | None = None) -> None:
        """With stateful: sets the states back to zeros, of all samples or of these rows."""
        for layer in self._stateful_layers("reset_states"):
            layer.reset_states(rows=rows)

    def _stateful_layers(self, what: str) -> list[RecurrentSequential]:
        if not self.stateful:
            raise ValueError(f"{self.name}: {what} is about states that are kept; make the model with stateful=True.")
        return [part for part in self._parts() if isinstance(part, RecurrentSequential) and part.stateful]

    # ----------------------------------------------------------------------------------------------------------- config

    def arguments(self) -> dict[str, Any]:
        """What the model was made with, and its name; what was said of the input stands in batch_input_shape."""
        sizes = {"output_dim": self.output_dim, "output_length": self.output_length, "hidden_dim": self.hidden_dim}
        ways = {"depth": self.depth, "dropout": self.dropout, "unroll": self.unroll, "stateful": self.stateful}
        return {**sizes, **ways, "batch_input_shape": self.batch_input_shape, "name": self.name}


def _put_together(who: str, said: dict[str, Sequence[int | None] | None]) -> tuple[int | None, ...] | None:
    """Makes `(B, T, D)` of all that was said of the input, with None for what was not; None where nothing was."""
    found: list[int | None] = [None, None, None]
    for source, shape in said.items():
        if shape is None:
            continue
        if len(shape) != 3:
            raise ValueError(f"{who} takes input_shape=(T, D), or batch_input_shape=(B, T, D); got {source} of {shape!r}.")
        for axis, size in enumerate(shape):
            if size is not None and found[axis] not in (None, size):
                raise ValueError(f"{who}: {source} says {size} for {'BTD'[axis]} of the input; before it was {found[axis]}.")
            found[axis] = found[axis] if size is None else size
    return None if found == [None, None, None] else tuple(found)


def lstm_cells(sizes: Sequence[int]) -> list[AbstractCell]:
    """Makes RecurrentShop's cells of these sizes, under the names that they have in each model."""
    return [LSTMCell(units, name=f"cell_{i}") for i, units in enumerate(sizes)]


class SimpleSeq2Seq(Seq2SeqModel):
    """The last output of an encoder is given to every step of a decoder that starts from zeros.

    .. code-block:: text

        encoder: LSTM(H) as often as depth says
        decoder: LSTM(H) once less than depth says, and LSTM(O); with a depth of 1 it is LSTM(O) twice, as in the original

    The cells are `nnshop.recurrentshop.LSTMCell`. With stateful, both layers go on from where they were.

    Args:
        output_dim (int): O, the size of one output.
        output_length (int): L, the number of outputs.
        **options: `hidden_dim, depth, dropout, unroll, stateful, input_shape, batch_input_shape, batch_size, input_dim,
            input_length, name`, see `Seq2SeqModel`.

    References:
        F. Rahman, https://github.com/farizrahman4u/seq2seq, by its equations.

    Example:
        >>> from nnshop.seq2seq import SimpleSeq2Seq
        >>> model = SimpleSeq2Seq(output_dim=5, output_length=6, hidden_dim=8, depth=(3, 2))
        >>> model(nn.Variable((2, 7, 3))).shape
        (2, 6, 5)
    """

    def _build(self) -> None:
        before, after = self.depth
        sizes = [self.hidden_dim] * (after - 1) if after > 1 else [self.output_dim]
        self.encoder = self._layer(lstm_cells([self.hidden_dim] * before), False, name="encoder", stateful=self.stateful)
        self.decoder = self._decoder(lstm_cells([*sizes, self.output_dim]), stateful=self.stateful)

    def _compute(self, x: nn.Variable, ground_truth: nn.Variable | None, training: bool) -> nn.Variable:
        return self.decoder(self.encoder(x, training=training), training=training)


class Seq2Seq(Seq2SeqModel):
    """A decoder that starts from the encoder's state, and is fed its own outputs; the first is the context vector.

    .. code-block:: text

        encoder: LSTM(H) as often as depth says, on x_t W_p + b_p plus its last output
        context = (last output of the encoder) W_c + b_c
        decoder: LSTMDecoderCell(O, H) as often as depth says, on
            y_t-1, with y_-1 = context                     peek=False
            context + y_t-1, so 2 context at first         peek=True

    The encoder's cells are `nnshop.recurrentshop.LSTMCell`. Each cell of the decoder gives an output of the size O.

    Args:
        output_dim (int): O, the size of one output.
        output_length (int): L, the number of outputs.
        broadcast_state (bool): The decoder starts from the states of the encoder's last cell; else from zeros.
        inner_broadcast_state (bool): The cells of the encoder share one state, which runs through them within a step
            (`state_sync`), and so do those of the decoder; else each has its own.
        peek (bool): Give the context to every step of the decoder.
        teacher_force (bool): In training, feed the decoder the ground truth of the step before, in place of its own output.
            The original fed it that of the same step, the answer itself.
        **options: `hidden_dim, depth, dropout, unroll, stateful, input_shape, batch_input_shape, batch_size, input_dim,
            input_length, name`, see `Seq2SeqModel`. With stateful the encoder goes on from where it was; the decoder starts
            anew for each batch, from the context of it.

    Raises:
        ValueError: As for `Seq2SeqModel`; or the encoder's last cell has a state for one cell, and the decoder has several
            cells with states of their own.

    References:
        F. Rahman, https://github.com/farizrahman4u/seq2seq, by its equations; I. Sutskever et al., Sequence to sequence
        learning with neural networks, 2014; with peek K. Cho et al., Learning phrase representations using RNN encoder-decoder
        for statistical machine translation, 2014.

    Example:
        >>> from nnshop.seq2seq import Seq2Seq
        >>> model = Seq2Seq(output_dim=5, output_length=6, hidden_dim=8, depth=2, peek=True, teacher_force=True)
        >>> x, targets = nn.Variable((2, 7, 3)), nn.Variable((2, 6, 5))
        >>> loss = F.mean((model(x, ground_truth=targets) - targets) ** 2)
        >>> model(x, training=False).shape  # the same weights, fed its own outputs
        (2, 6, 5)
    """

    def __init__(
        self,
        output_dim: int,
        output_length: int,
        *,
        broadcast_state: bool = True,
        inner_broadcast_state: bool = True,
        peek: bool = False,
        teacher_force: bool = False,
        **options: Any,
    ) -> None:
        self.broadcast_state, self.inner_broadcast_state = broadcast_state, inner_broadcast_state
        self.peek, self.teacher_force = peek, teacher_force
        super().__init__(output_dim, output_length, **options)

    def _build(self) -> None:
        before, after = self.depth
        if self.broadcast_state and not self.inner_broadcast_state and after > 1:
            raise ValueError(
                f"Seq2Seq: with broadcast_state=True the decoder starts from the 2 states of the encoder's last cell; with "
                f"inner_broadcast_state=False and a depth of {after} it has {2 * after}. Use inner_broadcast_state=True, "
                f"broadcast_state=False, or depth=({before}, 1)."
            )
        shared = {"state_sync": self.inner_broadcast_state}
        self.project = lift(PF.affine, self.hidden_dim, name="project")
        self.encoder = self._layer(
            lstm_cells([self.hidden_dim] * before),
            False,
            name="encoder",
            readout="add",
            return_states=self.broadcast_state,
            stateful=self.stateful,
            **shared,
        )
        self.context = lift(PF.affine, self.output_dim, name="context")
        cells = [LSTMDecoderCell(self.output_dim, self.hidden_dim, name=f"cell_{i}") for i in range(after)]
        readout = "add" if self.peek else "readout_only"
        self.decoder = self._decoder(cells, readout=readout, teacher_force=self.teacher_force, **shared)

    def arguments(self) -> dict[str, Any]:
        states = {"broadcast_state": self.broadcast_state, "inner_broadcast_state": self.inner_broadcast_state}
        return {**super().arguments(), **states, "peek": self.peek, "teacher_force": self.teacher_force}

    def _compute(self, x: nn.Variable, ground_truth: nn.Variable | None, training: bool) -> nn.Variable:
        projected, _ = run(self.project, x)
        made = self.encoder(projected, training=training)
        last, *states = made if self.broadcast_state else [made]
        context, _ = self.context(last, ())
        return self.decoder(
            context,
            initial_state=states[-2:] or None,
            initial_readout=context,
            ground_truth=ground_truth,
            training=training,
        )

    def _parts(self) -> list[RecurrentSequential | AbstractCell]:
        return [self.project, self.encoder, self.context, self.decoder]


class AttentionSeq2Seq(Seq2SeqModel):
    """A decoder that attends, at every step, to all outputs of an encoder; it starts from zeros.

    .. code-block:: text

        encoder: LSTM(H) as often as depth says, in both directions, which are added
        decoder: AttentionDecoderCell(O, H), then LSTMDecoderCell(H, H) two times less than depth says, and
            LSTMDecoderCell(O, H) where depth is 2 or more

    The encoder's cells are `nnshop.recurrentshop.LSTMCell`. With stateful, the forward encoder and the decoder go on from
    where they were; the backward one, which comes from the end of a sequence, starts anew.

    Args:
        output_dim (int): O, the size of one output.
        output_length (int): L, the number of outputs.
        bidirectional (bool): False leaves the backward encoder out.
        **options: `hidden_dim, depth, dropout, unroll, stateful, input_shape, batch_input_shape, batch_size, input_dim,
            input_length, name`, see `Seq2SeqModel`.

    Attributes:
        backward_encoder (RecurrentSequential): None without bidirectional.

    References:
        F. Rahman, https://github.com/farizrahman4u/seq2seq, by its equations; D. Bahdanau et al., Neural machine translation by
        jointly learning to align and translate, 2014.

    Example:
        >>> from nnshop.seq2seq import AttentionSeq2Seq
        >>> model = AttentionSeq2Seq(output_dim=5, output_length=6, hidden_dim=8, depth=2)
        >>> model(nn.Variable((2, 7, 3))).shape
        (2, 6, 5)
    """

    def __init__(self, output_dim: int, output_length: int, *, bidirectional: bool = True, **options: Any) -> None:
        self.bidirectional = bidirectional
        super().__init__(output_dim, output_length, **options)

    def _build(self) -> None:
        before, after = self.depth
        sizes, options = [self.hidden_dim] * before, {"return_sequences": True}
        self.encoder = self._layer(lstm_cells(sizes), False, name="encoder", stateful=self.stateful, **options)
        self.backward_encoder: RecurrentSequential | None = None
        if self.bidirectional:
            cells = lstm_cells(sizes)
            self.backward_encoder = self._layer(cells, False, name="backward_encoder", go_backwards=True, **options)
        self.decoder = self._decoder(self._decoder_cells(after), stateful=self.stateful)

    def _decoder_cells(self, depth: int) -> list[AbstractCell]:
        outputs = [self.output_dim] if depth == 1 else [self.output_dim, *[self.hidden_dim] * (depth - 2), self.output_dim]
        kinds = [AttentionDecoderCell, *[LSTMDecoderCell] * (depth - 1)]
        return [kind(size, self.hidden_dim, name=f"cell_{i}") for i, (kind, size) in enumerate(zip(kinds, outputs))]

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "bidirectional": self.bidirectional}

    def _compute(self, x: nn.Variable, ground_truth: nn.Variable | None, training: bool) -> nn.Variable:
        ys = self.encoder(x, training=training)
        if self.backward_encoder is not None:
            ys = ys + F.flip(self.backward_encoder(x, training=training), axes=[1])
        return self.decoder(ys, training=training)

    def _parts(self) -> list[RecurrentSequential | AbstractCell]:
        backward = [] if self.backward_encoder is None else [self.backward_encoder]
        return [self.encoder, *backward, self.decoder]


TABLE.update({kind.__name__: kind for kind in (SimpleSeq2Seq, Seq2Seq, AttentionSeq2Seq)})
