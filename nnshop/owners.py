"""Cells whose weights belong to something, wherever the cells are used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from .core import AbstractCell


def check_owners(who: str, cells: Iterable[AbstractCell]) -> None:
    """Raises ValueError, "who ...", where two of these cells have the weights of one owner."""
    owners: list = []
    for cell in cells:
        for owner in _owners(cell):
            if any(owner is other for other in owners):
                raise ValueError(
                    f"{who}: two of its cells are of {owner!r}, which owns its weights: they would be the same. Make another "
                    "layer for the second, and take its cell."
                )
        owners += _owners(cell)


def _owners(part: Any) -> list:
    """All that own weights in a cell, found in its fields."""
    if isinstance(part, tuple):
        return [owner for inner in part for owner in _owners(inner)]
    if not isinstance(part, AbstractCell):
        return []
    inside: list = _owners(tuple(getattr(part, field.name) for field in fields(part))) if is_dataclass(part) else []
    return inside if part.owner is None else [part.owner, *inside]
