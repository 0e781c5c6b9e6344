"""Files of weights by Keras, in HDF5, which can claim, and lead to, what is not in them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..archive import ArchiveError, check_numbers, damage_named, open_regular

READER = Path(__file__).with_name("keras_reader.py")
START = "import json, runpy, sys; sys.path = json.loads(sys.argv.pop(1)); runpy.run_path(sys.argv.pop(1), run_name='__main__')"
KIND = "file of weights by Keras"
SECONDS = 60  # that reading may take: on a damaged file HDF5 may never end


def read_keras(path: Path, wanted: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[np.ndarray]]:
    """Reads a file written by Keras' `save_weights` or `save`, in its order.

    Args:
        path: The file.
        wanted: The shapes that its arrays should have.

    Returns:
        The shapes that they have; and where these are as wanted the arrays, else none.

    Raises:
        nnshop.archive.ArchiveError: The file is missing, damaged, of another program, or leads into other files.
    """
    with damage_named(path, KIND):
        open_regular(path).close()
        said = _ask(path, wanted)
        line, _, content = said.partition(b"\n")
        told = json.loads(line)
        if "error" in told:
            raise ValueError(told["error"])
        with np.load(io.BytesIO(content)) as file:
            arrays = list(file.values())
        check_numbers({f"array {i}": array for i, array in enumerate(arrays)})
    return [tuple(shape) for shape in told["shapes"]], arrays


def _ask(path: Path, wanted: Sequence[tuple[int, ...]]) -> bytes:
    """What the reader says."""
    command = [sys.executable, "-I", "-c", START, json.dumps(sys.path), str(READER), str(path.absolute()), json.dumps(wanted)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ArchiveError(f"{path}: is not a whole {KIND}: HDF5 does not come to its end in {SECONDS} seconds.") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"it ended with {done.returncode}"
        raise ArchiveError(f"{path}: is not a whole {KIND}: HDF5 does not read it ({last}).")
    return done.stdout
