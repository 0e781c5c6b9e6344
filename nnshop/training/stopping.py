"""Ctrl-C, and what else asks a training to end."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """Turns the first Ctrl-C, SIGTERM or SIGUSR1 into a flag that a training tests between steps; the second ends it at once.

    An exception would not do: raised inside NNabla's graph it arrives as something else. SIGUSR1 is what batch systems send
    before a job's time is over, and what `mpirun` passes on without ending its processes a moment later.

    Example:
        >>> import os
        >>> with StopSignal() as stop:
        ...     os.kill(os.getpid(), signal.SIGINT)
        ...     print(stop.requested)
        True
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            self._before = {number: signal.signal(number, self._handle) for number in STOPS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)
