"""One rival computes one work, in a process of its own; prints what it took as a line of JSON. `run.py` starts it.

The work's function builds what is needed and returns its phases by name; a repeat runs them in this order. One of the name
"prepare" is run once, after building, and not timed. One of the name "values" gives the arrays that all rivals must agree in.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any


def measure(phases: dict[str, Callable], warmup: int, repeats: int, patience: float) -> tuple[dict[str, list[float]], float]:
    """The seconds of each repeat of each phase, and how many processors were busy meanwhile."""
    seconds: dict[str, list[float]] = {phase: [] for phase in phases}
    start, busy = perf_counter(), process_time()
    for done in range(warmup + repeats):
        if perf_counter() > start + patience and done > warmup:
            break
        for name, phase in phases.items():
            before = perf_counter()
            phase()
            if done >= warmup:
                seconds[name].append(perf_counter() - before)
    return seconds, (process_time() - busy) / (perf_counter() - start)


def work(function: Callable, rival: str, arguments: dict[str, Any], values: str | None, **how: Any) -> dict:
    start = perf_counter()
    phases = function(rival, **arguments)
    build = perf_counter() - start
    phases.pop("prepare", lambda: None)()
    compute = phases.pop("values", None)
    seconds, processors = measure(phases, **how)
    result = {"seconds": {"build": [build], **seconds}, "processors": processors, "megabytes": peak_megabytes()}
    if values and compute:
        import numpy as np

        np.savez(values, **compute())
    return result


def peak_megabytes() -> float:
    """The most memory that this process had. Not that of `getrusage`, which begins with what the parent process had."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    job = json.loads(sys.argv[1])
    os.sched_setaffinity(0, job.pop("processors"))  # before a library counts them
    module = importlib.import_module(job.pop("module"))
    function = getattr(module, job.pop("function"))
    try:
        result = work(function, **job)
    except NotImplementedError as missing:
        result = {"note": str(missing)}
    print(json.dumps({**result, "versions": module.versions()}))


if __name__ == "__main__":
    main()
