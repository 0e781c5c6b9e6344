"""Parameters alone, without the training that made them."""

from __future__ import annotations

from pathlib import Path

import nnabla as nn

from ..archive import ArchiveError, check_numbers, damage_named, read_archive, write_archive
from ..building import building
from ..parameters import put_parameters

KIND = "file of parameters"


def save_parameters(path: str | Path) -> None:
    """Writes all parameters below the open scope to one file, atomically.

    `nn.save_parameters` writes in place and without checksums: what was half written, or damaged since, may load.

    Args:
        path: An `.npz`.

    Raises:
        OSError: It cannot be written; a file that was there is as it was.
    """
    write_archive(path, KIND, {}, {name: v.d for name, v in nn.get_parameters(grad_only=False).items()})


@building()
def load_parameters(path: str | Path) -> None:
    """Reads what `save_parameters` wrote into the open scope; parameters that are not there yet are made.

    Raises:
        nnshop.archive.ArchiveError: The file is missing, damaged, or of another kind, or has another shape for a parameter
            that is there. Nothing is changed then.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "best.npz"
        >>> w = nn.parameter.get_parameter_or_create("w", (2,), np.array([1.0, 2.0]))
        >>> save_parameters(file)
        >>> nn.clear_parameters()
        >>> load_parameters(file)
        >>> nn.get_parameters()["w"].d.tolist()
        [1.0, 2.0]
    """
    path = Path(path)
    _, values = read_archive(path, KIND)
    with damage_named(path, KIND):
        check_numbers(values)
    try:
        put_parameters(values)
    except ValueError as error:
        raise ArchiveError(f"{path}: cannot be loaded here: {error}.") from error
