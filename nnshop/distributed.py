"""Data parallel training: the same script in several processes, each with its share of every batch.

`mpirun -n 4 python script.py` starts four. Each takes its rows of the batch, and before each update all average their
gradients, so that all hold the same parameters. MPI carries it (extra `mpi`), NCCL where NNabla computes on GPUs.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Callable, TypeVar

import nnabla as nn
import numpy as np

from . import context
from .parameters import all_parameters

T = TypeVar("T")

# What launchers tell each process they start: Open MPI, MPICH and Intel's, Slurm. PMIx tells no size.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_LAUNCHED = (*_SIZES, "PMIX_RANK")
# Gradients are sent together up to so many numbers, 4 MB: below that the latency of each message would cost more than copying.
BUCKET = 1 << 20


class DistributedError(RuntimeError):
    """Processes that cannot work together; the message says why."""


class Workers:
    """The processes of a training, of which this is one; this class is the process that is alone.

    Attributes:
        rank (int): The number of this process, from 0.
        size (int): How many there are.
        local_rank (int): The number of this process among those on its machine.
    """

    rank = 0
    size = 1
    local_rank = 0

    def share(self, count: int) -> slice:
        """The part of `count` rows that belongs to this process; the shares of all differ by one at most.

        Raises:
            DistributedError: There are fewer rows than processes.

        Example:
            >>> Workers().share(20)
            slice(0, 20, None)
        """
        if count < self.size:
            raise DistributedError(f"{self.size} processes need a batch of at least as many rows; got {count}.")
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def average_gradients(self, solver: Any, weight: float = 1.0) -> None:
        """Averages the gradients of a solver's parameters over all processes; call it between `backward` and the update.

        Gradients of means come out as that of one mean over all rows where the weight is what was divided by: the number of
        rows, or of tokens.

        Args:
            solver: An NNabla solver, after `backward`; it holds the same parameters in each process.
            weight: How much this process counts, >= 0.

        Raises:
            DistributedError: The parameters are not the same, or all weights are 0.
        """

    def broadcast_parameters(self) -> None:
        """Gives each process the values that rank 0 has for all of NNabla's parameters, so that all start alike."""

    def sum(self, values: Sequence[float]) -> np.ndarray:
        """Adds up a few numbers over all processes, in float64."""
        return np.array(values, np.float64)

    def average(self, value: float, weight: float = 1.0) -> float:
        """Averages one number over all processes, such as the loss, as `average_gradients` does gradients."""
        total, weights = self.sum([value * weight, weight])
        return float(total / weights)

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all get the same answer, at the same step."""
        return bool(self.sum([flag])[0])

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Puts the rows of all processes together, in the order of ranks: what `share` took apart."""
        return rows

    def on_first(self, function: Callable[[], T]) -> T:
        """Calls a function in rank 0 alone, such as one that writes a file, and gives its result to all."""
        return function()

    def barrier(self) -> None:
        """Waits until all processes are here."""

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Lets only rank 0 print to the standard output."""
        yield

    def use_context(self, name: str = "auto", device_id: int | str | None = None, type_config: str = "float") -> Any:
        """As `nnshop.use_context`, by default with a CUDA device for each process of a machine."""
        own = 0 if name == "cpu" else self.local_rank
        return context.use_context(name, own if device_id is None else device_id, type_config)


@contextmanager
def connect() -> Iterator[Workers]:
    """Joins the processes that a launcher such as `mpirun` started; alone where there is none.

    Where a process leaves the block by an exception, all processes end with it, as they do where one is killed: none waits
    for it for ever.

    Returns:
        Workers, for a `with` block.

    Raises:
        DistributedError: mpi4py is missing, or belongs to another MPI than the launcher.

    Example:
        >>> with connect() as workers:
        ...     print(workers.rank, workers.size)
        0 1
    """
    if not any(name in os.environ for name in _LAUNCHED):
        yield Workers()
        return
    workers = MPIWorkers(_world())
    try:
        yield workers
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            workers.end_all_at_exit()
        raise


def _world() -> Any:
    """MPI's communicator of all processes."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: it finds no MPI library
        raise DistributedError(
            f"a launcher started this process, but mpi4py does not load ({error}): pip install 'nnshop[mpi]'."
        ) from error
    told, size = next((int(os.environ[name]) for name in _SIZES if name in os.environ), None), MPI.COMM_WORLD.size
    if told not in (None, size):
        raise DistributedError(
            f"the launcher started {told} processes, but MPI shows {size}: mpirun and mpi4py are of different MPIs. Use the "
            f"mpirun beside {sys.executable}, which pip install 'nnshop[mpi]' puts there."
        )
    return MPI.COMM_WORLD


