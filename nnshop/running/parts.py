"""Where the steps of a sequence lie, and the parts that a long one is run in."""

from __future__ import annotations

import numpy as np

from ..kernels.array_function import Shape

BUDGET = 2**30  # bytes that the buffers of one sequence may take; a longer sequence is done in parts
CHECK_EACH = 16  # after so many steps it is seen whether a sequence has ended


class Parts:
    """Sequences `(T, B, ...)`, or `(B, T, ...)` with `batch_major`, whose steps are run part by part.

    Args:
        batch: B.
        batch_major: Where the axis of the batch is.
        reverse: From the last step to the first.

    Attributes:
        length: T.
        all (list of range): The parts, in the order in which they are run.
        checkpoints (bool): Only the states are kept of each part.
    """

    def __init__(self, batch: int, batch_major: bool, reverse: bool) -> None:
        self.batch, self.batch_major, self.reverse = batch, batch_major, reverse

    def divide(self, length: int, every: int | None, bytes_of_a_step: int, may_end: bool) -> None:
        """Divides sequences of this length into parts of at most so many steps, and of as much memory as there may be."""
        self.length = length
        every = min(every or length, max(1, BUDGET // max(1, bytes_of_a_step)))
        self.checkpoints = every < length
        if may_end and not self.checkpoints:
            every = CHECK_EACH
        parts = [range(start, min(start + every, length)) for start in range(0, length, every)]
        self.all = parts[::-1] if self.reverse else parts

    def whole(self, shape: Shape) -> Shape:
        """The shape of a sequence of such steps."""
        return (shape[0], self.length, *shape[1:]) if self.batch_major else (self.length, *shape)

    def steps(self, sequence: np.ndarray, part: range) -> np.ndarray:
        """The steps of a part of a sequence, `(steps, rows, n)`."""
        if self.batch_major:
            return sequence.reshape(len(sequence), self.length, -1)[:, part.start : part.stop].swapaxes(0, 1)
        return sequence.reshape(self.length, self.batch, -1)[part.start : part.stop]

    def write(self, sequence: np.ndarray, part: range, rows: np.ndarray, add: bool = False) -> None:
        """Writes the rows of the steps of a part to a sequence."""
        steps = self.steps(sequence, part)
        if add:
            steps += rows.reshape(steps.shape)
        else:
            steps[...] = rows.reshape(steps.shape)

    def fill_up(self, sequence: np.ndarray, last: range) -> None:
        """Lets what follows the last part that was run hold something: what its last step gave."""
        steps = self.steps(sequence, range(self.length))
        if self.reverse:
            steps[: last.start] = steps[last.start]
        else:
            steps[last.stop :] = steps[last.stop - 1]
