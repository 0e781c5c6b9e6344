"""Care for NNabla's parameter scopes: names, building without a trace, and without new parameters."""

from __future__ import annotations

import difflib
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from traceback import walk_tb
from typing import Any, NamedTuple

import nnabla as nn
import numpy as np
from nnabla.initializer import ConstantInitializer
from nnabla.parameter import get_parameter_or_create

from .blocks import Blocks

MOST_SCOPES = 100  # one in the other; NNabla's functions on parameters end at Python's limit of recursion


class New(NamedTuple):
    """A parameter that was made."""

    scope: dict
    key: str

    def name(self) -> str | None:
        """Its full name; None where it is not, or no more, below the root."""
        path = path_of(self.scope, nn.parameter.root_scope) if self.key in self.scope else None
        return None if path is None else join(path, self.key)


NEW: Blocks[list[New]] = Blocks("notes of new parameters")
_ROOTS: Blocks[dict] = Blocks("scratch scopes")
_set_parameter = nn.parameter.set_parameter


def _noting(key: str, param: nn.Variable) -> None:
    """NNabla's function, which notes what is new: in the blocks of the thread that makes it, and in no other's."""
    scope = nn.parameter.get_current_parameter_scope()
    is_new = "/" not in key and key not in scope  # of a path NNabla calls this again, in the scope
    _set_parameter(key, param)
    if is_new:
        for made in NEW.values():
            made.append(New(scope, key))


nn.parameter.set_parameter = _noting  # once and for all; NNabla makes all parameters by it


def remove(made: list[New]) -> None:
    """Removes parameters that were made."""
    for new in made:
        new.scope.pop(new.key, None)


@contextmanager
def scratch(stand_ins: bool = False) -> Iterator[None]:
    """Builds graphs without a trace: parameters are forgotten, nothing is computed, no random numbers of NNabla used up.

    Args:
        stand_ins: The block finds the parameters that the open scope has, as other Variables on the same arrays; else none.
    """
    present = _stand_ins(nn.parameter.get_current_parameter_scope()) if stand_ins else {}
    random_state = nn.random.prng.get_state()
    try:
        with _ROOTS.open(OrderedDict()) as root, nn.parameter_scope(current_path() or "", scope=root) as scope:
            scope.update(present)
            with named_in_full(), nn.auto_forward(False):
                yield
    finally:
        nn.random.prng.set_state(random_state)


def _stand_ins(scope: dict) -> OrderedDict:
    return OrderedDict((name, (_stand_ins if isinstance(v, dict) else _stand_in)(v)) for name, v in scope.items())


def _stand_in(parameter: nn.Variable) -> nn.Variable:
    other = nn.Variable(parameter.shape, need_grad=parameter.need_grad)  # an unlinked Variable would equal the parameter
    other.data = parameter.data
    return other


def all_parameters() -> dict[str, nn.Variable]:
    """Returns all parameters by their full names, whatever scope is open, also those that get no gradient."""
    return dict(_parameters_in(nn.parameter.root_scope, ""))


def _parameters_in(scope: dict, path: str) -> Iterator[tuple[str, nn.Variable]]:
    """Yields what is in a scope by name; NNabla's own way opens the scopes, which other threads would see."""
    for key, v in list(scope.items()):  # a copy, as another thread may make more
        if isinstance(v, dict):
            yield from _parameters_in(v, join(path, key))
        else:
            yield join(path, key), v


