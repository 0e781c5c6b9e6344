"""What nnshop finds to compute with."""

from __future__ import annotations

import platform

import nnabla as nn

from .kernels import why_not_compiled


def config() -> dict[str, str]:
    """Returns what is in use, by name; see `show_config`."""
    found = {name: _version(name) for name in ("nnshop", "nnabla", "nnabla-ext-cuda120", "numpy", "numba", "mpi4py")}
    found["python"] = platform.python_version()
    found["context"] = ", ".join(nn.get_current_context().backend)
    reason = why_not_compiled()
    found["compiled kernels"] = f"no: {reason}" if reason else _kernels()
    return found


def show_config() -> None:
    """Prints versions, the context, and whether compiled kernels serve here, for which processor, and where they are kept.

    Without them the layers compute by NNabla's own functions: the same values, several times slower.

    Example:
        >>> show_config()  # doctest: +SKIP
        nnshop              0.1.0
        ...
        compiled kernels    yes: 16 numbers a vector, kept in ~/.cache/nnshop/0123456789abcdef
    """
    for name, value in config().items():
        print(f"{name:<20}{value}")


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # here, since it is slow to import

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _kernels() -> str:
    from .kernels.compiling import cache_folder  # numba takes half a second to import
    from .kernels.tile import LANES

    place = f"kept in {cache_folder()}" if cache_folder() else "not kept, as no cache folder can be written"
    return f"yes: {LANES} numbers a vector, {place}"
