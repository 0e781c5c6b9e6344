"""Learns to count: the simplest recurrent network adds up the ones in a sequence of ones and zeros.

The recurrence s_t = x_t w_x + s_(t-1) w_rec has two weights; it counts exactly where both are 1. Two solvers look for that
point from the same start, w_x = 0.0900 and w_rec = 0.0113, with the whole set of 20 sequences in each update.

    python examples/counting.py --output runs/counting

prints this table in a few seconds and draws `counting_curves.png` and `counting_surface.png`. The cost is the squared error
of the last state, summed over the samples. Epochs count from 1, and the cost of an epoch is the one before its update:

    epoch                   100       200       300       400       500       600      1000      2000
    gradient descent   529.6915  504.5684  475.3019  435.9506  362.6524    0.2677    0.1300    0.0663
    RMSProp            533.2473  510.9251  483.4122  448.4283  402.1434  338.2674    0.0175    0.0038

    after 2001 updates       cost       w_x     w_rec
    gradient descent       0.0662    1.0597    0.9863
    RMSProp                0.0038    0.9996    0.9995

`--scan` writes the recurrence by `nnshop.reduce`, one of the forms of `nnshop.scan`, instead of as a cell. All numbers are the
same, to the last digit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from nnabla.parameter import get_parameter_or_create
from tqdm import tqdm

import nnshop
from nnshop.training import TrainingError, check_writable

SEED, SAMPLES, LENGTH = 1, 20, 10
UPDATES = 2001
SHOWN_EPOCHS = (100, 200, 300, 400, 500, 600, 1000, 2000)
SOLVERS = {
    "gradient descent": lambda: S.Sgd(lr=1e-5),
    "RMSProp": lambda: S.RMSprop(lr=1e-3, decay=0.9, eps=1e-8),
}
COLORS = {"gradient descent": "tab:red", "RMSProp": "black"}

Curve = tuple[np.ndarray, np.ndarray]  # costs (N + 1), weights (N + 1, 2)
LastState = Callable[[nn.Variable], nn.Variable]  # of the sequences (B, T, 1), (B, 1)


def make_problem() -> tuple[np.ndarray, np.ndarray]:
    """Draws the sequences `(SAMPLES, LENGTH)` of ones and zeros, and the weights (w_x, w_rec) to start from."""
    random = np.random.RandomState(SEED)
    sequences = np.array([np.around(random.rand(LENGTH)).astype(int) for _ in range(SAMPLES)])
    return sequences, random.uniform(-0.1, 0.1, size=2)


def count(x: nn.Variable, s: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
    """One step of the recurrence, on Variables `(B, 1)`: the output is the new state."""
    s = x * get_parameter_or_create("w_x", (1, 1)) + s * get_parameter_or_create("w_rec", (1, 1))
    return s, s


def last_by_cell(xs: nn.Variable) -> nn.Variable:
    """Runs the recurrence over `(B, T, 1)` as a cell, and returns the last state `(B, 1)`."""
    return nnshop.run(nnshop.Cell(count, nnshop.StateSpec((1,))), xs)[1]


def last_by_scan(xs: nn.Variable) -> nn.Variable:
    """The same as Theano's users write it; for all states it would be `nnshop.scan`."""
    last, _ = nnshop.reduce(lambda x, s: count(x, s)[1], xs, np.zeros((xs.shape[0], 1)), time_axis=1)
    return last


def summed_error(sequences: np.ndarray, last_state: LastState = last_by_cell) -> nn.Variable:
    """Builds the graph of the cost: the last state is to be the number of ones."""
    last = last_state(nn.Variable.from_numpy_array(sequences[:, :, None]))
    return F.sum(F.squared_error(last, nn.Variable.from_numpy_array(sequences.sum(axis=1, keepdims=True))))


def train(
    name: str,
    sequences: np.ndarray,
    start: np.ndarray,
    updates: int = UPDATES,
    last_state: LastState = last_by_cell,
) -> Curve:
    """Trains from the given weights with one of the SOLVERS.

    Args:
        name: That of the solver.
        sequences, start: The problem.
        updates: How many.
        last_state: `last_by_cell` or `last_by_scan`, which compute the same.

    Returns:
        `(costs, weights)` after 0, 1, ..., `updates` updates, so epoch n has the cost `costs[n - 1]`.
    """
    with nn.parameter_scope(name):
        cost = summed_error(sequences, last_state)
        parameters = nn.get_parameters()
    pair = parameters["w_x"], parameters["w_rec"]
    for parameter, value in zip(pair, start):
        parameter.d = value
    solver = SOLVERS[name]()
    solver.set_parameters(parameters)
    costs, weights = np.empty(updates + 1), np.empty((updates + 1, 2))
    for done in tqdm(range(updates + 1), desc=name, disable=None):
        cost.forward()
        costs[done], weights[done] = cost.d, [parameter.d.item() for parameter in pair]
        if done < updates:
            solver.zero_grad()
            cost.backward()
            solver.update()
    return costs, weights


