"""Names as Keras gives them: in the order of construction."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count

_numbers: dict[str, Iterator[int]] = {}


def new_name(kind: type) -> str:
    """Returns `lstm_cell`, then `lstm_cell_1`, ... for the class LSTMCell."""
    base = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind.__name__).lower()
    number = next(_numbers.setdefault(base, count()))  # no two threads get the same
    return f"{base}_{number}" if number else base
