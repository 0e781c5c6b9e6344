"""Recurrent networks of any wiring, in NNabla: cells, ways to run them over time, and what is built of them."""

from __future__ import annotations

from . import decoding, seq2seq
from .attention import attend
from .building import building
from .cells import GRUCell, LSTMCell, SimpleRNNCell
from .combinators import lift, readout, residual, stack, sync, teacher_forced
from .config import show_config
from .context import ContextError, use_context
from .core import AbstractCell, Cell, StateSpec, output_shape, tree_leaves, tree_map
from .export import save_nnp
from .functions import length_mask, sequence_loss, shift, time_distributed_softmax_cross_entropy, unstack
from .layers import GRU, LSTM, SimpleRNN, TimeDistributed, bidirectional, each, gru, lstm, simple_rnn
from .parameters import no_new_parameters
from .parametric_functions import embed, gru_cell, linear_cross_entropy, lstm_cell, simple_rnn_cell
from .portable import portable
from .recurrentshop import RecurrentModel, RecurrentSequential
from .running import explain, iterate, run
from .running.stepping import Stepper
from .scanning import foldl, foldr, map, reduce, scan, until
from .threads import set_threads
from .training import CarriedState, clip_grad_by_global_norm
from .version import __version__
from .weights import from_fused, to_fused
