"""A plan as machine code."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from ctypes import c_int64, c_void_p
from functools import cached_property
from typing import Any

from . import machine
from .memory import Memory
from .plan import Plan, Program
from .program import ProgramText
from .text import Text, module


class Engine:
    """The programs of a plan. Those of the backward pass are compiled when they are first asked for."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @cached_property
    def _forward(self) -> list[machine.Function]:
        return self._compile(self.plan.forward)

    @cached_property
    def _backward(self) -> list[machine.Function]:
        return self._compile(self.plan.backward)

    def _compile(self, programs: Sequence[Program]) -> list[machine.Function]:
        code = machine.load(text_of(programs), [program.name for program in programs])
        return [code.function(program.name, c_void_p, *[c_int64] * 6) for program in programs]

    def run_forward(self, memory: Memory) -> None:
        for program, function in zip(self.plan.forward, self._forward):
            memory.run(program, function, memory.reverse)

    def run_backward(self, memory: Memory) -> None:
        for program, function in zip(self.plan.backward, self._backward):
            memory.run(program, function, not memory.reverse)


def text_of(programs: Sequence[Program]) -> str:
    """The module of these programs, in LLVM's language."""
    functions, declared = [], set()
    for program in programs:
        text = Text()
        functions.append(ProgramText(program.schedule, text, machine.lanes()).function(program.name))
        declared |= text.declared
    return module(functions, declared)


class Recent:
    """Keeps what was made for the last keys, so that the same step is planned once."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._made: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was made for a key, or is made now."""
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        made = make()
        with self._lock:
            self._made[key] = made
            while len(self._made) > self._most:
                self._made.popitem(last=False)
        return made
