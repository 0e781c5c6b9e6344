"""Several processes give what one gives; where one dies, none waits."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed_cases
import nnabla as nn
import numpy as np
import pytest
from example_loader import EXAMPLES, write_text

from nnshop import distributed
from nnshop.context import use_context
from nnshop.distributed import DistributedError, MPIWorkers, Workers, buckets, connect
from nnshop.training import load_checkpoint

CASES = Path(distributed_cases.__file__)
MPIRUN = Path(sys.executable).with_name("mpirun")
LANGUAGE_MODEL = EXAMPLES / "language_model.py"
SECONDS = 30  # within which all must have ended where one has
with_mpi = pytest.mark.skipif(not MPIRUN.exists(), reason="needs several processes: pip install 'nnshop[mpi]'")
ENVIRONMENT = {
    **os.environ,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",  # as in containers, where Open MPI wants to be told twice
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # more processes than cores
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(EXAMPLES.parent),
}


def command(size: int, *arguments: Any) -> list[str]:
    launcher = [str(MPIRUN), "-n", str(size)] if size > 1 else []
    return [*launcher, sys.executable, *map(str, arguments)]


def start(size: int, *arguments: Any, seconds: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(command(size, *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds)


def results(size: int, case: str, folder: Path) -> list[dict[str, np.ndarray]]:
    """What each rank has at the end of a case."""
    folder = folder / f"{case}{size}"
    folder.mkdir()
    run = start(size, CASES, case, folder)
    assert run.returncode == 0, run.stderr
    return [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(size)]


@with_mpi
@pytest.mark.parametrize("case", ["language_model", "encoder_decoder"])
def test_ranks_train_as_one_process_with_the_whole_batch(case: str, tmp_path: Path) -> None:
    (alone,) = results(1, case, tmp_path)
    assert len(alone["numbers"]) >= distributed_cases.STEPS
    assert abs(alone["numbers"][0] - alone["numbers"][-1]) > 0.01  # it does train
    for size in (2, 3):
        ranks = results(size, case, tmp_path)
        for rank in ranks:
            assert rank.keys() == alone.keys()
            for name, array in rank.items():
                np.testing.assert_array_equal(array, ranks[0][name], err_msg=name)  # to the last bit
                np.testing.assert_allclose(array, alone[name], rtol=1e-5, atol=1e-5, err_msg=f"{size} ranks: {name}")


@with_mpi
def test_parameters_of_rank_0_are_broadcast(tmp_path: Path) -> None:
    first, second = results(2, "starts_alike", tmp_path)
    (alone,) = results(1, "starts_alike", tmp_path)
    for name in alone:
        np.testing.assert_array_equal(second[name], first[name])
        np.testing.assert_array_equal(first[name], alone[name])


@with_mpi
def test_a_rank_without_rows_adds_nothing(tmp_path: Path) -> None:
    for rank in results(3, "no_rows", tmp_path):
        np.testing.assert_allclose(rank["numbers"], 1.5)  # of 1 and 2


@with_mpi
def test_a_rank_that_is_busy_is_waited_for(tmp_path: Path) -> None:
    assert len(results(3, "busy", tmp_path)) == 3


@pytest.mark.parametrize("patience", [0, -1, float("nan"), float("inf")])
def test_no_patience_at_all(patience: float) -> None:
    with pytest.raises(ValueError, match="patience must be a positive number of seconds; got"), connect(patience):
        pass


@with_mpi
@pytest.mark.parametrize("size", [2, 3])
def test_what_is_no_gradient(size: int, tmp_path: Path) -> None:
    run = start(size, CASES, "talk", tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("heard once") == 1
    assert [float(np.load(tmp_path / f"rank{rank}.npz")["numbers"][0]) for rank in range(size)] == [1.0] * size


@with_mpi
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("killed", "exited on"),  # the launcher says which rank, and by which signal
        ("raises", "raises: rank trouble"),
        (
            "other_parameters",
            "other_parameters: processes have other parameters with gradients, or another kind of context: rank 0",
        ),
        (
            "other_starts",
            "other_starts: processes have other parameters: rank 0 [('affine/W', (8, 3)), ('affine/b', (3,))], rank 1",
        ),
        ("second_solver", "second_solver: processes have other parameters with gradients"),
        ("other_texts", "other_texts: processes have other texts: rank 0 'a0', rank 1 'a1'"),
        ("thread", "thread: rank trouble"),
        ("negative", "negative: a weight is a number of rows or tokens, from 0; got -1"),
        ("stopped", "there is no answer from rank 2 (process"),
        ("first_stopped", "there is no answer from rank 0 (process"),
        (
            "half",
            "half: processes have other parameters with gradients, or another kind of context: rank 0 ['cpu:float'], rank 1 "
            "['cpu:half']",
        ),
        ("no_weight", "no_weight: the weights of all processes are 0"),
    ],
)
def test_a_rank_that_dies_ends_all(case: str, message: str, tmp_path: Path) -> None:
    began = time.monotonic()
    run = start(3, CASES, case, tmp_path, seconds=2 * SECONDS)
    assert time.monotonic() - began < SECONDS
    assert run.returncode != 0
    said = re.sub(r"\s+", " ", run.stderr)
    assert said.count(message) == 1, run.stderr  # once, not once for each rank
    assert not list(tmp_path.glob("rank*.npz"))


# ------------------------------------------------------------------------------------------------------ the whole script


def training(folder: Path, *options: Any) -> list[Any]:
    return [LANGUAGE_MODEL, "train", "--output", folder, "--context", "cpu", *options]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"), width=12)


def wait_for_checkpoint(run: subprocess.Popen, folder: Path) -> None:
    for _ in range(SECONDS * 100):
        if run.poll() is not None or list(folder.glob("checkpoint-*.npz")):
            return
        time.sleep(0.01)


@with_mpi
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_a_training_goes_on_with_another_number_of_ranks(text: Path, tmp_path: Path, number: int) -> None:
    options = ["--data", text, *"--units 8 --layers 2 --batch-size 6 --num-steps 5 --epochs 6 --save-every 10".split()]
    alone = start(1, *training(tmp_path / "alone", *options))
    assert alone.returncode == 0, alone.stderr
    folder = tmp_path / "several"
    three = command(3, *training(folder, *options))
    run = subprocess.Popen(three, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_checkpoint(run, folder)
    victim = run.pid if number == signal.SIGUSR1 else last_rank(run.pid)
    os.kill(victim, number)  # which mpirun passes on; or one rank dies
    said, _ = run.communicate(timeout=SECONDS)
    assert run.returncode != 0
    assert number == signal.SIGKILL or said.count("stopped at step") == 1, said
    stopped = max(load_checkpoint(path).progress["step"] for path in folder.glob("checkpoint-*.npz"))
    resumed = start(2, *training(folder, *options, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert f"step {stopped} of" in resumed.stdout
    assert resumed.stdout.count("epoch 6: ") == 1
    ours, theirs = (load_checkpoint(sorted(f.glob("checkpoint-*.npz"))[-1]) for f in (folder, tmp_path / "alone"))
    assert ours.progress["step"] == theirs.progress["step"] > stopped
    np.testing.assert_allclose(ours.progress["history"]["valid"], theirs.progress["history"]["valid"], rtol=1e-3)
    for name, value in theirs.parameters.items():
        np.testing.assert_allclose(ours.parameters[name], value, rtol=1e-3, atol=1e-3, err_msg=name)


def last_rank(launcher: int) -> int:
    """The number of a process that a launcher started."""
    tasks = Path(f"/proc/{launcher}/task").glob("*/children")
    return max(int(child) for task in tasks for child in task.read_text().split())


@with_mpi
def test_one_error_that_all_ranks_have_is_told_once(text: Path, tmp_path: Path) -> None:
    run = start(3, *training(tmp_path, "--data", text, "--batch-size", 2))
    assert run.returncode == 1
    assert run.stderr.count("language_model.py: ") == 1
    assert "3 processes need a batch of at least as many rows; got 2" in run.stderr


# ------------------------------------------------------------------------------------------------------------- one alone


def test_alone_nothing_changes() -> None:
    with connect() as workers:
        _, solver = distributed_cases.one_layer(workers)
        before = {name: v.g.copy() for name, v in nn.get_parameters().items()}
        workers.average_gradients(solver, weight=3)
        workers.broadcast_parameters()
        workers.barrier()
        assert all((v.g == before[name]).all() for name, v in nn.get_parameters().items())
        assert (workers.rank, workers.size, workers.local_rank) == (0, 1, 0)
        assert workers.average(5.0, weight=2) == 5.0
        assert workers.on_first(lambda: "done") == "done"
        assert [workers.any(False), workers.any(True)] == [False, True]


class Several(Workers):
    def __init__(self, rank: int, size: int) -> None:
        self.rank = self.local_rank = rank
        self.size = size


@pytest.mark.parametrize(("count", "size"), [(1, 1), (7, 3), (8, 4), (5, 5), (1000, 7)])
def test_shares_are_fair_and_leave_nothing_out(count: int, size: int) -> None:
    shares = [np.arange(count)[Several(rank, size).share(count)] for rank in range(size)]
    assert np.concatenate(shares).tolist() == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("sizes", "limit"), [([1, 2, 3], 3), ([9, 1, 1], 4), ([], 1), ([1, 1, 1, 1], 2), ([5], 1)])
def test_buckets_keep_the_order_and_the_limit(sizes: list[int], limit: int) -> None:
    variables = [nn.Variable((size,)) for size in sizes]
    groups = list(buckets(variables, limit))
    assert [v for group in groups for v in group] == variables
    assert all(len(group) == 1 or sum(v.size for v in group) <= limit for group in groups)
    assert all(sum(v.size for v in a) + b[0].size > limit for a, b in itertools.pairwise(groups))  # no more than needed


def test_a_launcher_without_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(DistributedError, match=r"mpi4py does not load .*pip install 'nnshop\[mpi\]'"), connect():
        pass


@with_mpi
def test_a_launcher_of_another_mpi(tmp_path: Path) -> None:
    """Its processes would each believe to be alone."""
    run = subprocess.run(
        [sys.executable, CASES, "talk", tmp_path],
        env={**ENVIRONMENT, "OMPI_COMM_WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "the launcher started 2 processes, but MPI shows 1" in run.stderr


def test_a_device_for_each_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(distributed, "use_context", lambda *arguments: asked.append(arguments))
    second = Several(1, 2)
    second.use_context("cudnn", type_config="half")
    second.use_context("cudnn", device_id="5")
    second.use_context("cpu")
    assert asked == [("cudnn", 1, "half"), ("cudnn", "5", "float"), ("cpu", 0, "float")]


class StandIn:
    """In place of NNabla's communicator, which needs GPUs: as if another process had the same gradients."""

    def __init__(self, where: nn.Context) -> None:
        self.backend, self.calls = where.backend, []

    def init(self) -> None:
        self.calls.append("init")

    def all_reduce(self, arrays: list[nn.NdArray], division: bool, inplace: bool) -> None:
        assert not division
        self.calls.append((len(arrays), inplace))
        for array in arrays:
            array.data = 2 * array.data


