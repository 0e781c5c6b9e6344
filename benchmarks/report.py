"""Results as JSON, as tables in Markdown, and as plots.

    python benchmarks/report.py build/benchmarks/partial.json --output build/benchmarks
    python benchmarks/report.py benchmarks/results.json build/benchmarks/results.json --output benchmarks --images docs/images

Of several files, a later one replaces the works that it has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import cell_report
from tables import by_size, milliseconds, seconds, table
from works import AXES, BASE, GROWTH, LOOP, NNSHOP, TORCH, UNROLLED


def save(results: dict, path: Path) -> None:
    """Writes JSON; a run that is stopped meanwhile leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n")
    new.replace(path)


def merge(all_results: list[dict]) -> dict:
    """One result of several; a later one replaces the works that it has."""
    merged = {**all_results[-1], "versions": {}, "command": "; ".join(dict.fromkeys(r["command"] for r in all_results))}
    for key in ("rows", "requirements"):
        works: dict[str, list[dict]] = {}
        for results in all_results:
            works.update({work: [entry for entry in results[key] if entry["work"] == work] for work in works_of(results)})
        merged[key] = [entry for entries in works.values() for entry in entries]
    for results in all_results:
        merged["versions"].update(results["versions"])
    return merged


def works_of(results: dict) -> list[str]:
    return list(dict.fromkeys(row["work"] for row in results["rows"]))


def write(results: dict, folder: Path, images: Path) -> None:
    """Writes JSON and Markdown into one folder, plots of one thread into the other, and prints the requirements."""
    for place in (folder, images):
        place.mkdir(parents=True, exist_ok=True)
    stem = "results" if results["threads"] == 1 else f"results_{results['threads']}_threads"
    save(results, folder / f"{stem}.json")
    (folder / f"{stem}.md").write_text(markdown(results))
    print("\n".join(required_table(results["requirements"])))
    drawn = draw(results["rows"], images) if results["threads"] == 1 else []
    print("written:", folder / f"{stem}.json", folder / f"{stem}.md", *drawn, sep="\n  ")


# ---------------------------------------------------------------------------------------------------------------- tables


def markdown(results: dict) -> str:
    threads = results["threads"]
    lines = [
        "# Speed",
        "",
        f"{results['date'][:10]}, {results['processor']}, {threads} thread{'s' if threads > 1 else ''}. "
        + ", ".join(f"{name} {version}" for name, version in sorted(results["versions"].items()))
        + f". Made by `{results['command']}`.",
        "",
        "Times are medians over all repeats of all processes, in which the rivals took turns; memory is the peak of a whole "
        "process, its libraries included.",
        "",
        "## What is required",
        "",
        *required_table(results["requirements"]),
    ]
    for work, rows in groupby(results["rows"], lambda row: row["work"]):
        lines += ["", f"## {work}", "", *cell_report.TABLES.get(work, work_table)(list(rows))]
    busy = [row for row in results["rows"] if row.get("processors", 0) > 1.1 * threads]
    if busy:
        lines += ["", f"More than {threads} threads took: " + "; ".join(f"{row['rival']}, {row['size']}" for row in busy) + "."]
    return "\n".join(lines) + "\n"


def required_table(requirements: list[dict]) -> list[str]:
    return table(["work", "size", "required", "reached", "met"], [required_row(entry) for entry in requirements])


def required_row(entry: dict) -> list[str]:
    required, reached = entry["required"], entry["reached"]
    wanted, unit = {
        "speed": (f"≥ {required:g} times the speed of {entry['against']}", " times"),
        "memory": (f"≤ {required:g} of the memory of {entry['against']}", ""),
        "seconds": (f"≤ {seconds(required)}", ""),
        "difference": (f"values and gradients equal to {required:g}", ""),
        "build": (f"≤ {required:g} times the time to build", " times"),
        **dict.fromkeys(("total", "step"), (f"≤ {required:g} times the time of a step", " times")),
    }[entry["measure"]]
    if reached is None:
        return [entry["work"], entry["size"], wanted, "not measured", "?"]
    met = reached >= required if entry["measure"] == "speed" else reached <= required
    shown = {"seconds": seconds, "difference": "{:.1e}".format}.get(entry["measure"], "{:.2f}".format)(reached)
    return [entry["work"], entry["size"], wanted, f"{shown}{unit}", "yes" if met else "**no**"]


def work_table(rows: list[dict]) -> list[str]:
    """A line for each size and rival; the last column tells how much faster the first rival of that size is."""
    measured = [row for row in rows if "note" not in row]
    phases = [name for name in (measured[0]["seconds"] if measured else []) if name != "total"]
    if "forward" not in phases:
        phases = []  # only the total
    words = any("words_per_second" in row for row in measured)
    head = ["size", "rival", *[f"{name}, ms" for name in [*phases, "total"]]]
    head += (["words/s"] if words else []) + ["memory, MB", f"{rows[0]['rival']} is faster"]
    lines = []
    for size, group in groupby(rows, lambda row: row["size"]):
        some = list(group)
        for row in some:
            cells = work_row(row, some[0], [*phases, "total"], words)
            lines.append([size, row["rival"], *cells, *[""] * (len(head) - 2 - len(cells))])
    return table(head, lines)


