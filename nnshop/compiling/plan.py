"""The programs of a step: before, in and after the loop over time, forwards and backwards, and the buffers that they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .dividing import above, find_groups, find_parts, needed_by, products_in
from .keeping import can_be_made, is_quick
from .nodes import CHEAP, Node, View, Weight, all_of
from .places import Buffers, Place
from .reuse import readers, reuse, spread
from .reverse import Reverse
from .schedule import Schedule
from .sharing import cost_of_a_row
from .translate import Translation

Pairs = list[tuple[Node, Place]]
WIDE = 2**16  # what is larger, such as the gradient of a table of embeddings, is not there once for each group of rows


class Program(NamedTuple):
    """One program: its name, what it does, and whether it does all times as rows of one step."""

    name: str
    schedule: Schedule
    flat: bool
    for_one: bool  # whether it adds to what all rows share, so that one thread must do it
    cost_of_a_row: float  # about, in nanoseconds


class WeightGradient(NamedTuple):
    """The gradient of a part of a weight: the rows of what was multiplied, and those of the gradient of the product."""

    weight: Weight
    input: View
    input_place: Place
    gradient: View
    gradient_place: Place


class Plan:
    """Everything that a function needs to run a step over time.

    Args:
        translation: The step.
        n_y: How many of its results are outputs; states follow.
        wanted: The inputs whose gradients are asked for; empty where no backward pass is to come.

    Attributes:
        forward, backward (list of Program): What to run, in order.
        inputs (dict): The places of leaves, by kind and number.
        before, after (list of Place): Where the states before and after a step lie.
        y_places (list of Place): Where the outputs lie, all of a node each.
        dy_places, carry_places (list of Place): Where the gradients of outputs and of the states after a step go.
        gradient_places (dict): Where gradients come out, by kind and number of the leaf.
        weight_gradients (list of WeightGradient): What the gradients of weights are made of.
        forward_weights, backward_weights (list): What each pass multiplies by, and where it is to lie, packed.
    """

    def __init__(self, translation: Translation, n_y: int, wanted: Iterable[int]) -> None:
        self.translation, self.graph, self.wanted = translation, translation.graph, frozenset(wanted)
        self.buffers = Buffers()
        self.weights: dict[Weight, Place] = {}
        graph = self.graph
        results = [graph.own(v) for v in translation.results]
        self.ys, self.states_after = [v.node for v in results[:n_y]], [v.node for v in results[n_y:]]
        self._make_states()
        self._place_leaves()
        n_forward = len(graph.nodes)
        self._differentiate()
        loads = self._find_loads()
        self._save(loads, n_forward)
        self._plan_forward(loads, n_forward)
        self.forward_weights = list(self.weights.items())
        self._plan_backward(loads, n_forward)
        self.backward_weights = list(self.weights.items())[len(self.forward_weights) :]
        factors = [place for g in self.weight_gradients for place in (g.input_place, g.gradient_place)]
        flat = [program.schedule for program in [*self.forward, *self.backward] if program.flat]
        spread(self.buffers, flat, [*factors, *self.y_places])

    def bytes_of_a_step(self, batch: int) -> int:
        """How much memory each step of time takes."""
        kinds = ("sequence", "given", "state")
        own = (b.width for i, b in enumerate(self.buffers.all) if b.kind in kinds and i not in self.buffers.inside)
        return 4 * batch * sum(own)

    def _make_states(self) -> None:
        """Leaves for all states, those too that the step does not read."""
        n_x = self.translation.kinds.count("x")
        self.states = []
        for i, after in enumerate(self.states_after):
            known = self.translation.leaves.get(("state", n_x + i))
            leaf = known or self.graph.leaf("state", n_x + i, (after.size,))
            self.states.append(leaf.node)

    def _place_leaves(self) -> None:
        new = self.buffers.new
        self.before, self.after = [], []
        for node in self.states:
            self.before.append(new("state", node.size, "t"))
            self.after.append(new("after", node.size, "t"))
        self.inputs: dict[tuple[str, int], Place] = {}
        for (kind, i), view in self.translation.leaves.items():
            if kind != "state":
                self.inputs[kind, i] = self._place_leaf(kind, view.node.size)

    def _place_leaf(self, kind: str, size: int) -> Place:
        rows = {"x": "t", "drawn": "t", "sample": "b", "shared": "0", "array": "0"}[kind]
        return self.buffers.new("given" if rows == "t" else "closure", size, rows)

    def _find_loads(self) -> dict[Node, Place]:
        """Where leaves lie, and the states after a step."""
        loads = {self.translation.leaves[key].node: place for key, place in self.inputs.items()}
        loads.update(zip(self.states, self.before))
        return loads

    def _arrays(self, loads: dict[Node, Place]) -> None:
        """Gives places to constants; gradients may have brought more."""
        for node in self.graph.nodes:
            if node.op == "leaf" and node.attribute[0] == "array" and node not in loads:
                key = ("array", node.attribute[1])
                loads[node] = self.inputs[key] = self._place_leaf("array", node.size)

    # Gradients

    def _differentiate(self) -> None:
        graph, leaves = self.graph, self.translation.leaves
        self.dys = [graph.leaf("dy", j, (node.size,)).node for j, node in enumerate(self.ys)] if self.wanted else []
        self.carry = [graph.leaf("carry", i, (node.size,)).node for i, node in enumerate(self.states)] if self.wanted else []
        seeds = [*zip(self.ys, self.dys), *zip(self.states_after, self.carry)]
        asked = [v.node for (_, i), v in leaves.items() if i in self.wanted] + (self.states if self.wanted else [])
        weights = [i for i in self.translation.weights if i in self.wanted]
        whole = [(all_of(v, v.shape), all_of(d, v.shape)) for v, d in seeds]
        self.reverse = Reverse(graph, whole, asked, weights)
        self.gradients = {node: graph.own(d) for node, d in self.reverse.gradients.items()}

    def _save(self, loads: dict[Node, Place], n_forward: int) -> None:
        """Decides what the forward pass keeps for the backward pass; what is cheap is computed again."""
        self._arrays(loads)
        available = {**loads}
        for node, place in zip(self.states_after, self.after):
            available.setdefault(node, place)
        self.saved: dict[Node, Place] = {}

        def save(node: Node) -> None:
            if node not in available and node.op != "constant":
                available[node] = self.saved[node] = self.buffers.new("sequence", node.size, "t")

        for product in self.reverse.products:
            if product.input.node.index < n_forward:
                save(product.input.node)
        later = [*self.graph.nodes[n_forward:], *(d.node for d in self.gradients.values())]
        needed = {arg.node for node in later for arg in node.args if arg.node.index < n_forward}
        needed |= {d.node for d in self.gradients.values() if d.node.index < n_forward}
        needed |= {product.gradient.node for product in self.reverse.products if product.gradient.node.index < n_forward}
        there = set(available)
        for node in sorted(needed, key=lambda node: node.index):
            simple = node.op in CHEAP and node.attribute != "keep" and node.size > 1
            if not simple and not is_quick(node, there):
                save(node)
        for node in sorted(needed, key=lambda node: node.index):
            if not can_be_made(node, available):
                save(node)

    # Programs

    def _weight(self, weight: Weight) -> Place:
        if weight not in self.weights:
            self.weights[weight] = self.buffers.new("weight", weight.rows * weight.columns, "0")
        return self.weights[weight]

    def _plan_forward(self, loads: dict[Node, Place], n_forward: int) -> None:
        self.y_places: list[Place] = []
        sinks: Pairs = []
        for node in self.ys:
            after = [place for other, place in zip(self.states_after, self.after) if other is node]
            place = self.saved.get(node) or (after and node not in loads and after[0]) or None
            if place is None:
                place = self.buffers.new("sequence", node.size, "t")
                sinks.append((node, place))
            self.y_places.append(place)
        recurrent = list(zip(self.states_after, self.after))
        sinks += list(self.saved.items())
        keep = [*self.saved, *self.ys, *self.states_after]
        self.forward = self._split("forward", self.states, recurrent, sinks, [], loads, keep)
        free = {place.buffer for place in [*self.saved.values(), *self.y_places]}
        self._reuse(self.forward, free, self._sequences() - free)
        for node, place in [*zip(self.states_after, self.after), *self.saved.items()]:
            loads.setdefault(node, place)

    def _plan_backward(self, loads: dict[Node, Place], n_forward: int) -> None:
        new = self.buffers.new
        self.backward: list[Program] = []
        self.dy_places = [new("given", node.size, "t") for node in self.dys]
        self.carry_places = [new("pair", node.size, "p") for node in self.carry]
        self.gradient_places: dict[tuple[str, int], Place] = {}
        self.weight_gradients: list[WeightGradient] = []
        if not self.wanted:
            return
        loads.update(zip(self.dys, self.dy_places))
        loads.update(zip(self.carry, self.carry_places))
        sinks, adds = self._place_gradients()
        sinks += self._place_weight_gradients(loads)
        recurrent = []
        for state, place in zip(self.states, self.carry_places):
            d = self.gradients.get(state)
            node = self.graph.own(self.graph.constant(0.0).broadcast((state.size,))).node if d is None else d.node
            recurrent.append((node, place._replace(rows="q")))
        self._arrays(loads)
        self.backward = self._split("backward", self.carry, recurrent, sinks, adds, loads, [])
        factors = {place for g in self.weight_gradients for place in (g.input_place, g.gradient_place)}
        inputs = {self.buffers.resolve(place).buffer for place in factors}
        free = {g.gradient_place.buffer for g in self.weight_gradients} - {place.buffer for place in self.saved.values()}
        self._reuse(self.backward, free, {self.buffers.resolve(p).buffer for p in self.saved.values()} - inputs)

    def _sequences(self) -> set[int]:
        return {i for i, buffer in enumerate(self.buffers.all) if buffer.kind == "sequence"}

    def _reuse(self, programs: list[Program], free: set[int], dead: set[int]) -> None:
        """Saves memory in the program over time; what others read there is not dead."""
        for program in programs:
            if "loop" in program.name:
                others = [other.schedule for other in programs if other is not program]
                read = {buffer for schedule in others for buffer in readers(schedule)}
                reuse(program.schedule, free & self._sequences() - read, dead - read)

    def _place_gradients(self) -> tuple[Pairs, Pairs]:
        sinks: Pairs = []
        adds: Pairs = []
        for (kind, i), view in self.translation.leaves.items():
            d = self.gradients.get(view.node)
            if d is None or i not in self.wanted or kind not in ("x", "shared", "sample"):
                continue
            buffer, rows = {"x": ("sequence", "t"), "shared": ("groups", "g"), "sample": ("sample", "b")}[kind]
            if rows == "g" and view.node.size > WIDE:
                buffer, rows = "single", "0"
            place = self.gradient_places[kind, i] = self.buffers.new(buffer, view.node.size, rows)
            (sinks if kind == "x" else adds).append((d.node, place))
        return sinks, adds

    def _place_weight_gradients(self, loads: dict[Node, Place]) -> Pairs:
        """Keeps what is multiplied for the gradients of weights, for all times."""
        sinks: dict[Node, Place] = {}

        def place(node: Node) -> Place:
            if node in loads and loads[node].rows == "t":
                return loads[node]
            if node not in sinks:
                sinks[node] = self.buffers.new("sequence", node.size, "t")
            return sinks[node]

        for weight, a, d in self.reverse.products:
            self.weight_gradients.append(WeightGradient(weight, a, place(a.node), d, place(d.node)))
        return list(sinks.items())

    def _split(
        self,
        name: str,
        states: Sequence[Node],
        recurrent: Pairs,
        sinks: Pairs,
        adds: Pairs,
        loads: dict[Node, Place],
        keep: Sequence[Node],
    ) -> list[Program]:
        """Makes programs: a loop over time for each group of states, and around it what is done for all times at once.

        That are products that the recurrence does not need, and what is made of them.
        """
        programs: list[Program] = []
        loads = {**loads}

        def add(part: str, flat: bool, stored: Pairs, added: Pairs) -> None:
            if stored or added:
                flat = flat and not _needs_samples(stored, added, loads)
                if flat:
                    self.buffers.widen(place for _, place in added)
                schedule = Schedule(self.graph, self.buffers, stored, added, dict(loads), self._weight, keep, flat)
                for_one = any(place.rows == "0" for _, place in added)
                programs.append(Program(f"nnshop_{name}_{part}", schedule, flat, for_one, cost_of_a_row(schedule)))
            for node, place in stored:
                if place.rows == "t" and (node not in loads or loads[node].rows in "pq"):
                    loads[node] = place

        groups = find_groups(states, [node for node, _ in recurrent], loads)
        for n, group in enumerate(groups):
            later = [i for other in groups[n + 1 :] for i in other]
            own, others = ([recurrent[i] for i in chosen] for chosen in (group, later))
            wanted = [node for node, _ in [*own, *others, *sinks, *adds]]
            leaves, others_leaves = ([states[i] for i in chosen] for chosen in (group, later))
            parts = find_parts(wanted, leaves, others_leaves, [node for node, _ in own], loads)
            have = {node for node, place in [*sinks, *own] if place.rows not in "pq"}  # for all times
            handed = dict.fromkeys([*products_in(parts.first), *needed_by(parts.last, loads)])
            sinks += [(node, self.buffers.new("sequence", node.size, "t")) for node in handed if node not in have]
            add(f"before_{n}", True, [pair for pair in sinks if pair[0] in parts.first], [])
            inside = [pair for pair in sinks if pair[0] not in parts.first and pair[0] not in parts.last]
            add(f"loop_{n}", False, [*own, *inside], [pair for pair in adds if pair[0] not in parts.last])
            sinks, adds = ([pair for pair in pairs if pair[0] in parts.last] for pairs in (sinks, adds))
        add("after", True, sinks, adds)
        return programs


def _needs_samples(stored: Pairs, added: Pairs, loads: dict[Node, Place]) -> bool:
    """Whether a program reads, or adds to, what each sample has, at all times the same: then it cannot do all times at once."""
    read = any(node in loads and loads[node].rows == "b" for node in above([node for node, _ in [*stored, *added]], loads))
    return read or any(place.rows == "b" for _, place in added)
