"""Spares NNabla work that it does at each access to an array, and at each question to a function in Python.

NNabla's compiled modules import what they need anew each time, as Python 2 did: `nnabla` and `nnabla_ext.cpu` are looked for
inside the package `nnabla` first. There they find what stands here.
"""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType, TracebackType
from typing import Any

import nnabla as nn
import nnabla.context
import nnabla_ext
import nnabla_ext.cpu


class _Scope:
    """NNabla's `context_scope`, which is a generator and takes ten times as long."""

    __slots__ = ("_before", "_context")

    def __init__(self, context: nn.Context) -> None:
        self._context = context

    def __enter__(self) -> None:
        nnabla.context.context_level += 1
        self._before, nnabla.context.current_ctx = nnabla.context.current_ctx, self._context

    def __exit__(self, *_: Any) -> None:
        nnabla.context.context_level -= 1
        nnabla.context.current_ctx = self._before


class _SameScope:
    """The scope of a context that is the current one already."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        pass


_SAME = _SameScope()


def _context_scope(context: nn.Context) -> _Scope | _SameScope:
    return _SAME if context is nnabla.context.current_ctx else _Scope(context)


_new_context = nnabla_ext.cpu.context


def _cpu_context() -> nn.Context:
    """What `nnabla_ext.cpu.context` gives, made once."""
    return _cpu_context_of(nnabla_ext.cpu.array_classes()[0])


@cache
def _cpu_context_of(array_class: str) -> nn.Context:
    return _new_context()


def _stand_in(real: ModuleType, **own: Any) -> Any:
    """Has what a module has, and something of its own.

    It is no module, since Python asks a module slowly for the `__path__` that makes it a package. It has none, so that NNabla
    finds the real submodules outside.
    """
    names: dict[str, Any] = {name: _of(real, name) for name in vars(real) if not name.startswith("__")}
    return type("Inside", (), {**names, **own, "__name__": f"nnabla.{real.__name__}", "__spec__": real.__spec__})()


def _of(real: ModuleType, name: str) -> property:
    return property(lambda _: getattr(real, name))


def install() -> None:
    """Puts the stand-ins where NNabla looks first."""
    sys.modules.setdefault("nnabla.nnabla", _stand_in(nn, context_scope=staticmethod(_context_scope)))
    sys.modules.setdefault("nnabla.nnabla_ext", _stand_in(nnabla_ext))
    cpu = nnabla_ext.cpu
    context = property(lambda _: _cpu_context if cpu.context is _new_context else cpu.context)
    sys.modules.setdefault("nnabla.nnabla_ext.cpu", _stand_in(cpu, context=context))
