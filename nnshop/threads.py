"""How many threads compute what nnshop computes itself."""

from __future__ import annotations

import math
import os
from pathlib import Path

from .checks import check_count

OWN, COMMON = "NNSHOP_NUM_THREADS", "OMP_NUM_THREADS"
MOST = 1024
# How many processes of one job launchers say that they started on this machine: Open MPI's, MPICH's and Intel's, Slurm.
_BESIDE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_TASKS_PER_NODE")
_chosen: int | None = None


def set_threads(n: int | None) -> None:
    """Sets how many threads compute what nnshop computes itself: sequences, their gradients, and large products.

    Without it, `NNSHOP_NUM_THREADS` counts, else `OMP_NUM_THREADS`, else there is a thread for each core that this process may
    use; processes that `mpirun` started on one machine share its cores. Work that is too small for threads is done by one.
    Results do not depend on the number, to the last bit.

    Args:
        n: The number, for the whole process; None to undo what was set.

    Raises:
        ValueError: It is no whole number from 1 to 1024.

    Example:
        >>> set_threads(2); threads()
        2
        >>> set_threads(None)
    """
    global _chosen
    if n is not None:
        check_count("the number of threads", n)
        if n > MOST:
            raise ValueError(f"the number of threads must be at most {MOST}; got {n}.")
    _chosen = None if n is None else int(n)


def threads() -> int:
    """How many threads compute; see `set_threads`."""
    global _chosen
    if _chosen is None:
        _chosen = _found()[0]
    return _chosen


def why_threads() -> str:
    """Tells where the number comes from."""
    n, source = _found()
    return source if threads() == n else "set_threads"


def _found() -> tuple[int, str]:
    for name in (OWN, COMMON):
        first = os.environ.get(name, "").split(",")[0].strip()  # OpenMP's may be a list: of nested regions
        if first.isdecimal() and 1 <= int(first) <= MOST:
            return int(first), name
        if first and name == OWN:
            raise ValueError(f"{OWN} must be a whole number from 1 to {MOST}; got {os.environ[name]!r}.")
    beside = processes_beside()
    shared = f", shared by {beside} processes" if beside > 1 else ""
    return max(1, min(cores() // beside, MOST)), f"the cores that this process may use{shared}"


def cores() -> int:
    """How many cores this process may use: by its affinity, and by the limits of its control group."""
    limit = _limit(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), limit)))


def _limit(root: Path, membership: Path) -> float:
    """How many cores a control group, and those that it lies in, may use together; Linux counts time for each period."""
    try:
        paths = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return math.inf
    limits = [math.inf]
    for _, controllers, path in (parts for parts in paths if len(parts) == 3):
        own = Path(path.strip("/"))
        for folder in [own, *own.parents]:  # a container sees its own group as the root, whatever its path is
            if not controllers:
                limits.append(_quota(_read(root / folder / "cpu.max").split()))
            elif "cpu" in controllers.split(","):
                of = root / "cpu" / folder
                limits.append(_quota([_read(of / "cpu.cfs_quota_us"), _read(of / "cpu.cfs_period_us")]))
    return min(limits)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _quota(numbers: list[str]) -> float:
    if len(numbers) != 2 or not all(n.isdecimal() and int(n) > 0 for n in numbers):  # "max" and -1 are no limit
        return math.inf
    return int(numbers[0]) / int(numbers[1])


def processes_beside() -> int:
    """How many processes of this one's job run on this machine, this one included."""
    for name in _BESIDE:
        first = os.environ.get(name, "").split("(")[0].split(",")[0]  # Slurm's may be "4(x2),3"
        if first.isdecimal() and int(first) > 0:
            return int(first)
    return 1
