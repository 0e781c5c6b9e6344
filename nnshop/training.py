"""What a training script needs: clipping, states carried between batches, checkpoints, Ctrl-C, curves."""

from __future__ import annotations

import importlib.util
import re
import signal
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import nnabla as nn
import numpy as np

from . import values
from .archive import ArchiveError, atomic_write, damage_named, read_archive, write_archive
from .core import AbstractCell, Tree, check_state, tree_leaves
from .parameters import all_parameters


class TrainingError(RuntimeError):
    """A training that cannot start or go on; the message says where, why, and what is saved."""


CheckpointError = ArchiveError  # a checkpoint that cannot be used: not whole, foreign, or of another model


def clip_grad_by_global_norm(solver: Any, max_norm: float) -> float:
    """Scales all gradients of a solver by one factor, so that their common norm is at most `max_norm`.

    `solver.clip_grad_by_norm` clips each parameter by itself, which changes the direction of the step.

    Args:
        solver: An NNabla solver, after `backward`.
        max_norm: The largest norm allowed, > 0.

    Returns:
        The norm before clipping, `sqrt(sum of squares over all parameters)`. Where it is NaN or infinite nothing is
        scaled: test it, and leave the update out.

    Raises:
        ValueError: max_norm is not positive.

    References:
        R. Pascanu, T. Mikolov, Y. Bengio, On the difficulty of training recurrent neural networks, 2013.

    Example:
        >>> import nnabla.solvers as S
        >>> w = nn.parameter.get_parameter_or_create("w", (2,), np.zeros(2))
        >>> solver = S.Sgd(); solver.set_parameters(nn.get_parameters()); w.g = [3, 4]
        >>> clip_grad_by_global_norm(solver, 1.0), w.g
        (5.0, array([0.6, 0.8], dtype=float32))
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive; got {max_norm}.")
    norm = float(np.sqrt(sum(float(np.vdot(p.g, p.g)) for p in solver.get_parameters().values())))
    if np.isfinite(norm) and norm > max_norm:
        solver.scale_grad(max_norm / norm)
    return norm


class CarriedState:
    """The state of a cell that goes on from batch to batch, as truncated backpropagation through time needs it.

    The initial states are Variables of the graph; `carry` copies the final states into them after a batch. Gradients are
    exact within each batch, and a second forward of the same batch advances nothing.

    Args:
        cell: Any cell.
        batch_size: B.

    Attributes:
        initial: The tree of Variables to start from.

    Example:
        >>> cell = nnshop.GRUCell(4)
        >>> state = CarriedState(cell, batch_size=2)
        >>> ys, final = nnshop.run(cell, nn.Variable((2, 5, 3)), state.initial)
        >>> state.follow(final)
        >>> F.sum(ys).forward(clear_no_need_grad=True)
        >>> state.carry()
        >>> bool(np.allclose(state.initial.d, ys.d[:, -1]))
        True
    """

    def __init__(self, cell: AbstractCell, batch_size: int) -> None:
        self.cell, self.batch_size = cell, batch_size
        self.initial = cell.initial_state(batch_size)
        if any(leaf.parent is not None or leaf.need_grad for leaf in tree_leaves(self.initial)):
            raise ValueError(f"{cell} computes its initial state, so nothing can be carried into it: it cannot be stateful.")
        self.final: Tree = None

    def follow(self, final: Tree) -> None:
        """Names the final state of the graph that starts from `initial`.

        Raises:
            ValueError: It has another structure or shapes than the cell's state.
        """
        check_state(self.cell, "carries", final, self.batch_size)
        values.expect(tree_leaves(final))
        self.final = final

    def carry(self) -> None:
        """Copies the final states into the initial ones; call it after a batch's forward (and backward).

        Raises:
            ValueError: `follow` was not called; or a final state has not been computed since then or since `reset`, because
                the graph has not run, or because what was forwarded does not depend on it.
        """
        if self.final is None and tree_leaves(self.initial):
            raise ValueError(
                "CarriedState.carry needs the graph's final state: call follow(state) with what nnshop.run returns."
            )
        way_out = "nn.forward_all([loss, *nnshop.tree_leaves(state.final)])"
        # Copies, never aliases: backward still needs the initial state while the final one is being written.
        finals = values.computed(tree_leaves(self.final), "CarriedState.carry", way_out)
        for before, value in zip(tree_leaves(self.initial), finals):
            before.d = value

    @property
    def has_run(self) -> bool:
        """Whether the graph has computed a final state since `follow` or `reset`."""
        return any(not np.isnan(leaf.d).all() for leaf in tree_leaves(self.final))

    def reset(self) -> None:
        """Sets the initial states back to what the cell's initializers give."""
        self.set([leaf.d for leaf in tree_leaves(self.cell.initial_state(self.batch_size))])
        values.forget(tree_leaves(self.final))

    def get(self) -> list[np.ndarray]:
        """Copies the initial states out, as a checkpoint keeps them."""
        return [leaf.d.copy() for leaf in tree_leaves(self.initial)]

    def set(self, states: list[np.ndarray]) -> None:
        """Copies values in, in the order of `get`; ValueError where they are of other shapes."""
        leaves = tree_leaves(self.initial)
        if [value.shape for value in states] != [leaf.shape for leaf in leaves]:
            expected, got = [leaf.shape for leaf in leaves], [value.shape for value in states]
            raise ValueError(f"{self.cell} carries states of shapes {expected}; got {got}.")
        for leaf, value in zip(leaves, states):
            leaf.d = value


