"""Values and gradients of what a test builds, as NumPy arrays, and their comparison."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
import reference
from cells_table import Row

from nnshop import AbstractCell, run, tree_leaves, tree_map

Tree = Any


class Measured(NamedTuple):
    """What a graph gives, and the gradients of `sum(factor * ys) + sum(factor * state)`, with fixed random factors."""

    ys: Tree
    state: Tree
    x_grad: Tree
    state_grad: Tree
    weight_grads: dict[str, np.ndarray]


def named(value: Any) -> str:
    """What a case is called: the same in each process, so without addresses."""
    return re.sub(" at 0x[0-9a-f]+", "", str(value))


def factors(tree: Tree, seed: int = 7) -> Tree:
    """Random numbers in the shapes of a tree."""
    rng = np.random.RandomState(seed)
    return tree_map(lambda leaf: rng.randn(*leaf.shape), tree)


def variables(tree: Tree, need_grad: bool = True) -> Tree:
    return tree_map(lambda array: nn.Variable.from_numpy_array(array, need_grad=need_grad), tree)


def constant(array: np.ndarray | list) -> nn.Variable:
    """Such as a mask, or lengths."""
    return nn.Variable.from_numpy_array(np.asarray(array))


def variable(*shape: int, seed: int = 0) -> nn.Variable:
    """A Variable of fixed random numbers that gets a gradient."""
    v = nn.Variable(shape, need_grad=True)
    v.d = np.random.RandomState(seed).randn(*shape)
    return v


def values(*variables: nn.Variable) -> list[np.ndarray]:
    """What Variables are, computed in one forward."""
    nn.forward_all(variables)
    return [v.d.copy() for v in variables]


def randomize(seed: int = 3, scale: float = 0.5) -> None:
    """Gives every parameter random values, biases too."""
    rng = np.random.RandomState(seed)
    for parameter in nn.get_parameters(grad_only=False).values():
        parameter.d = rng.randn(*parameter.shape) * scale


def weights(scope: str = "") -> dict[str, np.ndarray]:
    """All parameters below a scope, in float64."""
    with nn.parameter_scope(scope):
        return {name: v.d.astype(np.float64) for name, v in nn.get_parameters(grad_only=False).items()}


def prepare(cell: AbstractCell, width: int) -> None:
    """Makes the cell's parameters, and gives them random values."""
    with nn.auto_forward(False):
        cell(nn.Variable((1, width)), cell.initial_state(1))
    randomize()


def inputs(cell: AbstractCell, width: int, batch: int = 3, length: int = 5, seed: int = 11) -> tuple[np.ndarray, Tree]:
    """A random batch of sequences, and a random initial state."""
    rng = np.random.RandomState(seed)
    x = rng.randn(batch, length, width)
    return x, tree_map(lambda spec: rng.randn(batch, *spec.shape), cell.state)


def start(row: Row, batch: int = 3, length: int = 5) -> tuple[AbstractCell, np.ndarray, Tree]:
    """The row's cell with random weights, inputs and an initial state."""
    cell = row.make()
    prepare(cell, row.width)
    return cell, *inputs(cell, row.width, batch, length)


def measure(
    build: Callable[[Tree, Tree], tuple[Tree, Tree]],
    x: Tree,
    state: Tree,
    ys_factors: Tree = None,
    state_factors: Tree = None,
    x_need_grad: bool = True,
    auto_forward: bool = False,
) -> Measured:
    """Builds `build(x, state) -> (ys, state)` on Variables of these arrays, runs it forward and backward."""
    x, state = variables(x, x_need_grad), variables(state)
    with nn.auto_forward(auto_forward):
        ys, after = build(x, state)
        outputs = [leaf.apply(persistent=True) for leaf in tree_leaves((ys, after))]
        given = tree_leaves((factors(ys) if ys_factors is None else ys_factors,))
        given += tree_leaves((factors(after) if state_factors is None else state_factors,))
        terms = [F.sum(leaf * nn.Variable.from_numpy_array(factor)) for leaf, factor in zip(outputs, given)]
        loss = sum(terms[1:], terms[0])
    for leaf in [*tree_leaves((x, state)), *nn.get_parameters().values()]:
        leaf.grad.zero()
    if not auto_forward:
        loss.forward()
    loss.backward()
    gradients = {name: v.g.copy() for name, v in nn.get_parameters().items()}
    values, slopes = (lambda v: v.d.copy()), (lambda v: v.g.copy())
    return Measured(tree_map(values, ys), tree_map(values, after), tree_map(slopes, x), tree_map(slopes, state), gradients)


def runs(cell: AbstractCell, **options: Any) -> Callable[[Tree, Tree], tuple[Tree, Tree]]:
    """`nnshop.run` of a cell as what `measure` builds."""
    return lambda x, state: run(cell, x, state, **options)


def measure_reference(
    step: Callable, x: np.ndarray, state: Tree, mask: np.ndarray | None = None, reverse: bool = False
) -> Measured:
    """The same, of a NumPy step with the parameters that there are; gradients by finite differences."""
    arrays = {f"weight:{name}": array for name, array in weights().items()}
    arrays.update({f"state:{i}": leaf for i, leaf in enumerate(reference.leaves(state))}, x=x)

    def forward(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, Tree]:
        named = {name[7:]: array for name, array in arrays.items() if name.startswith("weight:")}
        states = [arrays[f"state:{i}"] for i in range(len(reference.leaves(state)))]
        return reference.run(step, named, arrays["x"], reference.refill(state, states), mask, reverse)

    ys, after = forward(arrays)
    ys_factors, state_factors = factors(ys), factors(after)

    def loss(arrays: dict[str, np.ndarray]) -> float:
        pairs = zip(reference.leaves(forward(arrays)), reference.leaves((ys_factors, state_factors)))
        return sum(float(np.sum(a * b)) for a, b in pairs)

    found = reference.gradients(loss, arrays)
    slopes = [found[f"state:{i}"] for i in range(len(reference.leaves(state)))]
    by_name = {name[7:]: array for name, array in found.items() if name.startswith("weight:")}
    return Measured(ys, after, found["x"], reference.refill(state, slopes), by_name)


def assert_same(actual: Tree, expected: Tree, rtol: float = 1e-5, what: str = "") -> None:
    """Compares trees, dicts and arrays; an array to `rtol` of each number, and of the array's largest (at least 1)."""
    if isinstance(expected, Measured):
        for field in Measured._fields:
            assert_same(getattr(actual, field), getattr(expected, field), rtol, field)
    elif isinstance(expected, dict):
        assert list(sorted(actual)) == list(sorted(expected)), what
        for name, array in expected.items():
            assert_same(actual[name], array, rtol, f"{what} {name}")
    elif isinstance(expected, tuple):
        assert isinstance(actual, tuple), what
        assert len(actual) == len(expected), what
        for i, pair in enumerate(zip(actual, expected)):
            assert_same(*pair, rtol, f"{what}[{i}]")
    elif expected is None:
        assert actual is None, what
    else:
        assert np.shape(actual) == np.shape(expected), what
        largest = max(1.0, float(np.max(np.abs(expected), initial=0)))
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * largest, err_msg=what)
