"""What `scan` is given, with its taps: which entries of a sequence, or of an output's past, a step reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np

from ..checks import check_variable
from ..core import is_whole
from ..functions import unstack


def as_variable(value: Any, who: str) -> nn.Variable:
    """Makes a Variable of a number or an array; a Variable passes through.

    Raises:
        TypeError: It is none of these.
        ValueError: It is empty.
    """
    made = _made_variable(value, who)
    check_variable(who, made)
    return made


def _made_variable(value: Any, who: str) -> nn.Variable:
    if isinstance(value, nn.Variable):
        return value
    if isinstance(value, nn.NdArray):
        made = nn.Variable(value.shape)
        made.data = value
        return made
    try:
        array = np.asarray(value)
    except ValueError:  # lists of other lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{who} must be a Variable, an array or numbers; got {type(value).__name__}.")
    return nn.Variable.from_numpy_array(array.astype(np.float32))


def items(argument: Any) -> list:
    """The entries of an argument that may hold one or several: a tuple or a list holds several, a list of numbers is one.

    A list of a single number holds a number, as Theano reads it.
    """
    if argument is None:
        return []
    if isinstance(argument, list):
        several = not _is_array(argument) or (len(argument) == 1 and not isinstance(argument[0], list))
    else:
        several = isinstance(argument, tuple)
    return list(argument) if several else [argument]


def _is_array(entry: Any) -> bool:
    """Whether it is a number, or a list of lists of numbers."""
    if isinstance(entry, list):
        return bool(entry) and all(map(_is_array, entry))
    return isinstance(entry, (int, float, np.number))


def _fields(who: str, entry: Any, allowed: str) -> dict:
    """An entry as a dictionary with the key `allowed`, and perhaps "taps"."""
    if not isinstance(entry, dict):
        return {allowed: entry}
    unknown = [key for key in entry if key not in (allowed, "taps")]
    if unknown:
        raise ValueError(f"{who} is a dictionary with '{allowed}' and 'taps'; it has {', '.join(map(repr, unknown))} too.")
    return entry


def _taps(who: str, taps: Any, default: int) -> tuple[int, ...]:
    if taps is None:
        return (default,)
    found = tuple(taps) if isinstance(taps, Iterable) else (taps,)
    if not found or not all(map(is_whole, found)):
        raise ValueError(f"{who} needs taps that are whole numbers, such as [-1, 0]; got {taps!r}.")
    return tuple(map(int, found))


@dataclass(frozen=True)
class Sequence:
    """One sequence, and which entries a step reads: at step t tap k reads entry `t + k - low`.

    Args:
        name: What messages call it.
        value: `(L, ...)`, or `(B, L, ...)` with the time axis 1.
        taps: As they were written.
    """

    name: str
    value: nn.Variable
    taps: tuple[int, ...]
    time_axis: int = 0

    @classmethod
    def of(cls, number: int, entry: Any, time_axis: int) -> Sequence:
        name = f"sequence {number}"
        fields = _fields(name, entry, "input")
        if "input" not in fields:
            raise ValueError(f"{name} has taps, and no 'input'.")
        value = as_variable(fields["input"], name)
        if value.ndim <= time_axis:
            raise ValueError(f"{name} needs its time on axis {time_axis}; it has the shape {value.shape}.")
        return cls(name, value, _taps(name, fields.get("taps"), 0), time_axis)

    @property
    def length(self) -> int:
        return self.value.shape[self.time_axis]

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """The shape of what a tap reads."""
        shape, axis = self.value.shape, self.time_axis
        return shape[:axis] + shape[axis + 1 :]

    @property
    def low(self) -> int:
        return min(0, *self.taps)

    @property
    def steps(self) -> int:
        """For how many steps all taps are there; tap 0 counts, also where it is not read."""
        return self.length - max(0, *self.taps) + self.low

    def __str__(self) -> str:
        return f"{self.name} of {self.length} entries lasts {self.steps} steps with taps {list(self.taps)}"

    def columns(self, n_steps: int, backwards: bool) -> tuple[nn.Variable, ...]:
        """What each tap reads at each step, `(n_steps, ...)` or `(B, n_steps, ...)`."""
        first = self.steps - n_steps if backwards else 0
        return tuple(self._column(first + tap - self.low, n_steps, backwards) for tap in self.taps)

    def _column(self, start: int, n_steps: int, backwards: bool) -> nn.Variable:
        part = (slice(None),) * self.time_axis + (slice(start, start + n_steps),)
        column = self.value if n_steps == self.length else self.value[part]
        return F.flip(column, axes=[self.time_axis]) if backwards else column


@dataclass(frozen=True)
class Output:
    """One output, and which of its own past values a step reads: at step t tap k reads that of step t + k.

    Args:
        name: What messages call it.
        taps: As they were written; none where the output is not recurrent.
        start: Its last values before step 0, the oldest first.
    """

    name: str
    taps: tuple[int, ...] = ()
    start: tuple[nn.Variable, ...] = ()

    @classmethod
    def of(cls, number: int, entry: Any, time_axis: int) -> Output:
        name = f"output {number}"
        fields = _fields(name, entry, "initial")
        if fields.get("initial") is None:
            if fields.get("taps") is not None:
                raise ValueError(f"{name} has taps {fields['taps']}, and no 'initial' value for them to read first.")
            return cls(name)
        taps = _taps(name, fields.get("taps"), -1)
        if max(taps) >= 0:
            raise ValueError(f"{name} needs taps below 0, which read its past; got {list(taps)}.")
        if len(set(taps)) < len(taps):
            raise ValueError(f"{name} needs taps that differ; got {list(taps)}.")
        initial = as_variable(fields["initial"], f"the initial value of {name}")
        return cls(name, taps, (initial,) if taps == (-1,) else _first(name, initial, -min(taps), taps, time_axis))

    def read(self, window: tuple[nn.Variable, ...]) -> tuple[nn.Variable, ...]:
        """What the taps read of the last values."""
        return tuple(window[tap] for tap in self.taps)


def _first(name: str, initial: nn.Variable, past: int, taps: tuple[int, ...], time_axis: int) -> tuple[nn.Variable, ...]:
    if initial.ndim <= time_axis or initial.shape[time_axis] < past:
        raise ValueError(
            f"{name} with taps {list(taps)} needs an initial value of at least {past} entries on axis {time_axis}, "
            f"those of steps {-past} to -1; got the shape {initial.shape}."
        )
    return tuple(unstack(initial, axis=time_axis)[:past])


def number_of_steps(n_steps: int | None, sequences: list[Sequence]) -> int:
    """Finds how many steps there are: n_steps, or as many as the shortest sequence lasts.

    Raises:
        ValueError: There are none, or a sequence lasts less.
    """
    if n_steps is None:
        if not sequences:
            raise ValueError("scan needs sequences, or n_steps.")
        n_steps = min(sequence.steps for sequence in sequences)
        if n_steps < 1:
            empty = next(sequence for sequence in sequences if sequence.steps < 1)
            raise ValueError(f"scan needs at least one step; {empty}.")
    if not is_whole(n_steps) or n_steps < 1:
        raise ValueError(f"n_steps must be a whole number, 1 or more; got {n_steps!r}.")
    for sequence in sequences:
        if n_steps > sequence.steps:
            raise ValueError(f"n_steps={n_steps} is too long: {sequence}.")
    return int(n_steps)
