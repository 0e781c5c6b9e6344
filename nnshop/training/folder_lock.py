"""A folder in which one process writes."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import warnings
import weakref
from pathlib import Path
from typing import ClassVar

from .errors import TrainingError

NAME = ".lock"


class FolderLock:
    """The right to write in a folder, which this process has as long as the object lives; get it by `FolderLock.of`.

    A process that ends, however it does, has it no longer; a child that is forked does not get it. The file in which it says
    who it is stays behind where it is killed, and means nothing then.
    """

    _held: ClassVar[weakref.WeakValueDictionary[Path, FolderLock]] = weakref.WeakValueDictionary()

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._descriptor = self._acquire()
        self._end = weakref.finalize(self, _release, self._path, self._descriptor)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)

    @classmethod
    def of(cls, folder: Path) -> FolderLock:
        """The lock of a folder: the same for all objects of this process.

        Raises:
            TrainingError: Another process holds it; the message says which.
            OSError: There is no such folder, or it cannot be written.
        """
        folder = folder.resolve()
        lock = cls._held.get(folder)
        if lock is None:
            lock = cls._held[folder] = cls(folder)
        return lock

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._flock(descriptor)
                if os.path.exists(self._path) and os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # of a process that removed it just now

    def _flock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            raise TrainingError(
                f"{self._path.parent}: {who} trains here. Wait for it, end it, or choose another folder."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            warnings.warn(
                f"{self._path}: cannot be locked here ({error.strerror}): let no other training save there.", stacklevel=2
            )

    @classmethod
    def _let_go_in_child(cls) -> None:
        for lock in list(cls._held.values()):
            lock._end.detach()
            os.close(lock._descriptor)
        cls._held.clear()


def _release(path: Path, descriptor: int) -> None:
    path.unlink(missing_ok=True)  # before another process can have it
    os.close(descriptor)


os.register_at_fork(after_in_child=FolderLock._let_go_in_child)
