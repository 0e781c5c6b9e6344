"""One rival computes one work on the device, in a process of its own; prints what it took as a line of JSON.

`gpu.py` starts it. The work's function builds what is needed, and returns what one repeat runs.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from time import perf_counter

WARMUP, PATIENCE = 5, 20  # repeats; seconds, after which slow works are not repeated again


def main() -> None:
    job = json.loads(sys.argv[1])
    module = importlib.import_module(job["module"])
    device = module.Device(job["context"], job["type_config"])
    before = used_megabytes()
    step = getattr(module, job["function"])(device, **job["arguments"])
    seconds: list[float] = []
    deadline = perf_counter() + PATIENCE
    for n in range(WARMUP + job["repeats"]):
        device.synchronize()
        start = perf_counter()
        step()
        device.synchronize()
        if n >= WARMUP:
            seconds.append(perf_counter() - start)
        if seconds and perf_counter() > deadline:
            break
    taken = used_megabytes() - before
    print(json.dumps({"seconds": seconds, "megabytes": taken, "device": device.name, "versions": module.versions()}))


def used_megabytes() -> float:
    """What is in use of the device's memory, of all processes; of this process's where there is no CUDA."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        if driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0:
            return (total.value - free.value) / 2**20
    except OSError:
        pass
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
