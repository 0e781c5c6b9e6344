"""The checkpoints of a training in a folder: one writes there, and what is good stays."""

from __future__ import annotations

import re
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..archive import DAMAGE, remove_leftovers
from ..core import is_whole
from .checkpoint import Checkpoint, load_checkpoint, take_checkpoint
from .errors import CheckpointError, TrainingError
from .folder_lock import FolderLock


def check_writable(folder: str | Path) -> Path:
    """Makes a folder, and tries that a file can be written there, so that a training need not find out at its end.

    Raises:
        TrainingError: It cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"writable")
    except OSError as error:
        raise TrainingError(f"{folder}: the output folder cannot be written: {error.strerror}. Choose another.") from error
    return folder


class Checkpoints:
    """The checkpoints of one training in a folder, of which the last few are kept.

    One process at a time saves into a folder; others are told which it is.

    Args:
        folder: Where they are, as `checkpoint-STEP.npz`.
        keep: How many to keep.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint; got {keep}.")
        self.folder, self.keep = Path(folder), keep
        self._lock: FolderLock | None = None
        self._warned = False

    def files(self) -> list[Path]:
        """Lists them, the oldest first."""
        return [path for _, path in sorted(self._steps().items())]

    def _steps(self) -> dict[int, Path]:
        found = ((re.fullmatch(r"checkpoint-(\d+)\.npz", path.name), path) for path in self.folder.glob("checkpoint-*.npz"))
        return {int(match[1]): path for match, path in found if match and path.is_file()}

    def lock(self) -> None:
        """Lets no other process save into the folder, as long as this object and this process live; `save` does so too.

        Of several processes of a training only the one that saves calls it: `workers.on_first(checkpoints.lock)`.

        Raises:
            TrainingError: Another process saves there, and the message says which; or the folder cannot be written.
        """
        try:
            self._hold()
        except OSError as error:
            raise TrainingError(f"{self.folder}: cannot be locked: {error.strerror}. Choose another folder.") from error

    def _hold(self) -> None:
        self._lock = FolderLock.of(self.folder)

    def save(self, step: int, solver: Any, progress: dict[str, Any], state: Sequence[np.ndarray]) -> Path:
        """Saves one, and only then removes older ones, beyond `keep`, which it can stand for: those of the same parameters.

        Checkpoints of later steps stay, with one warning: `load` takes the newest that is whole.

        Args:
            step: The number of the step, from 0.
            solver, progress, state: As in `save_checkpoint`.

        Raises:
            TrainingError: It could not be written, or another process saves there; those before are as they were.
            TypeError, ValueError: What could not be loaded again. Nothing is written or removed then.
        """
        if not is_whole(step) or step < 0:
            raise ValueError(f"step must be a number of steps, from 0; got {step!r}.")
        path = self.folder / f"checkpoint-{step:08d}.npz"
        checkpoint = take_checkpoint(path, solver, progress, state)
        before: list[Path] = []
        try:
            before = self.files()
            self._hold()
            checkpoint.write()
        except OSError as error:
            kept = ", ".join(map(str, before)) or "none"
            raise TrainingError(f"{path}: could not be saved: {error.strerror}. Those before: {kept}.") from error
        self._prune(step)
        remove_leftovers(self.folder, ".checkpoint-*.npz")
        return path

    def _prune(self, step: int) -> None:
        """Removes what is older than a step and can be spared; warns of what is newer."""
        steps = sorted(self._steps().items())
        layouts = [(_layout(path), path) for number, path in steps if number <= step]
        for old in [path for layout, path in layouts if layout == layouts[-1][0]][: -self.keep]:
            old.unlink(missing_ok=True)
        newer = [path for number, path in steps if number > step]
        if newer and not self._warned:
            self._warned = True
            warnings.warn(
                f"{newer[-1]} is of a later step than {step}, and stays: where it is whole, load takes it. Remove it if it is "
                "of a training that was given up.",
                stacklevel=3,
            )

    def load(self) -> tuple[Checkpoint | None, list[str]]:
        """Loads the newest that is whole; None where there is none at all.

        Returns:
            The checkpoint, and why newer ones were passed over, to be told to the user.

        Raises:
            CheckpointError: There are some, and none is whole.
        """
        passed_over: list[str] = []
        for path in reversed(self.files()):
            try:
                return load_checkpoint(path), passed_over
            except CheckpointError as error:
                passed_over.append(str(error))
        if passed_over:
            raise CheckpointError(" ".join(passed_over))
        return None, []


def _layout(path: Path) -> frozenset[tuple[str, int]] | None:
    """The names and sizes of the parameters of a checkpoint; None where it is none."""
    try:
        with zipfile.ZipFile(path) as file:
            members = [(member.filename, member.file_size) for member in file.infolist()]
    except DAMAGE:
        return None
    return frozenset(member for member in members if member[0].startswith("parameter:"))
