"""What a schedule is made of: loops at a time, what they leave behind, and products."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .nodes import Node, View, indices
from .places import Place


class At(NamedTuple):
    """Where a loop stands: its time, and the axes that it runs over."""

    phase: int
    stage: int
    space: tuple[int, ...]


class Root(NamedTuple):
    """Something that a loop leaves behind.

    Args:
        kind: "store" or "add" a value to memory, or "reduce" it.
        value: What; its shape is that of the loop's axes.
        target: The node, or the place, whose memory is written; of a reduction, its node.
        strides, offset: Where in it each number goes.
        by: A number of the loop, by which the place is moved on, and how far for each 1: (view, stride, count).
    """

    kind: str
    value: View
    target: Node | Place
    strides: tuple[int, ...]
    offset: int = 0
    by: tuple[View, int, int] | None = None


class Product(NamedTuple):
    node: Node
    adds: bool


def computed_in_loops(node: Node) -> bool:
    return node.elementwise or node.op == "gather"


def is_table(node: Node, argument: int) -> bool:
    """Whether an argument is read at computed places: from memory only."""
    return node.op == "gather" and argument == 0


def cover(node: Node) -> np.ndarray:
    """How often each number of an assembled node is written to."""
    if node.op == "scatter":
        return np.zeros(1)
    counts = np.zeros(node.size, np.int32)
    for place in node.attribute:
        np.add.at(counts, indices(View(node, *place)), 1)
    return counts


def count_uses(starts: Iterable[Node], loads: dict[Node, Place]) -> dict[Node, int]:
    """Of all that these are made of, how often it is used."""
    uses: dict[Node, int] = {}
    stack = []
    for node in starts:
        uses[node] = uses.get(node, 0) + 1
        stack.append(node)
    seen = set()
    while stack:
        node = stack.pop()
        if node not in seen and node not in loads:
            seen.add(node)
            for arg in node.args:
                uses[arg.node] = uses.get(arg.node, 0) + 1
                stack.append(arg.node)
    return uses
