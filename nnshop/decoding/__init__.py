"""What a trained cell says: greedy decoding, sampling and beam search, and a cell that listens to itself."""

from __future__ import annotations

from .beams import beam_search
from .feedback import Choice, Speaking, decode
from .step import Decoded, Step, tile
from .writing import greedy, sample
