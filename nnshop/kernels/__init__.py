"""Functions that nnshop computes itself, in Python, on the arrays of Variables.

Some are compiled through llvmlite; their modules take time to import, and are imported where they are used.
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
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed: pip install 'nnshop[fast]'"
    return ""


def why_not_compiled() -> str:
    """Tells why nothing can be compiled here; empty where it can."""
    return why_no_compiler() or why_not_arrays()
