"""What nnshop finds to compute with."""

from __future__ import annotations

import platform

import nnabla as nn

from .kernels import why_not_compiled
from .threads import threads, why_threads


def config() -> dict[str, str]:
    """Returns what is in use, by name; see `show_config`."""
    found = {name: _version(name) for name in ("nnshop", "nnabla", "nnabla-ext-cuda120", "numpy", "llvmlite", "mpi4py")}
    found["python"] = platform.python_version()
    found["context"] = ", ".join(nn.get_current_context().backend)
    reason = why_not_compiled()
    found["threads"] = f"{threads()} ({why_threads()})"
    found["compiled steps"] = f"no: {reason}" if reason else _compiled()
    return found


def show_config() -> None:
    """Prints versions, the context, how many threads compute, and whether steps are compiled here, for which processor.

    Where they are not, layers compute by NNabla's own functions: the same values, several times slower.

    Example:
        >>> show_config()  # doctest: +SKIP
        nnshop              0.1.0
        ...
        compiled steps      yes: 16 numbers a vector, kept in /home/me/.cache/nnshop-programs
    """
    for name, value in config().items():
        print(f"{name:<20}{value}")


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # here, since it is slow to import

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _compiled() -> str:
    from .compiling import machine, store  # here, since llvmlite takes time to import

    return f"yes: {machine.lanes()} numbers a vector, kept in {store.folder()}"
