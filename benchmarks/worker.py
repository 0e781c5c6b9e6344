"""One rival computes one work, in a process of its own; prints what it took as a line of JSON. `run.py` starts it.

The work's function builds what is needed and returns its phases by name; a repeat runs them in this order. One of the name
"prepare" is run once, after building, and not timed.
"""

from __future__ import annotations

import importlib
import json
import sys
from time import perf_counter
from typing import Any, Callable

PATIENCE = 5  # seconds, after which slow rivals are not asked to repeat the work again


def measure(function: Callable, rival: str, arguments: dict[str, Any], warmup: int, repeats: int) -> dict[str, list[float]]:
    """The seconds that it took to build the work, and of each repeat of each phase."""
    start = perf_counter()
    phases = function(rival, **arguments)
    build = perf_counter() - start
    phases.pop("prepare", lambda: None)()
    seconds: dict[str, list[float]] = {"build": [build], **{phase: [] for phase in phases}}
    deadline = perf_counter() + PATIENCE
    for done in range(warmup + repeats):
        if perf_counter() > deadline and done > warmup:
            break
        for name, phase in phases.items():
            start = perf_counter()
            phase()
            if done >= warmup:
                seconds[name].append(perf_counter() - start)
    return seconds


def peak_megabytes() -> float:
    """The most memory that this process had. Not that of `getrusage`, which begins with what the parent process had."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    job = json.loads(sys.argv[1])
    module = importlib.import_module(job.pop("module"))
    function = getattr(module, job.pop("function"))
    try:
        result = {"seconds": measure(function, **job), "megabytes": peak_megabytes()}
    except NotImplementedError as missing:
        result = {"note": str(missing)}
    print(json.dumps({**result, "versions": module.versions()}))


if __name__ == "__main__":
    main()
