"""Where values lie: buffers of rows, which all programs of a step share, and places in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .nodes import View


class Place(NamedTuple):
    """A run of numbers in each row of a buffer.

    `rows` tells which row: "t", that of this time and sample; "b", that of this sample; "p" and "q", that of this sample in the
    first and the second of two halves, which change their roles at each step; "g", that of the group of neighbours that this
    row belongs to; "0", the only one.
    """

    buffer: int
    rows: str
    width: int
    offset: int = 0


class Buffer(NamedTuple):
    """What kind of rows a buffer has, and how many numbers a row holds.

    Kinds: `sequence`, T * B rows; `given`, such rows that come from outside; `spread`, the same at even distances from step to
    step and from row to row, which are known when a program runs; `state`, (T + 1) * B rows, of which `after` is
    the same memory one step later; `sample`, B rows; `wide`, one for each row of a program that does all times at once; `pair`,
    2 * B rows; `groups`, one for each group of the rows of a program over time, and `flat groups`, of one that does all times
    at once; `single`, one row for each thread; `closure` and `weight`, memory from outside.
    """

    kind: str
    width: int


_ROWS = {
    "t": ("sequence", "given", "spread", "state", "after"),
    "b": ("sample", "wide", "closure"),
    "p": ("pair",),
    "q": ("pair",),
    "g": ("groups", "flat groups"),
    "0": ("single", "closure", "weight"),
}


class Buffers:
    """The table of buffers. A buffer may lie within another one, in the place of numbers that nobody needs any more."""

    def __init__(self) -> None:
        self.all: list[Buffer] = []
        self.inside: dict[int, Place] = {}

    def new(self, kind: str, width: int, rows: str) -> Place:
        self.all.append(Buffer(kind, width))
        return Place(len(self.all) - 1, rows, width)

    def is_spread(self, place: Place) -> bool:
        return self.all[place.buffer].kind == "spread"

    def widen(self, places: Iterable[Place]) -> None:
        """Lets a program that does all times at once add to these places."""
        for place in places:
            self.all[place.buffer] = Buffer("flat groups", place.width)

    def resolve(self, place: Place) -> Place:
        """The place in the memory that there is."""
        while place.buffer in self.inside:
            outer = self.inside[place.buffer]
            place = Place(outer.buffer, place.rows, outer.width, outer.offset + place.offset)
        return place

    def check(self, place: Place, view: View) -> Place:
        """The resolved place, after making sure that what is read or written there lies within the rows of the buffer."""
        place = self.resolve(place)
        buffer = self.all[place.buffer]
        ends = [(n - 1) * stride for n, stride in zip(view.shape, view.strides)]
        first = place.offset + view.offset + sum(min(end, 0) for end in ends)
        last = place.offset + view.offset + sum(max(end, 0) for end in ends)
        if buffer.kind not in _ROWS[place.rows] or place.width != buffer.width or first < 0 or last >= buffer.width:
            raise AssertionError(f"a program would leave its memory: {view} at {place} in {buffer}")
        return place
