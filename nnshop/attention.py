"""Attention: a cell that looks, at each step, at all positions of a memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import nnabla as nn
import nnabla.functions as F

from .building import building
from .checks import check_given_sizes, check_variable
from .combinators import Passing, Wrapper, readout
from .core import AbstractCell, StateSpec, Tree, batch_size_of, check_cell, shapes
from .functions import faster, length_mask, reshape, where, without_padding
from .running.recurrence import Recurrence
from .scores import Score, find_score, weight


@building()
def attend(
    cell: AbstractCell,
    memory: nn.Variable,
    score: str | Score = "dot",
    *,
    units: int | None = None,
    lengths: Any = None,
    mask: nn.Variable | None = None,
    input_feeding: bool = True,
    alignments: bool = False,
    name: str = "attention",
) -> AbstractCell:
    """Lets a cell attend to a memory, such as the outputs of an encoder: its output is the query.

    .. code-block:: text

        y[t] = cell([x[t]; attention[t - 1]])                   attention[-1] = 0
        a[t] = softmax(score(y[t], memory))                     over the positions that count
        context[t] = sum over s of a[t, s] memory[s]
        attention[t] = tanh([y[t]; context[t]] W)               with units; else it is the context
        output[t] = attention[t]                                with units; else [y[t]; context[t]]

    The wrapper belongs to one graph, as the memory does: make it where the graph is built. What is computed of the memory
    alone is computed once, when `attend` is called.

    The cell's weights keep their names. Those of the attention are below the scope `name`: in the scope that is open when
    `attend` is called, those of the memory's side (`attention/memory/W`, ...: see the score), and in the one that is open in
    the step, as in a `stack`, those of the query's side, `attention/query/W`, and W, `attention/output/W (Q + M, units)`. So
    graphs that the same code builds share weights, and of two memories each needs a name of its own.

    Args:
        cell: Any cell whose output is one Variable `(B, Q)`.
        memory: `(B, S, M)`.
        score: "dot", "scaled_dot", "general", "concat", "normalized_concat" or "location", or a `nnshop.scores.Score`, which
            may be your own.
        units: The width of the attention.
        lengths: `(B,)`: row b of the memory counts up to `lengths[b]`. Numbers are checked; a Variable cannot be.
        mask: `(B, S)`, instead of lengths: 0 for padding. Its weight is exactly 0, and what it holds, NaN too, changes neither
            values nor gradients (in `portable()` it must be finite). Where all is padding, the context is 0.
        input_feeding: The last attention comes back with the input, by `readout`. Without it, the cell runs in its fastest
            form.
        alignments: The output is the pair `(output, a)`, with `a (B, S)`.
        name: The scope of the weights of the attention.

    Returns:
        A cell. Its state is the cell's, with the score "location" `(the cell's, the sum of all alignments (B, S))`; with input
        feeding `(that, last attention)`.

    Raises:
        ValueError: The memory is not `(B, S, M)`; lengths or a mask that do not fit it, or both; an unknown score; units below
            1; in the step, another batch size than the memory's, inputs or outputs that are not one Variable `(B, D)`.
        TypeError: The cell is no cell, or the memory or the mask no Variable.

    References:
        M.-T. Luong, H. Pham, C. Manning, Effective approaches to attention-based neural machine translation, 2015. Without
        units, what comes back is the context, as in TensorFlow Addons' `AttentionWrapper` with `attention_layer_size=None`.

    Example:
        >>> source, target = nn.Variable((4, 9, 6)), nn.Variable((4, 7, 3))
        >>> memory, encoded = nnshop.run(nnshop.GRUCell(8, name="encoder"), source, lengths=[9, 4, 1, 6])
        >>> cell = nnshop.attend(nnshop.GRUCell(8, name="decoder"), memory, "general", units=5, lengths=[9, 4, 1, 6])
        >>> ys, (state, attention) = nnshop.run(cell, target, (encoded, F.constant(0, (4, 5))))
        >>> ys.shape, state.shape, attention.shape
        ((4, 7, 5), (4, 8), (4, 5))
        >>> [name for name in nn.get_parameters() if "attention" in name]
        ['attention/query/W', 'attention/output/W']
    """
    check_cell(cell)
    check_given_sizes("attend", units=units)
    score = find_score(score)
    _check_memory(memory, mask)
    mask = _find_mask(memory, lengths, mask)
    memory = without_padding(mask, memory)
    with nn.parameter_scope(name):
        keys = score.prepare(memory)
    aligning = Aligning(memory.shape, keys, score, None if mask is None else _padding(mask), name)
    attending = Attending(cell, aligning, memory, units, alignments, name)
    if not input_feeding:
        return attending
    width = units or memory.shape[2]
    return readout(attending, (width,), merge=_beside, feed=partial(_attention_in, width=width))


def _check_memory(memory: nn.Variable, mask: nn.Variable | None) -> None:
    for name, v in {"memory": memory, **({} if mask is None else {"mask": mask})}.items():
        check_variable(f"attend: the {name}", v)
    if memory.ndim != 3:
        raise ValueError(f"attend needs a memory (B, S, M), such as all outputs of an encoder; got {memory.shape}.")


def _find_mask(memory: nn.Variable, lengths: Any, mask: nn.Variable | None) -> nn.Variable | None:
    if mask is not None and lengths is not None:
        raise ValueError("attend takes lengths or a mask, not both.")
    if lengths is not None:
        mask = length_mask(lengths, memory.shape[1])
    if mask is not None and mask.shape != memory.shape[:2]:
        raise ValueError(
            f"attend: the mask of a memory {memory.shape} must have the shape {memory.shape[:2]}; got {mask.shape}."
        )
    return mask


def _beside(x: Tree, last: nn.Variable) -> nn.Variable:
    """Merges input and last attention."""
    if not isinstance(x, nn.Variable) or x.ndim != 2:
        raise ValueError(
            f"attend: the last attention is put beside an input (B, D); got {shapes(x)}. Where the input is ids, embed them "
            "before: stack(lift(PF.embed, ...), attend(...)); or use input_feeding=False."
        )
    return F.concatenate(x, last, axis=1)


def _attention_in(output: Tree, width: int) -> nn.Variable:
    """Takes out of the output what comes back: without units it is the context, which stands behind y."""
    y = output[0] if isinstance(output, tuple) else output
    return y if y.shape[1] == width else y[:, -width:]


class _Padding(NamedTuple):
    """What keeps padding out of a softmax, also where there is nothing else; both are of NNabla's portable functions."""

    penalty: nn.Variable  # (B, S), added to the scores: 0, or a number whose exponential is 0
    valid: nn.Variable  # (B, S), by what the weights are multiplied: 1, or 0


def _padding(mask: nn.Variable) -> _Padding:
    lowest = -6e4 if "half" in nn.get_current_context().backend[0] else -1e30  # an infinity would make NaN of a row of padding
    zeros = F.constant(0, mask.shape)
    return _Padding(where(mask, zeros, F.constant(lowest, mask.shape)), where(mask, F.constant(1, mask.shape), zeros))


@dataclass(frozen=True, repr=False)
class Aligning(AbstractCell):
    """How much a query `(B, Q)` looks at each position, `(B, S)`; see `attend`. A score that cumulates needs a state."""

    shape: tuple[int, int, int]  # that of the memory
    keys: Tree
    score: Score
    padding: _Padding | None
    scope: str

    @property
    def state(self) -> Tree:
        return StateSpec(self.shape[1:2]) if self.score.cumulates else ()

    def step(self, x: nn.Variable, state: Tree) -> tuple[nn.Variable, Tree]:
        self._check_query(x, 2)
        batch, length, _ = self.shape
        past: list = [state] if self.score.cumulates else []
        with nn.parameter_scope(self.scope):
            scores = self.score(x, self.keys, *past)
        if scores.shape != (batch, length):
            raise ValueError(f"{self.score} must return scores (B, S), {(batch, length)}; it returned {scores.shape}.")
        weights = reshape(self._softmax(reshape(scores, (batch, 1, length))), (batch, length))
        return weights, state + weights if self.score.cumulates else ()

    def over(self, run: Recurrence) -> tuple[nn.Variable, Tree] | None:
        """All steps at once, where the score has that form. What a cell gave at masked steps is finite."""
        self._check_query(run.xs, 3)
        with nn.parameter_scope(self.scope):
            scores = None if self.score.cumulates else self.score.over(run.xs, self.keys)
        return None if scores is None else (self._softmax(scores), run.state)

    def _softmax(self, scores: nn.Variable) -> nn.Variable:
        """Of scores `(B, T, S)`, over what is no padding."""
        if self.padding is None:
            return F.softmax(scores, axis=2)
        penalty, valid = (_at_all(v, scores.shape[1]) for v in self.padding)
        return F.softmax(scores + penalty, axis=2) * valid

    def _check_query(self, query: Tree, ndim: int) -> None:
        if not isinstance(query, nn.Variable) or query.ndim != ndim:
            raise ValueError(f"attend needs a cell whose output is one Variable (B, Q), the query; it gives {shapes(query)}.")

    def __repr__(self) -> str:
        return f"{self.score} of a memory {self.shape}"


def _at_all(v: nn.Variable, steps: int) -> nn.Variable:
    """Repeats `(B, S)` as `(B, T, S)`: a product with it is faster than one with broadcasting."""
    one = reshape(v, (v.shape[0], 1, v.shape[1]))
    return one if steps == 1 else F.broadcast(one, (v.shape[0], steps, v.shape[1]))


@dataclass(frozen=True, repr=False)
class Attending(Passing, Wrapper):
    """A cell that looks at a memory; see `attend`."""

    cell: AbstractCell
    aligning: Aligning
    memory: nn.Variable  # (B, S, M), zeros at the padding
    units: int | None
    alignments: bool
    scope: str

    @property
    def state(self) -> Tree:
        return (self.cell.state, self.aligning.state) if self.aligning.score.cumulates else self.cell.state

    def pass_on(self, run: Callable, x: Tree, state: Tree) -> tuple[Tree, Tree]:
        """First the cell, then the alignments, then the rest, for one step or for all at once."""
        self._check_batch(batch_size_of(x, state))
        cumulates = self.aligning.score.cumulates
        inner, past = state if cumulates else (state, ())
        y, inner = run(self.cell, x, inner)
        weights, past = run(self.aligning, y, past)
        output = self._look(y, weights)
        return (output, weights) if self.alignments else output, (inner, past) if cumulates else inner

    def _look(self, y: nn.Variable, weights: nn.Variable) -> nn.Variable:
        """Computes the output of one step, `(B, ...)`, or of all, `(B, T, ...)`."""
        if y.ndim == 2:
            one = self._look(*(reshape(v, (v.shape[0], 1, v.shape[1])) for v in (y, weights)))
            return reshape(one, (one.shape[0], one.shape[2]))
        both = F.concatenate(y, F.batch_matmul(weights, self.memory), axis=2)
        if self.units is None:
            return both
        with nn.parameter_scope(self.scope):
            z = F.affine(both, weight("output/W", (both.shape[2], self.units)), base_axis=2)
        return F.tanh(z if y.shape[1] == 1 else faster(z))  # a step is of NNabla's functions

    def _check_batch(self, batch: int | None) -> None:
        if batch != self.memory.shape[0]:
            raise ValueError(
                f"attend: the memory {self.memory.shape} has a batch of {self.memory.shape[0]}, the step one of {batch}. "
                "Beam search keeps several hypotheses of each row: it needs nnshop.decoding.tile(memory, width)."
            )

    def __repr__(self) -> str:
        return f"Attending({self.cell}, {self.aligning})"
