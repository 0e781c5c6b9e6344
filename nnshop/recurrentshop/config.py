"""Values as plain JSON data, and back. A config is data: loading one looks names up in a fixed table, and runs no code."""

from __future__ import annotations

import inspect
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import nnabla.functions as F
import nnabla.initializer as I
import nnabla.parametric_functions as PF
import numpy as np

from .. import cells, combinators
from ..archive import is_deeper
from ..core import AbstractCell, StateSpec, is_whole, tree_leaves
from ..parameters import MOST_SCOPES


class Described(ABC):
    """A value that says itself what it is made of."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What `from_arguments` makes it again of."""

    @classmethod
    @abstractmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Any:
        """Makes it again."""


def _public(prefix: str, module: Any) -> dict[str, Any]:
    return {f"{prefix}.{name}": v for name, v in vars(module).items() if inspect.isfunction(v) and not name.startswith("_")}


# Every name that a config may hold; the modules of this package add their own.
TABLE: dict[str, Any] = {
    **_public("F", F),
    **_public("PF", PF),
    **{f"nnshop.{c.__name__}": c for c in (cells.SimpleRNNCell, cells.LSTMCell, cells.GRUCell, StateSpec)},
    **{
        f"nnshop.{c.__name__}": c
        for c in (combinators.Lifted, combinators.Stack, combinators.Sync, combinators.Residual, combinators.Readout)
    },
}

# NNabla's initializers, with the attributes that their constructors take.
INITIALIZERS: dict[str, tuple[type, tuple[str, ...]]] = {
    "I.ConstantInitializer": (I.ConstantInitializer, ("value",)),
    "I.UniformInitializer": (I.UniformInitializer, ("lim",)),
    "I.NormalInitializer": (I.NormalInitializer, ("s",)),
    "I.OrthogonalInitializer": (I.OrthogonalInitializer, ("gain",)),
}


# What arguments of these names must be, in whatever of the library; a mistake would be met in the middle of a step.
ARGUMENTS: dict[str, Callable[[Any], bool]] = {
    "name": lambda v: v is None or (isinstance(v, str) and v.count("/") < MOST_SCOPES),
    "cell": lambda v: v is None or isinstance(v, AbstractCell),
    "cells": lambda v: isinstance(v, (list, tuple)) and all(isinstance(cell, AbstractCell) for cell in v),
    "function": callable,
    "merge": lambda v: callable(v) or v in combinators.MERGES,
    "rng": lambda v: v is None or hasattr(v, "uniform"),
    "depth": lambda v: all(is_whole(n) and n <= 1000 for n in (v if isinstance(v, (list, tuple)) else [v])),  # made at once
    "lim": lambda v: isinstance(v, (list, tuple)) and len(v) == 2,
}

NESTING = 100  # a stack in a stack takes 4; Python's own limit would be met somewhere in the middle of using the layer


def encode(value: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Describes a value as JSON data.

    Raises:
        ValueError: It cannot be described: a lambda, an array, a Variable, a graph, or a function that is in no table.
    """
    names = {id(v): name for name, v in {**TABLE, **(custom_objects or {})}.items()}

    def make(value: Any, attributes: Mapping[str, Any]) -> dict[str, Any]:
        return {"make": names[id(type(value))], "arguments": {name: go(v) for name, v in attributes.items()}}

    def go(value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (np.integer, np.floating)):
            return value.item()
        if isinstance(value, (list, tuple)):
            return {"tuple" if isinstance(value, tuple) else "list": [go(v) for v in value]}
        if id(value) in names:
            return {"name": names[id(value)]}
        if isinstance(value, Described) and id(type(value)) in names:
            _check_carried(type(value))
            return make(value, value.arguments())
        if is_dataclass(value) and id(type(value)) in names:
            return make(value, {field.name: getattr(value, field.name) for field in fields(value)})
        for name, (kind, attributes) in INITIALIZERS.items():
            if type(value) is kind:
                return {"make": name, "arguments": {a: go(getattr(value, a)) for a in attributes}}
        raise ValueError(
            f"{value!r} cannot be described as data. A config holds the library's cells and public functions; "
            "pass others, by name, as custom_objects."
        )

    return go(value)


def _check_carried(kind: type) -> None:
    """Raises ValueError where a class has an `__init__` of its own, but not what says what that was given."""
    made, told = (next(c for c in kind.__mro__ if name in vars(c)) for name in ("__init__", "arguments"))
    if made is not told and issubclass(made, told):
        raise ValueError(
            f"{kind.__name__} has an __init__ of its own, and {told.__name__}.arguments() does not know its options, so a "
            f"config would lose them. Define {made.__name__}.arguments() too: a dictionary of all that __init__ takes."
        )


def decode(data: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Makes the value that `encode` described.

    Raises:
        ValueError: The data is no config, or has a name that is in no table.
    """
    library = {**TABLE, **{name: kind for name, (kind, _) in INITIALIZERS.items()}}
    kinds = set(filter(inspect.isclass, library.values()))
    table = {**library, **(custom_objects or {})}
    layers: dict[str, Any] = {}  # what has a name is one thing, however often it is described

    def named(name: Any) -> Any:
        if not isinstance(name, str) or name not in table:
            raise ValueError(
                f"a config names {reprlib.repr(name)}, which is neither nnshop's nor NNabla's; pass it in custom_objects."
            )
        return table[name]

    def go(data: Any) -> Any:
        if data is None or isinstance(data, (bool, int, float, str)):
            return data
        if isinstance(data, dict):
            if set(data) in ({"tuple"}, {"list"}):
                kind, values = next(iter(data.items()))
                return (tuple if kind == "tuple" else list)(go(v) for v in values)
            if set(data) == {"name"}:
                return value(named(data["name"]))
            if set(data) == {"make", "arguments"}:
                return make(named(data["make"]), data["arguments"])
        raise ValueError(f"{reprlib.repr(data)} is no part of a config.")

    def value(found: Any) -> Any:
        if inspect.isclass(found) and found in kinds:
            raise ValueError(f"{found.__name__} is what a config makes something of, no value.")
        return found

    def make(kind: Any, data: dict) -> Any:
        if not inspect.isclass(kind):
            raise ValueError(f"{kind!r} is no kind of thing that a config can make.")
        name = data.get("name")
        if issubclass(kind, Described) and name in layers:
            return layers[name]
        arguments = {key: go(v) for key, v in data.items()}
        if kind in kinds:
            _check_arguments(kind, arguments)
        made = kind.from_arguments(arguments) if issubclass(kind, Described) else kind(**arguments)
        if isinstance(made, AbstractCell):
            tree_leaves(made.state)  # raises where its parts are none
        if issubclass(kind, Described) and name:
            layers[name] = made
        return made

    _check_nesting(data)
    try:
        return go(data)
    except (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"this is no config of this nnshop: {type(error).__name__}: {error}.") from error


def _check_arguments(kind: type, arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if name in ARGUMENTS and not ARGUMENTS[name](value):
            raise ValueError(f"{value!r} cannot be the {name} of {kind.__name__} in a config.")


def _check_nesting(data: Any) -> None:
    """Raises ValueError where data is nested so deeply that it would end in Python's limit of recursion."""
    if is_deeper(data, NESTING):
        raise ValueError(f"a config is nested at most {NESTING} levels deep; this one is deeper.")
