"""Files of arrays and JSON: written whole or not at all, and loaded without running code."""

from __future__ import annotations

import io
import json
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import nnabla as nn
import numpy as np

from .version import __version__

FORMAT = 1
VERSIONS = {"nnshop": __version__, "nnabla": nn.__version__, "numpy": np.__version__}
# What reading a damaged zip, npy or JSON raises, or a file that is none of them.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, MemoryError),
    *(RuntimeError, ArithmeticError, AssertionError),  # RecursionError and NotImplementedError are RuntimeErrors
    *(SyntaxError, tokenize.TokenError),
)


class ArchiveError(ValueError):
    """A file that is missing, damaged, or of another kind; the message names it."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path to write to, and renames it to `path` at the end, synced to the disk.

    A reader, or a run after a power cut, finds the old file or the new one, never a part. After an exception the old file
    stays.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_write(target) as path:
        ...     _ = path.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    remove_leftovers(path.parent, f".{escape(path.stem)}.*{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Removes what `atomic_write` left there in processes that were killed; pattern is a glob of their temporary names."""
    for file in folder.glob(pattern):
        number = file.stem.rpartition(".")[2]
        if number.isdigit() and not _is_alive(int(number)):
            file.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; and no number of a process at all
        pass
    return True


def write_archive(path: str | Path, kind: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes one file, an `.npz` of plain arrays and JSON, atomically.

    Args:
        path: The file.
        kind: What it is, such as "checkpoint".
        meta: JSON data.
        arrays: By name.
    """
    about = {"format": FORMAT, "kind": kind, "versions": VERSIONS, **meta, "arrays": list(arrays)}
    # np.savez would pickle objects, and leaves its zip open where the disk is full.
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for name, array in {**arrays, "meta": np.array(json.dumps(about))}.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def read_archive(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads what `write_archive` wrote, whole; returns the JSON data and the arrays.

    Raises:
        ArchiveError: The file is missing, damaged, or of another kind or format.
    """
    path = Path(path)
    with damage_named(path, kind):
        arrays = _read_arrays(path)
        meta = json.loads(str(arrays.pop("meta")))
        found = (meta.get("format"), meta.get("kind"))
        listed = set(meta.get("arrays", arrays))  # a name stands outside of what has a checksum
    if None in found:
        raise ArchiveError(f"{path}: is no {kind} of this nnshop, but of another program, or of an older nnshop.")
    if found != (FORMAT, kind):
        raise ArchiveError(f"{path}: is a {found[1]} of format {found[0]}; a {kind} of format {FORMAT} is wanted.")
    if listed != set(arrays):
        wrong = ", ".join(sorted(map(str, listed.symmetric_difference(arrays)))[:5])
        raise ArchiveError(
            f"{path}: is not a whole {kind}: of the arrays that it lists these are missing or too many: {wrong}."
        )
    return meta, arrays


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads every byte: a zip has a checksum for each member. `np.load` would take the memory that a file claims to need."""
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(set(names)) != len(names):
            raise ValueError("two arrays have one name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its arrays are compressed")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("it claims to hold more than its size")
        return {name: _array(file.read(member)) for name, member in zip(names, members)}


def _array(data: bytes) -> np.ndarray:
    """The array of an `.npy` file, as `np.savez` writes them; what its header claims must be what there is."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array is of another version")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or dtype.subdtype:
        raise ValueError(f"an array holds objects or arrays, {dtype}")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"an array claims the shape {shape}, and has {len(data) - file.tell()} bytes")
    return np.ndarray(shape, dtype, data, file.tell(), order="F" if fortran_order else "C").copy()


def check_numbers(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises TypeError unless all are of numbers that NNabla can compute with, which it does not check."""
    for name, array in arrays.items():
        if array.dtype.kind not in "biu" and array.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"{name} is of {array.dtype}")
        if max(array.shape, default=0) >= 2**31:
            raise TypeError(f"{name} is of shape {array.shape}")


@contextmanager
def damage_named(path: Path, kind: str) -> Iterator[None]:
    """Turns what is raised on damaged contents into an ArchiveError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise ArchiveError(f"{path}: there is no such {kind}.") from error
    except ArchiveError:
        raise
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read as a {kind}: {error.strerror or error}.") from error
    except DAMAGE as error:
        raise ArchiveError(f"{path}: is not a whole {kind} ({type(error).__name__}: {error}).") from error
