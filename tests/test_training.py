"""Clipping, carried states, checkpoints, Ctrl-C, curves."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest

import nnshop
from nnshop.archive import ArchiveError, write_archive
from nnshop.training import (
    CarriedState,
    CheckpointError,
    Checkpoints,
    StopSignal,
    TrainingError,
    atomic_write,
    check_writable,
    clip_grad_by_global_norm,
    load_checkpoint,
    load_parameters,
    plot_curves,
    save_checkpoint,
    save_parameters,
)


class Problem:
    """A small regression by an LSTM with Adam, to be trained, saved and gone on with."""

    def __init__(self, units: int = 3, solver: Any = None) -> None:
        nn.clear_parameters()
        self.x, rng = nn.Variable((2, 4, 3)), np.random.RandomState(0)
        self.x.d = rng.randn(*self.x.shape)
        cell = nnshop.LSTMCell(units, rng=rng)
        self.state = CarriedState(cell, 2)
        ys, final = nnshop.run(cell, self.x, self.state.initial)
        self.state.follow(final)
        self.loss = F.mean((ys - 0.5) ** 2)
        self.solver = solver or S.Adam(0.01)
        self.solver.set_parameters(nn.get_parameters())

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            self.x.d = np.random.randn(*self.x.shape)  # so that the random state matters
            self.solver.zero_grad()
            self.loss.forward(clear_no_need_grad=True)
            losses.append(float(self.loss.d))
            self.loss.backward(clear_buffer=True)
            self.solver.update()
            self.state.carry()
        return losses


def parameters() -> dict[str, np.ndarray]:
    return {name: v.d.copy() for name, v in nn.get_parameters(grad_only=False).items()}


@pytest.mark.parametrize("largest", [0.5, 3.0, 100.0])
def test_global_norm_keeps_the_direction(largest: float) -> None:
    solver = S.Sgd(1.0)
    a, b = (nn.parameter.get_parameter_or_create(name, (2,), np.zeros(2)) for name in "ab")
    solver.set_parameters(nn.get_parameters())
    a.g, b.g = [3, 0], [0, 4]
    before = np.concatenate([a.g, b.g])
    assert clip_grad_by_global_norm(solver, largest) == pytest.approx(5.0)
    np.testing.assert_allclose(np.concatenate([a.g, b.g]), before * min(1, largest / 5), rtol=1e-6)


def test_global_norm_leaves_a_nan_to_be_found() -> None:
    solver = S.Sgd(1.0)
    a = nn.parameter.get_parameter_or_create("a", (2,), np.zeros(2))
    solver.set_parameters(nn.get_parameters())
    a.g = [np.nan, 4]
    assert np.isnan(clip_grad_by_global_norm(solver, 1.0))
    assert a.g[1] == 4
    with pytest.raises(ValueError, match="max_norm must be positive; got 0"):
        clip_grad_by_global_norm(solver, 0)


def test_a_forward_for_a_metric_advances_nothing() -> None:
    problem = Problem()
    problem.loss.forward()
    first = float(problem.loss.d)
    problem.loss.forward()
    assert float(problem.loss.d) == first
    problem.state.carry()
    problem.loss.forward()
    assert float(problem.loss.d) != first
    problem.state.reset()
    problem.loss.forward()
    assert float(problem.loss.d) == first


def test_carry_needs_the_final_state_of_the_cell() -> None:
    state = CarriedState(nnshop.LSTMCell(3), 2)
    with pytest.raises(ValueError, match=r"call follow\(state\)"):
        state.carry()
    with pytest.raises(ValueError, match=r"LSTMCell\(3\) carries a state of shapes"):
        state.follow(nn.Variable((2, 3)))


@pytest.mark.parametrize("make_solver", [lambda: S.Sgd(0.1), lambda: S.Adam(0.01), lambda: S.Momentum(0.1)])
def test_a_restored_training_goes_on_to_the_same_numbers(tmp_path: Path, make_solver: Any) -> None:
    problem = Problem(solver=make_solver())
    problem.train(3)
    problem.solver.set_learning_rate(0.02)
    save_checkpoint(tmp_path / "c.npz", problem.solver, {"epoch": 1}, problem.state.get())
    losses, whole = problem.train(4), parameters()

    np.random.seed(99)
    again = Problem(solver=make_solver())
    again.train(2)  # other parameters, solver states and random numbers, to be overwritten
    checkpoint = load_checkpoint(tmp_path / "c.npz")
    checkpoint.restore(again.solver)
    again.state.set(checkpoint.state)
    assert checkpoint.progress == {"epoch": 1}
    assert again.solver.learning_rate() == pytest.approx(0.02)
    assert again.train(4) == losses
    for name, value in parameters().items():
        np.testing.assert_array_equal(value, whole[name])


def test_checkpoint_of_another_model_changes_nothing(tmp_path: Path) -> None:
    problem = Problem()
    problem.train(1)
    save_checkpoint(tmp_path / "c.npz", problem.solver, {}, problem.state.get())
    other = Problem(units=4)
    before = parameters()
    with pytest.raises(CheckpointError, match=r"of another model: x2h/W is \(3, 12\), not \(3, 16\)"):
        load_checkpoint(tmp_path / "c.npz").restore(other.solver)
    for name, value in parameters().items():
        np.testing.assert_array_equal(value, before[name])
    sgd = Problem(solver=S.Sgd(0.1))
    with pytest.raises(CheckpointError, match=r"is of the solver Adam, this training uses Sgd"):
        load_checkpoint(tmp_path / "c.npz").restore(sgd.solver)
    PF.affine(nn.Variable((1, 2)), 3, name="more")
    with pytest.raises(CheckpointError, match="more/affine/W is missing"):
        load_checkpoint(tmp_path / "c.npz").restore(sgd.solver)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.solver["states"]["x2h/W"].pop("mean"), "x2h/W:mean is missing"),
        (lambda c: c.solver["states"]["b"].update(mean=np.zeros(2)), r"b:mean is \(2,\)"),
        (lambda c: c.solver["states"].pop("b"), "b:(mean|var) is missing"),
        (lambda c: c.solver["t"].update({"b": "3"}), "no numbers"),
        (lambda c: c.solver.update(learning_rate=None), "no numbers"),
        (lambda c: c.random.update(nnabla=("MT19937", np.zeros(3))), "is not a whole checkpoint"),
        (lambda c: c.solver.pop("name"), "is not a whole checkpoint"),
        (lambda c: c.solver["t"].update({"b": 2**31}), "out of range"),
        (lambda c: c.solver.update(learning_rate=10**400), "is not a whole checkpoint"),
        (lambda c: c.parameters.update({"x2h/W": c.parameters["x2h/W"].astype(complex)}), "x2h/W is of complex128"),
        (lambda c: c.solver["states"]["b"].update(mean=c.parameters["b"].astype("U3")), "b:mean is of <U3"),
        (lambda c: c.random.pop("numpy"), "KeyError: 'numpy'"),
        (lambda c: c.random.update(numpy=(*c.random["numpy"][:2], 10**6, 0, 0.0)), "a random state is none"),  # foreign memory
        (lambda c: c.random.update(numpy=("MT19937", np.zeros(624, np.uint32), 1, 0, 0.0)), "a random state is none"),  # a hang
    ],
)
def test_a_checkpoint_that_lacks_something_changes_nothing(tmp_path: Path, damage: Any, message: str) -> None:
    """Such as one that was made by hand."""
    problem = Problem()
    problem.train(1)
    save_checkpoint(tmp_path / "c.npz", problem.solver, {}, problem.state.get())
    problem.train(1)
    before, drawn = parameters(), nn.random.prng.get_state()[1].copy()
    checkpoint = load_checkpoint(tmp_path / "c.npz")
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.restore(problem.solver)
    for name, value in parameters().items():
        np.testing.assert_array_equal(value, before[name])
    np.testing.assert_array_equal(nn.random.prng.get_state()[1], drawn)


def test_a_damaged_newest_checkpoint_is_passed_over_by_name(tmp_path: Path) -> None:
    problem, checkpoints = Problem(), Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        problem.train(1)
        checkpoints.save(step, problem.solver, {"step": step}, [])
    assert [p.name for p in checkpoints.files()] == ["checkpoint-00000002.npz", "checkpoint-00000003.npz"]
    newest = checkpoints.files()[-1]
    whole = newest.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for content in (whole[: len(whole) // 2], b"", b"no checkpoint", bytes(damaged)):
        newest.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"00000003\.npz: is not a whole checkpoint"):
            load_checkpoint(newest)
        checkpoint, passed_over = checkpoints.load()
        assert checkpoint is not None
        assert checkpoint.progress == {"step": 2}
        assert "00000003.npz" in passed_over[0]
    checkpoints.files()[0].write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"00000003.*00000002"):
        checkpoints.load()


def test_later_checkpoints_go_whatever_their_number_of_digits(tmp_path: Path) -> None:
    problem, checkpoints = Problem(), Checkpoints(tmp_path, keep=2)
    for step in (99_999_998, 99_999_999, 100_000_000):
        checkpoints.save(step, problem.solver, {}, [])
    assert [p.name for p in checkpoints.files()] == ["checkpoint-99999999.npz", "checkpoint-100000000.npz"]
    with pytest.raises(ValueError, match="keep must be at least 1 checkpoint; got 0"):
        Checkpoints(tmp_path, keep=0)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).load() == (None, [])
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load_checkpoint(tmp_path / "none.npz")


def test_a_checkpoint_never_unpickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", meta=np.array([object()], dtype=object))
    with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
        load_checkpoint(tmp_path / "c.npz")


def test_atomic_write_keeps_the_old_file_after_an_exception(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_write(target) as path:
            path.write_text("new, but")
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_output_folder_is_tried_before(tmp_path: Path) -> None:
    assert check_writable(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file/sub: the output folder cannot be written: Not a directory"):
        check_writable(tmp_path / "file" / "sub")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_a_flag_and_the_second_would_end(number: int) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) == before


def test_curves_are_a_picture(tmp_path: Path) -> None:
    plot_curves(tmp_path / "c.png", {"train": ([1.0, 2.0], [300.0, 100.0])}, {"bigram": 73.1}, title="t")
    assert (tmp_path / "c.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_final_state_that_the_loss_does_not_need_must_be_forwarded_with_it() -> None:
    def step(x: nn.Variable, state: Any) -> Any:
        h = state[0] + x * state[1]
        return h, (h, state[1] + 1)  # the last count is on nobody's way

    cell = nnshop.Cell(step, (nnshop.StateSpec((1,)), nnshop.StateSpec((1,))))
    state = CarriedState(cell, 1)
    ys, final = nnshop.run(cell, nn.Variable.from_numpy_array(np.ones((1, 5, 1))), state.initial)
    state.follow(final)
    assert not state.has_run
    loss = F.sum(ys**2)
    loss.forward(clear_no_need_grad=True)
    with pytest.raises(ValueError, match=r"values of shapes \[\(1, 1\)\] have not been computed.*forward_all"):
        state.carry()
    losses = []
    for _ in range(3):
        nn.forward_all([loss, *nnshop.tree_leaves(final)], clear_no_need_grad=True)
        losses.append(float(loss.d))
        state.carry()
    assert [v.item() for v in state.get()] == [105, 15]
    assert losses == [146, 4771, 32771]


def names(checkpoints: Checkpoints) -> list[int]:
    return [int(path.stem.rpartition("-")[2]) for path in checkpoints.files()]


def test_what_is_newer_stays_and_is_told(tmp_path: Path) -> None:
    problem, checkpoints = Problem(), Checkpoints(tmp_path, keep=2)
    for step in (1000, 2000):
        checkpoints.save(step, problem.solver, {"step": step}, [])
    with pytest.warns(UserWarning, match=r"checkpoint-00002000\.npz is of a later step than 5, and stays"):
        checkpoints.save(5, problem.solver, {"step": 5}, [])
    for step in (6, 7):  # told once
        checkpoints.save(step, problem.solver, {"step": step}, [])
    assert names(checkpoints) == [6, 7, 1000, 2000]
    checkpoints.files()[-1].write_bytes(b"half")
    loaded, passed_over = checkpoints.load()
    assert loaded is not None
    assert loaded.progress == {"step": 1000}
    assert len(passed_over) == 1


def test_a_damaged_newer_checkpoint_does_not_outlive_the_good_ones(tmp_path: Path) -> None:
    problem, checkpoints = Problem(), Checkpoints(tmp_path, keep=2)
    for step in (100, 200):
        checkpoints.save(step, problem.solver, {"step": step}, [])
    checkpoints.files()[-1].write_bytes(b"half")
    with pytest.warns(UserWarning, match="later step"):
        checkpoints.save(150, problem.solver, {"step": 150}, [])
    checkpoints.save(160, problem.solver, {"step": 160}, [])
    assert names(checkpoints) == [150, 160, 200]
    loaded, _ = checkpoints.load()
    assert loaded is not None
    assert loaded.progress == {"step": 160}


def test_what_another_model_left_is_not_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, Problem(units=4).solver, {}, [])
    (tmp_path / "checkpoint-00000002.npz").write_bytes(b"no checkpoint")
    for step in (3, 4):
        checkpoints.save(step, Problem(units=3).solver, {}, [])
    assert names(checkpoints) == [1, 2, 4]


@pytest.mark.parametrize(
    ("step", "progress", "state", "message"),
    [
        (3, ["a", "list"], [], "the progress is a list, not a dict"),
        (3, None, [], "the progress is a NoneType, not a dict"),
        (3, {"what": object()}, [], "not JSON serializable"),
        (3, {}, [np.ones(2, complex)], "an array of the state is of complex128"),
        (3, {}, [np.array(["text"])], "an array of the state is of <U4"),
        (3, {}, [np.array([None])], "an array of the state is of object"),
        (-1, {}, [], "step must be a number of steps, from 0; got -1"),
        (1.5, {}, [], "step must be a number of steps, from 0; got 1.5"),
    ],
)
def test_nothing_is_saved_that_could_not_be_loaded(tmp_path: Path, step: Any, progress: Any, state: list, message: str) -> None:
    problem, checkpoints = Problem(), Checkpoints(tmp_path, keep=1)
    checkpoints.save(2, problem.solver, {"step": 2}, [])
    with pytest.raises((TypeError, ValueError), match=message):
        checkpoints.save(step, problem.solver, progress, state)
    assert names(checkpoints) == [2]
    loaded, _ = checkpoints.load()
    assert loaded is not None
    assert loaded.progress == {"step": 2}


def test_nor_what_nests_too_deeply_or_diverged(tmp_path: Path) -> None:
    problem, checkpoints = Problem(), Checkpoints(tmp_path, keep=1)
    checkpoints.save(2, problem.solver, {}, [])
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested more than 200 levels deep"):
        checkpoints.save(3, problem.solver, {"deep": deep}, [])
    problem.solver.set_learning_rate(float("nan"))
    with pytest.raises(TypeError, match="learning rate"):
        checkpoints.save(3, problem.solver, {}, [])
    assert names(checkpoints) == [2]


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["folder", "FIFO", "device"]
)
def test_what_is_no_file_is_no_checkpoint(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "checkpoint-00099999.npz")
    problem, checkpoints = Problem(), Checkpoints(tmp_path, keep=1)
    for step in (1, 2, 100_000):
        checkpoints.save(step, problem.solver, {"step": step}, [])
    assert names(checkpoints) == [100_000]
    with pytest.raises(CheckpointError, match=r"cannot be read as a checkpoint: (Is a directory|Not a regular file)"):
        load_checkpoint(tmp_path / "checkpoint-00099999.npz")


def in_another_process(function: Any) -> str:
    """What a function returns, or the error that it raises, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = str(function())
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def test_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    problem, checkpoints = Problem(), Checkpoints(tmp_path)
    save = lambda: Checkpoints(tmp_path).save(9, problem.solver, {}, [])  # noqa: E731
    checkpoints.save(1, problem.solver, {}, [])
    Checkpoints(tmp_path).save(2, problem.solver, {}, [])  # the same process
    assert re.search(rf"TrainingError: .*: process {os.getpid()} on .* trains here", in_another_process(save))
    assert names(checkpoints) == [1, 2]
    assert in_another_process(lambda: Checkpoints(tmp_path).load()[0].progress) == "{}"  # reading is free
    del checkpoints
    assert list(tmp_path.glob(".*")) == []
    assert in_another_process(save).endswith("checkpoint-00000009.npz")


