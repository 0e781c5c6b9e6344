"""Processes that wait for one another, and one that was stopped: who it is, and the end of all."""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ASK, HERE = 1, 2  # tags of messages
HALF = 10  # ticks of a wait after which the others are asked; after as many more they must have answered


class Watch:
    """Sees to it that no process waits for ever for one that was stopped, or whose machine is gone.

    A thread in each process answers the others, whatever the process computes. Where a process has waited for half of the
    patience, its thread asks all; whoever has not answered by the end of it is named, and all end. Ticks are counted, not
    seconds: where all processes are stopped for a while, and go on, none is missed.

    Args:
        world: mpi4py's communicator, in an MPI that several threads may call.
        patience: Seconds.
        end: Ends all processes.
    """

    def __init__(self, world: Any, patience: float, end: Callable[[], None]) -> None:
        from mpi4py import MPI

        self._world, self._patience, self._end = world.Dup(), patience, end
        self._places = world.allgather(f"process {os.getpid()} on {platform.node()}")
        self._waits = 0  # odd while this process waits
        self._counted = self._ticks = 0
        self._heard: set[int] = set()
        self._sent: list[Any] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nnshop watch", daemon=True)
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            self._thread.start()
        else:
            warnings.warn("only one thread may call this MPI: a process that was stopped will not be noticed.", stacklevel=2)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block in which this process may wait for the others."""
        self._waits += 1
        try:
            yield
        finally:
            self._waits += 1

    def close(self) -> None:
        """Ends the thread, which must not be in MPI when that ends."""
        self._done.set()
        if self._thread.ident:
            self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._patience / (2 * HALF)):
            self._answer()
            self._tick()

    def _answer(self) -> None:
        """Reads what the others have sent."""
        from mpi4py import MPI

        status = MPI.Status()
        while self._world.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            self._world.Recv(bytearray(1), status.source, status.tag)
            if status.tag == ASK:
                self._send(status.source, HERE)
            else:
                self._heard.add(status.source)

    def _tick(self) -> None:
        waits = self._waits
        self._ticks = self._ticks + 1 if waits % 2 and waits == self._counted else 0
        self._counted = waits
        if self._ticks == HALF:
            self._heard = {self._world.rank}
            for rank in set(range(self._world.size)) - self._heard:
                self._send(rank, ASK)
        elif self._ticks == 2 * HALF:
            self._ticks = 0
            silent = sorted(set(range(self._world.size)) - self._heard)
            if silent:
                self._give_up(silent)

    def _send(self, rank: int, tag: int) -> None:
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent.append(self._world.Isend(bytearray(1), rank, tag))

    def _give_up(self, silent: list[int]) -> None:
        time.sleep(sorted(self._heard).index(self._world.rank))  # the first speaks, and ends the others
        names = ", ".join(f"rank {rank} ({self._places[rank]})" for rank in silent)
        print(
            f"rank {self._world.rank} waits, and for {self._patience / 2:g} seconds there is no answer from {names}: it was "
            "stopped, or its machine is gone. All processes end.",
            file=sys.stderr,
        )
        self._end()
