"""From one sequence of ids to another: any cells, attention, a loss to train with, and text to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
from nnabla.initializer import ConstantInitializer, NormalInitializer, UniformInitializer, calc_uniform_lim_glorot
from nnabla.parameter import get_parameter_or_create

from .. import decoding
from ..archive import check_numbers, damage_named, read_archive, write_archive
from ..attention import attend
from ..building import building
from ..checks import check_count
from ..combinators import Delegate, lift, stack, teacher_forced
from ..context import in_float32
from ..core import AbstractCell, StateSpec, Tree, tree_leaves, tree_like, tree_map
from ..decoding import Decoded, decode
from ..functions import length_mask, linear_cross_entropy, reshape, sequence_loss, shift
from ..ids import checked_ids
from ..layers import bidirectional
from ..parameters import check_weights, join, no_new_parameters, put_parameters
from ..recurrentshop import config
from ..running import run
from ..scores import SCORES, Score
from .checks import check_batch, check_settings, source_ids

METHODS: dict[str, Callable[..., Decoded]] = {
    "greedy": decoding.greedy,
    "sample": decoding.sample,
    "beam": decoding.beam_search,
}
KIND = "encoder-decoder"


@dataclass(frozen=True, repr=False)
class Started(Delegate):
    """A cell whose state begins with given Variables."""

    cell: AbstractCell
    start: Tree

    @property
    def state(self) -> Tree:
        return tree_map(lambda spec, v: StateSpec(spec.shape, lambda _: v), self.cell.state, self.start)


@dataclass(frozen=True)
class EncoderDecoder:
    """A network that reads a sequence of ids and writes another one.

    It holds settings, as a cell does: weights are found by name below the scope `name`, so the graphs of training and of
    generating share them, with no inputs that only one of them needs.

    Args:
        source_size, target_size: How many ids there are on each side; the target's include `start` and `end`.
        start, end: The ids that a target begins with and ends with; targets are given without them.
        encoder: The cell of the encoder, or several, one for each layer.
        decoder: The cell of the decoder, any; `stack` makes it deep.
        width: Of the embeddings.
        bidirectional: Each layer of the encoder runs in both directions, whose outputs stand side by side.
        attention: How the decoder looks at what the encoder said of each step, a score of `nnshop.attend`; None: not at all.
        input_feeding: With attention, the decoder also sees what it last attended to. Without it, training is much faster: all
            its steps are computed at once.
        attention_width: Of what the decoder says with attention, see `units` of `nnshop.attend`.
        bridge: How the decoder's state begins: "dense", by one layer each of all final states of the encoder; "copy", by these
            states, those of both directions side by side, which must have the decoder's shapes; None, as the cell says.
        shared: Both sides have one embedding.
        tied: The output layer uses the target's embedding.
        dropout: Of the embeddings and of what goes into each layer and the output layer, in training.
        name: The scope of the weights.

    Raises:
        ValueError: The settings do not fit each other.

    References:
        I. Sutskever et al., Sequence to sequence learning with neural networks, 2014; D. Bahdanau et al., Neural machine
        translation by jointly learning to align and translate, 2015; T. Luong et al., Effective approaches to attention-based
        neural machine translation, 2015.

    Example:
        >>> model = EncoderDecoder(20, 12, start=10, end=11, encoder=nnshop.GRUCell(8), decoder=nnshop.LSTMCell(8))
        >>> source, target = nn.Variable((4, 7)), nn.Variable((4, 5))
        >>> model.loss(source, target, source_lengths=[7, 6, 2, 1], target_lengths=[5, 5, 1, 0]).shape
        ()
        >>> said = model.generate([[3, 1, 4], [1, 5]], max_length=6)
        >>> len(said.ids), said.alignments.shape[2]
        (2, 3)
    """

    source_size: int
    target_size: int
    start: int
    end: int
    encoder: AbstractCell | Sequence[AbstractCell]
    decoder: AbstractCell
    width: int = 128
    bidirectional: bool = True
    attention: str | Score | None = "general"
    attention_width: int | None = None
    input_feeding: bool = False
    bridge: str | None = "dense"
    shared: bool = False
    tied: bool = False
    dropout: float = 0.0
    name: str = "encoder_decoder"

    def __post_init__(self) -> None:
        if isinstance(self.encoder, list):
            object.__setattr__(self, "encoder", tuple(self.encoder))
        check_settings(self)

    @property
    def layers(self) -> tuple[AbstractCell, ...]:
        """The cells of the encoder."""
        return self.encoder if isinstance(self.encoder, tuple) else (self.encoder,)

    # ------------------------------------------------------------------------------------------------------------- training

    @building()
    def loss(
        self,
        source: nn.Variable,
        target: nn.Variable,
        source_lengths: Any = None,
        target_lengths: Any = None,
        *,
        training: bool = True,
        sampling_probability: nn.Variable | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> nn.Variable:
        """Builds the graph of the cross entropy of targets, in nats; each target ends with the end token, which counts too.

        Args:
            source, target: Ids `(B, S)` and `(B, T)`, without start and end tokens. What is beyond the lengths may be anything.
                On the CPU those within are checked when the graph runs; on a device, and in `portable()`, they are not, and
                NNabla reads foreign memory.
            source_lengths, target_lengths: `(B,)`, numbers or a Variable; by default all of S and T.
            training: Whether dropout acts.
            sampling_probability: A Variable `(1,)` that training may change: so often, for each sample and step, the decoder
                sees its own best guess in place of the target (scheduled sampling, S. Bengio et al. 2015).
            label_smoothing, reduction: As in `nnshop.sequence_loss`.

        Returns:
            A scalar `()`, `(B,)` for "time_mean", or `(B, T + 1)` for "none".

        Raises:
            ValueError: Shapes that do not fit, lengths out of range, or settings that do not.
            SystemError: When it runs, by NNabla, with a ValueError as its cause: a number within the lengths that is no id.
        """
        check_batch(source, target, source_lengths, target_lengths)
        with in_float32():  # ids
            fed, wanted, counts = self._targets(target, target_lengths)
        options: dict[str, Any] = {"weights": counts, "label_smoothing": label_smoothing, "reduction": reduction}
        with nn.parameter_scope(self.name):
            memory, start = self._encode(source, source_lengths, training)
            decoder = self._decoder(memory, source_lengths, start, training)
            if sampling_probability is not None:
                spoken = teacher_forced(decode(self._with_output(decoder), self.start), sampling_probability)
                logits, _ = run(spoken, (None, wanted))
                return sequence_loss(logits, wanted, **options)
            h, _ = run(stack(*decoder), fed)
            return linear_cross_entropy(h, *self._output_weights(h.shape[-1]), wanted, transpose=self.tied, **options)

    def _targets(self, target: nn.Variable, lengths: Any) -> tuple[nn.Variable, nn.Variable, nn.Variable | None]:
        """What the decoder is fed, what it is to say, and which steps count: `(B, T + 1)` each."""
        batch, steps = target.shape
        counts = None
        if lengths is not None:
            within = length_mask(lengths, steps)  # checks them
            target = F.where(within, target, F.constant(self.end, target.shape))
            counts = F.concatenate(F.constant(1, (batch, 1)), within, axis=1)
        target = checked_ids(target, self.target_size, "the target: an id")
        said = F.concatenate(target, F.constant(self.end, (batch, 1)), axis=1)
        return shift(said, F.constant(self.start, (batch,))), said, counts

    # --------------------------------------------------------------------------------------------------------------- the net

    def _embedding(self, side: str) -> AbstractCell:
        size = {"source": self.source_size, "target": self.target_size}[side]
        init = NormalInitializer(self.width**-0.5)
        return lift(PF.embed, size, self.width, name="embedding" if self.shared else side, initializer=init)

    def _drop(self, training: bool) -> list[AbstractCell]:
        return [lift(F.dropout, self.dropout)] if training and self.dropout else []

    def _encode(self, source: nn.Variable, lengths: Any, training: bool) -> tuple[nn.Variable, Tree]:
        """What the encoder says of each step `(B, S, M)`, and the state that the decoder starts from, if any."""
        if lengths is not None:
            with in_float32():  # ids
                source = F.where(length_mask(lengths, source.shape[1]), source, F.constant(0, source.shape))
        drop = self._drop(training)
        x, _ = run(stack(self._embedding("source"), *drop), source)
        states: list[nn.Variable] = []
        for i, cell in enumerate(self.layers):
            with nn.parameter_scope(f"encoder/{i}"):
                x, after = self._layer(cell, x, lengths)
            states += after
            if drop:
                x, _ = run(stack(*drop), x)
        return x, self._bridged(states)

    def _layer(self, cell: AbstractCell, x: nn.Variable, lengths: Any) -> tuple[nn.Variable, list[nn.Variable]]:
        """A layer's outputs, and its final states, those of both directions side by side."""
        if not self.bidirectional:
            x, after = run(cell, x, lengths=lengths)
            return x, tree_leaves(after)
        x, both = bidirectional(x, cell, return_state=True, lengths=lengths)
        return x, [F.concatenate(*pair, axis=1) for pair in zip(*map(tree_leaves, both))]

    def _bridged(self, states: list[nn.Variable]) -> Tree:
        if self.bridge is None:
            return None
        specs = tree_leaves(self.decoder.state)
        if self.bridge == "copy":
            found, wanted = [v.shape[1:] for v in states], [spec.shape for spec in specs]
            if found != wanted:
                sides = ", both directions side by side" if self.bidirectional else ""
                raise ValueError(
                    f"bridge='copy' needs final states of the encoder of the shapes of the decoder's, {wanted}; they are "
                    f"{found}{sides}. Use bridge='dense'."
                )
            return tree_like(self.decoder.state, states)
        flat = [reshape(v, (v.shape[0], -1)) for v in states]
        joined = flat[0] if len(flat) == 1 else F.concatenate(*flat, axis=1)
        made = [F.tanh(PF.affine(joined, spec.shape, name=f"bridge/{i}")) for i, spec in enumerate(specs)]
        return tree_like(self.decoder.state, made)

    def _decoder(
        self, memory: nn.Variable, lengths: Any, start: Tree, training: bool, alignments: bool = False
    ) -> list[AbstractCell]:
        """Cells from ids `(B,)` to what the output layer takes, `(B, N)`; with alignments to a pair."""
        cell = self.decoder if start is None else Started(self.decoder, start)
        if self.attention is not None:
            with nn.parameter_scope("decoder"):
                options: dict[str, Any] = {"units": self.attention_width, "input_feeding": self.input_feeding}
                cell = attend(cell, memory, self.attention, lengths=lengths, alignments=alignments, **options)
        drop = self._drop(training)
        return [self._embedding("target"), *drop, stack(cell, name="decoder"), *drop]

    def _output_weights(self, width: int) -> tuple[nn.Variable, nn.Variable]:
        bias = get_parameter_or_create("output/b", (self.target_size,), ConstantInitializer(0))
        if not self.tied:
            init = UniformInitializer(calc_uniform_lim_glorot(width, self.target_size))
            return get_parameter_or_create("output/W", (width, self.target_size), init), bias
        if width != self.width:
            raise ValueError(
                f"tied=True needs a decoder whose output has the embeddings' width {self.width}; it has {width}. "
                "With attention set attention_width."
            )
        name = self._embedding("target").name
        return get_parameter_or_create(f"{name}/embed/W", (self.target_size, self.width)), bias

    def _with_output(self, decoder: list[AbstractCell]) -> AbstractCell:
        """From ids to logits `(B, V)`, beside the alignments where there are some."""
        scope = nn.parameter.get_current_parameter_scope()

        def say(h: Tree) -> Tree:
            h, *alignments = h if isinstance(h, tuple) else (h,)
            with nn.parameter_scope("", scope=scope):
                weight, bias = self._output_weights(h.shape[1])
            logits = F.affine(h, F.transpose(weight, (1, 0)) if self.tied else weight, bias)
            return (logits, *alignments) if alignments else logits

        return stack(*decoder, lift(say, rowwise=True))

    # ----------------------------------------------------------------------------------------------------------- generating

    @building()
    def generate(
        self,
        source: Any,
        lengths: Any = None,
        method: str = "greedy",
        max_length: int | None = None,
        **options: Any,
    ) -> Decoded:
        """Writes what the network says to each source.

        Args:
            source: Ids `(B, S)`, or a list of lists of ids, which may differ in length.
            lengths: `(B,)`, where the source is an array; by default all of S.
            method: "greedy", "sample" or "beam", see `nnshop.decoding`.
            max_length: At most so many ids; 2 S + 10 by default.
            **options: Those of `nnshop.decoding.greedy`, `sample` or `beam_search`, such as `width=5`.

        Returns:
            A `nnshop.decoding.Decoded`: ids, lengths, scores, and with attention alignments, all arrays of NumPy.

        Raises:
            ValueError: Ids that are not the source's, lengths out of range, an unknown method, or bad options; also where the
                network has no weights yet.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
        ids, lengths = source_ids(source, lengths, self.source_size)
        max_length = 2 * ids.shape[1] + 10 if max_length is None else max_length
        rows = options.setdefault("width", 5) if method == "beam" else 1
        check_count("width", rows)
        self._weights()
        with nn.auto_forward(False), nn.no_grad(), no_new_parameters(), nn.parameter_scope(self.name):
            encoded = self._encode(nn.Variable.from_numpy_array(ids), lengths, training=False)
            memory, start = tree_map(lambda v: decoding.tile(v, rows), encoded)
            decoder = self._decoder(memory, np.repeat(lengths, rows), start, False, self.attention is not None)
            limits = {"end": self.end, "max_length": max_length, "batch_size": len(ids)}
            return METHODS[method](self._with_output(decoder), self.start, **limits, **options)

    # --------------------------------------------------------------------------------------------------------- save and load

    def save(self, path: str | Path, custom_objects: Mapping[str, Any] | None = None) -> None:
        """Writes settings and weights to one file, an `.npz` of arrays and JSON, atomically.

        Args:
            path: The file.
            custom_objects: Your own cells, functions and scores, by the names to give them; a `Cell` as a whole, not what it
                is made of.

        Raises:
            ValueError: The network has no weights yet, there are others in its scope, or it holds what cannot be described as
                data: a lambda, a cell of yours.
        """
        settings = {field.name: config.encode(getattr(self, field.name), custom_objects) for field in fields(self)}
        weights = {name: v.d for name, v in self._weights().items()}
        self._check_weights(weights)
        write_archive(path, KIND, {"settings": settings}, weights)

    def _check_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Raises unless a network with these settings has just these weights; what `save` wrote, `load` takes."""
        check_numbers(weights)
        count = sum(array.size for array in weights.values())
        sizes = [math.prod(spec.shape) for cell in (*self.layers, self.decoder) for spec in tree_leaves(cell.state)]
        if max(sizes, default=0) > count:  # before they are made
            raise ValueError(f"a state of {max(sizes)} numbers is beyond a network of {count} weights")
        try:
            shapes = {join(self.name.strip("/"), name): array.shape for name, array in weights.items()}
            check_weights(shapes, lambda: self.loss(nn.Variable((1, 1)), nn.Variable((1, 1)), training=False))
        except ValueError as error:
            raise ValueError(f"the settings of {self.name} do not fit its weights: {error}") from error

    def _weights(self) -> dict[str, nn.Variable]:
        with nn.parameter_scope(self.name):
            weights = nn.get_parameters(grad_only=False)
        if not weights:
            raise ValueError(
                f"{self.name} has no weights here: build its loss, load it, or open the scope that it was made in."
            )
        return weights

    @classmethod
    @building()
    def load(cls, path: str | Path, custom_objects: Mapping[str, Any] | None = None) -> EncoderDecoder:
        """Reads what `save` wrote: makes the network again, and its weights in the scope of its name, below the open one.

        Args:
            path: The file.
            custom_objects: As in `save`.

        Raises:
            nnshop.archive.ArchiveError: The file is missing, damaged, none of these, names what is not known, or its settings
                do not fit its weights. Nothing is changed then.
            ValueError: There are weights of another network under that name.
        """
        path = Path(path)
        meta, weights = read_archive(path, KIND)
        with damage_named(path, KIND):
            model = cls(**{name: config.decode(value, custom_objects) for name, value in meta["settings"].items()})
            model._check_weights(weights)
            with nn.parameter_scope(model.name):
                present = {name: v.shape for name, v in nn.get_parameters(grad_only=False).items()}
        if present and present != {name: value.shape for name, value in weights.items()}:
            raise ValueError(
                f"{path}: is of {model.name}, and there are weights of another network under that name. Load it within a "
                "nn.parameter_scope of its own."
            )
        with damage_named(path, KIND), nn.parameter_scope(model.name):
            put_parameters(weights)
        return model


config.TABLE.update({f"nnshop.{kind.__name__}": kind for kind in map(type, SCORES.values())})
