"""The options of a class whose values compare, and go to a config, by their fields."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from functools import cache


@cache
def check_options(kind: type) -> None:
    """Raises TypeError where a class takes options that are no fields."""
    known = {field.name for field in fields(kind)} if is_dataclass(kind) else set()
    given = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
    lost = [option.name for option in given if option.kind not in (option.VAR_POSITIONAL, option.VAR_KEYWORD)]
    lost = [name for name in lost if name not in known]
    if lost:
        raise TypeError(
            f"{kind.__name__}: its __init__ takes {', '.join(lost)}, which is no field of the class: cells that differ in it "
            "would count as equal, and a config would lose it. In place of __init__ write @dataclass(frozen=True, repr=False) "
            f"above the class, and `{lost[0]}: ... = ...` in it; what depends on it goes to __post_init__, or to a property."
        )