def test_a_killed_process_holds_no_folder(tmp_path: Path) -> None:
    """Nor does a child that it forked."""
    ready, writer = os.pipe()
    child = os.fork()
    if child == 0:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.lock()
        orphan = os.fork()
        if orphan:
            os.write(writer, str(orphan).encode())
        signal.pause()
    orphan = int(os.read(ready, 20))
    try:
        with pytest.raises(TrainingError, match=f"process {child} on .* trains here"):
            Checkpoints(tmp_path).lock()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert (tmp_path / ".lock").exists()
        Checkpoints(tmp_path).lock()
    finally:
        os.kill(orphan, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_named_as_the_data_of_a_file_is_refused_before(tmp_path: Path) -> None:
    nn.parameter.get_parameter_or_create("meta", (2,))
    with pytest.raises(ValueError, match="'meta' is no name for an array in a file"):
        save_parameters(tmp_path / "p.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    solver = S.Adam()
    loss = F.sum(PF.affine(nn.Variable((1, 2)), 3, name="layer:1"))
    solver.set_parameters(nn.get_parameters())
    loss.forward()
    loss.backward()
    solver.update()
    save_checkpoint(tmp_path / "c.npz", solver, {}, [])
    checkpoint = load_checkpoint(tmp_path / "c.npz")
    assert set(checkpoint.solver["states"]["layer:1/affine/W"]) == {"mean", "var"}
    checkpoint.restore(solver)


def test_trying_a_folder_leaves_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "writable.txt").write_text("mine")
    check_writable(tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("writable.txt", "mine")]


def test_values_of_another_shape_are_not_carried() -> None:
    with pytest.raises(ValueError, match=r"GRUCell\(3\) carries states of shapes \[\(2, 3\)\]; got \[\(1, 3\)\]"):
        CarriedState(nnshop.GRUCell(3), 2).set([np.zeros((1, 3))])


def test_parameters_come_back_in_the_open_scope(tmp_path: Path) -> None:
    with nn.parameter_scope("a"):
        PF.affine(nn.Variable((2, 3)), 4)
        save_parameters(tmp_path / "p.npz")
    before = parameters()
    with nn.parameter_scope("b"):
        load_parameters(tmp_path / "p.npz")
    for name, value in before.items():
        np.testing.assert_array_equal(parameters()[name.replace("a/", "b/", 1)], value)
    nn.clear_parameters()
    load_parameters(tmp_path / "p.npz")
    assert set(parameters()) == {"affine/W", "affine/b"}


def test_parameters_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    PF.affine(nn.Variable((2, 3)), 4)
    save_parameters(tmp_path / "p.npz")
    nn.clear_parameters()
    PF.affine(nn.Variable((2, 5)), 4)
    before = parameters()
    with pytest.raises(ArchiveError, match=r"p\.npz: cannot be loaded here: .*affine/W \(5, 4\), not \(3, 4\)"):
        load_parameters(tmp_path / "p.npz")
    assert before.keys() == parameters().keys()
    assert all((parameters()[name] == value).all() for name, value in before.items())
    (tmp_path / "p.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:-9])
    with pytest.raises(ArchiveError, match=r"p\.npz: is not a whole"):
        load_parameters(tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/" * 2000 + "w"], "is no name of a parameter"),
        (["a//w"], "is no name of a parameter"),
        (["new", "a/b", "a"], "a scope and a parameter of one name"),
        (["new", "w/b"], "a scope and a parameter of one name"),
        (["new", "s"], "a scope and a parameter of one name"),
    ],
    ids=["deep", "empty", "both", "below a parameter", "in place of a scope"],
)
def test_names_that_cannot_be_change_nothing(tmp_path: Path, names: list[str], message: str) -> None:
    nn.parameter.get_parameter_or_create("w", (2,))
    nn.parameter.get_parameter_or_create("s/w", (2,))
    write_archive(tmp_path / "p.npz", "file of parameters", {}, {name: np.ones(2) for name in names})
    with pytest.raises(ArchiveError, match=rf"p\.npz: cannot be loaded here: .*{message}"):
        load_parameters(tmp_path / "p.npz")
    assert list(parameters()) == ["w", "s/w"]
    assert list(nn.parameter.get_current_parameter_scope()) == ["w", "s"]
    nnshop.run(nnshop.GRUCell(3), nn.Variable((2, 3, 4)))


@pytest.mark.parametrize("value", [np.ones((0, 3)), np.array([1e300]), np.array(["x"])])
def test_what_is_no_value_of_a_parameter_is_refused(tmp_path: Path, value: np.ndarray) -> None:
    write_archive(tmp_path / "p.npz", "file of parameters", {}, {"new": np.ones(2), "w": value})
    with pytest.raises(ArchiveError, match=r"p\.npz: is not a whole file of parameters .*w (is of|has numbers)"):
        load_parameters(tmp_path / "p.npz")
    assert not parameters()
