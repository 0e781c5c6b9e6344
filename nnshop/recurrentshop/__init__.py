"""RecurrentShop's words, equations and defaults."""

from __future__ import annotations

from . import basic_cells
from .cells import GRUCell, LSTMCell, RHNCell, RNNCell, SimpleRNNCell
from .engine import RecurrentModel, RecurrentSequential, from_config
from .initializers import INITIALIZERS
from .regularizers import MaxNorm, NonNegative, UnitNorm, apply_constraints, l1, l2, penalized, regularization_losses
from .weights import load_recurrentshop_weights

RecurrentContainer = RecurrentSequential  # the original's older name
ExtendedRNNCell = RNNCell  # the original's base of the customizable cells
