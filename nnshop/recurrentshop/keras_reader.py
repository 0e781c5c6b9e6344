"""A program that reads a file by Keras for `keras_files`: a process of its own, as HDF5 may hang or crash on a damaged one.

    python keras_reader.py FILE SHAPES

It prints a line of JSON, the shapes of the arrays in the file, or what is wrong; and where they are SHAPES, the arrays.
"""

from __future__ import annotations

import io
import json
import math
import os
import resource
import sys
from typing import Any

import h5py
import numpy as np

SPARE = 1 << 28  # bytes of memory beside the arrays


def main(path: str, wanted: list[list[int]]) -> None:
    """Writes to the standard output what there is."""
    limit_memory(8 * sum(map(math.prod, wanted)))
    try:
        with h5py.File(path, "r") as file:
            root = inside(file, "model_weights") if "model_weights" in file else file
            groups = [inside(root, name) for name in names(root, "layer_names")]
            datasets = [array_in(group, name) for group in groups for name in names(group, "weight_names")]
            shapes = [list(dataset.shape) for dataset in datasets]
            arrays = [dataset[()] for dataset in datasets] if shapes == wanted else []
    except Exception as error:  # HDF5's, Python's on what it gives, and those of this file
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        print(json.dumps({"error": said}))
        return
    content = io.BytesIO()
    np.savez(content, *arrays)
    sys.stdout.write(json.dumps({"shapes": shapes}) + "\n")
    sys.stdout.flush()
    sys.stdout.buffer.write(content.getvalue())


def limit_memory(size: int) -> None:
    """Lets this process take so many bytes more than it has, a few times over."""
    with open("/proc/self/statm") as file:
        has = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = has + SPARE + 4 * size
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def names(group: Any, key: str) -> list[str]:
    """The names in an attribute."""
    claimed = group.attrs.get_id(key)
    if math.prod(claimed.shape) * claimed.dtype.itemsize > os.path.getsize(group.file.filename):
        raise ValueError(f"its {key} claim to be larger than the file")
    return [name.decode() if isinstance(name, bytes) else name for name in group.attrs[key]]


def inside(node: Any, name: str) -> Any:
    """What has a name below a group; a link may lead to another file."""
    for part in name.strip("/").split("/"):
        if not isinstance(node.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is not in it")
        node = node[part]
    return node


def array_in(group: Any, name: str) -> Any:
    """An array that lies in the file as Keras writes it, whole; in pieces, it could be compressed, or be in other files."""
    dataset = inside(group, name)
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is no array")
    if dataset.external or dataset.is_virtual or dataset.chunks:
        raise ValueError(f"{name} is stored as Keras stores none: in pieces, or in other files")
    if dataset.dtype.kind not in "biuf":
        raise ValueError(f"{name} is of {dataset.dtype}")
    return dataset


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