def put_parameters(values: Mapping[str, np.ndarray]) -> None:
    """Gives values to parameters below the open scope, and makes those that are not there.

    Raises:
        ValueError: One has another shape, or its name is none, or that of a scope. Nothing is changed then.
    """
    check_names(values)
    present = nn.get_parameters(grad_only=False)
    wrong = [
        f"{name} {v.shape}, not {values[name].shape}"
        for name, v in present.items()
        if name in values and v.shape != values[name].shape
    ]
    if wrong:
        raise ValueError(f"there are parameters of other shapes: {'; '.join(wrong[:5])}")
    made = {name: get_parameter_or_create(name, value.shape, ConstantInitializer(0)) for name, value in values.items()}
    for name, v in made.items():
        v.d = values[name]


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError unless these can all be names of parameters below the open scope."""
    here = nn.parameter.get_current_parameter_scope()
    scopes: set[str] = set()
    for name in names:
        if not is_scope(name):
            raise ValueError(f"{reprlib.repr(name)} is no name of a parameter")
        *above, _ = accumulate(name.split("/"), "{}/{}".format)
        scopes.update(above)
        if isinstance(_at(here, name), dict) or any(isinstance(_at(here, scope), nn.Variable) for scope in above):
            raise ValueError(f"{reprlib.repr(name)}: there cannot be a scope and a parameter of one name")
    both = sorted(scopes.intersection(names))
    if both:
        raise ValueError(f"{reprlib.repr(both[0])}: there cannot be a scope and a parameter of one name")


def is_scope(name: str) -> bool:
    """Whether this can be the name of a scope or parameter, or of some one in the other, with "/" between them."""
    return all(name.split("/")) and name.count("/") < MOST_SCOPES


def _at(scope: Any, name: str) -> Any:
    """What is at a name below a scope: a dict for a scope, a Variable for a parameter, None for nothing."""
    for part in name.split("/"):
        scope = scope.get(part) if isinstance(scope, dict) else None
    return scope


def check_weights(shapes: Mapping[str, tuple], build: Callable[[], object]) -> None:
    """Checks that a graph has just these weights; makes neither weights nor values.

    Args:
        shapes: The shapes of the weights, by their names below the open scope.
        build: Makes the graph.

    Raises:
        ValueError: It asks for another weight, for another shape, or not for all of them; or what `build` raises.
    """
    check_names(shapes)
    used: set[str] = set()
    scope = _Only("", used)
    for name, shape in shapes.items():
        *above, last = name.split("/")
        inner = scope
        for part in above:
            inner[part] = child = inner.get(part, OrderedDict())
            inner = child
        inner[last] = nn.Variable(shape, need_grad=True)
    with nn.parameter_scope("", scope=scope), nn.auto_forward(False):
        build()
    superfluous = sorted(set(shapes) - used)
    if superfluous:
        raise ValueError(f"there is no use for the weights {', '.join(superfluous[:5])}")


class _Only(OrderedDict):
    """A scope that has all weights that there are: another one that a graph asks for is an error, before it is made."""

    def __init__(self, path: str, used: set[str]) -> None:
        super().__init__()
        self.path, self.used = path, used

    def get(self, name: str, default: Any = None) -> Any:
        """What NNabla calls: for a scope with a dict as the default, for a parameter without one."""
        if name in self:
            self.used.add(self.path + name)
            return self[name]
        if default is None:
            raise ValueError(f"the weight {self.path}{name} is missing")
        return _Only(f"{self.path}{name}/", self.used)


@contextmanager
def no_new_parameters() -> Iterator[None]:
    """Turns a misspelt parameter scope into an error, where a graph must use weights that exist.

    It counts for its own thread: what another one makes meanwhile is neither removed nor an error.

    Raises:
        ValueError: At the end of the block, if parameters were made in it. They are removed again, after an exception too.

    Example:
        >>> x = nn.Variable((2, 3))
        >>> y = PF.affine(x, 5, name="output")
        >>> with no_new_parameters():
        ...     y = PF.affine(x, 5, name="outptu")
        Traceback (most recent call last):
        ...
        ValueError: no_new_parameters: the block made outptu/affine/W (did you mean output/affine/W?), \
outptu/affine/b (did you mean output/affine/b?). A graph on trained weights must name their scopes.
    """
    made: list[New] = []
    names: list[str] = []
    try:
        with NEW.open(made):
            yield
    finally:
        names = [name for name in (new.name() for new in made) if name is not None]
        remove(made)
    if names:
        known = all_parameters()
        named = [name + _suggest(name, known) for name in names]
        raise ValueError(
            f"no_new_parameters: the block made {', '.join(named)}. A graph on trained weights must name their scopes."
        )


def _suggest(name: str, known: dict[str, nn.Variable]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def current_path() -> str | None:
    """Returns the path of the open parameter scope from the root, "" at the root; None in a dictionary of one's own."""
    return path_of(nn.parameter.get_current_parameter_scope(), nn.parameter.root_scope)


def path_of(wanted: Any, scope: dict) -> str | None:
    """Finds a scope or a parameter, itself, in a scope, and returns its path from there; None where it is not in it."""
    if scope is wanted:
        return ""
    for key, v in list(scope.items()):
        if v is wanted:
            return key
        path = path_of(wanted, v) if isinstance(v, dict) else None
        if path is not None:
            return join(key, path)
    return None


def join(*parts: str | None) -> str:
    """Joins scopes and names that are there.

    Example:
        >>> join("", "encoder", None, "W")
        'encoder/W'
    """
    return "/".join(filter(None, parts))


@contextmanager
def named_in_full() -> Iterator[None]:
    """Says what NNabla says of a parameter in other words: which one, by its full name, and what to do."""
    try:
        yield
    except (ValueError, AssertionError) as error:
        message = _clash(error)
        if message is None:
            raise
        raise ValueError(message) from error


def _clash(error: Exception) -> str | None:
    """What is wrong where NNabla's own functions for parameters raised this; None where others did."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    where, seen = frame.f_code.co_name, frame.f_locals
    if frame.f_code.co_filename != nn.parameter.__file__ or (where, type(error)) not in _FOUND:
        return None
    found = seen[_FOUND[where, type(error)]]
    name = path_of(found, [nn.parameter.root_scope, *_ROOTS.values()][-1]) or seen.get("name", seen.get("key"))
    if where == "get_parameter_or_create":
        return (
            f"the parameter {name} has the shape {found.shape}, and {tuple(seen['shape'])} is wanted here. Weights are found "
            "by name: in one scope, layers and cells without a name share theirs. Give one of them name=, or open a "
            "nn.parameter_scope for it."
        )
    is_there, wanted = ("scope", "parameter") if isinstance(found, dict) else ("parameter", "scope")
    return (
        f"{name} is a {is_there}, and a {wanted} of that name is wanted here: one layer or cell has the name of another's "
        "weight. Give it another name=, or open a nn.parameter_scope for it."
    )


# NNabla's functions that raise where a name is taken, and which of their variables is what they found there.
_FOUND = {
    ("get_parameter_or_create", ValueError): "param",
    ("get_parameter", AssertionError): "param",
    ("parameter_scope", AssertionError): "scope",
}
