"""Measures nnshop on a GPU, beside PyTorch's cuDNN layers in the same run.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --only layers --torch-python ~/torch/bin/python --output results_gpu.json
    python benchmarks/gpu.py --context cpu --quick

Each work of each rival has a process of its own, so that its device memory is its own too. It wants NNabla and NumPy only; and
for the rival a Python that has PyTorch with CUDA, without which it goes on alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

from report import milliseconds, table

from nnshop.context import ContextError, use_context

HERE = Path(__file__).resolve().parent
LIMIT = 600  # seconds that a process may take
NNSHOP, TORCH = "nnshop", "PyTorch"
MODULES = {NNSHOP: "gpu_nnshop", TORCH: "gpu_torch"}
TYPES = ("float", "half")


@dataclass(frozen=True)
class Work:
    """What is computed, at one size; `words` is how many steps of all rows one repeat processes."""

    title: str
    size: str
    function: str
    arguments: dict
    words: int
    repeats: int


def language_models() -> list[Work]:
    """Those of the presets of `examples/language_model.py`, with dropout, on a vocabulary of 10000."""
    sizes = [("small", 200, 20, 0.0, 5.0), ("medium", 650, 35, 0.5, 5.0), ("large", 1500, 35, 0.65, 10.0)]
    return [
        Work(
            "Language model, a training step",
            f"{name}: 2 x {units} LSTM, V=10000, B=20, T={steps}",
            "language_model",
            {"units": units, "batch": 20, "steps": steps, "classes": 10_000, "dropout": dropout, "max_norm": norm},
            20 * steps,
            50,
        )
        for name, units, steps, dropout, norm in sizes
    ]


def layers() -> list[Work]:
    sizes = [(32, 100, 128), (20, 35, 650), (64, 50, 512), (128, 200, 1024)]
    return [
        Work(
            "Layers, forward and backward",
            f"{kind}, B={batch}, T={steps}, H={units}",
            "layer",
            {"kind": kind, "batch": batch, "steps": steps, "units": units},
            batch * steps,
            50,
        )
        for kind in ("lstm", "gru", "rnn")
        for batch, steps, units in sizes
    ]


WORKS = {"language_model": language_models, "layers": layers}


def quick(work: Work) -> Work:
    """The same at a tiny size, to try out whether all works."""
    tiny = {"units": 8, "batch": 2, "steps": 3, "classes": 11}
    arguments = {name: tiny.get(name, value) for name, value in work.arguments.items()}
    return Work(work.title, f"{work.size} (tiny)", work.function, arguments, 6, 2)


# -------------------------------------------------------------------------------------------------------------- processes


def measure(work: Work, rival: str, type_config: str, args: argparse.Namespace) -> dict:
    """What one process measured, or `{"note": why there is nothing}`."""
    job = {
        "module": MODULES[rival],
        "function": work.function,
        "arguments": work.arguments,
        "type_config": type_config,
        "context": args.context,
        "repeats": work.repeats,
    }
    python = sys.executable if rival == NNSHOP else args.torch_python
    command = [python, str(HERE / "gpu_worker.py"), json.dumps(job)]
    try:
        done = subprocess.run(command, env=environment(rival), capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"note": f"not done in {LIMIT} s"}
    except OSError as error:
        return {"note": f"{python}: {error.strerror}"}
    if done.returncode:
        return {"note": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def environment(rival: str) -> dict[str, str]:
    """Another Python than this one must meet neither its packages nor its libraries."""
    if rival == NNSHOP:
        return dict(os.environ)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    own = {str(Path(sys.prefix) / "lib"), str(Path(sys.prefix).parent / "lib")}
    libraries = [folder for folder in kept.get("LD_LIBRARY_PATH", "").split(":") if folder and folder not in own]
    return {**kept, "LD_LIBRARY_PATH": ":".join(libraries)}


def row(work: Work, rival: str, type_config: str, outcome: dict) -> dict:
    head = {"work": work.title, "size": work.size, "type": type_config, "rival": rival, "arguments": work.arguments}
    if "note" in outcome:
        return {**head, "note": outcome["note"]}
    seconds = median(outcome["seconds"])
    spread = {"fastest": min(outcome["seconds"]), "slowest": max(outcome["seconds"]), "repeats": len(outcome["seconds"])}
    return {**head, "seconds": seconds, **spread, "words_per_second": work.words / seconds, "megabytes": outcome["megabytes"]}


# ----------------------------------------------------------------------------------------------------------------- tables


def markdown(results: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results["versions"].items()))
    lines = [
        "# Speed on a GPU",
        "",
        f"{results['date'][:10]}, {results['device']}. {versions}. Made by `{results['command']}`.",
        "",
        "Times are medians over repeats in one process, each ended by waiting for the device; memory is what the process has "
        "taken of the device when all is done.",
    ]
    for title in dict.fromkeys(row["work"] for row in results["rows"]):
        lines += ["", f"## {title}", "", *work_table([row for row in results["rows"] if row["work"] == title])]
    return "\n".join(lines)


def work_table(rows: list[dict]) -> list[str]:
    head = ["size", "type", "rival", "ms", "words/s", "device memory, MB", f"{NNSHOP} is faster"]
    ours = {(row["size"], row["type"]): row for row in rows if row["rival"] == NNSHOP}
    return table(head, [[row["size"], row["type"], row["rival"], *cells(row, ours[row["size"], row["type"]])] for row in rows])


def cells(row: dict, ours: dict) -> list[str]:
    if "note" in row:
        return [row["note"].replace("|", "/"), "", "", ""]
    ratio = "" if row is ours or "note" in ours else f"{row['seconds'] / ours['seconds']:.2f} times"
    return [milliseconds(row["seconds"]), f"{row['words_per_second']:,.0f}", f"{row['megabytes']:,.0f}", ratio]


# ------------------------------------------------------------------------------------------------------------------- main


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", default="cudnn", choices=["cudnn", "cuda", "cpu"], help="cudnn; cpu only tries it out")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries out whether all works")
    parser.add_argument("--only", choices=WORKS, action="append", help="leave out the other works; may be given several times")
    parser.add_argument("--type", choices=TYPES, action="append", dest="types", help="float and half by default")
    parser.add_argument("--torch-python", default="python3", help="a Python that has PyTorch with CUDA; python3 by default")
    parser.add_argument("--output", type=Path, help="a file for the results as JSON")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    try:
        use_context(args.context)
    except ContextError as error:
        print(error, file=sys.stderr)
        return 1
    works = [work for name in args.only or WORKS for work in WORKS[name]()]
    rows, versions, device = [], {}, "unknown device"
    for work in map(quick, works) if args.quick else works:
        for type_config in args.types or TYPES:
            for rival in MODULES:
                outcome = measure(work, rival, type_config, args)
                rows.append(row(work, rival, type_config, outcome))
                versions.update(outcome.get("versions", {}))
                device = outcome.get("device", device)
                print(f"{work.size}, {type_config}, {rival}: {outcome.get('note', 'done')}", file=sys.stderr, flush=True)
    results = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "device": device,
        "versions": versions,
        "rows": rows,
    }
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