class TwoAlike:
    """In place of mpi4py's communicator."""

    def Allreduce(self, sendbuf: None, values: np.ndarray) -> None:
        values *= 2

    def allgather(self, value: Any) -> list:
        return [value, value]


@pytest.mark.parametrize(("limit", "calls"), [(1000, [(2, False)]), (20, [(1, True), (1, True)])])
def test_gradients_on_a_device_go_by_nnabla_s_communicator(
    monkeypatch: pytest.MonkeyPatch, limit: int, calls: list[tuple]
) -> None:
    made: list[StandIn] = []
    monkeypatch.setattr(
        "nnabla.communicators.MultiProcessDataParallelCommunicator", lambda *a: made.append(StandIn(*a)) or made[-1]
    )
    monkeypatch.setattr(distributed, "BUCKET", limit)
    workers = object.__new__(MPIWorkers)
    workers._mpi, workers._world, workers._add_up = SimpleNamespace(IN_PLACE=None), TwoAlike(), None
    workers._watch = SimpleNamespace(waiting=nullcontext)
    _, solver = distributed_cases.one_layer(workers)  # 24 and 3 numbers
    before = {name: v.g.copy() for name, v in nn.get_parameters().items()}
    half_of_a_gpu = nn.Context(["cudnn:half", "cuda:half", "cpu:float"], "CpuCachedArray", "0")  # NNabla computes it here
    with nn.context_scope(half_of_a_gpu):
        workers.average_gradients(solver, weight=7)
    (communicator,) = made
    assert communicator.backend == ["cudnn:float", "cuda:float", "cpu:float"]
    assert communicator.calls == ["init", *calls]
    for name, v in nn.get_parameters().items():
        np.testing.assert_allclose(v.g, before[name], rtol=1e-6)  # the mean of two alike


