"""A plan as machine code: it runs the programs of a step on buffers."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CFUNCTYPE, c_int64, c_void_p
from functools import cached_property

import numpy as np

from . import machine
from .plan import Plan, Program
from .places import Place
from .program import ProgramText
from .text import Text, module

_SIGNATURE = CFUNCTYPE(None, c_void_p, *[c_int64] * 5)


class Engine:
    """The programs of a plan. Those of the backward pass are compiled when they are first asked for."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @cached_property
    def forward(self) -> dict[str, _SIGNATURE]:  # type: ignore[valid-type]
        return self._compile(self.plan.forward)

    @cached_property
    def backward(self) -> dict[str, _SIGNATURE]:  # type: ignore[valid-type]
        return self._compile(self.plan.backward)

    def _compile(self, programs: Sequence[Program]) -> dict:
        self.code = machine.load(text_of(programs), [program.name for program in programs])
        return {name: (_SIGNATURE(address), self.code) for name, address in self.code.items()}


def text_of(programs: Sequence[Program]) -> str:
    """The module of these programs, in LLVM's language."""
    functions, declared = [], set()
    for program in programs:
        text = Text()
        functions.append(ProgramText(program.schedule, text, machine.lanes()).function(program.name))
        declared |= text.declared
    return module(functions, declared)


class Memory:
    """The buffers of a plan, for so many steps of so many rows.

    Args:
        plan: Tells what there is.
        length, batch: T and B.
        reverse: Whether time runs backwards, so that a state lies before the one that it was made of.
    """

    def __init__(self, plan: Plan, length: int, batch: int, reverse: bool) -> None:
        self.plan, self.length, self.batch, self.reverse = plan, length, batch, reverse
        self.arrays: list[np.ndarray | None] = [None] * len(plan.buffers.all)
        self.table = np.zeros(len(self.arrays), np.int64)

    def allocate(self) -> None:
        """Makes all buffers that are not outside."""
        rows = {
            "sequence": self.length * self.batch,
            "state": (self.length + 1) * self.batch,
            "sample": self.batch,
            "wide": self.length * self.batch,
            "pair": 2 * self.batch,
            "single": 1,
        }
        inside = self.plan.buffers.inside
        for i, (kind, width) in enumerate(self.plan.buffers.all):
            if self.arrays[i] is None and i not in inside and kind in rows:
                self.bind(i, np.empty((rows[kind], width), np.float32))
            elif kind == "after":  # the state that lies one step on
                self._shift(i)

    def _shift(self, after: int) -> None:
        whole = self.arrays[after - 1]
        assert whole is not None
        first, second = whole[: -self.batch], whole[self.batch :]
        self.arrays[after - 1], self.arrays[after] = (second, first) if self.reverse else (first, second)
        for i in (after - 1, after):
            self.table[i] = self.arrays[i].ctypes.data  # type: ignore[union-attr]

    def bind(self, buffer: int, array: np.ndarray) -> None:
        """Lets a buffer be an array, which must stay as it is until it is another."""
        self.arrays[buffer] = array
        self.table[buffer] = array.ctypes.data

    def rows(self, place: Place) -> np.ndarray:
        """The numbers of a place in all rows."""
        size = place.width - place.offset
        place = self.plan.buffers.resolve(place)
        array = self.arrays[place.buffer]
        assert array is not None
        return array[:, place.offset : place.offset + size]

    def run(self, program: Program, code: dict, backwards: bool) -> None:
        function, _ = code[program.name]
        steps, rows = (1, self.length * self.batch) if program.flat else (self.length, self.batch)
        function(self.table.ctypes.data, steps, rows, 0, rows, int(backwards and not program.flat))
