"""Pictures of a training."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..archive import atomic_write
from .errors import TrainingError


def check_matplotlib() -> None:
    """Raises TrainingError where pictures cannot be drawn, so that a training need not find out at its end."""
    if importlib.util.find_spec("matplotlib") is None:
        raise TrainingError("pictures need matplotlib: pip install 'nnshop[examples]'.")


def plot_curves(
    path: str | Path,
    curves: Mapping[str, tuple[list[float], list[float]]],
    levels: Mapping[str, float] | None = None,
    xlabel: str = "step",
    ylabel: str = "perplexity",
    title: str = "",
) -> None:
    """Draws curves on a logarithmic axis, and levels to compare with, into a picture file.

    Args:
        path: Such as `curves.png`.
        curves: By label, the points `(xs, ys)`.
        levels: By label, a value that is drawn as a horizontal line.

    Raises:
        TrainingError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, (xs, ys) in curves.items():
        axes.plot(xs, ys, label=label, marker="o" if len(xs) < 20 else None)
    for number, (label, value) in enumerate((levels or {}).items()):
        axes.axhline(value, label=f"{label} {value:.1f}", color="gray", linestyle=("--", ":", "-.")[number % 3])
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
    figure.clear()  # its parts refer to each other, and would wait for Python's collector


def plot_alignments(path: str | Path, weights: np.ndarray, source: Sequence[str], target: Sequence[str]) -> None:
    """Draws where attention looked, a row for each step, into a picture file.

    Args:
        path: Such as `attention.png`.
        weights: `(T, S)`, such as one row of `Decoded.alignments`.
        source: The S symbols that it looked at.
        target: The T symbols that it said.

    Raises:
        ValueError: There are fewer weights than symbols.
        TrainingError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    if weights.ndim != 2 or weights.shape[0] < len(target) or weights.shape[1] < len(source):
        sizes = f"{len(target)} by {len(source)}"
        raise ValueError(f"plot_alignments needs weights (T, S) for {sizes} symbols; got {weights.shape}.")
    shown = weights[: len(target), : len(source)]
    figure = Figure(figsize=(1.5 + 0.25 * len(source), 1.2 + 0.25 * len(target)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(source)), source)
    axes.set_yticks(range(len(target)), target)
    axes.set(xlabel="source", ylabel="said")
    figure.colorbar(image, ax=axes, label="weight")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
    figure.clear()  # its parts refer to each other, and would wait for Python's collector