def test_the_communicator_and_the_context_must_have_one_device() -> None:
    workers = object.__new__(MPIWorkers)
    workers.rank = workers.local_rank = 1
    with nn.context_scope(nn.Context(["cudnn:float", "cuda:float", "cpu:float"], "CpuCachedArray", "0")):
        with pytest.raises(DistributedError, match="must compute on CUDA device 1, not 0: leave device_id out"):
            workers._way_to_add_up()


def test_a_communicator_that_does_not_start_says_what_it_needs() -> None:
    """NNabla has none for the CPU, and none where its extension found no MPI."""
    workers = object.__new__(MPIWorkers)
    workers.rank = workers.local_rank = 0
    with nn.context_scope(nn.Context(["cudnn:float", "cuda:float", "cpu:float"], "CpuCachedArray", "0")):
        with pytest.raises(DistributedError, match=r"connect\(\) before use_context, and NCCL"):
            workers._way_to_add_up()


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_weights_that_are_none(weight: float) -> None:
    _, solver = distributed_cases.one_layer(Workers())
    with pytest.raises(ValueError, match="a weight is a number of rows or tokens, from 0; got"):
        Workers().average_gradients(solver, weight)
    with pytest.raises(ValueError, match="a weight is a number of rows or tokens, from 0; got"):
        Workers().average(1.0, weight)


def test_no_weight_at_all() -> None:
    with pytest.raises(DistributedError, match="the weights of all processes are 0"):
        Workers().average(1.0, 0)
    with pytest.raises(ValueError, match=r"share takes a number of rows; got 20\.5"):
        Workers().share(20.5)


@pytest.mark.parametrize(
    ("variables", "size"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "3", "PMIX_RANK": "0"}, 3),
        ({"PMI_SIZE": "1"}, 1),
        ({"SLURM_NTASKS": "4"}, 1),  # the shell of an allocation
        ({"SLURM_NTASKS": "4", "PMIX_RANK": "2"}, 4),
        ({"PMIX_RANK": "2"}, None),
    ],
)
def test_what_launchers_tell(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], size: int | None) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed._told_size() == size


def test_a_worker_computes_on_the_cpu() -> None:
    with Several(1, 2).use_context("cpu") as used:
        assert used.name == "cpu"
    with use_context("cpu"):
        assert nn.get_current_context().backend == ["cpu:float"]
