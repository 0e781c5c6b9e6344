"""What a `scan` gives beside its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import nnabla as nn

from .. import values


class Updates(Mapping):
    """The Variables that the function of a scan updates, and their values after the last step.

    Attributes:
        lengths: How many steps were done until the condition held, `()` or `(B,)`, NaN before the graph has run; None without a
            condition.

    Example:
        >>> count = nn.Variable.from_numpy_array(7.)
        >>> _, updates = nnshop.scan(lambda: {count: count + 1}, n_steps=3)
        >>> nn.forward_all(list(updates.values()))
        >>> updates.apply(); float(count.d)
        10.0
    """

    def __init__(self, last: dict[nn.Variable, nn.Variable], lengths: nn.Variable | None) -> None:
        self._last, self.lengths = last, lengths
        values.expect([*last.values(), *([] if lengths is None else [lengths])])

    def __getitem__(self, v: nn.Variable) -> nn.Variable:
        return self._last[v]

    def __iter__(self) -> Iterator[nn.Variable]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def __repr__(self) -> str:
        return f"Updates({self._last}, lengths={self.lengths})"

    def apply(self) -> None:
        """Copies the values into the Variables, after the graph has run; call it once for each run.

        Raises:
            ValueError: A value has not been computed.
        """
        way_out = "nn.forward_all([loss, *updates.values()])"
        values.check_computed(self._last.values(), "Updates.apply", way_out)
        values.copy(self._last.values(), self._last)
