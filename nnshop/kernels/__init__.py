"""Whole-sequence functions for the CPU, compiled by numba, and what they stand on.

This module itself needs no numba, and imports fast; the others are imported where they are used.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import cache

import nnabla as nn

from ..portable import is_portable


def why_not_arrays() -> str:
    """Tells why functions that work on NumPy arrays cannot be used here; empty where they can."""
    if is_portable():
        return "portable() allows NNabla's own functions only"
    backend = nn.get_current_context().backend[0]
    if backend not in ("cpu", "cpu:float"):
        return f"the context is {backend}, not cpu:float"
    return ""


def why_no_compiler() -> str:
    """Tells why nothing can be compiled; empty where it can."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: pip install 'nnshop[fast]'"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        _warn_of_disabled_jit()
        return "NUMBA_DISABLE_JIT is set"
    return ""


@cache
def _warn_of_disabled_jit() -> None:
    warnings.warn(
        "NUMBA_DISABLE_JIT is set: NNabla's functions, which are slower, take the place of the compiled ones.",
        RuntimeWarning,
        stacklevel=3,
    )


def why_not_compiled() -> str:
    """Tells why compiled kernels cannot be used here; empty where they can."""
    return why_no_compiler() or why_not_arrays()