def work_row(row: dict, first: dict, phases: list[str], words: bool) -> list[str]:
    if "note" in row:
        return [row["note"].replace("|", "/")]
    cells = [milliseconds(row["seconds"][phase]) for phase in phases]
    cells += [f"{row['words_per_second']:,.0f}"] if words else []
    cells += [f"{row['megabytes']:,.0f}"]
    ratio = "" if row is first or "note" in first else f"{row['seconds']['total'] / first['seconds']['total']:.2f} times"
    return [*cells, ratio]


# ----------------------------------------------------------------------------------------------------------------- plots


def draw(rows: list[dict], folder: Path) -> list[Path]:
    """Draws a plot of each work of which there is something to show; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = []
    for name, (title, plot) in PLOTS.items():
        some = [row for row in rows if row["work"].startswith(title) and "note" not in row]
        figure = plot(plt, some) if some else None
        if figure is not None:
            drawn.append(folder / f"speed_{name}.png")
            figure.savefig(drawn[-1], dpi=120, bbox_inches="tight")
            plt.close(figure)
    return drawn


def draw_language_model(plt, rows: list[dict]):
    sizes = list(by_size(rows))
    figure, axes = plt.subplots(1, len(sizes), figsize=(5.5 * len(sizes), 3), squeeze=False)
    for ax, (size, rivals) in zip(axes[0], sizes):
        colors = ["tab:blue" if name == NNSHOP else "tab:gray" for name in rivals]
        bars = ax.barh(list(rivals), [row["words_per_second"] for row in rivals.values()], color=colors)
        ax.bar_label(bars, fmt="{:,.0f}", padding=3)
        ax.invert_yaxis()
        ax.margins(x=0.2)
        ax.set(title=size, xlabel="words/s")
    figure.tight_layout()
    return figure


def draw_layers(plt, rows: list[dict]):
    """How many times as fast as PyTorch; nothing where it was not there."""
    pairs = [(size, rivals) for size, rivals in by_size(rows) if NNSHOP in rivals and TORCH in rivals]
    if not pairs:
        return None
    ratios = [rivals[TORCH]["seconds"]["total"] / rivals[NNSHOP]["seconds"]["total"] for _, rivals in pairs]
    figure, ax = plt.subplots(figsize=(7, 0.35 * len(pairs) + 1))
    ax.bar_label(ax.barh([size for size, _ in pairs], ratios), fmt="{:.2f}", padding=3)
    ax.axvline(1, color="black", linewidth=1)
    ax.axvline(1.2, color="tab:red", linestyle="--", linewidth=1, label="required")
    ax.invert_yaxis()
    ax.set_xscale("log", base=2)
    ax.set_xlim(0.5, 2 * max(*ratios, 2))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="times as fast as PyTorch, forward and backward")
    ax.legend(loc="lower right")
    return figure


def draw_loop(plt, rows: list[dict]):
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    values: dict[str, Callable[[dict], float]] = {
        "building, s": lambda row: row["seconds"]["build"],
        "forward and backward, s": lambda row: row["seconds"]["total"],
        "peak memory, MB": lambda row: row["megabytes"],
    }
    for ax, (label, value) in zip(axes, values.items()):
        for rival in (LOOP, UNROLLED):
            lines(ax, [row for row in rows if row["rival"] == rival], "steps", value, rival)
        ax.set(xlabel="T", ylabel=label, xscale="log", yscale="log")
    axes[0].legend()
    figure.tight_layout()
    return figure


def draw_growth(plt, rows: list[dict]):
    figure, axes = plt.subplots(1, len(AXES), figsize=(12, 3.2))
    for ax, (axis, letter) in zip(axes, {"steps": "T", "batch": "B", "units": "H"}.items()):
        others = {name: value for name, value in BASE.items() if name != axis}
        some = [row for row in rows if others.items() <= row["arguments"].items()]
        for rival in (NNSHOP, TORCH):
            lines(ax, [row for row in some if row["rival"] == rival], axis, lambda row: 1000 * row["seconds"]["total"], rival)
        ax.set(xlabel=letter, ylabel="forward and backward, ms", xscale="log", yscale="log")
    axes[0].legend()
    figure.tight_layout()
    return figure


def lines(ax, rows: list[dict], axis: str, value: Callable[[dict], float], label: str) -> None:
    rows = sorted(rows, key=lambda row: row["arguments"][axis])
    ax.plot([row["arguments"][axis] for row in rows], [value(row) for row in rows], marker="o", label=label)


PLOTS: dict[str, tuple[str, Callable]] = {
    "language_model": ("Language model", draw_language_model),
    "layers": ("Layers", draw_layers),
    "loop": ("A cell of one's own", draw_loop),
    "growth": (GROWTH, draw_growth),
    **cell_report.PLOTS,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="results in JSON")
    parser.add_argument("--output", type=Path, required=True, help="a folder for JSON and tables")
    parser.add_argument("--images", type=Path, help="a folder for plots; the same by default")
    args = parser.parse_args()
    write(merge([json.loads(path.read_text()) for path in args.files]), args.output, args.images or args.output)


if __name__ == "__main__":
    main()
