"""Training in 16 bits: keeps gradients within their range."""

from __future__ import annotations

from typing import Any

import nnabla as nn

from ..context import in_half
from ..core import is_whole
from .errors import TrainingError


class LossScale:
    """A factor on the loss that keeps gradients of 16 bits from vanishing, and follows them where they grow.

    The backward pass starts from `value` in place of 1, and the gradients are divided by it, in float32, before they are used.
    A step whose gradients overflow is left out and halves the factor; so many good steps in a row double it again. Parameters
    stay float32 all the while: NNabla's solvers compute in it, and its functions convert what they read.

    NNabla's `DynamicLossScalingUpdater` does the same in one call. It crashes without a `data_feeder`, takes a new batch after
    an overflow, which would tear a text apart, and clips nothing.

    Args:
        value: The factor at first, and the largest: the start itself must be within 16 bits, which end at 65,504.
        least: The smallest. Where gradients overflow even there, they are wrong rather than large.
        growth_steps: How many good steps double it.

    Attributes:
        value (float): The factor now.
        skipped (int): How many steps were left out.

    References:
        P. Micikevicius et al., Mixed precision training, 2018.

    Example:
        >>> import nnabla.solvers as S
        >>> w = nn.parameter.get_parameter_or_create("w", (1,), np.ones(1)); loss = F.sum(w * 3)
        >>> solver = S.Sgd(0.1); solver.set_parameters(nn.get_parameters())
        >>> scale = LossScale()
        >>> loss.forward(); solver.zero_grad(); scale.backward(loss); scale.unscale(solver)
        >>> scale.accepts(not solver.check_inf_or_nan_grad()), w.g
        (True, array([3.], dtype=float32))
        >>> scale.accepts(False), scale.value, scale.skipped
        (False, 16384.0, 1)
    """

    def __init__(self, value: float = 2.0**15, least: float = 1.0, growth_steps: int = 2000) -> None:
        if not 0 < least <= value <= 2.0**15 or not is_whole(growth_steps) or growth_steps < 1:
            raise ValueError(
                f"LossScale needs 0 < least <= value <= 32768 and growth_steps >= 1; got {least=}, {value=}, {growth_steps=}."
            )
        self.value = self.most = float(value)
        self.least, self.growth_steps = float(least), growth_steps
        self.skipped = self.good_steps = 0

    @classmethod
    def for_context(cls) -> LossScale:
        """What the present context needs: in float a factor of 1, in which an overflow is an error."""
        return cls() if in_half(nn.get_current_context()) else cls(1.0)

    def backward(self, loss: nn.Variable, **options: Any) -> None:
        """Runs `loss.backward` with these options, from the factor."""
        loss.backward(grad=self.value, **options)

    def unscale(self, solver: Any) -> None:
        """Divides the gradients of a solver's parameters by the factor; call it once after all backward passes of a step."""
        if self.value != 1:
            solver.scale_grad(1 / self.value)

    def accepts(self, finite: bool) -> bool:
        """Whether a step may be made, and what follows for the factor.

        Args:
            finite: Whether all gradients are, in all processes.

        Raises:
            TrainingError: They are not, and the factor is the smallest.
        """
        if finite:
            self.good_steps += 1
            if self.good_steps % self.growth_steps == 0:
                self.value = min(2 * self.value, self.most)
            return True
        if self.value <= self.least:
            raise TrainingError(f"gradients are not finite, even with a loss scale of {self.value:g}")
        self.value, self.good_steps = max(self.value / 2, self.least), 0
        self.skipped += 1
        return False

    def get(self) -> list[float]:
        """What a checkpoint keeps, in numbers."""
        return [self.value, self.good_steps, self.skipped, self.most]

    def set(self, numbers: list[float]) -> None:
        """Takes what `get` gave; of a scale of another precision only how many steps were left out."""
        value, good_steps, skipped, most = numbers
        self.skipped = int(skipped)
        if most == self.most:
            self.value, self.good_steps = float(value), int(good_steps)
