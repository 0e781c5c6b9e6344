"""What the backward pass computes again rather than that the forward pass keeps it."""

from __future__ import annotations

from collections.abc import Iterable

from .nodes import CHEAP, Node
from .places import Place


def can_be_made(node: Node, available: dict[Node, Place], depth: int = 3) -> bool:
    """Whether the backward pass can compute a value again, by a few cheap operations."""
    if node in available or node.op == "constant" or is_quick(node, available):
        return True
    cheap = node.op in CHEAP and node.attribute != "keep" and node.size > 1 and depth > 0
    return cheap and all(can_be_made(arg.node, available, depth - 1) for arg in node.args)


def is_quick(node: Node, there: Iterable[Node]) -> bool:
    """Whether a value of what is there anyway, such as the tanh of a state, is computed as fast as it is loaded."""
    return node.op in ("tanh", "sigmoid") and node.size > 1 and all(arg.node in there for arg in node.args)
