"""A training as it stands, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nnabla as nn
import numpy as np

from ..archive import check_numbers, damage_named, read_archive, write_archive
from ..core import is_whole
from ..parameters import all_parameters
from .errors import CheckpointError


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

    def write(self) -> None:
        """Writes it to its file, atomically."""
        arrays = {f"parameter:{name}": value for name, value in self.parameters.items()}
        arrays.update({f"solver:{n}:{key}": v for n, state in self.solver["states"].items() for key, v in state.items()})
        arrays.update({f"state:{i}": value for i, value in enumerate(self.state)})
        arrays.update({f"random:{name}": value[1] for name, value in self.random.items()})
        meta = {
            "progress": self.progress,
            "states": len(self.state),
            "solver": {key: value for key, value in self.solver.items() if key != "states"},
            "random": {name: [value[0], *value[2:]] for name, value in self.random.items()},
        }
        write_archive(self.path, "checkpoint", meta, arrays)

    def restore(self, solver: Any) -> None:
        """Puts parameters, solver states and random states back; the solver must hold the model's parameters already.

        Raises:
            CheckpointError: The checkpoint is of another model or solver, or not whole. Nothing is changed then.
        """
        current, states = all_parameters(), solver.get_states()
        self._compare({name: v.shape for name, v in current.items()}, {n: a.shape for n, a in self.parameters.items()})
        with damage_named(self.path, "checkpoint"):
            self._check_solver(solver.name, states)
            self._check_values()
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

    def _check_values(self) -> None:
        """Raises where there are values that no training has, so that `restore` cannot fail halfway."""
        check_numbers(self.parameters)
        for name, arrays in self.solver["states"].items():
            check_numbers({f"{name}:{key}": array for key, array in arrays.items()})
        if not isinstance(self.progress, dict):
            raise TypeError(f"the progress is a {type(self.progress).__name__}, not a dict of JSON data")
        strange = [value.dtype for value in self.state if value.dtype.kind not in "biuf"]
        if strange:
            raise TypeError(f"an array of the state is of {strange[0]}")
        counts, rate = self.solver["t"].values(), self.solver["learning_rate"]
        if not all(is_whole(t) and 0 <= t < 2**31 for t in counts) or not _is_float32(rate):
            raise TypeError("counts and learning rate of the solver are no numbers, or out of range")
        for name in ("nnabla", "numpy"):
            _check_random(*self.random[name])

    def _compare(self, model: Mapping[str, tuple], saved: Mapping[str, tuple]) -> None:
        wrong = [f"{name} is {saved[name]}, not {model[name]}" for name in model if saved.get(name, model[name]) != model[name]]
        wrong += [f"{name} is missing" for name in model if name not in saved]
        wrong += [f"{name} is superfluous" for name in saved if name not in model]
        if wrong:
            raise CheckpointError(f"{self.path}: is of another model: {'; '.join(wrong[:5])}.")


def _is_float32(number: Any) -> bool:
    return isinstance(number, (int, float)) and abs(number) <= float(np.finfo(np.float32).max)


def _check_random(kind: str, key: np.ndarray, position: int, has_gauss: int, gauss: float) -> None:
    """Raises ValueError unless this is a state of NumPy's Mersenne Twister, which believes what it is given.

    Of a position out of range it would read foreign memory, and of a key of zeros it draws zeros without end.
    """
    known = kind == "MT19937" and key.dtype == np.uint32 and key.shape == (624,) and key[1:].any()
    if not (known and position in range(625) and has_gauss in (0, 1) and _is_float32(gauss)):
        raise ValueError("a random state is none")


def take_checkpoint(path: str | Path, solver: Any, progress: dict[str, Any], state: Sequence[np.ndarray]) -> Checkpoint:
    """A training as it stands now, to be written to a file; see `save_checkpoint`."""
    states = solver.get_states()
    random = {"nnabla": nn.random.prng.get_state(), "numpy": np.random.get_state()}
    checkpoint = Checkpoint(
        Path(path),
        progress,
        list(map(np.asarray, state)),
        {name: v.d for name, v in all_parameters().items()},
        {
            "name": solver.name,
            "learning_rate": solver.learning_rate(),
            "t": {name: s.t for name, s in states.items()},
            "states": {name: {key: v.data.data for key, v in s.pstate.items()} for name, s in states.items()},
        },
        random,
    )
    checkpoint._check_values()
    return checkpoint


def save_checkpoint(path: str | Path, solver: Any, progress: dict[str, Any], state: Sequence[np.ndarray]) -> None:
    """Writes a training to one file, atomically: parameters, solver states, random states, and what the script adds.

    The file is an `.npz` of plain arrays and JSON; loading one runs no code.

    Args:
        path: The file.
        solver: An NNabla solver that holds the parameters in training.
        progress: What the script needs to go on, a dict of JSON data: epoch, batch, settings, history.
        state: Arrays of real numbers, such as `CarriedState.get()`.

    Raises:
        TypeError, ValueError: What could not be loaded again. Nothing is written then.
        OSError: It cannot be written; a file that was there is as it was.
    """
    take_checkpoint(path, solver, progress, state).write()


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
        checkpoint = Checkpoint(
            path,
            meta["progress"],
            [arrays[f"state:{i}"] for i in range(meta["states"])],
            {name.split(":", 1)[1]: array for name, array in arrays.items() if name.startswith("parameter:")},
            {**meta["solver"], "states": states},
            {name: (kind, arrays[f"random:{name}"], *rest) for name, (kind, *rest) in meta["random"].items()},
        )
        checkpoint._check_values()
    return checkpoint
