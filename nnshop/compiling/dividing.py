"""Divides the values of a step among programs: loops over time, and what is done around them for all times.

States that do not need each other at a step have loops of their own, one after the other: of two layers the second one's
products with the outputs of the first are then one product over all times.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from .nodes import Node
from .places import Place

Loads = dict[Node, Place]


class Parts(NamedTuple):
    """What is computed before a loop, and what after it; all else is computed in it."""

    first: set[Node]
    last: set[Node]


def above(starts: Iterable[Node], known: Collection[Node]) -> set[Node]:
    """All that these are computed of, themselves included, as far as what is known."""
    seen: set[Node] = set()
    stack = list(starts)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            if node not in known:
                stack += [arg.node for arg in node.args]
    return seen


def find_parts(
    wanted: Iterable[Node], own: Iterable[Node], later: Iterable[Node], recurrent: Iterable[Node], loads: Loads
) -> Parts:
    """Divides what is wanted around the loop of some states.

    Args:
        wanted: Nodes that are asked for, now or later.
        own: The leaves of the states of the loop.
        later: Those of loops to come.
        recurrent: What the states are after a step.
        loads: What is there.
    """
    alive = sorted(above(wanted, loads), key=lambda node: node.index)
    inside = above(recurrent, loads)
    varies, last = set(own), set(later)
    for node in alive:
        if node in loads:
            continue
        if any(arg.node in varies for arg in node.args):
            varies.add(node)
        outside = node.op == "product" and node in varies and node not in inside
        if outside or any(arg.node in last for arg in node.args):
            last.add(node)
    products = [n for n in alive if n.op == "product" and n not in varies and n not in loads and n not in last]
    return Parts(above(products, loads) - set(loads), last)


def products_in(nodes: Iterable[Node]) -> list[Node]:
    return sorted((node for node in nodes if node.op == "product"), key=lambda node: node.index)


def needed_by(last: set[Node], loads: Loads) -> list[Node]:
    """What a loop hands on: what it computes, and what has a place for two steps only."""
    found = {arg.node for node in last for arg in node.args} - last
    there = {node for node in found if node.op == "constant" or (node in loads and loads[node].rows not in "pq")}
    return sorted(found - there, key=lambda node: node.index)


def find_groups(states: Sequence[Node], recurrent: Sequence[Node], loads: Loads) -> list[list[int]]:
    """Groups of states, by number, each with a loop of its own, in an order in which they can be run."""
    known = set(loads) - set(states)
    place = {state: i for i, state in enumerate(states)}
    needs = [{place[node] for node in above([node], known) if node in place} for node in recurrent]
    changed = True
    while changed:
        changed = False
        for need in needs:
            more = set().union(*(needs[i] for i in need)) - need
            need |= more
            changed = changed or bool(more)
    groups: list[list[int]] = []
    for i in sorted(range(len(states)), key=lambda i: len(needs[i] | {i})):
        same = next((group for group in groups if i in needs[group[0]] and group[0] in needs[i]), None)
        if same is None:
            groups.append([i])
        else:
            same.append(i)
    return _joined(groups, states, recurrent, loads)


def _joined(groups: list[list[int]], states: Sequence[Node], recurrent: Sequence[Node], loads: Loads) -> list[list[int]]:
    """Joins groups where a loop of its own gains nothing: no product over all times lies between them."""
    joined: list[list[int]] = []
    for group in groups:
        if joined and not _has_product_between(joined[-1], group, states, recurrent, loads):
            joined[-1] = joined[-1] + group
        else:
            joined.append(group)
    return joined


def _has_product_between(
    first: list[int], second: list[int], states: Sequence[Node], recurrent: Sequence[Node], loads: Loads
) -> bool:
    known = set(loads) - set(states)
    earlier, later = {states[i] for i in first}, {states[i] for i in second}
    inside = above([recurrent[i] for i in first], known)
    of_second = sorted(above([recurrent[i] for i in second], known), key=lambda node: node.index)
    from_first, from_second = set(earlier), set(later)
    for node in of_second:
        if any(arg.node in from_first for arg in node.args):
            from_first.add(node)
        if any(arg.node in from_second for arg in node.args):
            from_second.add(node)
    return any(n.op == "product" and n in from_first and n not in from_second and n not in inside for n in of_second)
