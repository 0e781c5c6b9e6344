"""The only loops over time: `iterate` runs a plain function, `run` is its batch-first face for cells."""

from __future__ import annotations

from .sequences import explain, run
from .ways import WAYS, Auto, Compiled, Fused, Loop, Unrolled, Way, iterate

__all__ = ["WAYS", "Auto", "Compiled", "Fused", "Loop", "Unrolled", "Way", "explain", "iterate", "run"]
