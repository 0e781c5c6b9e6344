"""A `scan` that ends early: what is frozen, and what its outputs are afterwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import nnabla as nn
import nnabla.functions as F

from ..context import in_float32
from ..core import Tree, tree_leaves, tree_map
from ..functions import reshape, stop_gradient, swap_time, where
from .step import State


class Ending(NamedTuple):
    """The state of a scan that may end early."""

    state: State
    given: Tree  # to the last step that counted
    running: nn.Variable  # 1 until the condition holds, then 0
    steps: nn.Variable  # how many steps counted


def ending(step: Callable) -> Callable:
    """Freezes a step once its condition has held, for each sample where there is one condition each.

    A step that does not count is given again what the last one was that counted. So it computes only what can be computed,
    and no NaN of it can come back in gradients. With a condition for each sample this is so of the state alone, unless entries
    of sequences are known to have a batch axis.
    """

    def wrapped(x: Tree, before: Ending) -> tuple[Tree, Ending]:
        freeze = partial(where, before.running)
        entries, state = before.given
        if tree_leaves(entries):
            x = tree_map(lambda now, last: freeze(now, last) if now.ndim >= before.running.ndim else now, x, entries)
        given = (x if tree_leaves(entries) else (), tree_map(freeze, before.state, state))
        (outputs, condition), after = step(x, given[1])
        holds = reshape(stop_gradient(F.not_equal_scalar(condition, 0)), before.running.shape)
        after = tree_map(freeze, after, before.state)
        with in_float32():
            steps = before.steps + before.running
        return outputs, Ending(after, given, before.running * (1 - holds), steps)

    return wrapped


def start_of(xs: Tree, state: State, condition: nn.Variable, batch_axis: bool) -> Ending:
    """Makes the state of a step that is `ending`; xs are sequences, whose entries have a batch axis for sure or perhaps.

    The condition is one of a single step.
    """
    shape = condition.shape[:1]
    frozen = xs if batch_axis or not shape else ()
    given = (tree_map(lambda v: F.constant(0, v.shape[1:]), frozen), tree_map(_zeros, state))
    return Ending(state, given, F.constant(1, shape), F.constant(0, shape))


def _zeros(v: nn.Variable) -> nn.Variable:
    return F.constant(0, v.shape)


def hold(ys: nn.Variable, steps: nn.Variable, cut_at_end: bool) -> nn.Variable:
    """Repeats the last output that counts, `(T, ...)`, of each sample where there are several numbers of steps."""
    length = int(steps.d.max()) if cut_at_end else ys.shape[0]
    shape = (*steps.shape, length)
    with in_float32():
        t, last = F.arange(0, length), reshape(steps - 1, (*steps.shape, 1))
        t = F.minimum2(F.broadcast(reshape(t, (*[1] * steps.ndim, length)), shape), F.broadcast(last, shape))
    if not steps.ndim:
        return F.gather(ys, t, axis=0)
    return swap_time(F.gather(swap_time(ys), t, axis=1, batch_dims=1))


def last_steps(n_steps: int, steps: nn.Variable, count: int) -> nn.Variable:
    """1 for the last so many steps before the end, `(T,)` or `(T, B)`; those after it do not matter."""
    shape = (n_steps, *steps.shape)
    with in_float32():
        t = reshape(F.arange(0, n_steps), (n_steps, *[1] * steps.ndim))
        first = reshape(steps - count, (1, *steps.shape))
        return stop_gradient(F.greater_equal(F.broadcast(t, shape), F.broadcast(first, shape)))
