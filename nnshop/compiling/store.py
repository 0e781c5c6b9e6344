"""Files that only this user can have written, checked before they are used: the cache of compiled programs on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

LIMIT = 256 * 1024 * 1024  # bytes in the folder; beyond it, what was not used for the longest time is removed
_HEADER = b"nnshop program 1\n"
_ABANDONED = 3600  # so many seconds after it was begun, a file that was never finished is removed
_FOLDER = "nnshop-programs"
_ERRORS = OSError, RuntimeError  # the latter is what `Path.home` raises for a user who has none


def folder() -> Path:
    """Where programs are kept: below `$NNSHOP_CACHE_DIR`, `$XDG_CACHE_HOME` or `~/.cache`, whichever is set first."""
    base = os.environ.get("NNSHOP_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / _FOLDER


def read(key: str) -> bytes | None:
    """What `write` put there under this key; None, after a warning where something is wrong, if it cannot be had."""
    try:
        with _opened_folder() as place:
            raw = _contents(key, place)
    except FileNotFoundError:
        return None
    except _ERRORS as error:
        _warn(f"cannot be read ({error})")
        return None
    content = raw[len(_HEADER) + hashlib.sha256().digest_size :]
    if raw == _head(key, content) + content:
        return content
    _warn(f"holds a damaged file ({folder() / key}), which is replaced")
    return None


def write(key: str, content: bytes) -> None:
    """Keeps the content under the key; processes may do so at once. Where it cannot, it warns."""
    try:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened_folder() as place:
            _replace(key, _head(key, content) + content, place)
            _prune(place)
    except _ERRORS as error:
        _warn(f"cannot be written ({error})")


def _head(key: str, content: bytes) -> bytes:
    """What a file begins with. LLVM ends the process on a damaged object, so it gets no byte whose checksum is not right."""
    return _HEADER + hashlib.sha256(key.encode() + content).digest()


@contextlib.contextmanager
def _opened_folder() -> Iterator[int]:
    """The folder, opened: what is checked is what is used, whatever is renamed in between."""
    place = os.open(folder(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        _refuse_what_others_write(folder(), os.fstat(place))
        yield place
    finally:
        os.close(place)


def _contents(key: str, place: int) -> bytes:
    # Without O_NONBLOCK, a pipe of that name would be waited for.
    with os.fdopen(os.open(key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place), "rb") as file:
        status = os.fstat(file.fileno())
        _refuse_what_others_write(folder() / key, status)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{folder() / key} is not a file")
        with contextlib.suppress(OSError):  # on a file system that cannot be written
            os.utime(file.fileno())  # says that it was used
        return file.read()


def _refuse_what_others_write(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path} belongs to another user, so its code is not run")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others may write to {path}, so its code is not run; chmod go-w mends that")


def _replace(key: str, raw: bytes, place: int) -> None:
    """Writes a file of another name first, so that no process sees half of it."""
    unfinished = f"{key}.{secrets.token_hex(4)}"
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=place), "wb") as file:
            file.write(raw)
        os.replace(unfinished, key, src_dir_fd=place, dst_dir_fd=place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished, dir_fd=place)
        raise


def _prune(place: int) -> None:
    """Removes files, those that were used last at the end, until the rest is within the limit."""
    found = []
    with os.scandir(place) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process has just renamed or removed it
                found.append((entry.name, entry.stat(follow_symlinks=False)))
    total = sum(status.st_size for _, status in found)
    for name, status in sorted(found, key=lambda item: item[1].st_mtime):
        abandoned = "." in name and status.st_mtime < time.time() - _ABANDONED
        if total > LIMIT or abandoned:
            total -= status.st_size
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                os.unlink(name, dir_fd=place)


_warned = False


def _warn(what: str) -> None:
    """Once for each process: programs are compiled anew then, which takes longer and changes nothing else."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"The cache of compiled programs {what}. Programs are compiled anew.", RuntimeWarning, stacklevel=5)
