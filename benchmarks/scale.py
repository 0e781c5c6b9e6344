"""Measures the language model on 1 and 2 processes of this machine, and predicts more workers over other networks.

    python benchmarks/scale.py --output benchmarks      # needs pip install 'nnshop[fast,examples,mpi]', 5 minutes

Each worker has one thread and 20 streams of its own. What is measured first on its own: a step of one process, and how long
`Allreduce` takes by size. The model adds these up; it is checked against the measured step of two processes before it says
anything about more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MPIRUN = Path(sys.executable).with_name("mpirun")
STEPS = {"small": 60, "medium": 12, "large": 4}  # of the presets of examples/language_model.py
STREAMS, WORDS = 20, 10_000  # of each worker, and of the vocabulary
SIZES = (1, 1 << 10, 1 << 20, 1 << 23)  # numbers in one Allreduce
WORKERS = (2, 8, 64, 1024)


@dataclass(frozen=True)
class Network:
    """What connects workers: seconds for a message however short, and bytes per second."""

    name: str
    latency: float
    bandwidth: float


NETWORKS = (
    Network("1 Gbit/s Ethernet", 50e-6, 0.125e9),
    Network("10 Gbit/s Ethernet", 20e-6, 1.25e9),
    Network("100 Gbit/s InfiniBand", 2e-6, 12.5e9),
    Network("400 Gbit/s InfiniBand", 2e-6, 50e9),
)


@dataclass(frozen=True)
class Load:
    """What one step of a preset costs a worker.

    Attributes:
        step: Seconds without communication.
        local: Seconds to scale gradients, and to copy the small ones to their buckets and back.
        numbers: How many gradients there are.
        messages: In how many buckets they travel.
        words: How many a worker reads.
    """

    step: float
    local: float
    numbers: int
    messages: int
    words: int

    def seconds(self, workers: int, network: Network) -> float:
        """A step of so many workers: each bucket is reduced and spread by halving and doubling.

        References:
            R. Thakur, R. Rabenseifner, W. Gropp, Optimization of collective communication operations in MPICH, 2005.
        """
        if workers == 1:
            return self.step
        rounds = 2 * int(np.ceil(np.log2(workers)))
        traffic = 2 * (workers - 1) / workers * 4 * self.numbers / network.bandwidth
        return self.step + self.local + traffic + (self.messages + 2) * rounds * network.latency  # 2: the loss, and the weight

    def efficiency(self, workers: int, network: Network) -> float:
        """The share of `workers` times the speed of one that is reached."""
        return self.step / self.seconds(workers, network)


# ------------------------------------------------------------------------------------------------- in each of the processes


def work(preset: str) -> dict:
    """Trains some steps of a preset; returns what rank 0 measured, in seconds for a step."""
    sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
    import language_model as example
    import nnabla as nn

    from nnshop.data import EOS, UNKNOWN, Corpus, Vocabulary
    from nnshop.distributed import BUCKET, buckets, connect

    with connect() as workers:
        settings = example.replace(example.PRESETS[preset], batch_size=STREAMS * workers.size)
        ids = np.random.RandomState(0).randint(0, WORDS, 50_000 * workers.size).astype(np.int32)
        corpus = Corpus("random", Vocabulary([EOS, UNKNOWN, *map(str, range(WORDS - 2))]), ids, ids[:9000], ids[:9000])
        training = example.Training(settings, corpus, None, Path(), workers)
        training.add_point = lambda *_: None
        averaging = Stopwatch(workers, "average_gradients")
        for _ in range(2):
            training.train_one_batch()
        workers.barrier()
        averaging.seconds, start = 0.0, time.perf_counter()
        for _ in range(STEPS[preset]):
            training.train_one_batch()
        workers.barrier()
        parameters = [v for _, v in sorted(training.solver.get_parameters().items())]
        groups = list(buckets(parameters, BUCKET))
        return {
            "rank": workers.rank,
            "step": (time.perf_counter() - start) / STEPS[preset],
            "averaging": averaging.seconds / STEPS[preset],
            "local": local_seconds(training.solver, groups),
            "numbers": sum(v.size for v in parameters),
            "messages": len(groups),
            "words": STREAMS * settings.num_steps,
            "nnabla": nn.__version__,
        }


class Stopwatch:
    """Adds up the seconds that a method of an object takes."""

    def __init__(self, owner: object, name: str) -> None:
        self.seconds, method = 0.0, getattr(owner, name)

        def timed(*arguments: object) -> object:
            start = time.perf_counter()
            result = method(*arguments)
            self.seconds += time.perf_counter() - start
            return result

        setattr(owner, name, timed)


def local_seconds(solver: object, groups: list) -> float:
    """What `average_gradients` does beside sending."""
    start = time.perf_counter()
    for _ in range(5):
        solver.scale_grad(1.0)  # type: ignore[attr-defined]
        for group in groups:
            if len(group) > 1:
                flat = np.concatenate([v.g.ravel() for v in group])
                for v, part in zip(group, np.split(flat, np.cumsum([v.size for v in group])[:-1])):
                    v.g = part.reshape(v.shape)
    return (time.perf_counter() - start) / 5


def allreduce() -> dict:
    """Seconds of one Allreduce by its size."""
    from mpi4py import MPI

    world, seconds = MPI.COMM_WORLD, {}
    for size in SIZES:
        array, repeats = np.ones(size, np.float32), int(max(5, min(500, 2e7 / size)))
        world.Allreduce(MPI.IN_PLACE, array)
        world.Barrier()
        start = time.perf_counter()
        for _ in range(repeats):
            world.Allreduce(MPI.IN_PLACE, array)
        seconds[str(size)] = (time.perf_counter() - start) / repeats
    return {"rank": world.rank, "seconds": seconds}


# ------------------------------------------------------------------------------------------------------------ the report


def measure(processes: int, task: str) -> dict:
    """Runs a task in so many processes; returns what rank 0 measured."""
    command = [str(MPIRUN), "-n", str(processes), sys.executable, __file__, "--task", task]
    quiet = {"OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    run = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("{"))
    return json.loads(line)


def shared_memory(seconds: dict[str, float]) -> Network:
    """Two processes of one machine, as a network in the model's terms."""
    largest = str(max(SIZES))
    return Network("shared memory", seconds["1"] / 2, 4 * int(largest) / (seconds[largest] - seconds["1"]))


