"""Care for NNabla's parameter scopes: building without a trace, and without new parameters."""

from __future__ import annotations

import difflib
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import nnabla as nn
import numpy as np
from nnabla.initializer import ConstantInitializer
from nnabla.parameter import get_parameter_or_create

MOST_SCOPES = 100  # one in the other; NNabla's functions on parameters end at Python's limit of recursion


@contextmanager
def scratch(stand_ins: bool = False) -> Iterator[None]:
    """Builds graphs without a trace: parameters are forgotten, nothing is computed, no random numbers of NNabla used up.

    Args:
        stand_ins: The block finds the parameters that the open scope has, as other Variables on the same arrays; else none.
    """
    scope = _stand_ins(nn.parameter.get_current_parameter_scope()) if stand_ins else OrderedDict()
    random_state = nn.random.prng.get_state()
    try:
        with nn.parameter_scope("", scope=scope), nn.auto_forward(False):
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
    with nn.parameter_scope("", scope=nn.parameter.root_scope):
        return dict(nn.get_parameters(grad_only=False))


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
    known = all_parameters()
    try:
        yield
    finally:
        new = _remove_all_but(known)
    if not new:
        return
    named = [name + _suggest(name, known) for name in new]
    raise ValueError(
        f"no_new_parameters: the block made {', '.join(named)}. A graph on trained weights must name their scopes."
    )


@contextmanager
def clean_after_error() -> Iterator[None]:
    """Removes the parameters that a call made before it found a mistake; also a decorator."""
    known = all_parameters()
    try:
        yield
    except BaseException:
        _remove_all_but(known)
        raise


def _remove_all_but(known: dict[str, nn.Variable]) -> list[str]:
    """Removes the parameters that are not among these, and returns their names."""
    new = [name for name in all_parameters() if name not in known]
    with nn.parameter_scope("", scope=nn.parameter.root_scope):
        for name in new:
            nn.parameter.pop_parameter(name)
    return new


def _suggest(name: str, known: dict[str, nn.Variable]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def current_path() -> str | None:
    """Returns the path of the open parameter scope from the root, "" at the root; None in a dictionary of one's own."""
    return _path_of(nn.parameter.get_current_parameter_scope(), nn.parameter.root_scope)


def _path_of(wanted: dict, scope: dict) -> str | None:
    if scope is wanted:
        return ""
    for name, child in scope.items():
        path = _path_of(wanted, child) if isinstance(child, dict) else None
        if path is not None:
            return f"{name}/{path}" if path else name
    return None
