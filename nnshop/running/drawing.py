"""Random numbers that are drawn once for each step, and can be given again."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np

from ..kernels import why_not_arrays
from ..kernels.array_function import ArrayFunction, Shape, Variables, check_shapes


class Drawing(ArrayFunction):
    """A function that draws random numbers.

    Attributes:
        drawn: What its last forward drew.
        replaying (bool): Whether its forward is to give `drawn` again.
        nested (bool): Whether a loop runs it at each step. A loop sets `drawn` to None before its first step.
        random (bool): Whether it draws indeed.
        written: Which inputs its forward writes to.
    """

    random: bool = True
    written: Sequence[int] = ()

    def __init__(self) -> None:
        super().__init__()
        self.drawn: Any = None
        self.replaying = self.nested = False

    def __call__(self, *inputs: nn.Variable, **options: Any) -> Any:
        """Applies it. NNabla does not clear its outputs: under `nn.recompute` it would compute others in their place."""
        made = super().__call__(*inputs, **options)
        if self.random or self.written:
            for v in made if isinstance(made, tuple) else [made]:
                v.recompute, v.persistent = False, True
        return made


class Draw(Drawing):
    """The output of a random function of NNabla.

    Args:
        source: A Variable that the random function computes, without other inputs than `given`.
        given: Stands for the inputs of this function.
        seeded: The random function has a seed of its own. Then, as in the unrolled graph, where each step has such a function,
            all steps draw the same.
    """

    def __init__(self, source: nn.Variable, given: Sequence[nn.Variable] = (), seeded: bool = False) -> None:
        super().__init__()
        self.source, self.given, self.seeded = source, list(given), seeded
        self.output: nn.Variable | None = None

    def output_shapes(self, *given: Shape) -> Sequence[Shape]:
        if self.given:
            check_shapes(self.name, {f"input {i}": v.shape for i, v in enumerate(self.given)}, given)
        return [self.source.shape]

    def compute(self, inputs: Variables, outputs: Variables) -> None:
        if not self.replaying and (self.drawn is None or not self.seeded):
            for variable, value in zip(self.given, inputs):
                variable.data = value.data
            self.drawn = self._draw()
        self._give(outputs[0].data)

    def compute_gradients(self, inputs: Variables, outputs: Variables, propagate_down: list[bool], accum: list[bool]) -> None:
        """Does nothing: the output of a draw needs no gradient."""

    def pack(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers that it drew, in the form in which they are kept."""
        return numbers

    def unpack(self, packed: np.ndarray, shape: Shape) -> np.ndarray:
        return packed

    def _draw(self) -> Any:
        self.source.data = nn.NdArray(self.source.shape)
        self.source.forward()
        return self.source.data

    def _give(self, output: nn.NdArray) -> None:
        output.copy_from(self.drawn, use_current_context=False)


class DrawBits(Draw):
    """A mask, 0 or a scale, kept in NumPy as one bit for each number."""

    def __init__(self, source: nn.Variable, seeded: bool, scale: float) -> None:
        super().__init__(source, seeded=seeded)
        self.scale = np.float32(scale)

    def pack(self, numbers: np.ndarray) -> np.ndarray:
        return np.packbits(numbers != 0)

    def unpack(self, packed: np.ndarray, shape: Shape) -> np.ndarray:
        return np.unpackbits(packed, count=prod(shape)).reshape(shape) * self.scale

    def _draw(self) -> np.ndarray:
        return self.pack(super()._draw().data)

    def _give(self, output: nn.NdArray) -> None:
        output.cast(np.float32)[...] = self.unpack(self.drawn, output.shape)


def _draw_mask(shape: tuple[int, ...], p: float, seed: int) -> Draw:
    """Dropout's mask; on a device it stays there as it is."""
    ones = nn.Variable(shape)
    ones.data.fill(1)
    source, seeded = F.dropout(ones, p, seed), seed != -1
    return Draw(source, seeded=seeded) if why_not_arrays() else DrawBits(source, seeded, 1 / (1 - p))


def is_random(function: Any) -> bool:
    """Whether it is one of NNabla's random functions."""
    return "seed" in function.info.args


def why_not_drawn(function: Any) -> str:
    """Tells why what a function draws cannot be given again; empty where it can, or where it draws nothing."""
    if not is_random(function) or not function.inputs or function.info.type_name in ("Dropout", "RandomChoice"):
        return ""
    return "it draws anew when it is computed again for its gradient"


def draw(function: Any, inputs: Sequence[nn.Variable]) -> tuple[nn.Variable, Draw]:
    """Applies a random function of NNabla's again, in two parts: what draws, and what has the gradient.

    Args:
        function: A function of a graph.
        inputs: Stand for its inputs.

    Returns:
        The output, and what draws.
    """
    kind, arguments = function.info.type_name, function.info.args
    if kind == "Dropout":
        mask = _draw_mask(inputs[0].shape, arguments["p"], arguments["seed"])
        return inputs[0] * _drawn(mask), mask
    if kind == "RandomChoice":
        return _draw_choice(*inputs, **arguments)
    source = Draw(function.outputs[0], seeded=arguments["seed"] != -1)
    return _drawn(source), source


def _draw_choice(x: nn.Variable, w: nn.Variable, shape: Any, replace: bool, seed: int) -> tuple[nn.Variable, Draw]:
    """Draws the places of what is chosen. NNabla gives to the weights there the same gradient as to the values."""
    places = nn.Variable.from_numpy_array(np.broadcast_to(np.arange(x.shape[-1]), x.shape))
    weights = nn.Variable(w.shape)
    chosen = Draw(F.random_choice(places, weights, shape, replace, seed), [weights], seed != -1)
    at = _drawn(chosen, w)
    value, weight = (F.gather(v, at, axis=x.ndim - 1, batch_dims=x.ndim - 1) for v in (x, w))
    return value + (weight - weight.get_unlinked_variable(need_grad=False)), chosen


def _drawn(draw: Draw, *inputs: nn.Variable) -> nn.Variable:
    output = draw(*(inputs or [nn.Variable(())]))  # NNabla's Python functions need an input
    output.need_grad = False
    draw.output = output
    return output
