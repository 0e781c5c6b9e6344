"""What the function of a `scan` returns: outputs, updates, and whether to stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import nnabla as nn

from .arguments import as_variable


@dataclass(frozen=True)
class until:  # Theano's name
    """Ends a scan: what its function returns beside the outputs, to stop after the step in which the condition holds.

    Args:
        condition (~nnabla.Variable): Not zero where it holds: a scalar `()`, or one for each sample, `(B,)` or `(B, 1)`.

    Example:
        >>> def double(total):
        ...     total = total * 2
        ...     return total, nnshop.until(F.greater_scalar(total, 20))
        >>> totals, updates = nnshop.scan(double, outputs_info=3, n_steps=5)
        >>> nn.forward_all([totals, updates.lengths]); totals.d, updates.lengths.d
        (array([ 6., 12., 24., 24., 24.], dtype=float32), array(3., dtype=float32))
    """

    condition: Any


@dataclass(frozen=True)
class Returned:
    """What one call of the function returned.

    Args:
        outputs: One step each.
        updates: By the Variables that they are for.
        condition: `()` or `(B,)`, if the scan can end early.
    """

    outputs: tuple[nn.Variable, ...]
    updates: dict[nn.Variable, nn.Variable]
    condition: nn.Variable | None

    @classmethod
    def of(cls, made: Any) -> Returned:
        """Sorts what was returned: outputs or a list of them, a dictionary or pairs for updates, `until`; in any order."""
        outputs: list[nn.Variable] = []
        updates: dict[nn.Variable, nn.Variable] = {}
        conditions = []
        for part in _parts(made):
            if isinstance(part, until):
                conditions.append(as_variable(part.condition, "the condition of until"))
            elif isinstance(part, Mapping) or _is_pairs(part):
                updates.update({v: as_variable(new, "an update") for v, new in dict(part).items()})
            else:
                several = part if isinstance(part, (list, tuple)) else [part]
                outputs += [as_variable(v, "what the function of a scan returns") for v in several]
        if len(conditions) > 1:
            raise ValueError(f"the function of a scan may return one until(condition); it returned {len(conditions)}.")
        return cls(tuple(outputs), updates, conditions[0] if conditions else None)

    def variables(self) -> list[nn.Variable]:
        """All of them in one list."""
        return [*self.outputs, *self.updates.values(), *([] if self.condition is None else [self.condition])]

    def of_variables(self, variables: Iterable[nn.Variable]) -> Returned:
        """The same with other Variables, in the order of `variables()`."""
        remaining = iter(variables)
        outputs = tuple(next(remaining) for _ in self.outputs)
        return Returned(outputs, {v: next(remaining) for v in self.updates}, next(remaining, None))


def _parts(made: Any) -> list:
    if made is None:
        return []
    structured = (list, tuple, Mapping, until)
    if isinstance(made, (list, tuple)) and not _is_pairs(made) and any(isinstance(part, structured) for part in made):
        return list(made)
    return [made]


def _is_pairs(part: Any) -> bool:
    return (
        isinstance(part, (list, tuple))
        and bool(part)
        and all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], nn.Variable) for pair in part)
    )
