"""Data parallel training: the same script in several processes, each with its share of every batch.

`mpirun -n 4 python script.py` starts four. Each takes its rows of the batch, and before each update all average their
gradients, so that all hold the same parameters. MPI carries it (extra `mpi`), NCCL where NNabla computes on GPUs.
"""

from __future__ import annotations

import atexit
import math
import os
import reprlib
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

import nnabla as nn
import numpy as np

from .context import ContextInUse, in_float32, in_half, on_host, use_context
from .core import is_whole
from .parameters import all_parameters
from .watching import Watch

T = TypeVar("T")

# How many processes launchers say that they started: Open MPI's, MPICH's and Intel's. PMIx, as Slurm uses it, tells none.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_PMIX, _SLURM = "PMIX_RANK", "SLURM_NTASKS"
# A process that has failed ends all after so many seconds, whatever of its own it still waits for.
PATIENCE = 10
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
            ValueError: The count is no whole number.

        Example:
            >>> Workers().share(20)
            slice(0, 20, None)
        """
        if not is_whole(count):
            raise ValueError(f"share takes a number of rows; got {count!r}.")
        if count < self.size:
            raise DistributedError(f"{self.size} processes need a batch of at least as many rows; got {count}.")
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def average_gradients(self, solver: Any, weight: float = 1.0) -> None:
        """Averages the gradients of a solver's parameters over all processes; call it between `backward` and the update.

        Gradients of means come out as that of one mean over all rows where the weight is what was divided by: the number of
        rows, or of tokens.

        Args:
            solver: An NNabla solver, after `backward`; it holds the same parameters in each process.
            weight: How much this process counts, >= 0. With 0 its gradients may be anything.

        Raises:
            DistributedError: The parameters are not the same, or all weights are 0.
            ValueError: A weight is negative or not finite.
        """
        self._total_weight(weight)

    def _total_weight(self, weight: float, *marks: float) -> tuple[float, np.ndarray]:
        """Adds up weights, and with them whatever else fits into the same message."""
        if not 0 <= weight < math.inf:
            raise ValueError(f"a weight is a number of rows or tokens, from 0; got {weight}.")
        total, *rest = self.sum([weight, *marks])
        if not total:
            raise DistributedError("the weights of all processes are 0: there is nothing to average.")
        return float(total), np.array(rest)

    def broadcast_parameters(self) -> None:
        """Gives each process the values that rank 0 has for all of NNabla's parameters, so that all start alike."""

    def sum(self, values: Sequence[float]) -> np.ndarray:
        """Adds up a few numbers over all processes, in float64."""
        return np.array(values, np.float64)

    def average(self, value: float, weight: float = 1.0) -> float:
        """Averages one number over all processes, such as the loss, as `average_gradients` does gradients."""
        total, (weighted,) = self._total_weight(weight, value * weight if weight else 0.0)
        return float(weighted / total)

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

    def check_same(self, what: str, value: Any) -> None:
        """Checks that all have the same of something that each reads or decides for itself, such as a text.

        Args:
            what: Its name in the message.
            value: Compared by `==`; short, such as a checksum.

        Raises:
            DistributedError: One has another than rank 0.
        """

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Lets only rank 0 print to the standard output."""
        yield

    def use_context(
        self, context: str = "auto", device_id: int | str | None = None, type_config: str = "float"
    ) -> ContextInUse:
        """As `nnshop.use_context`, by default with a CUDA device for each process of a machine."""
        own = 0 if context == "cpu" else self.local_rank
        return use_context(context, own if device_id is None else device_id, type_config)


@contextmanager
def connect(patience: float = 120) -> Iterator[Workers]:
    """Joins the processes that a launcher such as `mpirun` started; alone where there is none. Comes before `use_context`.

    Where a process leaves the block by an exception, all processes end with it, as they do where one is killed: none waits
    for it for ever. One that is stopped, or whose machine is gone, is named on the standard error after a while, and all end;
    one that computes for long is waited for. Without an exception all must leave together, after as many averages: one that
    is done sooner is waited for.

    Args:
        patience: After how many seconds of waiting a process that does not answer ends all.

    Returns:
        Workers, for a `with` block.

    Raises:
        DistributedError: mpi4py is missing, or belongs to another MPI than the launcher.
        ValueError: The patience is no positive number of seconds.

    Example:
        >>> with connect() as workers:
        ...     print(workers.rank, workers.size)
        0 1
    """
    if not 0 < patience < math.inf:
        raise ValueError(f"patience must be a positive number of seconds; got {patience}.")
    told = _told_size()
    if told == 1:
        yield Workers()
        return
    workers = MPIWorkers(_world(told), patience)
    _show_mpi_to_nnabla()
    try:
        yield workers
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            workers.end_all_at_exit()
        else:
            workers.close()
        raise
    workers.close()


def _told_size() -> int | None:
    """How many processes a launcher started; 1 where there is no launcher, None where it does not say."""
    names = [*_SIZES, _SLURM] if _PMIX in os.environ else _SIZES
    return next((int(os.environ[name]) for name in names if name in os.environ), None if _PMIX in os.environ else 1)


def _world(told: int | None) -> Any:
    """MPI's communicator of all processes; `told` is how many there should be."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: it finds no MPI library
        raise DistributedError(
            f"a launcher started this process, but mpi4py does not load ({error}): pip install 'nnshop[mpi]'."
        ) from error
    size = MPI.COMM_WORLD.size
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
        patience: See `connect`.
    """

    def __init__(self, world: Any, patience: float) -> None:
        from mpi4py import MPI

        self._mpi, self._world = MPI, world
        self.rank, self.size = world.rank, world.size
        self.local_rank = world.Split_type(MPI.COMM_TYPE_SHARED).rank
        self._watch = Watch(world, patience, self._abort)
        self._add_up: Callable[[list[nn.Variable]], None] | None = None  # what sums gradients, once it is known where they lie

    def average_gradients(self, solver: Any, weight: float = 1.0) -> None:
        parameters = dict(sorted(solver.get_parameters().items()))
        held = [_kind_of_context(), *((name, v.shape) for name, v in parameters.items())]
        mark = zlib.crc32(repr(held).encode()) & 0xFFFF  # so few bits that sums of squares are exact
        total, (marks, squares) = self._total_weight(weight, mark, mark**2)
        if marks**2 != self.size * squares:  # not all the same; and all see that
            self.check_same("parameters with gradients, or another kind of context", held)
        if weight == 0:
            for v in parameters.values():
                v.grad.zero()
        solver.scale_grad(weight / total)
        if self._add_up is None:
            self._add_up = self._way_to_add_up()
        for bucket in buckets(list(parameters.values()), BUCKET):
            with self._watch.waiting():
                self._add_up(bucket)

    def check_same(self, what: str, value: Any) -> None:
        with self._watch.waiting():
            first, *others = self._world.allgather(value)
        for rank, other in enumerate(others, 1):
            if other != first:
                raise DistributedError(f"processes have other {what}: {_difference(first, rank, other)}.")

    def _way_to_add_up(self) -> Callable[[list[nn.Variable]], None]:
        where = nn.get_current_context()
        if on_host(where):
            return self._add_up_on_host
        if int(where.device_id) != self.local_rank:  # NNabla's communicator takes that one, whatever the context says
            raise DistributedError(
                f"rank {self.rank} is process {self.local_rank} of its machine and must compute on CUDA device "
                f"{self.local_rank}, not {where.device_id}: leave device_id out, and let all devices be visible to all."
            )
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
        parameters = sorted(all_parameters().items())
        self.check_same("parameters", [(name, v.shape) for name, v in parameters])
        for _, v in parameters:
            values = v.d.copy()
            with self._watch.waiting():
                self._world.Bcast(values)
            v.d = values

    def sum(self, values: Sequence[float]) -> np.ndarray:
        total = np.array(values, np.float64)
        with self._watch.waiting():
            self._world.Allreduce(self._mpi.IN_PLACE, total)
        return total

    def gather(self, rows: np.ndarray) -> np.ndarray:
        with self._watch.waiting():
            return np.concatenate(self._world.allgather(rows))

    def on_first(self, function: Callable[[], T]) -> T:
        result = function() if self.rank == 0 else None
        with self._watch.waiting():
            return self._world.bcast(result)

    def barrier(self) -> None:
        with self._watch.waiting():
            self._world.Barrier()

    def close(self) -> None:
        """Ends what runs beside; after that nothing more may be sent."""
        self._watch.close()

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if self.rank == 0 else nowhere):
            yield

    def end_all_at_exit(self) -> None:
        """Ends all processes when this one ends, after it has said why: else it would wait there for the others."""
        if self.rank:
            time.sleep(1)  # where all have the same trouble, rank 0 speaks for them, and ends this one meanwhile
        atexit.register(self._abort)
        watch = threading.Timer(PATIENCE, self._abort)  # Python waits for threads before it calls what is registered
        watch.daemon = True
        watch.start()

    def _abort(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        self._world.Abort(1)


class _NCCL:
    """NNabla's own way to add up gradients on GPUs."""

    def __init__(self) -> None:
        import nnabla.communicators as C

        with in_float32():
            where = nn.get_current_context()
        try:
            self._communicator = C.MultiProcessDataParallelCommunicator(where)
            self._communicator.init()
        except RuntimeError as error:
            raise DistributedError(
                f"NNabla's communicator does not start: {str(error).strip().splitlines()[-1]}. It needs connect() before "
                "use_context, and NCCL: pip install 'nnshop[cuda120,mpi]'."
            ) from error

    def __call__(self, bucket: list[nn.Variable]) -> None:
        self._communicator.all_reduce([v.grad for v in bucket], division=False, inplace=len(bucket) == 1)


def _show_mpi_to_nnabla() -> None:
    """Lets NNabla's CUDA extension find the MPI of this process: when it loads it opens `$OMPI_HOME/lib/libmpi.so`."""
    if "OMPI_HOME" in os.environ:
        return
    home = Path(tempfile.mkdtemp(prefix="nnshop"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (home / "lib").mkdir()
    (home / "lib/libmpi.so").symlink_to(_loaded_mpi())
    os.environ["OMPI_HOME"] = str(home)


def _loaded_mpi() -> str:
    """Where the MPI library lies that this process uses."""
    with open("/proc/self/maps") as maps:
        return next(line.split()[-1] for line in maps if "/libmpi" in line)


def _kind_of_context() -> str:
    context = nn.get_current_context()
    return f"{'cpu' if on_host(context) else 'cuda'}:{'half' if in_half(context) else 'float'}"


def _difference(first: Any, rank: int, other: Any) -> str:
    """What rank 0 has and another has not, and the other way round; short."""
    if isinstance(first, list) and isinstance(other, list):
        first, other = [v for v in first if v not in other], [v for v in other if v not in first]
    return f"rank 0 {reprlib.repr(first)}, rank {rank} {reprlib.repr(other)}"


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
