"""What the measured trainings in NNabla have in common, on the CPU and on a GPU; needs NNabla and NumPy only."""

from __future__ import annotations

import platform
from collections.abc import Callable
from itertools import cycle

import nnabla as nn
import nnabla.solvers as S
import numpy as np

import nnshop


def versions() -> dict[str, str]:
    return {
        "nnshop": nnshop.__version__,
        "NNabla": nn.__version__,
        "NumPy": np.__version__,
        "Python of NNabla": platform.python_version(),
    }


def draw_parameters(limit: float) -> None:
    rng = np.random.RandomState(0)
    for parameter in nn.get_parameters().values():
        parameter.d = rng.uniform(-limit, limit, parameter.shape)


def training_step(
    words: nn.Variable, targets: nn.Variable, loss: nn.Variable, carry: Callable[[], None], classes: int, max_norm: float
) -> Callable[[], None]:
    """One step of a language model by SGD, on random words; parameters are there."""
    solver = S.Sgd(1.0)
    solver.set_parameters(nn.get_parameters())
    batches = cycle(np.random.RandomState(0).randint(classes, size=(4, 2, *words.shape)))

    def step() -> None:
        words.d, targets.d = next(batches)
        solver.zero_grad()
        loss.forward(clear_no_need_grad=True)
        float(loss.d)
        loss.backward(clear_buffer=True)
        nnshop.clip_grad_by_global_norm(solver, max_norm)
        solver.update()
        carry()

    return step