def check_writable(folder: str | Path) -> Path:
    """Makes a folder, and tries that a file can be written there, so that a training need not find out at its end.

    Raises:
        TrainingError: It cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"writable")
    except OSError as error:
        raise TrainingError(f"{folder}: the output folder cannot be written: {error.strerror}. Choose another.") from error
    return folder


@dataclass(frozen=True)
class Checkpoint:
    """A training as it stood: what `save_checkpoint` was given, the parameters, solver states and random states.

    It is held in memory, whole and checked; nothing is changed before `restore`.
    """

    path: Path
    progress: dict[str, Any]
    state: list[np.ndarray]
    parameters: dict[str, np.ndarray]
    solver: dict[str, Any]
    random: dict[str, tuple]

    def restore(self, solver: Any) -> None:
        """Puts parameters, solver states and random states back; the solver must hold the model's parameters already.

        Raises:
            CheckpointError: The checkpoint is of another model or solver, or not whole. Nothing is changed then.
        """
        current, states = all_parameters(), solver.get_states()
        self._compare({name: v.shape for name, v in current.items()}, {n: a.shape for n, a in self.parameters.items()})
        with damage_named(self.path, "checkpoint"):
            self._check_solver(solver.name, states)
            for state in self.random.values():
                np.random.RandomState().set_state(state)  # raises where it is none
        for name, value in self.parameters.items():
            current[name].d = value
        for name, state in states.items():
            state.t = self.solver["t"][name]
            for key, value in state.pstate.items():
                value.data.data = self.solver["states"][name][key]
        solver.set_states(states)
        solver.set_learning_rate(self.solver["learning_rate"])
        nn.random.prng.set_state(self.random["nnabla"])
        np.random.set_state(self.random["numpy"])

    def _check_solver(self, name: str, states: Mapping[str, Any]) -> None:
        saved = self.solver
        if name != saved["name"] or set(states) != set(saved["t"]):
            raise CheckpointError(f"{self.path}: is of the solver {saved['name']}, this training uses {name}.")
        self._compare(
            {f"{n}:{key}": v.shape for n, state in states.items() for key, v in state.pstate.items()},
            {f"{n}:{key}": array.shape for n, state in saved["states"].items() for key, array in state.items()},
        )
        if not all(isinstance(t, int) for t in saved["t"].values()) or not isinstance(saved["learning_rate"], (int, float)):
            raise TypeError("counts and learning rate of the solver are no numbers")

    def _compare(self, model: Mapping[str, tuple], saved: Mapping[str, tuple]) -> None:
        wrong = [f"{name} is {saved[name]}, not {model[name]}" for name in model if saved.get(name, model[name]) != model[name]]
        wrong += [f"{name} is missing" for name in model if name not in saved]
        wrong += [f"{name} is superfluous" for name in saved if name not in model]
        if wrong:
            raise CheckpointError(f"{self.path}: is of another model: {'; '.join(wrong[:5])}.")


def save_checkpoint(path: str | Path, solver: Any, progress: dict[str, Any], state: list[np.ndarray]) -> None:
    """Writes a training to one file, atomically: parameters, solver states, random states, and what the script adds.

    The file is an `.npz` of plain arrays and JSON; loading one runs no code.

    Args:
        path: The file.
        solver: An NNabla solver that holds the parameters in training.
        progress: What the script needs to go on, as JSON data: epoch, batch, settings, history.
        state: Arrays such as `CarriedState.get()`.
    """
    states = solver.get_states()
    random = {"nnabla": nn.random.prng.get_state(), "numpy": np.random.get_state()}
    arrays = {f"parameter:{name}": v.d for name, v in all_parameters().items()}
    arrays.update({f"solver:{n}:{k}": v.data.data for n, s in states.items() for k, v in s.pstate.items()})
    arrays.update({f"state:{i}": value for i, value in enumerate(state)})
    arrays.update({f"random:{name}": value[1] for name, value in random.items()})
    meta = {
        "progress": progress,
        "states": len(state),
        "solver": {
            "name": solver.name,
            "learning_rate": solver.learning_rate(),
            "t": {name: s.t for name, s in states.items()},
        },
        "random": {name: [value[0], *value[2:]] for name, value in random.items()},
    }
    write_archive(path, "checkpoint", meta, arrays)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint whole, and checks it; changes nothing.

    Raises:
        CheckpointError: The file is missing, truncated, damaged, or no checkpoint.
    """
    path = Path(path)
    with damage_named(path, "checkpoint"):
        meta, arrays = read_archive(path, "checkpoint")
        states: dict[str, dict] = {name: {} for name in meta["solver"]["t"]}
        for name, array in arrays.items():
            if name.startswith("solver:"):
                parameter, key = name[len("solver:") :].rsplit(":", 1)
                states[parameter][key] = array
        return Checkpoint(
            path,
            meta["progress"],
            [arrays[f"state:{i}"] for i in range(meta["states"])],
            {name.split(":", 1)[1]: array for name, array in arrays.items() if name.startswith("parameter:")},
            {**meta["solver"], "states": states},
            {name: (kind, arrays[f"random:{name}"], *rest) for name, (kind, *rest) in meta["random"].items()},
        )


