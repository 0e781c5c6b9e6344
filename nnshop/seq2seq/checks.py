"""The mistakes of `EncoderDecoder`'s callers, found before a graph is built."""

from __future__ import annotations

import reprlib
from typing import Any

import nnabla as nn
import numpy as np

from ..checks import check_given_sizes, check_sizes, check_variable
from ..core import is_whole
from ..data import pad
from ..owners import check_owners
from ..parameters import MOST_SCOPES
from ..running.sequences import check_cell
from ..scores import find_score


def check_settings(model: Any) -> None:
    """Raises ValueError or TypeError where the settings of a network do not fit each other."""
    who = type(model).__name__
    if not model.encoder:
        raise ValueError(f"{who} needs a cell for its encoder, or several, one for each layer; got none.")
    for cell in (*model.layers, model.decoder):
        check_cell(cell)
    check_owners(who, (*model.layers * (2 if model.bidirectional else 1), model.decoder))
    check_sizes(who, source_size=model.source_size, target_size=model.target_size, width=model.width)
    for name, token in {"start": model.start, "end": model.end}.items():
        if not is_whole(token) or not 0 <= token < model.target_size:
            raise ValueError(f"{name} must be one of the target's {model.target_size} ids, from 0; got {token!r}.")
    if model.start == model.end:
        raise ValueError(f"start and end must differ; both are {model.start}.")
    if model.shared and model.source_size != model.target_size:
        raise ValueError(f"shared=True needs one size on both sides; got {model.source_size} and {model.target_size}.")
    if not isinstance(model.name, str) or model.name.count("/") >= MOST_SCOPES:
        raise ValueError(
            f"name must be that of a scope, of at most {MOST_SCOPES} in one another; got {reprlib.repr(model.name)}."
        )
    if not isinstance(model.dropout, (int, float)) or not 0 <= model.dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1; got {model.dropout!r}.")
    _check_attention(model)


def _check_attention(model: Any) -> None:
    if model.bridge not in ("dense", "copy", None):
        raise ValueError(f"bridge must be 'dense', 'copy' or None; got {model.bridge!r}.")
    if model.attention is not None:
        find_score(model.attention)
        check_given_sizes("EncoderDecoder", attention_width=model.attention_width)
        return
    if model.bridge is None:
        raise ValueError("without a bridge and without attention the decoder would know nothing of the source.")
    if model.input_feeding or model.attention_width is not None:
        raise ValueError("input_feeding and attention_width are about attention; with attention=None there is none.")


def check_batch(source: Any, target: Any, source_lengths: Any, target_lengths: Any) -> None:
    """Raises TypeError or ValueError unless these are ids `(B, S)` and `(B, T)`, and lengths `(B,)`."""
    for name, v in {"source": source, "target": target}.items():
        check_variable(f"the {name}", v)
        if v.ndim != 2:
            raise ValueError(f"the {name} must be ids of shape (B, T); got {v.shape}.")
    if source.shape[0] != target.shape[0]:
        raise ValueError(f"source and target need one batch size; they are {source.shape} and {target.shape}.")
    for name, lengths in {"source_lengths": source_lengths, "target_lengths": target_lengths}.items():
        if lengths is not None:
            shape = lengths.shape if isinstance(lengths, nn.Variable) else np.asarray(lengths).shape
            if shape != source.shape[:1]:
                raise ValueError(f"{name} must be one number for each of {source.shape[0]} rows; got the shape {shape}.")


def source_ids(source: Any, lengths: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids `(B, S)` and lengths `(B,)` of an array, or of a list of lists.

    Raises:
        ValueError: They are no whole numbers below `size`, or the lengths do not fit.
    """
    if isinstance(source, (list, tuple)):
        rows = [np.asarray(row) for row in source]
        if any(row.ndim != 1 or (row.size and row.dtype.kind not in "iu") for row in rows):
            raise ValueError(f"a source is whole numbers (B, S), or a list of lists of ids; got {source!r}.")
        source, counted = pad([row.tolist() for row in rows])
        lengths = counted if lengths is None else lengths
    ids = np.asarray(source)
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(f"a source is whole numbers (B, S), or a list of lists; got {ids.dtype} of shape {ids.shape}.")
    lengths = np.full(len(ids), ids.shape[1]) if lengths is None else np.asarray(lengths)
    if lengths.shape != (len(ids),) or lengths.dtype.kind not in "iu":
        raise ValueError(f"lengths must be a whole number for each of {len(ids)} rows; got {lengths!r}.")
    wrong = ids[(np.arange(ids.shape[1]) < lengths[:, None]) & ((ids < 0) | (ids >= size))]
    if wrong.size:
        raise ValueError(f"source ids must be from 0 to {size - 1}; got {wrong[:5].tolist()}.")
    return ids, lengths
