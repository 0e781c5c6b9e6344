"""How many threads there are, and that results do not depend on it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

import nnshop
from nnshop import set_threads
from nnshop import threads as module
from nnshop.kernels import why_no_compiler
from nnshop.threads import cores, processes_beside, threads

compiled = pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler() or "compiled")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    set_threads(None)


# How many


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NNSHOP_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, 3),
        ({"OMP_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"NNSHOP_NUM_THREADS": "", "OMP_NUM_THREADS": "many"}, 8),
        ({}, 8),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, 2),
        ({"MPI_LOCALNRANKS": "4", "OMP_NUM_THREADS": "8"}, 8),
        ({"SLURM_TASKS_PER_NODE": "16(x2),3"}, 1),
    ],
)
def test_the_environment_tells(variables: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NNSHOP_NUM_THREADS", "OMP_NUM_THREADS", *module._BESIDE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "cores", lambda: 8)
    set_threads(None)
    assert threads() == expected
    set_threads(5)
    assert threads() == 5


@pytest.mark.parametrize("word", ["0", "-1", "two", "1.5", "100000"])
def test_what_is_no_number_of_threads_is_refused(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNSHOP_NUM_THREADS", word)
    set_threads(None)
    with pytest.raises(ValueError, match=f"NNSHOP_NUM_THREADS must be a whole number from 1 to 1024; got '{word}'"):
        threads()


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2", 1025])
def test_set_threads_refuses_what_is_no_number(n: Any) -> None:
    with pytest.raises(ValueError, match="the number of threads must be"):
        set_threads(n)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, np.inf),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "250000 100000"}, 2.5),
        ({}, np.inf),
    ],
)
def test_limits_of_control_groups(files: dict[str, str], expected: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    membership = tmp_path / "cgroup"
    membership.write_text("0::/a/b\n")
    assert module._limit(tmp_path, membership) == expected


def test_limits_of_older_control_groups(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/x\n3:cpu,cpuacct:/docker/abc\n0::/\n")
    assert module._limit(tmp_path, membership) == 3
    assert module._limit(tmp_path, tmp_path / "missing") == np.inf


def test_cores_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= cores() <= len(os.sched_getaffinity(0))
    for name in module._BESIDE:
        monkeypatch.delenv(name, raising=False)
    assert processes_beside() == 1


def test_the_configuration_tells(capsys: pytest.CaptureFixture[str]) -> None:
    set_threads(3)
    nnshop.show_config()
    assert "threads             3 (set_threads)" in capsys.readouterr().out


# The same to the last bit


def results(b: int, t: int, h: int, seed: int = 0, way: str = "compiled") -> list[np.ndarray]:
    """The output, the last states and all gradients of a stack with a mask, a closure and an output layer."""
    rng = np.random.RandomState(seed)
    nn.clear_parameters()
    x = nn.Variable.from_numpy_array(rng.randn(b, t, h).astype(np.float32), need_grad=True)
    memory = nn.Variable.from_numpy_array(rng.randn(b, h).astype(np.float32), need_grad=True)
    scale = nn.Variable.from_numpy_array(rng.randn(h).astype(np.float32), need_grad=True)

    def step(x: nn.Variable, state: tuple) -> tuple:
        y, state = cell(x + memory * F.reshape(scale, (1, h)), state)
        return F.layer_normalization(y, F.reshape(scale, (1, h)), F.reshape(scale, (1, h)), batch_axis=0), state

    cell = nnshop.LSTMCell(h, name="cell", rng=rng)
    outer = nnshop.stack(nnshop.Cell(step, cell.state), nnshop.GRUCell(h, name="top", rng=rng))
    ys, after = nnshop.run(outer, x, lengths=rng.randint(1, t + 1, b), way=way)
    targets = nn.Variable.from_numpy_array(rng.randint(0, 50, (b, t)).astype(np.float32))
    loss = nnshop.linear_cross_entropy(ys, targets, 50, rng=rng, name="out") + F.sum(F.tanh(after[0][1]))
    given = [x, memory, scale, *nn.get_parameters().values()]
    for v in given:
        v.grad.zero()
    loss.forward()
    loss.backward()
    return [loss.d.copy(), *(v.g.copy() for v in given)]


@compiled
@pytest.mark.parametrize("size", [(32, 12, 64), (20, 9, 96), (7, 30, 50), (3, 40, 64), (1, 50, 64), (130, 4, 300)])
def test_results_do_not_depend_on_the_number_of_threads(
    size: tuple[int, int, int], share_all: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnshop.compiling import memory

    expected, shared = [], []
    monkeypatch.setattr(memory, "share", lambda *given, share=memory.share: shared.append(len(given[2])) or share(*given))
    for n in (1, 2, 5):
        share_all(n)
        found = results(*size)
        expected = expected or found
        for a, b in zip(expected, found):
            np.testing.assert_array_equal(a, b)
    assert max(shared) == 5


# Among threads and processes


def _in_a_child(queue: Any) -> None:
    set_threads(2)
    queue.put([array.tobytes() for array in results(32, 12, 64)])


@compiled
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_has_threads_of_its_own(method: str) -> None:
    set_threads(2)
    expected = [array.tobytes() for array in results(32, 12, 64)]  # so the parent's threads are there
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        child.join(10)
        child.kill()


@compiled
def test_python_threads_train_at_once() -> None:
    set_threads(2)
    expected, found = {}, {}

    def build(seed: int) -> tuple[nn.Variable, nn.Variable]:
        with nnshop.building(), nn.parameter_scope(f"part{seed}"):
            rng = np.random.RandomState(seed)
            x = nn.Variable.from_numpy_array(rng.randn(16, 20, 48).astype(np.float32), need_grad=True)
            return x, nnshop.lstm(x, 48, rng=rng, way="compiled", name="layer")

    def train(seed: int, into: dict) -> None:
        x, y = build(seed)
        for _ in range(20):
            x.grad.zero()
            y.forward()
            y.backward(1.0)
        into[seed] = [y.d.tobytes(), x.g.tobytes()]

    for seed in range(4):
        train(seed, expected)
    nn.clear_parameters()
    together = [threading.Thread(target=train, args=(seed, found)) for seed in range(4)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert found == expected


_INTERRUPTED = """
import sys, nnabla as nn, numpy as np, nnshop
nnshop.set_threads(2)
x = nn.Variable.from_numpy_array(np.ones((32, 200, 256), np.float32))
y = nnshop.lstm(x, 256, way="compiled")
y.forward()
try:
    print("ready", flush=True)
    while True:
        y.forward()
except (KeyboardInterrupt, SystemError):  # which NNabla makes of one in a callback
    before = y.d.copy()
    y.forward()
    assert (y.d == before).all()
    print("clean", flush=True)
"""


@compiled
def test_an_interrupt_ends_the_call_cleanly_and_so_does_the_end_of_the_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", _INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "ready" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (0, "clean"), error
