"""How the kernels are compiled: by numba, once for each machine, kept on disk where there is a place for it."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Callable

import llvmlite.binding
import numba

# What makes simple loops vectorize. Not "nnan" and "ninf", which would let the compiler assume that no NaN or infinity occurs.
FAST = {"contract", "nsz", "reassoc", "arcp", "afn"}


# The kinds of arguments, by a letter each: whole numbers and addresses, truth values, and float32 arrays of 1 to 3 axes.
_KINDS = {"i": "i8", "b": "b1", "v": "f4[::1]", "m": "f4[:, ::1]", "s": "f4[:, :, ::1]", "w": "f4[:, :]", "l": "i8[::1]"}


@cache
def cache_folder() -> Path | None:
    """The folder that keeps compiled kernels: below `$NUMBA_CACHE_DIR`, or the user's cache; None where neither can be written.

    Its name says which text of all kernels was compiled, for which machine, by what: numba itself compares only the file that
    a function stands in, and the processor that it is told to compile for.
    """
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))) + _target().encode()
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    for place in (os.environ.get("NUMBA_CACHE_DIR"), users):
        folder = Path(place or "") / "nnshop" / hashlib.sha256(sources).hexdigest()[:16]
        try:
            if place:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    return folder
        except OSError:
            continue
    return None


def _target() -> str:
    """What compiled code depends on but for its text; `tile.py` chooses its vectors by the machine, whatever numba is told."""
    machine = llvmlite.binding.get_host_cpu_name(), sorted(llvmlite.binding.get_host_cpu_features().items())
    names = ("CPU_NAME", "CPU_FEATURES", "ENABLE_AVX", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK")
    settings = [getattr(numba.config, name, None) for name in names]
    return repr((machine, settings, numba.__version__, llvmlite.__version__, sys.version))


@contextmanager
def _numba_caches_in(folder: Path) -> Iterator[None]:
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


def compiled(kinds: str, **options: Any) -> Callable[[Callable], Callable]:
    """Compiles a function for arguments of these kinds, or takes it from the disk, where an earlier process put it.

    The function returns nothing. Its letters: i a whole number or an address; b a truth value; v, m, s a float32 vector,
    matrix or sequence, contiguous; w a matrix of any strides; l a vector of whole numbers.
    """
    signature = _signature(kinds)
    options = {"fastmath": FAST, "error_model": "numpy", "boundscheck": False, **options}
    return lambda function: _cached(numba.njit, signature, options, function)


def compiled_once(kinds: str) -> Callable[[Callable], Any]:
    """Compiles a function for other compiled functions to call, by its name: they do not each compile it again."""

    def compile_now(function: Callable) -> Any:
        made = _cached(numba.cfunc, _signature(kinds), {}, function)
        name = f"nnshop_{function.__name__}"
        llvmlite.binding.add_symbol(name, made.address)
        _KEPT.append(made)
        return numba.types.ExternalFunction(name, numba.types.void(*made._sig.args))

    return compile_now


_KEPT: list[Any] = []  # what is compiled lives as long as numba's object of it


def _signature(kinds: str) -> str:
    return f"void({', '.join(_KINDS[kind] for kind in kinds)})"


def _cached(compiler: Callable, signature: str, options: dict[str, Any], function: Callable) -> Any:
    folder = cache_folder()
    for _ in range(2):  # the second time without the file that the first one failed on
        if folder is None or any(isinstance(error, OSError) for error in _FAILURES):
            break
        try:
            _check_kept(folder, function)
            with _numba_caches_in(folder):
                return compiler(signature, cache=True, **options)(function)
        except Exception as error:  # what a damaged file raises may be anything
            _note_failure(folder, error)
            for file in _kept(folder, function):
                with suppress(OSError):
                    file.unlink()
    return compiler(signature, **options)(function)


_FAILURES: list[Exception] = []  # of files; one of the disk itself ends the use of it


def _kept(folder: Path, function: Callable) -> list[Path]:
    """The files in which numba keeps a function."""
    return list(folder.rglob(f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}-*"))


def _check_kept(folder: Path, function: Callable) -> None:
    """Raises unless the compiled code that is kept is this function's: to link another one's may end the process."""
    for file in _kept(folder, function):
        if file.suffix == ".nbc":
            described = pickle.loads(file.read_bytes())[1]
            if (described.modname, described.qualname) != (function.__module__, function.__qualname__):
                raise ValueError(f"{file.name} holds {described.modname}.{described.qualname}")


def _note_failure(folder: Path, error: Exception) -> None:
    if not _FAILURES:
        warnings.warn(
            f"compiled kernels in {folder} cannot be used ({error!r}); they are compiled anew. Delete the folder, or make room "
            "on the disk, if this comes again.",
            RuntimeWarning,
            stacklevel=2,
        )
    _FAILURES.append(error)
