"""What goes wrong in a training."""

from __future__ import annotations

from ..archive import ArchiveError


class TrainingError(RuntimeError):
    """A training that cannot start or go on; the message says where, why, and what is saved."""


CheckpointError = ArchiveError  # a checkpoint that cannot be used: not whole, foreign, or of another model
