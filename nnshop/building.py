"""Building graphs: one thread at a time, and nothing left of what failed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import nnabla as nn

from .parameters import NEW, New, named_in_full, remove

_TURN = threading.RLock()


@contextmanager
def building() -> Iterator[None]:
    """Builds a graph while other threads that build one wait; also a decorator, which all of nnshop's calls have.

    After an error the parameters that were made in the block are gone again. NNabla has one open parameter scope, one context,
    one `nn.no_grad` and one auto-forward mode for all threads. So a thread that opens one of these itself, or calls
    parametric functions itself, does that in this block, if others build too.

    Raises:
        RuntimeError: A thread had to wait, or was in the middle, while another one had opened a parameter scope outside of
            such a block. Where neither is so, nobody can tell.
        ValueError: A parameter is there with another shape, or a scope of its name is.

    Example:
        >>> def build(name):
        ...     with nnshop.building(), nn.parameter_scope(name):
        ...         return PF.affine(nnshop.lstm(nn.Variable((2, 7, 3)), 8), 5)
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> with ThreadPoolExecutor(3) as threads:
        ...     [y.shape for y in threads.map(build, "abc")]
        [(2, 5), (2, 5), (2, 5)]
    """
    made: list[New] = []
    waits = not _TURN.acquire(blocking=False)
    if waits:
        _TURN.acquire()
    try:
        scope = nn.parameter.get_current_parameter_scope()
        _check_alone(not waits or scope is nn.parameter.root_scope)
        with NEW.open(made), named_in_full():
            yield
            _check_alone(nn.parameter.get_current_parameter_scope() is scope)
    except BaseException:
        remove(made)
        raise
    finally:
        _TURN.release()


def _check_alone(is_alone: bool) -> None:
    if not is_alone:
        raise RuntimeError(
            "several threads build graphs at once, and one of them has opened a parameter scope. NNabla has one for all "
            "threads, so weights would get wrong names. Give layers name=, or open the scope in a block of nnshop.building()."
        )
