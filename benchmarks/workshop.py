"""Starts the processes that measure, in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from cells import Arrays, difference
from tqdm import tqdm
from works import BEFORE, LIBRARY, NNSHOP, THREADS, Case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SLOW = 6  # who takes longer in a round is not asked again: such times vary little
POOLS = ("OMP", "MKL", "OPENBLAS", "NUMBA")  # whose environment variables set the number of threads
CACHES = ("NNSHOP_CACHE_DIR", "NUMBA_CACHE_DIR")  # where compiled code is kept


class Workshop:
    """Starts the workers.

    Args:
        threads: How many threads each may use. It has as many processors, the same for all rivals of a round.
        rivals_python: A Python that has PyTorch and JAX.
        before: A checkout of an earlier commit of nnshop.
    """

    def __init__(self, threads: int, rivals_python: Path, before: Path | None = None) -> None:
        self.environment = {
            **os.environ,
            **{f"{pool}_NUM_THREADS": str(threads) for pool in POOLS},
            "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()} intra_op_parallelism_threads={threads}",
        }
        self.threads = threads
        self.rivals_python = rivals_python
        self.before = before

    def measure(self, case: Case, bar: tqdm) -> dict[str, list[dict]]:
        """What the processes of each rival measured. Rivals take turns, so that a disturbance meets all of them."""
        outcomes: dict[str, list[dict]] = {rival: [] for rival in case.rivals}
        slow: set[str] = set()
        with TemporaryDirectory() as folder:
            for turn in range(case.rounds):
                for rival in case.rivals_of(turn):
                    bar.set_postfix_str(f"{case.size}: {rival}")
                    if rival not in slow:
                        start = perf_counter()
                        values = Path(folder, f"{rival}.npz") if case.compared and turn == 0 else None
                        outcomes[rival].append(self.work(case, rival, turn, values))
                        if perf_counter() - start > SLOW or "note" in outcomes[rival][-1]:
                            slow.add(rival)
                    bar.update()
                if case.compared and turn == 0:
                    self._compare(outcomes, Path(folder))
        return outcomes

    @staticmethod
    def _compare(outcomes: dict[str, list[dict]], folder: Path) -> None:
        """Adds to each outcome how far its values are from those of the first rival that has some."""
        first: Arrays | None = None
        for rival, (outcome, *_) in outcomes.items():
            if "note" not in outcome:
                with np.load(folder / f"{rival}.npz") as file:
                    values = dict(file)
                if first is None:
                    first = values
                else:
                    outcome["difference"] = difference(values, first)

    def work(self, case: Case, rival: str, turn: int = 0, values: Path | None = None) -> dict:
        """What one process measured, or `{"note": why there is nothing}`."""
        python = self.rivals_python if rival in LIBRARY else Path(sys.executable)
        if not python.exists():
            return {"note": f"{rival} is not there"}
        job = {
            "module": f"{LIBRARY.get(rival, 'nnabla')}_{case.family}",
            "rival": rival,
            "processors": self._processors(turn),
            "values": values and str(values),
            **{key: getattr(case, key) for key in ("function", "arguments", "warmup", "repeats", "patience")},
        }
        with self._environment(case, rival, job) as environment:
            return self._run(python, job, environment, case.limit)

    def _run(self, python: Path, job: dict, environment: dict[str, str], limit: float) -> dict:
        command = [str(python), str(HERE / "worker.py"), json.dumps(job)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"note": f"not done in {limit:g} s"}
        if done.returncode:
            return {"note": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
        return json.loads(done.stdout.splitlines()[-1])

    def _processors(self, turn: int) -> list[int]:
        """As many as there are threads, other ones in each round."""
        some = sorted(os.sched_getaffinity(0))
        return [some[(turn * self.threads + i) % len(some)] for i in range(self.threads)]

    @contextmanager
    def _environment(self, case: Case, rival: str, job: dict) -> Iterator[dict[str, str]]:
        """The environment of a worker; where a case says what is to be cached, with a cache folder of its own."""
        path = self.before if rival == BEFORE and self.before else ROOT
        environment = {**self.environment, "PYTHONPATH": str(path.resolve())}
        if rival in THREADS:
            environment["NNSHOP_NUM_THREADS"] = str(THREADS[rival])
        if case.cached is None or rival in LIBRARY:
            yield environment
            return
        with TemporaryDirectory() as folder:
            environment |= dict.fromkeys(CACHES, folder)
            for cell in case.cached:
                arguments = {**job["arguments"], "cell": cell, "after": None}
                self._run(Path(sys.executable), {**job, "arguments": arguments}, environment, case.limit)
            yield environment

    def compile_kernels(self) -> None:
        """Lets nnshop compile its kernels, which it does once for each machine: the first process would take more memory."""
        tiny = {"batch": 1, "steps": 2, "units": 16}
        for rival in [NNSHOP, BEFORE] if self.before else [NNSHOP]:
            self.work(Case("", "", "language_model", tiny, repeats=1), rival)
            for kind in ("lstm", "gru", "rnn"):
                self.work(Case("", "", "layer", {"kind": kind, **tiny}, repeats=1), rival)
