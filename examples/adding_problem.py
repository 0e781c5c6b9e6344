"""The adding problem: what a network must remember over a hundred steps, and which cells do.

Each step has a random number in [0, 1] and a marker, which is 1 at one step of the first half and at one of the second; the
target is the sum of the two marked numbers. A network that always says 1 has the mean squared error 1/6.

    python examples/adding_problem.py --length 100 --cells lstm,rhn,custom --output runs/adding_problem

trains each cell in turn, prints a table of the errors on sequences that training never saw, and draws
`adding_problem.png`. All cells are built by `RecurrentSequential`, with the settings of `Settings`.

References:
    S. Hochreiter, J. Schmidhuber, Long short-term memory, 1997: the problem.
    Q. Le, N. Jaitly, G. Hinton, A simple way to initialize recurrent networks of rectified linear units, 2015: this form.
    J. Zilly, R. Srivastava, J. Koutnik, J. Schmidhuber, Recurrent highway networks, 2017: the custom cell.
    C. Tallec, Y. Ollivier, Can recurrent neural networks warp time?, 2018: the biases.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import nnshop
from nnshop.recurrentshop import LSTMCell, RecurrentSequential, RHNCell, RNNCell
from nnshop.training import TrainingError, check_writable

BASELINE = 1 / 6  # the variance of the sum of two uniform numbers
SOLVED = 0.01


@dataclass(frozen=True)
class Settings:
    """All that a run depends on."""

    length: int = 100
    steps: int = 1000
    units: int = 32
    batch_size: int = 32
    learning_rate: float = 0.01
    max_norm: float = 1.0
    test_size: int = 500
    test_every: int = 50
    seed: int = 1


@dataclass(frozen=True)
class Result:
    """How a cell did: its test error after some of the updates, and the time that all of it took."""

    updates: list[int]
    errors: list[float]
    seconds: float

    @property
    def solved_at(self) -> int | None:
        """The updates after which the test error was first below SOLVED; None where it never was."""
        return next((n for n, error in zip(self.updates, self.errors) if error < SOLVED), None)


def make_batch(random: np.random.RandomState, size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws sequences `(B, T, 2)` of numbers and markers, and their targets `(B, 1)`."""
    rows, half = np.arange(size), length // 2
    x = np.zeros((size, length, 2), np.float32)
    x[..., 0] = random.uniform(size=(size, length))
    first, second = random.randint(0, half, size), random.randint(half, length, size)
    x[rows, first, 1] = x[rows, second, 1] = 1
    return x, (x[rows, first, 0] + x[rows, second, 0])[:, None]


@dataclass(frozen=True, repr=False)
class HighwayCell(RNNCell):
    """A cell of our own: `h' = t * n + (1 - t) * h`, the highway layer of Zilly et al. with the gates coupled as there.

    RecurrentShop's RHNCell carries `sigmoid(1 - t) * h` instead, at most 0.73 of the state at each step.
    """

    def call(self, x: nn.Variable, *states: nn.Variable) -> tuple[nn.Variable, ...]:
        (h,) = states
        *_, b_init = self.initializers
        z = PF.affine(F.concatenate(x, h, axis=1), 2 * self.size, b_init=b_init)
        n, t = F.tanh(z[:, : self.size]), F.sigmoid(z[:, self.size :])
        h = t * n + (1 - t) * h
        return h, h


def remember(signs: Sequence[int], length: int) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Biases with which a cell remembers from the start: unit by unit for about 1 to T steps, by Tallec and Ollivier.

    Args:
        signs: For each gate, as they lie side by side in the bias: 1 where open means to keep the state, -1 where open means
            to change it, 0 for others.
        length: T.

    Returns:
        A `bias_initializer`: NNabla calls it with the shape, by that name.
    """

    def initialize(shape: tuple[int, ...]) -> np.ndarray:
        memory = np.log(nn.random.prng.uniform(1, length - 1, shape[0] // len(signs)))
        return np.concatenate([sign * memory for sign in signs])

    return initialize


def lstm(units: int, length: int) -> RNNCell:
    """RecurrentShop's LSTM with smooth gates (a hard sigmoid has no gradient where it is 1), in the order i, f, g, o."""
    return LSTMCell(units, recurrent_activation="sigmoid", bias_initializer=remember((-1, 1, 0, 0), length))


