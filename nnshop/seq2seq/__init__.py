"""Sequence to sequence: `EncoderDecoder` for ids, and the models and cells of farizrahman4u/seq2seq for vectors."""

from __future__ import annotations

from .cells import AttentionDecoderCell, LSTMDecoderCell
from .encoder_decoder import EncoderDecoder
from .models import AttentionSeq2Seq, Seq2Seq, SimpleSeq2Seq
