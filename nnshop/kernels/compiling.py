"""How the kernels are compiled: by numba, once for each machine, kept on disk where there is a place for it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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

    Its name says which text of all kernels was compiled: numba itself compares only the file that a function stands in.
    """
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
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
    if folder is None:
        return compiler(signature, **options)(function)
    with _numba_caches_in(folder):
        return compiler(signature, cache=True, **options)(function)
