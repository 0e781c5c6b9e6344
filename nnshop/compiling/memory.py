"""The buffers that the programs of a plan work on."""

from __future__ import annotations

import numpy as np

from . import pool
from .machine import Function
from .nodes import View
from .places import Place
from .plan import Plan, Program
from .products import address, refuse_other_structures
from .sharing import cuts, group_of, share


class Memory:
    """The buffers of a plan, for so many steps of so many rows.

    Args:
        plan: Tells what there is.
        length, batch: T and B.
        reverse: Whether time runs backwards, so that a state lies before the one that it was made of.

    Attributes:
        table: The addresses, as programs take them; then how many numbers steps are apart in each buffer; then rows.
    """

    def __init__(self, plan: Plan, length: int, batch: int, reverse: bool) -> None:
        refuse_other_structures()
        self.plan, self.length, self.batch, self.reverse = plan, length, batch, reverse
        self._arrays: dict[int, np.ndarray] = {}
        self._copies: dict[int, np.ndarray] = {}  # of what is given in another order
        self._single: list[list[np.ndarray]] = []  # what further threads have for themselves
        widths = np.array([width for _, width in plan.buffers.all], np.int64)
        self.table = np.concatenate([0 * widths, batch * widths, widths])
        self._rows = {
            "sequence": length * batch,
            "given": length * batch,
            "spread": length * batch,
            "state": (length + 1) * batch,
            "sample": batch,
            "wide": length * batch,
            "pair": 2 * batch,
            "groups": -(-batch // group_of(batch, flat=False)),
            "flat groups": -(-length * batch // group_of(length * batch, flat=True)),
            "single": 1,
        }
        self._allocate()
        self._address = address(self.table)
        before, after = [place.buffer for place in plan.before], [place.buffer for place in plan.after]
        self._turning = [*before, *after], [*after, *before]

    def _allocate(self) -> None:
        """Makes the buffers that lie in no other one, and are not outside."""
        for i, (kind, width) in enumerate(self.plan.buffers.all):
            if kind == "after":  # the state before, one step later; together they are one buffer
                whole = self._arrays[i - 1]
                earlier, later = whole[: -self.batch], whole[self.batch :]
                self.bind(i - 1, later if self.reverse else earlier)
                self.bind(i, earlier if self.reverse else later)
            elif kind in self._rows and kind not in ("given", "spread") and i not in self.plan.buffers.inside:
                self.bind(i, np.empty((self._rows[kind], width), np.float32))

    def bind(self, buffer: int, array: np.ndarray) -> None:
        """Lets a buffer be an array: contiguous float32 numbers, as many as the buffer has."""
        if self._arrays.get(buffer) is array:
            return
        kind, width = self.plan.buffers.all[buffer]
        rows = self._rows.get("state" if kind == "after" else kind, 1) - (self.batch if kind in ("state", "after") else 0)
        if array.dtype != np.float32 or not array.flags.c_contiguous or array.size < (0 if kind == "state" else rows) * width:
            raise AssertionError(f"a buffer of {rows} rows of {width} cannot be an array of the shape {array.shape}.")
        self._arrays[buffer] = array
        self.table[buffer] = address(array)

    def give(self, place: Place, array: np.ndarray) -> None:
        """Lets the rows of a sequence be those of an array `(T, B, n)`, or else copies of them."""
        buffer, (kind, width) = place.buffer, self.plan.buffers.all[place.buffer]
        shape, apart = (self.length, self.batch, width), [self.batch * width, width]
        if kind == "spread" and array.shape == shape and array.strides[2] == 4:
            self._arrays[buffer], apart = array, [stride // 4 for stride in array.strides[:2]]
        else:
            if not array.flags.c_contiguous:
                array = self._copy(buffer, array)
            self.bind(buffer, array)
        self.table[buffer :: len(self.plan.buffers.all)] = [array.ctypes.data, *apart]

    def _copy(self, buffer: int, array: np.ndarray) -> np.ndarray:
        if buffer not in self._copies:
            self._copies[buffer] = np.empty(array.shape, np.float32)
        self._copies[buffer][...] = array
        return self._copies[buffer]

    def rows(self, place: Place) -> np.ndarray:
        """The numbers of a place in all rows, `(rows, n)`."""
        size = place.width - place.offset
        place = self.plan.buffers.resolve(place)
        return self._arrays[place.buffer].reshape(-1, place.width)[:, place.offset : place.offset + size]

    def matrix(self, place: Place, view: View) -> np.ndarray:
        """What a view `(P, K)` of a place reads in all rows, as a matrix of the rows of all."""
        place = self.plan.buffers.resolve(place)
        array, (parts, columns), (row, column) = self._arrays[place.buffer], view.shape, view.strides
        shape = array.size // place.width * parts, columns
        strides = 4 * (place.width if parts == 1 else row), 4 * column
        return np.ndarray(shape, np.float32, array, 4 * (place.offset + view.offset), strides)

    def turn(self) -> None:
        """Lets the states after a step be those before the next one, in a memory of one step."""
        buffers, turned = self._turning
        self.table[buffers] = self.table[turned]
        for buffer, array in zip(buffers, [self._arrays[buffer] for buffer in turned]):
            self._arrays[buffer] = array

    def run(self, program: Program, function: Function, backwards: bool) -> None:
        """Runs the machine code of a program for all rows, by as many threads as pay."""
        steps, rows = (1, self.length * self.batch) if program.flat else (self.length, self.batch)
        group = group_of(rows, program.flat)
        ends = cuts(rows, group, 1 if program.for_one else pool.parts(steps * rows * program.cost_of_a_row, rows))
        given = steps, rows, int(backwards and not program.flat), group
        if len(ends) > 2:
            share(function.address, given, self._tables_of_threads(len(ends) - 1), ends)
        else:
            function(self._address, *given, 0, rows)

    def _tables_of_threads(self, count: int) -> np.ndarray:
        """A table for each thread, with buffers of its own for what is there for a single row."""
        shared = {place.buffer for place in self.plan.gradient_places.values()}
        single = [i for i, (kind, _) in enumerate(self.plan.buffers.all) if kind == "single" and i not in shared]
        while len(self._single) < count - 1:
            self._single.append([np.empty(self.plan.buffers.all[i].width, np.float32) for i in single])
        tables = np.tile(self.table, (count, 1))
        for table, arrays in zip(tables[1:], self._single):
            table[single] = [array.ctypes.data for array in arrays]
        return tables
