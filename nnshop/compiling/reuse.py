"""Lets values lie where they are or where others lay that nobody needs any more: gates in the place of what made them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from .nodes import View
from .places import Buffers, Place
from .roots import At, Root
from .schedule import Schedule

Region = tuple[int, int]  # offset and size of a run of numbers


def reuse(schedule: Schedule, free: set[int], dead: set[int]) -> None:
    """Puts what these buffers are to hold in the place of dead values.

    That is right where one loop reads a run of numbers, no other one does, and the same loop stores as many: it has read a
    number before it writes there.

    Args:
        schedule: Of a program over time.
        free: Buffers that may lie elsewhere.
        dead: Buffers whose numbers nothing else needs than this program.
    """
    buffers, readers_of = schedule.buffers, readers(schedule)
    taken: dict[int, set[Region]] = {}
    for buffer, (at, stored) in _stores(schedule, free).items():
        for other in _candidates(readers_of, dead, at):
            regions = readers_of[other][at]
            left = sorted(regions - taken.get(other, set()))
            place = _fit(stored, buffers.all[buffer].width, left, regions)
            if place is not None and _disjoint(regions):
                buffers.inside[buffer] = Place(other, "t", buffers.all[other].width, place)
                taken.setdefault(other, set()).update((place + offset, size) for offset, size in stored)
                break


def _stores(schedule: Schedule, free: set[int]) -> dict[int, tuple[At, set[Region]]]:
    """Of each free buffer that one loop fills: the loop, and the runs of numbers that it stores."""
    found: dict[int, list[tuple[At, Root, Region]]] = {}
    for at, roots in schedule.roots.items():
        for root in roots:
            if root.kind != "reduce":
                place = root.target if isinstance(root.target, Place) else schedule.place(root.target)
                reach = View(root.value.node, root.value.shape, root.strides)
                region = (place.offset + root.offset, root.value.size) if reach.contiguous else (-1, 0)
                found.setdefault(place.buffer, []).append((at, root, region))
    result = {}
    for buffer, stores in found.items():
        at = stores[0][0]
        regions = {region for _, _, region in stores}
        simple = all(other == at and root.kind == "store" and region[1] for other, root, region in stores)
        full = sum(size for _, size in regions) == schedule.buffers.all[buffer].width
        if buffer in free and simple and full and buffer not in schedule.buffers.inside and not _zeroed(schedule, buffer):
            result[buffer] = (at, regions)
    return result


def _zeroed(schedule: Schedule, buffer: int) -> bool:
    return any(schedule.place(node).buffer == buffer for nodes in schedule.zeros.values() for node in nodes)


def _candidates(readers_of: dict[int, dict[At | str, set[Region]]], dead: set[int], at: At) -> list[int]:
    """Dead buffers that only this loop reads."""
    return [buffer for buffer, by in readers_of.items() if buffer in dead and set(by) == {at}]


def _fit(stored: set[Region], width: int, left: list[Region], regions: set[Region]) -> int | None:
    """Where, in the numbers that the loop reads, what it stores can lie."""
    if len(stored) == 1:
        ((offset, size),) = stored
        return next((start for start, n in left if n == size and offset == 0), None)
    if set(left) == regions and stored == regions and sum(size for _, size in regions) == width:
        return 0
    return None


def _disjoint(regions: set[Region]) -> bool:
    ordered = sorted(regions)
    return all(start + size <= other for (start, size), (other, _) in itertools.pairwise(ordered))


def readers(schedule: Schedule) -> dict[int, dict[At | str, set[Region]]]:
    """Of each buffer that the program reads: by which loops, and which runs of numbers."""
    found: dict[int, dict[At | str, set[Region]]] = {}

    def note(view: View, by: At | str) -> None:
        if view.node.op == "constant" or (view.node not in schedule.loads and view.node not in schedule.places):
            return
        place = schedule.buffers.resolve(schedule.place(view.node))
        plain = view.contiguous and not isinstance(by, str) and view.size > 1
        region = (place.offset + view.offset, view.size)
        found.setdefault(place.buffer, {}).setdefault(by if plain else "others", set()).add(region)

    for at, roots in schedule.roots.items():
        for root in roots:
            starts = [root.value] if root.by is None else [root.value, root.by[0]]
            for view in _read(schedule, starts, at):
                note(view, at)
    for products in schedule.products.values():
        for product in products:
            for view in product.node.args:
                note(view, "products")
    return found


def spread(buffers: Buffers, flat: Iterable[Schedule], ordered: Iterable[Place]) -> None:
    """Lets what loops over time alone read lie as it comes: it need not be copied to the order of time.

    Args:
        buffers: Those of all programs; the kind of some changes.
        flat: What does all times at once.
        ordered: What else has all times in order.
    """
    needed = {place.buffer for place in ordered}.union(*map(readers, flat))
    for i, buffer in enumerate(buffers.all):
        if buffer.kind == "given" and i not in needed:
            buffers.all[i] = buffer._replace(kind="spread")


def _read(schedule: Schedule, views: Iterable[View], at: At) -> Iterator[View]:
    """What a loop reads from memory, to compute these."""
    stack, seen = list(views), set()
    while stack:
        view = stack.pop()
        if view in seen:
            continue
        seen.add(view)
        node = view.node
        if schedule.in_registers(view, at) or (schedule.is_scalar(node, at.phase) and node.op != "reduce"):
            stack += node.args
            if node.op == "gather":
                yield node.args[0]._replace(shape=(1,), strides=(1,))  # read anywhere
        else:
            yield view
