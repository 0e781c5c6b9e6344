"""Measures nnshop beside its rivals: the same works, the same number of threads, in turn, each in a process of its own.

    python benchmarks/run.py
    python benchmarks/run.py --quick --only layers
    python benchmarks/run.py --threads 2 --only layers --output benchmarks

A whole run writes `benchmarks/results.json`, `benchmarks/results.md` and the plots `docs/images/speed_*.png`. What is quick, or
only a part, goes to `build/benchmarks`. With several threads the results are called `results_N_threads`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from time import perf_counter

import report
from tqdm import tqdm
from works import FILES, LOOP, LOOP_GROWTH, NNSHOP, TORCH, WORKS, Case, loops, quick

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TRIALS = ROOT / "build/benchmarks"
LIMIT = 600  # seconds that a process may take
SLOW = 6  # who takes longer in a round is not asked again: such times vary little
POOLS = ("OMP", "MKL", "OPENBLAS", "NUMBA")  # whose environment variables set the number of threads


class Workshop:
    """Starts the workers.

    Args:
        threads: How many threads each may use.
        torch_python: A Python that has PyTorch.
    """

    def __init__(self, threads: int, torch_python: Path) -> None:
        self.environment = {**os.environ, **{f"{pool}_NUM_THREADS": str(threads) for pool in POOLS}}
        self.torch_python = torch_python

    def work(self, case: Case, rival: str) -> dict:
        """What one process measured, or `{"note": why there is nothing}`."""
        if rival == TORCH and not self.torch_python.exists():
            return {"note": "PyTorch is not there"}
        python = self.torch_python if rival == TORCH else sys.executable
        module = "imports" if case.function == "import_time" else FILES.get(rival, "nnabla_rivals")
        job = {key: getattr(case, key) for key in ("function", "arguments", "warmup", "repeats")}
        command = [str(python), str(HERE / "worker.py"), json.dumps({"module": module, "rival": rival, **job})]
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return {"note": f"not done in {LIMIT} s"}
        if done.returncode:
            return {"note": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
        return json.loads(done.stdout.splitlines()[-1])

    def measure(self, case: Case, bar: tqdm) -> dict[str, list[dict]]:
        """What the processes of each rival measured. Rivals take turns, so that a disturbance meets all of them."""
        outcomes: dict[str, list[dict]] = {rival: [] for rival in case.rivals}
        slow = set()
        for _ in range(case.rounds):
            for rival in case.rivals:
                bar.set_postfix_str(f"{case.size}: {rival}")
                if rival not in slow:
                    start = perf_counter()
                    outcomes[rival].append(self.work(case, rival))
                    if perf_counter() - start > SLOW or "note" in outcomes[rival][-1]:
                        slow.add(rival)
                bar.update()
        return outcomes


def row(case: Case, rival: str, outcomes: list[dict]) -> dict:
    """The medians over all repeats of all processes."""
    head = {"work": case.work, "size": case.size, "arguments": case.arguments, "rival": rival}
    measured = [outcome for outcome in outcomes if "note" not in outcome]
    if not measured:
        return {**head, "note": outcomes[0]["note"]}
    phases = [phase for phase in measured[0]["seconds"] if phase != "build"]
    seconds = {phase: [s for outcome in measured for s in outcome["seconds"][phase]] for phase in ["build", *phases]}
    seconds["total"] = [sum(parts) for parts in zip(*[seconds[phase] for phase in phases or ["build"]])]
    total = median(seconds["total"])
    return {
        **head,
        "seconds": {name: median(values) for name, values in seconds.items()},
        "fastest": min(seconds["total"]),
        "slowest": max(seconds["total"]),
        "repeats": len(seconds["total"]),
        "processes": len(measured),
        "megabytes": median(outcome["megabytes"] for outcome in measured),
        **({"words_per_second": case.words / total} if case.words else {}),
    }


def requirements(case: Case, rows: list[dict]) -> Iterator[dict]:
    """What is required of the first rival, and what it reached; None where something is missing."""
    by_rival = {row["rival"]: row for row in rows if "note" not in row}
    ours, head = by_rival.get(case.rivals[0]), {"work": case.work, "size": case.size}

    def against(rival: str, measure: str, required: float) -> dict:
        other = by_rival.get(rival)
        reached = None
        if ours and other:
            faster, smaller = other["seconds"]["total"] / ours["seconds"]["total"], ours["megabytes"] / other["megabytes"]
            reached = faster if measure == "speed" else smaller
        return {**head, "measure": measure, "against": rival, "required": required, "reached": reached}

    yield from (against(rival, "speed", factor) for rival, factor in case.faster.items())
    yield from (against(rival, "memory", part) for rival, part in case.smaller.items())
    if case.seconds:
        reached = ours and ours["seconds"]["total"]
        yield {**head, "measure": "seconds", "against": None, "required": case.seconds, "reached": reached}


def growth_requirements(rows: list[dict]) -> Iterator[dict]:
    """What is required of the loop's growth with T."""
    seconds = {row["arguments"]["steps"]: row["seconds"] for row in rows if row["rival"] == LOOP and "note" not in row}
    for phase, (first, last, required) in LOOP_GROWTH.items():
        if first in seconds and last in seconds:
            reached = seconds[last][phase] / seconds[first][phase] / (1 if phase == "build" else last / first)
            yield {
                "work": loops()[0].work,
                "size": f"T={last:,} beside T={first:,}",
                "measure": phase,
                "against": None,
                "required": required,
                "reached": reached,
            }


def compile_kernels(workshop: Workshop) -> None:
    """Lets nnshop compile its kernels, which it does once for each machine: else the first process would take more memory."""
    tiny = {"batch": 1, "steps": 2, "units": 16}
    workshop.work(Case("", "", "language_model", tiny, repeats=1), NNSHOP)
    for kind in ("lstm", "gru", "rnn"):
        workshop.work(Case("", "", "layer", {"kind": kind, **tiny}, repeats=1), NNSHOP)


def processor() -> str:
    with open("/proc/cpuinfo") as lines:
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats: tries out whether all works")
    parser.add_argument("--threads", type=int, default=1, help="for every rival; 1 by default")
    parser.add_argument("--only", choices=WORKS, action="append", help="leave out the other works; may be given several times")
    parser.add_argument(
        "--torch", type=Path, default=ROOT / ".venv-torch/bin/python", help="a Python with PyTorch; .venv-torch's by default"
    )
    parser.add_argument("--output", type=Path, help="a folder for the tables of a part, in place of build/benchmarks")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    cases = [case for name in args.only or WORKS for case in WORKS[name]()]
    if args.quick:
        cases = [case for case in map(quick, cases) if case]
    workshop = Workshop(args.threads, args.torch)
    compile_kernels(workshop)
    rows, required, versions = [], [], {}
    with tqdm(total=sum(case.rounds * len(case.rivals) for case in cases), unit="process", dynamic_ncols=True) as bar:
        for case in cases:
            outcomes = workshop.measure(case, bar)
            made = [row(case, rival, outcomes[rival]) for rival in case.rivals]
            rows += made
            required += requirements(case, made)
            for outcome in (outcome for rival in case.rivals for outcome in outcomes[rival]):
                versions.update(outcome.get("versions", {}))
    required += growth_requirements(rows)
    results = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "processor": processor(),
        "threads": args.threads,
        "versions": versions,
        "requirements": required,
        "rows": rows,
    }
    whole = not (args.quick or args.only)
    folder = args.output or (HERE if whole else TRIALS)
    report.write(results, folder, ROOT / "docs/images" if whole and args.threads == 1 else TRIALS)


if __name__ == "__main__":
    main()