def rhn_relu(units: int, length: int) -> RNNCell:
    """An RHN that starts near `h' = h + relu(x W)`: its n keeps the half of the state that its carry gate loses."""
    return RHNCell(
        units,
        activation="relu",
        recurrent_initializer=lambda shape: 0.5 * np.eye(*shape),
        bias_initializer=lambda shape: np.repeat([0, 2], shape[0] // 2),  # n, t; of x and of h, so t starts at sigmoid(4)
    )


CELLS: dict[str, Callable[[int, int], RNNCell]] = {
    "lstm": lstm,
    "rhn": lambda units, length: RHNCell(units),
    "custom": lambda units, length: HighwayCell(units, bias_initializer=remember((0, -1), length)),
    "lstm_plain": lambda units, length: LSTMCell(units),
    "rhn_relu": rhn_relu,
}
DEFAULT_CELLS = ("lstm", "rhn", "custom")


def train(name: str, settings: Settings) -> Result:
    """Trains one of the CELLS from the start, with new weights; each cell sees the same batches."""
    started = time.perf_counter()
    nn.seed(settings.seed)  # the weights
    random = np.random.RandomState(settings.seed)
    test_x, test_target = make_batch(random, settings.test_size, settings.length)

    rnn = RecurrentSequential()
    rnn.add(CELLS[name](settings.units, settings.length))
    rnn.add(PF.affine, 1)
    x, target = nn.Variable((settings.batch_size, settings.length, 2)), nn.Variable((settings.batch_size, 1))
    loss = F.mean(F.squared_error(rnn(x), target))
    test_error = F.mean(
        F.squared_error(rnn(nn.Variable.from_numpy_array(test_x)), nn.Variable.from_numpy_array(test_target))
    )  # the same weights
    with nn.parameter_scope(rnn.path):
        parameters = nn.get_parameters()
    solver = S.Adam(settings.learning_rate)
    solver.set_parameters(parameters)

    updates, errors = [], []
    for done in tqdm(range(settings.steps + 1), desc=name, disable=None):
        if done % settings.test_every == 0 or done == settings.steps:
            test_error.forward(clear_buffer=True)
            updates.append(done)
            errors.append(float(test_error.d))
        if done == settings.steps:
            break
        x.d, target.d = make_batch(random, settings.batch_size, settings.length)
        loss.forward(clear_no_need_grad=True)
        solver.zero_grad()
        loss.backward(clear_buffer=True)
        if np.isfinite(nnshop.clip_grad_by_global_norm(solver, settings.max_norm)):
            solver.update()
    return Result(updates, errors, time.perf_counter() - started)


def print_table(results: dict[str, Result]) -> None:
    """Prints the test error of each cell at the end, beside that of a network which always says 1."""
    print(f"{'cell':12}{'test MSE':>10}{f'below {SOLVED} after':>20}{'seconds':>10}")
    for name, result in results.items():
        solved = "never" if result.solved_at is None else f"{result.solved_at} updates"
        print(f"{name:12}{result.errors[-1]:10.4f}{solved:>20}{result.seconds:10.0f}")
    print(f"{'always 1':12}{BASELINE:10.4f}")


def draw_curves(results: dict[str, Result], settings: Settings, path: Path) -> None:
    """Draws the test errors over the updates, on a log scale, and the baseline as a dashed line."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes: Any = figure.add_subplot(
        title=f"The adding problem, {settings.length} steps", xlabel="updates", ylabel="test mean squared error"
    )
    for name, result in results.items():
        axes.semilogy(result.updates, result.errors, label=name)
    axes.axhline(BASELINE, color="gray", linestyle="--", label=f"always 1: {BASELINE:.4f}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains the cells in turn, prints the table and leaves the picture in the output folder."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description="Adds two marked numbers of a long sequence, with several cells.")
    parser.add_argument("--length", type=int, default=defaults.length, help="steps of a sequence (%(default)s)")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="number of updates (%(default)s)")
    parser.add_argument("--cells", default=",".join(DEFAULT_CELLS), help=f"some of {','.join(CELLS)} (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/adding_problem"), help="folder of the picture (%(default)s)")
    args = parser.parse_args(argv)
    if args.length < 2:
        parser.error(f"--length must be at least 2, one step for each marker; got {args.length}.")
    if args.steps < 1:
        parser.error(f"--steps must be at least 1; got {args.steps}. The table needs {defaults.steps}.")
    names = list(dict.fromkeys(args.cells.split(",")))
    unknown = [name for name in names if name not in CELLS]
    if unknown:
        parser.error(f"--cells must be some of {', '.join(CELLS)}, with commas between; got {', '.join(map(repr, unknown))}.")
    try:
        output = check_writable(args.output)
    except TrainingError as error:
        raise SystemExit(f"adding_problem.py: {error}") from None
    settings = Settings(length=args.length, steps=args.steps)
    results = {name: train(name, settings) for name in names}
    print_table(results)
    draw_curves(results, settings, output / "adding_problem.png")
    print(f"\nPicture: {output / 'adding_problem.png'}")


if __name__ == "__main__":
    main()
