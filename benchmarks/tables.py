"""Parts of reports: tables in Markdown, and numbers in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from works import NNSHOP


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def by_size(rows: list[dict]) -> Iterator[tuple[str, dict[str, dict]]]:
    for size, group in groupby(rows, lambda row: row["size"]):
        yield size, {row["rival"]: row for row in group}


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.3g} ms"


def rivals_of(rows: list[dict]) -> list[str]:
    """All rivals: nnshop's ways first, then the others in the order in which they come up."""
    return sorted(dict.fromkeys(row["rival"] for row in rows), key=lambda rival: not rival.startswith(NNSHOP))


def cells(rivals: dict[str, dict], columns: list[str], show: Callable[[dict], str]) -> list[str]:
    """What each rival measured, as a row of a table: nothing for one that did not take part, a dash for one that could not."""
    return ["" if (row := rivals.get(name)) is None else "-" if "note" in row else show(row) for name in columns]


def notes(rows: list[dict]) -> list[str]:
    """Why some rivals have no number, each reason once, as lines below a table."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "note" in row:
            reasons.setdefault(f"{row['rival']}: {row['note']}", []).append(row["size"])
    lines = [f"- {reason} ({sizes[0] if len(sizes) == 1 else f'{len(sizes)} sizes'})" for reason, sizes in reasons.items()]
    return ["", *lines] if lines else []