def cost_surface(sequences: np.ndarray, w_x: np.ndarray, w_rec: np.ndarray) -> np.ndarray:
    """The cost at any weights, in closed form: the last state is the sum of x_t w_x w_rec^(T - 1 - t)."""
    powers = w_rec[..., None] ** np.arange(LENGTH - 1, -1, -1)  # (..., T)
    last = w_x[..., None] * (powers @ sequences.T)  # (..., B)
    return ((last - sequences.sum(axis=1)) ** 2).sum(axis=-1)


def print_table(curves: dict[str, Curve], updates: int) -> None:
    """Prints the cost at some epochs, then where each solver ended."""
    epochs = [epoch for epoch in SHOWN_EPOCHS if epoch <= updates] or [updates]
    print(f"{'epoch':17}" + "".join(f"{epoch:10}" for epoch in epochs))
    for name, (costs, _) in curves.items():
        print(f"{name:17}" + "".join(f"{costs[epoch - 1]:10.4f}" for epoch in epochs))
    print(f"\n{f'after {updates} updates':21}      cost       w_x     w_rec")
    for name, (costs, weights) in curves.items():
        print(f"{name:21}{costs[-1]:10.4f}{weights[-1, 0]:10.4f}{weights[-1, 1]:10.4f}")


def draw_curves(curves: dict[str, Curve], path: Path) -> None:
    """Draws the cost over the updates, on a log scale."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes: Any = figure.add_subplot(title="Learning to count", xlabel="updates", ylabel="summed squared error")
    for name, (costs, _) in curves.items():
        axes.semilogy(costs, color=COLORS[name], label=name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def draw_surface(curves: dict[str, Curve], sequences: np.ndarray, path: Path) -> None:
    """Draws the cost over both weights in log colours, and the way that each solver took."""
    w_x, w_rec = np.meshgrid(np.linspace(-0.25, 1.75, 301), np.linspace(-0.2, 1.5, 301))
    levels = np.logspace(-1, 5, 19)  # three in each power of ten
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    axes: Any = figure.add_subplot(
        title="Two ways to the weights that count, a dot per 100 updates", xlabel="$w_x$", ylabel="$w_{rec}$"
    )
    surface = cost_surface(sequences, w_x, w_rec)
    filled = axes.contourf(w_x, w_rec, surface, levels, norm=LogNorm(), cmap="Blues", extend="both")
    axes.contour(w_x, w_rec, surface, levels, colors="white", linewidths=0.5)
    figure.colorbar(filled, ax=axes, label="summed squared error", ticks=levels[::3])
    for name, (_, weights) in curves.items():
        axes.plot(*weights.T, "o-", color=COLORS[name], markersize=4, markevery=100, label=name)
    axes.plot(*curves["RMSProp"][1][0], "s", color="white", markeredgecolor="black", label="start")
    axes.plot(1, 1, "*", color="gold", markeredgecolor="black", markersize=12, label="both weights 1")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains with both solvers, prints the table and leaves the pictures in the output folder."""
    parser = argparse.ArgumentParser(description="Learns to count the ones in a sequence, with two solvers.")
    parser.add_argument("--output", type=Path, default=Path("runs/counting"), help="folder of the pictures (%(default)s)")
    parser.add_argument("--epochs", type=int, default=UPDATES, help="number of updates (%(default)s)")
    parser.add_argument("--scan", action="store_true", help="write the recurrence by scan, not as a cell; the numbers stay")
    settings = parser.parse_args(argv)
    if settings.epochs < 1:
        parser.error(f"--epochs must be at least 1; got {settings.epochs}. The table needs {UPDATES}.")
    try:
        output = check_writable(settings.output)
    except TrainingError as error:
        raise SystemExit(f"counting.py: {error}") from None
    sequences, start = make_problem()
    last_state = last_by_scan if settings.scan else last_by_cell
    curves = {name: train(name, sequences, start, settings.epochs, last_state) for name in SOLVERS}
    print_table(curves, settings.epochs)
    draw_curves(curves, output / "counting_curves.png")
    draw_surface(curves, sequences, output / "counting_surface.png")
    print(f"\nPictures: {output / 'counting_curves.png'}, {output / 'counting_surface.png'}")


if __name__ == "__main__":
    main()
