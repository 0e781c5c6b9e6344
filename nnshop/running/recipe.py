"""What is compiled for a traced step: once for each structure, however often a graph of it is built."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from ..compiling import translations  # noqa: F401  (fills the table)
from ..compiling.engine import Engine, Recent
from ..compiling.nodes import Unsupported
from ..compiling.plan import Plan
from ..compiling.translate import Mixes, Translation
from ..graphs import functions_of
from ..graphs.replaying import Draw
from ..ids import CheckedIds
from .step_graph import StepGraph

_ENGINES, _BATCHES = Recent(256), Recent(256)


class Recipe:
    """A traced step, ready to be compiled for the gradients that are asked for.

    Args:
        graph: The step.
        n_x: How many of its inputs are steps of sequences; states follow.
        n_y: How many of its outputs are; states follow.

    Attributes:
        batch: How many rows there are; None where they meet, and the step is one row.
        draws: What draws random numbers in it.

    Raises:
        Unsupported: A function is not translated; the message names it.
    """

    def __init__(self, graph: StepGraph, n_x: int, n_y: int) -> None:
        self.outputs, self.n_x, self.n_y = graph.outputs, n_x, n_y
        self.n_states = len(graph.outputs) - n_y
        n_closures = len(graph.inputs) - n_x - self.n_states
        self.draws = [draw for draw in graph.drawing if isinstance(draw, Draw)]
        if any(draw.given for draw in self.draws):
            raise Unsupported("RandomChoice draws by weights, so at each step, not before the loop")
        drawn = [draw.output for draw in self.draws]
        self._inputs = [*graph.inputs, *drawn]
        self._kinds = ["x"] * n_x + ["state"] * self.n_states + ["closure"] * n_closures + ["drawn"] * len(drawn)
        self._functions = [f for f in functions_of(graph.outputs) if f.outputs[0] not in drawn]
        self._python = graph.computed
        self._key = self._structure()
        self.batch: int | None = _BATCHES.get(self._key, self._find_batch)

    def _structure(self) -> Hashable:
        """Equal for steps that are compiled to the same."""
        numbers = {v: i for i, v in enumerate(self._inputs)}
        parts: list[Hashable] = [(kind, v.shape) for kind, v in zip(self._kinds, self._inputs)]
        for f in self._functions:
            given = tuple(numbers[v] for v in f.inputs)
            made = tuple((v.shape, v.need_grad) for v in f.outputs)
            parts.append((f.info.type_name, repr(f.info.args), given, made, f.need_grad))
            numbers.update((v, len(numbers) + i) for i, v in enumerate(f.outputs))
        return (*parts, tuple(numbers[v] for v in self.outputs), self.n_y)

    def _find_batch(self) -> int | None:
        leaves = self._inputs[: self.n_x + self.n_states]
        sizes = {v.shape[0] if v.ndim else None for v in leaves}
        (batch,) = sizes if len(sizes) == 1 else (None,)
        if batch is not None and any(v.ndim > 1 for v in leaves):
            try:
                self._translate(batch)
                return batch
            except Mixes:
                pass
        self._translate(None)
        return None

    def _translate(self, batch: int | None) -> Translation:
        return Translation(self._inputs, self._kinds, self._functions, self.outputs, batch)

    def engine(self, wanted: frozenset[int]) -> Engine:
        """The programs for the gradients of these inputs."""
        return _ENGINES.get((self._key, wanted), lambda: Engine(Plan(self._translate(self.batch), self.n_y, wanted)))

    def checks(self) -> list[tuple[int, CheckedIds]]:
        """Inputs that are to be checked, each with what checks it.

        Raises:
            Unsupported: What is checked is no input.
        """
        makers = {f.outputs[0]: f for f in self._functions}
        found = []
        for v, check in self._python.items():
            if isinstance(check, CheckedIds) and v in makers:
                ids = makers[v].inputs[0]
                while ids in makers and _gives_the_same(makers[ids]):
                    ids = makers[ids].inputs[0]
                if ids not in self._inputs:
                    raise Unsupported(f"{check.who} is checked, and the step computes it itself")
                found.append((self._inputs.index(ids), check))
        return found

    def input_shapes(self) -> list[tuple[int, ...]]:
        """Those of the inputs of one step."""
        return [v.shape for v in self._inputs[: len(self._inputs) - len(self.draws)]]

    def drawn(self, i: int) -> int:
        """Which draw an input is."""
        return i - (len(self._inputs) - len(self.draws))


def _gives_the_same(function: Any) -> bool:
    """Whether a function gives the numbers of its input, perhaps in other places; `stop_gradient` multiplies them by 1."""
    info = function.info
    return info.type_name in ("Identity", "Reshape", "Transpose") or (info.type_name == "MulScalar" and info.args["val"] == 1)
