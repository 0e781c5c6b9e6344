"""A program: Variables change their shapes after a graph was built; what is computed must be right, or refused.

It says which cases are neither. It runs in a process of its own, which foreign memory that is written to may end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np

import nnshop
from nnshop.functions import faster, linear_cross_entropy

B, T, D, H, V = 2, 3, 4, 5, 6
WEIGHTS = {"x2h/W", "h2h/W", "b", "h2h/b"}
Inputs = dict[str, nn.Variable]


def cell_case(make: Callable, way: str, masked: bool = False, **options: Any) -> Callable[[Inputs], nn.Variable]:
    """Runs a cell; its weights are inputs too."""

    def build(given: Inputs) -> nn.Variable:
        cell = make(H)
        state = tuple(given[name] for name in ("h", "c")[: len(nnshop.tree_leaves(cell.state))])
        mask = {"mask": given["mask"]} if masked else {}
        with nn.parameter_scope("", scope=OrderedDict()):
            for name in given.keys() & WEIGHTS:
                nn.parameter.set_parameter(name, given[name])
            ys, after = nnshop.run(cell, given["x"], state if len(state) > 1 else state[0], way=way, **mask, **options)
        return F.concatenate(F.reshape(ys, (-1,)), *(F.reshape(v, (-1,)) for v in nnshop.tree_leaves(after)), axis=0)

    return build


def hold(given: Inputs) -> nn.Variable:
    """`Hold` alone does the masking."""
    ys, _ = nnshop.run(nnshop.lift(F.tanh), given["x"], (), mask=given["mask"])
    return ys


def dense(given: Inputs) -> nn.Variable:
    return faster(F.affine(given["large"], given["large/W"], given["large/b"], base_axis=2))


def loss(given: Inputs) -> nn.Variable:
    return linear_cross_entropy(given["x"], given["out/W"], given["out/b"], given["targets"], reduction="none")


def tied_loss(given: Inputs) -> nn.Variable:
    return linear_cross_entropy(given["x"], given["tied/W"], None, given["targets"], reduction="none", transpose=True)


def drawing_loop(given: Inputs) -> nn.Variable:
    """Draws what does not show: dropout of zeros, and a choice among equals."""

    def step(x: nn.Variable, h: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
        h = F.tanh(h + F.sum(x, axis=1, keepdims=True) + F.dropout(0 * h, 0.5))
        return h, h

    ys, _ = nnshop.iterate(step, F.transpose(given["x"], (1, 0, 2)), given["h"], way="loop")
    return ys


CASES: dict[str, tuple[Callable[[Inputs], nn.Variable], str]] = {
    "lstm": (cell_case(nnshop.LSTMCell, "compiled"), "x h c x2h/W h2h/W b"),
    "lstm masked reverse": (cell_case(nnshop.LSTMCell, "compiled", True, reverse=True), "x h c x2h/W h2h/W b mask"),
    "gru": (cell_case(nnshop.GRUCell, "compiled"), "x h x2h/W3 h2h/W3 b3 h2h/b"),
    "gru before": (cell_case(lambda n: nnshop.GRUCell(n, reset_after=False), "compiled", True), "x h x2h/W3 h2h/W3 b3 mask"),
    "rnn": (cell_case(nnshop.SimpleRNNCell, "compiled"), "x h x2h/W1 h2h/W1 b1"),
    "loop": (cell_case(nnshop.LSTMCell, "loop"), "x h c x2h/W h2h/W b"),
    "loop masked": (cell_case(nnshop.SimpleRNNCell, "loop", True), "x h x2h/W1 h2h/W1 b1 mask"),
    "hold": (hold, "x mask"),
    "dense": (dense, "large large/W large/b"),
    "loss": (loss, "x out/W out/b targets"),
    "tied loss": (tied_loss, "x tied/W targets"),
    "drawing": (drawing_loop, "x h"),
}
SHAPES = {
    **{"x": (B, T, D), "h": (B, H), "c": (B, H), "mask": (B, T), "targets": (B, T), "h2h/b": (H,)},
    **{"x2h/W": (D, 4 * H), "h2h/W": (H, 4 * H), "b": (4 * H,), "x2h/W3": (D, 3 * H), "h2h/W3": (H, 3 * H), "b3": (3 * H,)},
    **{"x2h/W1": (D, H), "h2h/W1": (H, H), "b1": (H,), "out/W": (D, V), "out/b": (V,), "tied/W": (V, D)},
    **{"large": (8, 16, 128), "large/W": (128, 128), "large/b": (128,)},
}


def filled(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.RandomState(seed)
    return rng.randint(0, 2, shape) if name in ("mask", "targets") else rng.uniform(-1, 1, shape)


def inputs_of(names: str, **arrays: np.ndarray) -> Inputs:
    made = {}
    for name in names.split():
        v = nn.Variable.from_numpy_array(arrays.get(name, filled(name, SHAPES[name])))
        v.need_grad = name not in ("mask", "targets")
        made[name.rstrip("13")] = v
    return made


def compute(total: nn.Variable, given: Inputs) -> list[np.ndarray]:
    for v in given.values():
        v.grad.fill(0)
    total.forward()
    total.backward()
    return [total.d.copy(), *(v.g.copy() for v in given.values() if v.need_grad)]


def sum_of_squares(y: nn.Variable) -> nn.Variable:
    """NNabla itself ends the process where the shape of what `backward` is called for has changed without a forward pass."""
    return F.sum(y * y)


def attempt(work: Callable[[], Any]) -> Any:
    """What it returns, or None where it raises."""
    try:
        return work()
    except Exception:  # NNabla raises SystemError and RuntimeError
        return None


def changes(names: str) -> Iterator[dict[str, tuple[int, ...]]]:
    """New shapes: an axis of one input, smaller and much larger, two of them exchanged, and the batch or length of all."""
    for name in names.split():
        shape = SHAPES[name]
        for axis, size in enumerate(shape):
            for other in (size - 1, size + 1, 40 * size):
                yield {name: (*shape[:axis], other, *shape[axis + 1 :])}
        if shape[::-1] != shape:
            yield {name: shape[::-1]}
        if len(shape) == 3:
            yield {name: (shape[0], shape[2], shape[1])}
            yield {name: (shape[1], shape[0], shape[2])}
    for letter in (B, T):
        found = {name: tuple(n + 1 if n == letter else n for n in SHAPES[name]) for name in names.split()}
        yield {name: shape for name, shape in found.items() if shape != SHAPES[name] and "W" not in name and "b" not in name}


def faults_of(kind: str, build: Callable, names: str, change: dict[str, tuple[int, ...]]) -> Iterator[str]:
    given = inputs_of(names)
    total = sum_of_squares(build(given))
    right = compute(total, given)
    arrays = {name: filled(name, shape, 1) for name, shape in change.items()}
    for name, array in arrays.items():
        given[name.rstrip("13")].reset_shape(array.shape, True)
        given[name.rstrip("13")].d = array

    def anew() -> list[np.ndarray]:
        other = inputs_of(names, **arrays)
        return compute(sum_of_squares(build(other)), other)

    expected = attempt(anew)
    attempt(total.backward)  # without a forward pass
    for turn in ("first", "second"):
        found = attempt(lambda: compute(total, given))
        same = found is None or (expected is not None and all(map(is_close, found, expected)))
        if not same:
            yield f"{kind}: {change}, the {turn} time"
    for name in change:
        given[name.rstrip("13")].reset_shape(SHAPES[name], True)
        given[name.rstrip("13")].d = filled(name, SHAPES[name])
    if not all(map(is_close, compute(total, given), right)):
        yield f"{kind}: {change}, and back"


def is_close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-5)


def main() -> None:
    bystanders = [nn.Variable.from_numpy_array(np.full(n, 7)) for n in (8, 64, 500, 4000) for _ in range(100)]
    for v in bystanders:
        v.grad.fill(7)
    for kind, (build, names) in CASES.items():
        for change in changes(names):
            for fault in faults_of(kind, build, names, change):
                print("wrong:", fault)
        changed = sum((v.d != 7).any() or (v.g != 7).any() for v in bystanders)
        print(f"{kind}: {changed} bystanders changed")


if __name__ == "__main__":
    main()