class Checkpoints:
    """The checkpoints of one training in a folder, of which the last few are kept.

    Args:
        folder: Where they are, as `checkpoint-STEP.npz`.
        keep: How many to keep.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint; got {keep}.")
        self.folder, self.keep = Path(folder), keep

    def files(self) -> list[Path]:
        """Lists them, the oldest first."""
        found = {
            int(m[1]): p for p in self.folder.glob("checkpoint-*.npz") if (m := re.fullmatch(r"checkpoint-(\d+)\.npz", p.name))
        }
        return [found[step] for step in sorted(found)]

    def save(self, step: int, solver: Any, progress: dict[str, Any], state: list[np.ndarray]) -> Path:
        """Saves one, and only then removes the oldest beyond `keep`, and those of later steps.

        Raises:
            TrainingError: It could not be written; those before are as they were.
        """
        path = self.folder / f"checkpoint-{step:08d}.npz"
        try:
            save_checkpoint(path, solver, progress, state)
        except OSError as error:
            before = ", ".join(map(str, self.files())) or "none"
            raise TrainingError(f"{path}: could not be saved: {error.strerror}. Whole checkpoints: {before}.") from error
        files = self.files()
        for other in files[files.index(path) + 1 :]:  # damaged and passed over, or of a future that was given up
            other.unlink()
        for old in self.files()[: -self.keep]:
            old.unlink()
        return path

    def load(self) -> tuple[Checkpoint | None, list[str]]:
        """Loads the newest that is whole; None where there is none at all.

        Returns:
            The checkpoint, and why newer ones were passed over, to be told to the user.

        Raises:
            CheckpointError: There are some, and none is whole.
        """
        passed_over: list[str] = []
        for path in reversed(self.files()):
            try:
                return load_checkpoint(path), passed_over
            except CheckpointError as error:
                passed_over.append(str(error))
        if passed_over:
            raise CheckpointError(" ".join(passed_over))
        return None, []


class StopSignal:
    """Turns the first Ctrl-C (or SIGTERM) into a flag that a training tests between steps; the second ends it at once.

    An exception would not do: raised inside NNabla's graph it arrives as something else.

    Example:
        >>> import os
        >>> with StopSignal() as stop:
        ...     os.kill(os.getpid(), signal.SIGINT)
        ...     print(stop.requested)
        True
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)


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
