"""Machine code from LLVM's text, for this processor: compiled once, and from then on taken from memory or from the disk."""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

import llvmlite
import llvmlite.binding as llvm

from ..version import __version__
from . import store

KEPT = 64  # so many programs stay in memory though nobody holds them: those that were asked for last
_ONLY = {8: "+avx2,+fma", 4: ""}  # the features that are left where NNSHOP_LANES restricts them


class _Target(NamedTuple):
    """What code is made for. The features decide, not the processor's name: a virtual machine may hide some of them."""

    features: str
    lanes: int
    has_fma: bool


@cache
def _target() -> _Target:
    host = llvm.get_host_cpu_features()
    widest = 16 if host.get("avx512f") else 8 if host.get("avx2") and host.get("fma") else 4
    wanted = os.environ.get("NNSHOP_LANES") or str(widest)
    if wanted not in ("16", "8", "4") or int(wanted) > widest:
        raise ValueError(
            f"NNSHOP_LANES is 8 or 4, and at most the {widest} numbers of this processor's vectors; got {wanted!r}."
        )
    if int(wanted) < widest:
        return _Target(_ONLY[int(wanted)], int(wanted), "fma" in _ONLY[int(wanted)])
    # On some processors LLVM would otherwise split each vector of 16 numbers.
    return _Target(host.flatten() + ",-prefer-256-bit", widest, bool(host.get("fma") or host.get("neon")))


def lanes() -> int:
    """How many float32 numbers a vector register holds: 16 (AVX-512), 8 (AVX2) or 4.

    `NNSHOP_LANES=8` and `NNSHOP_LANES=4`, which are read once, restrict all code to AVX2 with FMA and to SSE2 without.
    """
    return _target().lanes


def has_fma() -> bool:
    """Whether the processor multiplies and adds in one instruction. Where not, LLVM's "fma" would call the C library."""
    return _target().has_fma


class Function(Protocol):
    """A native function, for Python; the interpreter's lock is released while it runs."""

    address: int

    def __call__(self, *arguments: Any) -> Any: ...


class Program(dict[str, int]):
    """The addresses of a module's functions, by name. They are valid as long as this object lives."""

    def __init__(self, library: Any, names: Sequence[str]) -> None:
        super().__init__((name, library[name]) for name in names)
        self._library = library  # LLVM removes the code with it

    def function(self, name: str, *arguments: Any, result: Any = None) -> Function:
        """The function of that name for Python, with these types of ctypes; it keeps the program alive."""
        made: Any = ctypes.CFUNCTYPE(result, *arguments)(self[name])
        made.program, made.address = self, self[name]
        return made


_lock = threading.RLock()  # LLVM's contexts are not for several threads
_provided: dict[str, Callable[[], int]] = {}
_alive: WeakValueDictionary[tuple[str, ...], Program] = WeakValueDictionary()
_recent: OrderedDict[tuple[str, ...], Program] = OrderedDict()
_numbers = count()


def provide(name: str, address: Callable[[], int]) -> None:
    """Makes a function known to programs that call it by this name; its address is asked for when there is one."""
    with _lock:
        _provided[name] = address


def load(text: str, names: Sequence[str]) -> Program:
    """Compiles a module in LLVM's language, or takes it from memory or from the disk.

    Args:
        text: The module. It may declare functions of the C library, and those that `provide` was told of.
        names: Those of its functions that are called from outside.

    Returns:
        The addresses of the functions. Whoever keeps one of them keeps this object, too.

    Raises:
        RuntimeError: The text is not right, or it declares a function that nobody provides.
    """
    with _lock:
        key = (_digest(text), *names)
        program = _alive.get(key)
        if program is None:
            program = _alive[key] = Program(_link(text, _object(text, key[0]), names), names)
        _recent[key] = program
        _recent.move_to_end(key)
        if len(_recent) > KEPT:
            _recent.popitem(last=False)
        return program


def _digest(text: str) -> str:
    """The name of a program: all that its code depends on."""
    versions = __version__, llvmlite.__version__, str(llvm.llvm_version_info), llvm.get_process_triple()
    return hashlib.sha256("\n".join([*versions, *map(str, _target()), text]).encode()).hexdigest()


def _object(text: str, digest: str) -> bytes:
    code = store.read(digest)
    if code is None:
        code = _compile(text)
        store.write(digest, code)
    return code


def _compile(text: str) -> bytes:
    """Takes two of LLVM's passes: what stands on the stack goes to registers, and what is said in a long way gets shorter.

    A text says by itself which vectors it wants. All passes of the level O1 take as long as the rest, and gain nothing then.
    """
    module = llvm.parse_assembly(text, llvm.create_context())
    module.verify()  # what is wrong would end the process further on
    builder = llvm.create_pass_builder(_target_machine(), llvm.create_pipeline_tuning_options(speed_level=1))
    passes = llvm.create_new_function_pass_manager()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)
    return _target_machine().emit_object(module)


def _link(text: str, code: bytes, names: Sequence[str]) -> Any:
    library = llvm.JITLibraryBuilder().add_object_img(code).add_current_process()
    for name, address in list(_provided.items()):
        if f"@{name}(" in text:
            library.import_symbol(name, address())
    for name in names:
        library.export_symbol(name)
    return library.link(_linker(), f"program{next(_numbers)}")


@cache
def _target_machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    # Position-independent code finds its constants from where it stands; JITLink keeps both together, RuntimeDyld might not.
    options = dict(features=_target().features, opt=2, jit=True, codemodel="small", reloc="pic")
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(**options)


@cache
def _linker() -> Any:
    return llvm.create_lljit_compiler(_target_machine(), use_jit_link=True)
