"""Names as Keras gives them: in the order of construction."""

from __future__ import annotations

import re
from collections import Counter

_used: Counter[str] = Counter()


def new_name(kind: type) -> str:
    """Returns `lstm_cell`, then `lstm_cell_1`, ... for the class LSTMCell."""
    base = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind.__name__).lower()
    _used[base] += 1
    return base if _used[base] == 1 else f"{base}_{_used[base] - 1}"
