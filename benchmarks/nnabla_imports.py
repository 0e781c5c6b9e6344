"""What `import nnshop` adds to `import nnabla`."""

from __future__ import annotations

import nnabla


def versions() -> dict[str, str]:
    return {"NNabla": nnabla.__version__}


def import_time(rival: str) -> dict:
    import nnshop  # noqa: F401  its time is that of building

    return {}
