"""Theano's `scan`: a recurrence that is written as a function of some entries of sequences and of its own past outputs."""

from __future__ import annotations

from .folds import foldl, foldr, map, reduce
from .returned import until
from .scan import scan
from .updates import Updates

__all__ = ["Updates", "foldl", "foldr", "map", "reduce", "scan", "until"]
