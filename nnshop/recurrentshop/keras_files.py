"""Files of weights by Keras, in HDF5, which can claim, and lead to, what is not in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..archive import check_numbers, damage_named, open_regular


def read_keras(path: Path, check: Callable[[Sequence[Any]], None]) -> list[np.ndarray]:
    """Reads the arrays of a file written by Keras' `save_weights` or `save`, in its order.

    Args:
        path: The file.
        check: Is given what has the arrays' shapes before they are read, and raises ValueError where these are not wanted.

    Raises:
        nnshop.archive.ArchiveError: The file is missing, damaged, of another program, or what `check` raises.
    """
    import h5py  # NNabla brings it

    with damage_named(path, "file of weights by Keras"):
        open_regular(path).close()
        with h5py.File(path, "r") as file:
            root = _inside(file, "model_weights") if "model_weights" in file else file
            groups = [_inside(root, name) for name in _names(root, "layer_names")]
            datasets = [_dataset(group, name) for group in groups for name in _names(group, "weight_names")]
            check(datasets)
            arrays = [dataset[()] for dataset in datasets]
        check_numbers({f"array {i}": array for i, array in enumerate(arrays)})
    return arrays


def _names(group: Any, key: str) -> list[str]:
    """The names in an attribute."""
    claimed = group.attrs.get_id(key)
    if math.prod(claimed.shape) * claimed.dtype.itemsize > Path(group.file.filename).stat().st_size:
        raise ValueError(f"its {key} claim to be larger than the file")
    return [name.decode() if isinstance(name, bytes) else name for name in group.attrs[key]]


def _inside(node: Any, name: str) -> Any:
    """What has a name below a group; a link may lead to another file."""
    import h5py

    for part in name.strip("/").split("/"):
        if not isinstance(node.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is not in it")
        node = node[part]
    return node


def _dataset(group: Any, name: str) -> Any:
    """An array that lies in the file as Keras writes it, whole; in pieces, it could be compressed, or be in other files."""
    dataset = _inside(group, name)
    if dataset.external or dataset.is_virtual or dataset.chunks:
        raise ValueError(f"{name} is stored as Keras stores none: in pieces, or in other files")
    if dataset.dtype.kind not in "biuf":
        raise ValueError(f"{name} is of {dataset.dtype}")
    return dataset
