"""Builds a graph again on other Variables, by a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nnabla as nn
import nnabla.function
from nnabla.function import PythonFunction

from ..functions import stop_gradient
from .tracing import Traced


class Rule:
    """How a graph is built again. This one applies again what depends on what is replaced; all else is used as it is."""

    def wants(self, function: Any, depends: bool) -> bool:
        """Whether a function is applied again; `depends` tells whether one of its inputs is another now."""
        return depends

    def leaf(self, v: nn.Variable) -> nn.Variable:
        """What stands for a Variable that is not replaced, and that no function which is applied again computes."""
        return v

    def stopped(self, new: nn.Variable) -> nn.Variable:
        """What stands for a Variable that was unlinked from one for which `new` stands: no gradient goes through it."""
        return stop_gradient(new)

    def apply(self, function: Any, given: list[nn.Variable]) -> list[nn.Variable]:
        """Applies a function to other inputs, and returns its outputs."""
        return again(function, given)


def rewrite(traced: Traced, replacements: Mapping[nn.Variable, nn.Variable], rule: Rule) -> list[nn.Variable]:
    """Builds a graph again on other Variables. The graph itself remains as it is.

    Args:
        traced: The graph.
        replacements: What stands for some of its Variables; one that the graph computes may be among them.
        rule: What becomes of all else.

    Returns:
        What stands for the outputs.

    Example:
        >>> from nnshop.graphs import Rule, rewrite, trace
        >>> x = nn.Variable.from_numpy_array([1., 2.])
        >>> (y,) = rewrite(trace(lambda x: [x * x], [x]), {x: x + 1}, Rule())
        >>> y.forward(); y.d
        array([4., 9.], dtype=float32)
    """
    new_of = dict(replacements)
    known = {v: v for v in new_of}  # what was unlinked equals what it was unlinked from: this is how that one was
    leaves: dict[tuple, nn.Variable] = {}

    def taken(v: nn.Variable) -> nn.Variable:
        source = known.get(v, v)
        new = new_of.get(source)
        if new is None:
            key = (source, source.parent, source.need_grad)
            new = leaves[key] = leaves[key] if key in leaves else rule.leaf(source)
        if new == source:
            return v
        return rule.stopped(new) if _is_unlinked(v, source) else new

    for function in traced.functions:
        inputs, outputs = function.inputs, function.outputs
        if rule.wants(function, any(v in new_of for v in inputs)):
            made = rule.apply(function, [taken(v) for v in inputs])
            new_of.update((old, new) for old, new in zip(outputs, made) if old not in replacements)
        known.update((v, v) for v in outputs if v not in replacements)
    return [taken(v) for v in traced.outputs]


def _is_unlinked(v: nn.Variable, source: nn.Variable) -> bool:
    return (v.parent is None and source.parent is not None) or (source.need_grad and not v.need_grad)


def again(
    function: Any,
    given: list[nn.Variable],
    python: PythonFunction | None = None,
    arguments: Mapping[str, Any] | None = None,
    context: nn.Context | None = None,
) -> list[nn.Variable]:
    """Applies a function like one of a graph; an output that lets no gradient through does so again.

    NNabla's functions are made anew: random ones hold what they drew, and a slice that is set up again counts from the end
    twice. A Python function is the same object, since NNabla would miscount the references to a second one.

    Args:
        function: The function.
        given: Its inputs.
        python: The object, where it is computed in Python.
        arguments: Others than it had.
        context: Another than it had.

    Raises:
        ValueError: It is computed in Python, and the object is not known.
    """
    kind, options = function.info.type_name, {"n_outputs": len(function.outputs)}
    if python is not None:
        made = python(*given, **options)
    else:
        # NNabla's name for all functions in Python is Callback; theirs may be that of one of NNabla's.
        make = None if function.name == "Callback" else getattr(nnabla.function, kind, None)
        if make is None:
            raise ValueError(f"{kind} is no function of NNabla's own, and cannot be applied again.")
        fresh = make(context or function.context, **(function.info.args if arguments is None else arguments))
        made = fresh(*given, **options, auto_forward=nn.get_auto_forward())  # without auto_forward= it is computed at once
    return stopping_as(function, as_list(made))


def stopping_as(function: Any, made: list[nn.Variable]) -> list[nn.Variable]:
    """Returns what was made in place of a function's outputs; where those let no gradient through, these do not either."""
    for old, new in zip(function.outputs, made):
        if function.need_grad and not old.need_grad:
            new.need_grad = False
    return made


def as_list(made: Any) -> list[nn.Variable]:
    """What a function of NNabla returned, which for one output is no tuple."""
    return list(made) if isinstance(made, (list, tuple)) else [made]
