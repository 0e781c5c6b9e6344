"""Whether a sequence is long enough for the compiled way."""

from __future__ import annotations

from ..compiling.nodes import Unsupported
from ..graphs import functions_of
from .step_graph import StepGraph

# A call of a compiled sequence takes as long as CALLS of NNabla's functions, as CALLS_AN_INPUT for each of its inputs, and as
# CALLS_A_PAIR for each pair of an input and an output; one of NNabla's functions as long as so many numbers or products in it.
CALLS, CALLS_AN_INPUT, CALLS_A_PAIR, NUMBERS, PRODUCTS = 14.5, 2, 0.2, 2_000, 20_000


def check_that_it_pays(graph: StepGraph, length: int) -> None:
    """Raises Unsupported where so many steps take less time by NNabla's own functions."""
    calls = 0.0
    for function in functions_of(graph.outputs):
        made = sum(v.size for v in function.outputs)
        products = made * function.inputs[1].shape[0] if function.info.type_name == "Affine" else 0
        calls += 1 + made / NUMBERS + products / PRODUCTS
    inputs, outputs = len(graph.inputs), len(graph.outputs)
    if length * calls < CALLS + inputs * (CALLS_AN_INPUT + CALLS_A_PAIR * outputs):
        raise Unsupported(f"{length} steps of this size are too few to pay for the call")