def report(presets: list[str]) -> tuple[str, dict]:
    found = {"date": str(date.today()), "cores": os.cpu_count(), "allreduce": measure(2, "allreduce")["seconds"]}
    here = shared_memory(found["allreduce"])
    lines = [
        f"Measured on {found['date']}, {found['cores']} cores, one thread each; 20 streams of each worker. Allreduce of two:",
        f"{found['allreduce']['1'] * 1e6:.1f} us for one number, {here.bandwidth / 1e9:.1f} GB/s.",
        "",
        "| preset | gradients | words/s, 1 | words/s, 2 | speedup | in averaging | model says |",
        "|---|---|---|---|---|---|---|",
    ]
    loads: dict[str, Load] = {}
    for preset in presets:
        one, two = (found.setdefault(f"{preset} {n}", measure(n, preset)) for n in (1, 2))
        loads[preset] = load = Load(*(one[key] for key in ("step", "local", "numbers", "messages", "words")))
        found[f"{preset} load"] = asdict(load)
        lines.append(
            f"| {preset} | {load.numbers * 4 / 1e6:.1f} MB | {load.words / one['step']:,.0f} | "
            f"{2 * load.words / two['step']:,.0f} | {2 * one['step'] / two['step']:.2f} | "
            f"{two['averaging'] / two['step']:.1%} | {2 * load.efficiency(2, here):.2f} |"
        )
    lines += ["", "Predicted words/s, and the share of N times one worker's speed:", ""]
    lines += ["| preset | network | " + " | ".join(map(str, WORKERS)) + " |", "|---|---|" + "---|" * len(WORKERS)]
    for preset, load in loads.items():
        for network in NETWORKS:
            cells = [f"{n * load.words / load.seconds(n, network):,.0f} ({load.efficiency(n, network):.0%})" for n in WORKERS]
            lines.append(f"| {preset} | {network.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines), found


def draw(found: dict, path: Path) -> None:
    """Words a second by the number of workers: what the model says, and what was measured."""
    from matplotlib.figure import Figure

    presets = [preset for preset in STEPS if f"{preset} load" in found]
    figure = Figure(figsize=(4 * len(presets), 3.4), layout="constrained")
    counts = 2.0 ** np.arange(11)
    for preset, axes in zip(presets, figure.subplots(1, len(presets), squeeze=False)[0]):
        load = Load(**found[f"{preset} load"])
        for network in NETWORKS[::-1]:
            speeds = [n * load.words / load.seconds(int(n), network) for n in counts]
            axes.plot(counts, speeds, label=network.name)
        axes.plot(counts, counts * load.words / load.step, color="gray", linestyle=":", label="N times one")
        measured = [n * load.words / found[f"{preset} {n}"]["step"] for n in (1, 2)]
        axes.plot([1, 2], measured, "ko", markersize=4, label="measured, shared memory")
        axes.set(xscale="log", yscale="log", title=preset, xlabel="workers", ylabel="words/s")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--output", type=Path, help="folder for scale.md and scale.json; draws docs/images/scale.png too")
    parser.add_argument("--task", choices=[*STEPS, "allreduce"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        result = allreduce() if args.task == "allreduce" else work(args.task)
        if result["rank"] == 0:
            print(json.dumps(result), flush=True)
        return
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    text, found = report(args.presets)
    print(text)
    if args.output:
        (args.output / "scale.md").write_text(text + "\n")
        (args.output / "scale.json").write_text(json.dumps(found, indent=1) + "\n")
        draw(found, ROOT / "docs/images/scale.png")


if __name__ == "__main__":
    main()