class MPIWorkers(Workers):
    """Processes that MPI connects.

    Args:
        world: mpi4py's communicator.
    """

    def __init__(self, world: Any) -> None:
        from mpi4py import MPI

        self._mpi, self._world = MPI, world
        self.rank, self.size = world.rank, world.size
        self.local_rank = world.Split_type(MPI.COMM_TYPE_SHARED).rank
        self._add_up: Callable[[list[nn.Variable]], None] | None = None  # what sums gradients, once it is known where they lie

    def average_gradients(self, solver: Any, weight: float = 1.0) -> None:
        total = float(self.sum([weight])[0])
        if not total > 0:
            raise DistributedError(
                f"weights must be at least 0, and one of them above; this process's is {weight}, all {total}."
            )
        parameters = [v for _, v in sorted(solver.get_parameters().items())]
        if self._add_up is None:
            self._check_alike(solver)
            self._add_up = self._way_to_add_up()
        solver.scale_grad(weight / total)
        for bucket in buckets(parameters, BUCKET):
            self._add_up(bucket)

    def _check_alike(self, solver: Any) -> None:
        """Raises where processes hold other parameters: they would add up what does not belong together, or wait for ever."""
        all_ranks = self._world.allgather({name: v.shape for name, v in solver.get_parameters().items()})
        for rank, theirs in enumerate(all_ranks):
            if theirs != all_ranks[0]:
                differ = sorted(set(theirs.items()) ^ set(all_ranks[0].items()))
                raise DistributedError(f"processes hold other parameters: rank {rank} and rank 0 differ in {differ}.")

    def _way_to_add_up(self) -> Callable[[list[nn.Variable]], None]:
        if context.on_host(nn.get_current_context()):
            return self._add_up_on_host
        return _NCCL()

    def _add_up_on_host(self, bucket: list[nn.Variable]) -> None:
        if len(bucket) == 1:
            self._world.Allreduce(self._mpi.IN_PLACE, bucket[0].g)
            return
        flat = np.concatenate([v.g.ravel() for v in bucket])
        self._world.Allreduce(self._mpi.IN_PLACE, flat)
        for v, part in zip(bucket, np.split(flat, np.cumsum([v.size for v in bucket])[:-1])):
            v.g = part.reshape(v.shape)

    def broadcast_parameters(self) -> None:
        for _, v in sorted(all_parameters().items()):
            values = v.d.copy()
            self._world.Bcast(values)
            v.d = values

    def sum(self, values: Sequence[float]) -> np.ndarray:
        total = np.array(values, np.float64)
        self._world.Allreduce(self._mpi.IN_PLACE, total)
        return total

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate(self._world.allgather(rows))

    def on_first(self, function: Callable[[], T]) -> T:
        return self._world.bcast(function() if self.rank == 0 else None)

    def barrier(self) -> None:
        self._world.Barrier()

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if self.rank == 0 else nowhere):
            yield

    def end_all_at_exit(self) -> None:
        """Ends all processes when this one ends, after it has said why: else it would wait there for the others."""
        if self.rank:
            time.sleep(1)  # where all have the same trouble, rank 0 speaks for them, and ends this one meanwhile
        atexit.register(self._abort)

    def _abort(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        self._world.Abort(1)


class _NCCL:
    """NNabla's own way to add up gradients on GPUs, which needs its MPI to be the one of mpi4py."""

    def __init__(self) -> None:
        import nnabla.communicators as C

        os.environ.setdefault("MPI_SO", _loaded_mpi())  # which library NNabla opens
        with context.in_float32():
            self._communicator = C.MultiProcessDataParallelCommunicator(nn.get_current_context())
        self._communicator.init()

    def __call__(self, bucket: list[nn.Variable]) -> None:
        self._communicator.all_reduce([v.grad for v in bucket], division=False, inplace=len(bucket) == 1)


def _loaded_mpi() -> str:
    """Where the MPI library lies that this process uses."""
    with open("/proc/self/maps") as maps:
        return next(line.split()[-1] for line in maps if "/libmpi" in line)


def buckets(parameters: Sequence[nn.Variable], limit: int) -> Iterator[list[nn.Variable]]:
    """Groups parameters, in order, so that a group has at most `limit` numbers; a larger one is alone."""
    group: list[nn.Variable] = []
    for v in parameters:
        if group and sum(other.size for other in group) + v.size > limit:
            yield group
            group = []
        group.append(v)
    if group:
        yield group
