"""The random numbers of many steps: those that the unrolled graph draws one step after the other, by fewer calls."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby
from typing import Any

import nnabla as nn
import nnabla.function
import numpy as np

from .drawing import Draw

AT_ONCE = 2**16  # numbers that one call draws, about as many as the cache holds
# One call of these draws what several calls would: each number takes what it needs from NNabla's generator, and no more.
_PLAIN = ("Dropout", "Rand", "Randint")


class Draws:
    """What draws random numbers in a step, without inputs.

    All that have no seed take their numbers from one generator: the first step draws all of its own, then the second.
    Neighbours of the same settings, such as dropout by the same share, draw by one call; where all are, for many steps.

    Args:
        draws: In the order in which they draw.
        reverse: The last step draws first.
    """

    def __init__(self, draws: Sequence[Draw], reverse: bool = False) -> None:
        self.all, self._order = list(draws), slice(None, None, -1 if reverse else 1)
        self.seeded = [draw for draw in draws if draw.seeded]
        self._runs = [tuple(run) for _, run in groupby((draw for draw in draws if not draw.seeded), _settings)]
        joined = len(self._runs) == 1 and _settings(self._runs[0][0]) != self._runs[0][0]
        self._steps = max(1, AT_ONCE // _size(self._runs[0])) if joined else 1  # that one call draws for
        self._sources: dict[tuple[Draw, int], nn.Variable] = {}

    def draw(self, steps: int) -> dict[Draw, np.ndarray]:
        """Draws for so many steps, `(steps, ...)`; what has a seed does not."""
        made = {draw: np.empty((steps, *draw.source.shape), np.float32) for run in self._runs for draw in run}
        start = 0
        while made and start < steps:
            count = 1 << min(self._steps, steps - start).bit_length() - 1  # powers of 2: few sources, whatever the lengths are
            for run in self._runs:
                for draw, numbers in self._draw(run, count):
                    made[draw][self._order][start : start + count] = numbers
            start += count
        return made

    def draw_seeded(self) -> dict[Draw, np.ndarray]:
        """Draws what is the same at all steps, `(1, ...)`."""
        return {draw: numbers.copy() for each in self.seeded for draw, numbers in self._draw((each,), 1)}

    def _draw(self, run: tuple[Draw, ...], steps: int) -> Iterator[tuple[Draw, np.ndarray]]:
        """Draws by one call; the numbers are there until the next one."""
        key = run[0], steps
        if key not in self._sources:
            self._sources[key] = _source(run[0].source.parent, steps * _size(run))
        source, start = self._sources[key], 0
        source.forward()
        numbers = source.data.get_data("r").reshape(steps, -1)
        for draw in run:
            stop = start + draw.source.size
            yield draw, numbers[:, start:stop].reshape(steps, *draw.source.shape)
            start = stop


class Drawn:
    """The random numbers of one pass over a sequence, given as often as they are asked for. Masks are kept as bits.

    Args:
        draws: What draws.
        before: Another pass, which has drawn what has a seed.
    """

    def __init__(self, draws: Draws, before: Drawn | None = None) -> None:
        self._draws = draws
        self._seeded: dict[Draw, np.ndarray] = draws.draw_seeded() if before is None else before._seeded
        self._parts: dict[range, dict[Draw, Any]] = {}

    def of(self, part: range) -> list[np.ndarray]:
        """The numbers of these steps for each draw, `(steps, ...)`. Parts draw in the order in which they are asked for."""
        if part in self._parts:
            made = {draw: draw.unpack(packed, (len(part), *draw.source.shape)) for draw, packed in self._parts[part].items()}
        else:
            made = self._draws.draw(len(part))
            self._parts[part] = {draw: draw.pack(numbers) for draw, numbers in made.items()}
        return self._with_seeded(made, len(part))

    def next(self) -> list[np.ndarray]:
        """The numbers of one more step, which are not kept."""
        return [numbers[0] for numbers in self._with_seeded(self._draws.draw(1), 1)]

    def _with_seeded(self, made: dict[Draw, np.ndarray], steps: int) -> list[np.ndarray]:
        made.update((draw, np.repeat(numbers, steps, axis=0)) for draw, numbers in self._seeded.items())
        return [made[draw] for draw in self._draws.all]


def _size(run: Sequence[Draw]) -> int:
    return sum(draw.source.size for draw in run)


def _settings(draw: Draw) -> Hashable:
    """Equal for what may draw by one call; that is the draw itself where no call may draw more.

    What draws from a normal distribution makes two numbers at a time, and drops the second one at the end of a call.
    """
    function = draw.source.parent
    kind, arguments = function.info.type_name, function.info.args
    if kind in _PLAIN or (kind == "Randn" and draw.source.size % 2 == 0):
        return kind, *(pair for pair in arguments.items() if pair[0] != "shape")
    return draw


def _source(function: Any, size: int) -> nn.Variable:
    """What draws so many numbers as a random function does."""
    arguments, given = dict(function.info.args), [nn.Variable((size,)) for _ in function.inputs]
    for ones in given:  # dropout's, which give its mask
        ones.data.fill(1)
    if "shape" in arguments:
        arguments["shape"] = (size,)
    make = getattr(nnabla.function, function.info.type_name)(function.context, **arguments)
    return make(*given, n_outputs=1, auto_forward=False)
