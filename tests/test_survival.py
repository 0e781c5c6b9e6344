"""A training that is killed, stopped, or finds no room on the disk loses nothing."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest
import survivor
from example_loader import write_text

from nnshop.training import Checkpoints, TrainingError, load_checkpoint, save_checkpoint

KILLS = 25
# Adam, dropout, carried states and a learning rate that falls: all that a checkpoint must hold to go on alike.
OPTIONS = (
    "train --cell lstm --units 6 --layers 2 --dropout 0.2 --solver adam --learning-rate 0.01 --batch-size 4 --num-steps 5 "
    "--max-steps 1200 --epochs 30 --save-every 7 --context cpu"
).split()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"), width=6)


def arguments(text: Path, folder: Path) -> list[str]:
    return [*OPTIONS, "--data", str(text), "--output", str(folder), "--resume"]


def train_to_the_end(text: Path, folder: Path, log: Path) -> None:
    process = survivor.start(arguments(text, folder), log)
    process.join(120)
    assert process.exitcode == 0, log.read_text()


def newest(folder: Path) -> int:
    """The step of the newest checkpoint; it must be whole. -1 where there is none yet."""
    files = Checkpoints(folder).files()
    return load_checkpoint(files[-1]).progress["step"] if files else -1


def begins(folder: Path) -> float:
    """When the newest run in a folder began to train: it has written its settings just before. 0 where none has."""
    settings = folder / "settings.json"
    return settings.stat().st_mtime if settings.exists() else 0.0


def kill_at_random(text: Path, folder: Path, log: Path, seconds: float, startup: bool, rng: random.Random) -> None:
    """Kills a training at any time of its first seconds; or while it starts."""
    before = begins(folder)
    process = survivor.start(arguments(text, folder), log)
    if startup:
        seconds = 0.3
    else:
        while process.is_alive() and begins(folder) == before:
            time.sleep(0.001)
    process.join(rng.uniform(0, seconds))
    process.kill()
    process.join()


def test_a_training_that_is_killed_at_random_times_ends_as_if_it_never_was(text: Path, tmp_path: Path) -> None:
    log, folder, alone, rng = tmp_path / "log.txt", tmp_path / "killed", tmp_path / "alone", random.Random(0)
    train_to_the_end(text, alone, log)
    seconds = (alone / "results.json").stat().st_mtime - begins(alone)
    reached = []
    for number in range(KILLS):
        kill_at_random(text, folder, log, 1.5 * seconds / KILLS, number % 6 == 5, rng)
        reached.append(newest(folder))  # raises where the newest is not whole
    assert reached == sorted(reached)
    assert len(set(reached)) > 10, f"the kills came too early or too late: {reached}"
    train_to_the_end(text, folder, log)
    assert_same_checkpoints(folder, alone)
    for name in ("results.json", "vocabulary.json", "Training-perplexity.series.txt", "Validation-perplexity.series.txt"):
        assert (folder / name).read_text() == (alone / name).read_text(), name
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]  # nor has it left anything behind


def assert_same_checkpoints(folder: Path, other: Path) -> None:
    """The last checkpoints of two trainings are equal to the last bit."""
    ours, theirs = (load_checkpoint(Checkpoints(path).files()[-1]) for path in (folder, other))
    assert ours.progress == theirs.progress
    assert ours.solver["t"] == theirs.solver["t"]
    for name, value in theirs.parameters.items():
        np.testing.assert_array_equal(ours.parameters[name], value, err_msg=name)
        for key, state in theirs.solver["states"][name].items():
            np.testing.assert_array_equal(ours.solver["states"][name][key], state, err_msg=f"{name} {key}")
    for a, b in zip(ours.state, theirs.state):
        np.testing.assert_array_equal(a, b)
    for name, (kind, numbers, *rest) in theirs.random.items():
        assert ours.random[name][0] == kind
        assert ours.random[name][2:] == tuple(rest)
        np.testing.assert_array_equal(ours.random[name][1], numbers, err_msg=name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_ends_within_seconds(text: Path, tmp_path: Path, number: int) -> None:
    log, folder = tmp_path / "log.txt", tmp_path / "stopped"
    process = survivor.start([*arguments(text, folder), "--max-steps", "100000", "--epochs", "10000"], log)
    while process.is_alive() and newest(folder) < 0:
        time.sleep(0.02)
    before = newest(folder)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(10)
    assert process.exitcode == 130, log.read_text()
    assert newest(folder) >= before
    assert f"stopped at step {newest(folder)}; saved in {Checkpoints(folder).files()[-1]}" in log.read_text()


# ------------------------------------------------------------------------------------------------------ no room, no right


def a_training() -> S.Adam:
    loss = F.mean(PF.affine(nn.Variable.from_numpy_array(np.ones((2, 300))), 300))
    solver = S.Adam()
    solver.set_parameters(nn.get_parameters())
    loss.forward()
    loss.backward()
    solver.update()
    return solver


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond this size, in bytes: the write that would fails, half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def left_in(folder: Path) -> list[str]:
    """The files of a folder, but for the one by which this process holds it."""
    return sorted({path.name for path in folder.iterdir()} - {".lock"})


@pytest.mark.parametrize("size", [0, 1000, 100_000, 1_000_000])
def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path: Path, size: int) -> None:
    solver, checkpoints = a_training(), Checkpoints(tmp_path)
    checkpoints.save(1, solver, {"step": 1}, [])
    with disk_of(size), pytest.raises(TrainingError, match=r"checkpoint-00000002\.npz: could not be saved: .*00000001\.npz"):
        checkpoints.save(2, solver, {"step": 2}, [])
    assert left_in(tmp_path) == ["checkpoint-00000001.npz"]
    loaded, passed_over = checkpoints.load()
    assert loaded is not None
    assert loaded.progress == {"step": 1}
    assert not passed_over
    checkpoints.save(2, solver, {"step": 2}, [])  # once there is room again
    assert newest(tmp_path) == 2


def test_a_read_only_folder_is_told_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    solver, checkpoints = a_training(), Checkpoints(tmp_path)
    checkpoints.save(1, solver, {"step": 1}, [])
    tmp_path.chmod(0o555)
    try:
        said = as_a_common_user(lambda: checkpoints.save(2, solver, {"step": 2}, []))
    finally:
        tmp_path.chmod(0o755)
    assert said.startswith("TrainingError")
    assert "checkpoint-00000002.npz: could not be saved: Permission denied" in said
    assert newest(tmp_path) == 1


def as_a_common_user(function: object) -> str:
    """Calls a function in a child process without root's rights; returns what it raised."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            function()  # type: ignore[operator]
        except Exception as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


def test_what_killed_processes_leave_is_removed_but_not_what_others_write(tmp_path: Path) -> None:
    solver, checkpoints = a_training(), Checkpoints(tmp_path)
    dead = os.fork() or os._exit(0)
    os.waitpid(dead, 0)
    left, kept = tmp_path / f".checkpoint-00000001.{dead}.npz", tmp_path / f".checkpoint-00000009.{os.getppid()}.npz"
    for path in (left, kept):
        path.write_bytes(b"half")
    checkpoints.save(2, solver, {}, [])
    assert left_in(tmp_path) == [kept.name, "checkpoint-00000002.npz"]


def test_a_checkpoint_names_the_versions_that_wrote_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.npz", a_training(), {}, [])
    meta = str(np.load(tmp_path / "c.npz")["meta"])
    assert all(f'"{package}": ' in meta for package in ("nnshop", "nnabla", "numpy"))
