"""What a training script needs: clipping, loss scales, states carried between batches, checkpoints, Ctrl-C, curves."""

from __future__ import annotations

from ..archive import atomic_write
from .carried_state import CarriedState
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .checkpoints import Checkpoints, check_writable
from .clipping import clip_grad_by_global_norm
from .errors import CheckpointError, TrainingError
from .loss_scale import LossScale
from .parameter_files import load_parameters, save_parameters
from .plots import check_matplotlib, plot_alignments, plot_curves
from .stopping import StopSignal
