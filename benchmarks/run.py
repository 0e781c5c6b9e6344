"""Measures nnshop beside its rivals: the same works, the same number of threads, in turn, each in a process of its own.

    python benchmarks/run.py
    python benchmarks/run.py --quick --only layers
    python benchmarks/run.py --only cells --only ways
    python benchmarks/run.py --threads 2
    git worktree add build/before v0.1.0 && python benchmarks/run.py --only layers --before build/before

A whole run writes `benchmarks/results.json`, `benchmarks/results.md` and the plots `docs/images/speed_*.png`. What is quick, or
only a part, goes to `build/benchmarks`. With several threads it measures what they bring, and the results are called
`results_N_threads`. While it runs, what is measured so far is in `build/benchmarks/partial.json`; `python benchmarks/report.py`
makes tables and plots of such files.

It fails, at its end, where rivals of one work do not agree in values and gradients.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

import report
import requirements
from cell_works import CELL_WORKS
from tqdm import tqdm
from works import BEFORE, WORKS, Case, quick
from workshop import Workshop

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TRIALS = ROOT / "build/benchmarks"


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
        "processors": median(outcome["processors"] for outcome in measured),
        "megabytes": median(outcome["megabytes"] for outcome in measured),
        **({"words_per_second": case.words / total} if case.words else {}),
        **({"difference": measured[0]["difference"]} if "difference" in measured[0] else {}),
    }


def processor() -> str:
    with open("/proc/cpuinfo") as lines:
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats: tries out whether all works")
    parser.add_argument("--threads", type=int, default=1, help="for every rival; 1 by default")
    parser.add_argument(
        "--only", choices=[*WORKS, *CELL_WORKS], action="append", help="leave out the other works; may be given several times"
    )
    parser.add_argument("--rounds", type=int, help="processes for each rival that takes part in more than one round")
    parser.add_argument(
        "--rivals",
        type=Path,
        default=ROOT / ".venv-rivals/bin/python",
        help="a Python with PyTorch and JAX; .venv-rivals's by default",
    )
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit, to measure beside")
    parser.add_argument("--output", type=Path, help="a folder for the tables of a part, in place of build/benchmarks")
    return parser.parse_args()


def cases_of(args: argparse.Namespace) -> Iterator[Case]:
    of_threads = ("threads", "thread_cells")
    whole = of_threads if args.threads > 1 else [name for name in (*WORKS, *CELL_WORKS) if name not in of_threads]
    for name in args.only or whole:
        if name in CELL_WORKS:
            cases = CELL_WORKS[name](args.quick)
        else:
            cases = [case for case in map(quick, WORKS[name]()) if case] if args.quick else WORKS[name]()
        for case in cases:
            yield case.with_rounds(args.rounds) if args.before else case.with_rounds(args.rounds).without(BEFORE)


def main() -> None:
    args = arguments()
    cases = list(cases_of(args))
    workshop = Workshop(args.threads, args.rivals, args.before)
    workshop.compile_kernels()
    results = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "processor": processor(),
        "threads": args.threads,
        "versions": {},
        "requirements": [],
        "rows": [],
    }
    of_cases = []
    with tqdm(total=sum(case.processes for case in cases), unit="process", dynamic_ncols=True) as bar:
        for case in cases:
            outcomes = workshop.measure(case, bar)
            made = [row(case, rival, outcomes[rival]) for rival in case.rivals]
            results["rows"] += made
            of_cases += requirements.of_case(case, made)
            results["requirements"] = [*of_cases, *requirements.of_all(results["rows"])]
            for outcome in (outcome for rival in case.rivals for outcome in outcomes[rival]):
                results["versions"].update(outcome.get("versions", {}))
            report.save(results, TRIALS / "partial.json")
    whole = not (args.quick or args.only)
    folder = args.output or (HERE if whole else TRIALS)
    report.write(results, folder, ROOT / "docs/images" if whole and args.threads == 1 else TRIALS)
    different = [row for row in results["rows"] if row.get("difference", 0) > requirements.EQUAL]
    if different:
        sys.exit("\n".join(f"{row['size']}: {row['rival']} differs by {row['difference']:.1e}" for row in different))


if __name__ == "__main__":
    main()
