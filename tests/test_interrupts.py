"""Ctrl-C at any place of the loop leaves a graph that computes the same again, also while the exception is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from measuring import assert_same, constant, variable

from nnshop import iterate

FILES = ("running/loop.py", "running/moving.py")


def nested(x: nn.Variable, h: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
    """A step with a loop inside, which reads the same sequence."""
    inner, last = iterate(lambda a, b: (a * b, F.tanh(a + b)), x, h, way="loop")
    return F.sum(inner), F.tanh(last * 0.5)


STEPS: dict[str, tuple[Callable, tuple[int, ...]]] = {
    "plain": (lambda x, h: (x * h, F.tanh(F.dropout(x, 0.0) + h)), (3, 2)),
    "nested": (nested, (2, 2, 2)),
}


def stopped(work: Callable[[], Any], after: int) -> BaseException | None:
    """Interrupts what is done in the loop after so many bytecodes, and returns what was raised; None where there are fewer."""
    left = after

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(FILES):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except BaseException as error:  # NNabla makes SystemError of it
        return error
    finally:
        sys.settrace(before)
    return None


@pytest.mark.parametrize("kind", STEPS)
def test_the_next_run_is_as_if_nothing_had_been(kind: str) -> None:
    step, shape = STEPS[kind]
    x, h = variable(*shape), constant(np.full(shape[-1:], 0.5))
    ys, last = iterate(step, x, h, way="loop")
    total = F.sum(ys) + F.sum(last)

    def work() -> tuple[np.ndarray, ...]:
        x.grad.zero()
        total.forward()
        total.backward()
        return total.d.copy(), x.g.copy()

    expected, kept = work(), []
    for after in range(1, 20_000, 61):
        error = stopped(work, after)
        if error is None:
            break
        kept.append(error)
        assert_same(work(), expected, rtol=0)
    assert len(kept) > 20
