"""The models and the cells of farizrahman4u/seq2seq, with its words and its equations."""

from __future__ import annotations

from .cells import AttentionDecoderCell, LSTMDecoderCell
from .models import AttentionSeq2Seq, Seq2Seq, SimpleSeq2Seq
