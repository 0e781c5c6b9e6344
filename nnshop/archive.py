"""Files of arrays and JSON: written whole or not at all, and loaded without running code."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import reprlib
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

import nnabla as nn
import numpy as np

from .version import __version__

FORMAT = 1
META = "meta"  # the name of the JSON among the arrays
NESTING = 200  # levels of JSON; what is deeper would be met later, as Python's limit of recursion
TOO_DEEP = f"JSON data is nested more than {NESTING} levels deep"
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

    Raises:
        ValueError: `read_archive` would refuse it. Nothing is written then; a file that was there is as it was.
        TypeError: The meta data is none of JSON.
        OSError: It cannot be written.
    """
    about = _to_json({"format": FORMAT, "kind": kind, "versions": VERSIONS, **meta, "arrays": list(arrays)})
    for name, array in arrays.items():
        _check_name(name)
        _check_dtype(np.asanyarray(array).dtype)
    # np.savez would pickle objects, and leaves its zip open where the disk is full.
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for name, array in {**arrays, META: np.array(about)}.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), version=(1, 0), allow_pickle=False)


def read_archive(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads what `write_archive` wrote, whole; returns the JSON data and the arrays.

    Raises:
        ArchiveError: The file is missing, damaged, or of another kind or format.
    """
    path = Path(path)
    with damage_named(path, kind):
        arrays = _read_arrays(path)
        meta = parse_json(str(arrays.pop(META)))
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
    with open_regular(path) as opened, zipfile.ZipFile(opened) as file:
        members = file.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(set(names)) != len(names):
            raise ValueError("two arrays have one name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its arrays are compressed")
        if sum(member.file_size for member in members) > os.fstat(opened.fileno()).st_size:
            raise ValueError("it claims to hold more than its size")
        return {name: _array(file.read(member)) for name, member in zip(names, members)}


def _array(data: bytes) -> np.ndarray:
    """The array of an `.npy` file, as `np.savez` writes them; what its header claims must be what there is."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array is of another version")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    _check_dtype(dtype)
    if min(shape, default=0) < 0:
        raise ValueError(f"an array claims the shape {shape}")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"an array claims the shape {shape}, and has {len(data) - file.tell()} bytes")
    return np.ndarray(shape, dtype, data, file.tell(), order="F" if fortran_order else "C").copy()


def _check_dtype(dtype: np.dtype) -> None:
    if dtype.hasobject or dtype.subdtype:
        raise ValueError(f"an array holds objects or arrays, {dtype}")
    if not dtype.itemsize:  # of whatever shape, it would have the right number of bytes
        raise ValueError(f"an array holds nothing, {dtype}")


def _check_name(name: str) -> None:
    member = f"{name}.npy"
    if name == META or zipfile.ZipInfo(member).filename != member or len(member.encode()) >= 1 << 16:
        raise ValueError(f"{reprlib.repr(name)} is no name for an array in a file.")


def check_numbers(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises TypeError unless all are of numbers that NNabla can compute with, which it does not check."""
    for name, array in arrays.items():
        if array.dtype.kind not in "biu" and array.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"{name} is of {array.dtype}")
        if not array.size or max(array.shape, default=0) >= 2**31:
            raise TypeError(f"{name} is of shape {array.shape}")
        if array.dtype == np.float64 and np.any(np.isfinite(array) & (np.abs(array) > np.finfo(np.float32).max)):
            raise TypeError(f"{name} has numbers that float32 has not")


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file to read it; OSError for all that is no regular file: a FIFO may never begin, a device never end."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return open(path, "rb")


def read_json(path: str | Path, kind: str) -> Any:
    """Reads a file of JSON, in UTF-8; `kind` is what it is, in a message.

    Raises:
        ArchiveError: It is missing, damaged, no regular file, or nested too deeply.
    """
    with damage_named(Path(path), kind), open_regular(path) as file:
        return parse_json(file.read().decode())


def _to_json(data: Any) -> str:
    try:
        text = json.dumps(data)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    parse_json(text)
    return text


def parse_json(text: str) -> Any:
    """The data of a text of JSON; ValueError where it is none, or nested too deeply."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if is_deeper(data, NESTING):
        raise ValueError(TOO_DEEP)
    return data


def is_deeper(data: Any, levels: int) -> bool:
    """Whether JSON data is nested more than so many levels deep."""
    level = [data]
    for _ in range(levels):
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list, tuple))]
        level = [child for values in inner for child in values]
    return bool(level)


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
