"""Which way the parts of a model take, and why not a better one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import nnabla as nn

from ..core import AbstractCell, Tree
from ..parameters import scratch


@dataclass
class Note:
    """One sequence that is run: what runs, over how many steps, the ways that were not taken and why, and the one that was."""

    what: str
    length: int
    refused: list[tuple[str, str]] = field(default_factory=list)
    way: str = ""

    def __str__(self) -> str:
        lines = [f"{self.what}, {self.length} steps: {self.way or 'another function'}"]
        return "\n".join([*lines, *(f"  not {way}: {reason}" for way, reason in self.refused)])


_NOTES: ContextVar[list[Note] | None] = ContextVar("notes", default=None)


def begin(what: Any, length: int) -> None:
    """Notes that a sequence is to be run, for who asks."""
    notes = _NOTES.get()
    if notes is not None:
        notes.append(Note(repr(what) if isinstance(what, AbstractCell) else getattr(what, "__name__", repr(what)), length))


def refuse(way: str, reason: str) -> None:
    """Notes why a way is not taken."""
    notes = _NOTES.get()
    if notes and reason and not notes[-1].way and (way, reason) not in notes[-1].refused:
        notes[-1].refused.append((way, reason))


def take(way: str) -> None:
    """Notes the way that is taken by the last sequence that has none."""
    for note in reversed(_NOTES.get() or []):
        if not note.way:
            note.way = way
            break


@contextmanager
def noting() -> Iterator[list[Note]]:
    """Collects what is noted in this block, by this thread."""
    notes: list[Note] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)


def explain(what: AbstractCell | Callable | nn.Variable, *inputs: Tree, run: Callable, **options: Any) -> str:
    """Tells which way each sequence takes; see `nnshop.explain`."""
    if isinstance(what, nn.Variable):
        return _explain_graph(what)
    build = (lambda: run(what, *inputs, **options)) if isinstance(what, AbstractCell) else lambda: what(*inputs, **options)
    with noting() as notes, scratch(stand_ins=True), nn.auto_forward(False):
        build()
    told = dict.fromkeys(map(str, notes))  # a step is called more than once, and what runs within it too
    return "\n".join(told) or "No sequence is run here."


def _explain_graph(output: nn.Variable) -> str:
    kinds: Counter[str] = Counter()
    output.visit(lambda function: kinds.update([function.info.type_name]))
    lines = [f"{kind}: {count}" for kind, count in sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))]
    return "\n".join([f"{sum(kinds.values())} functions", *lines, "To see why, explain the function that builds this graph."])
