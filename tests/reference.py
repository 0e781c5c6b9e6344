"""The cells and the loop over time in plain NumPy, float64, written from the equations; nothing of nnshop is used.

A step is `step(weights, x, state) -> (y, state)`: weights by parameter name, x `(B, D)`, state a tree of arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]
Tree = Any


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def hard_sigmoid(z: np.ndarray) -> np.ndarray:
    return np.clip(0.2 * z + 0.5, 0, 1)


def relu(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0)


def softsign(z: np.ndarray) -> np.ndarray:
    return z / (1 + np.abs(z))


def linear(z: np.ndarray) -> np.ndarray:
    return z


def simple_rnn(activation: Callable = np.tanh) -> Callable:
    """h' = activation(x W + h U + b)"""

    def step(weights: Weights, x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = activation(x @ weights["x2h/W"] + h @ weights["h2h/W"] + weights.get("b", 0))
        return h, h

    return step


def lstm(activation: Callable = np.tanh, gate: Callable = sigmoid) -> Callable:
    """Gates i, f, g, o; with peephole weights i and f see c, o sees c'; with a projection h' = (o * tanh(c')) W_p."""

    def step(weights: Weights, x: np.ndarray, state: Tree) -> tuple[np.ndarray, Tree]:
        h, c = state
        z = x @ weights["x2h/W"] + h @ weights["h2h/W"] + weights.get("b", 0)
        z_i, z_f, z_g, z_o = np.split(z, 4, axis=1)
        p_i, p_f, p_o = weights.get("peephole/W", np.zeros((3, 1)))
        i, f, g = gate(z_i + p_i * c), gate(z_f + p_f * c), activation(z_g)
        c = f * c + i * g
        h = gate(z_o + p_o * c) * activation(c)
        if "projection/W" in weights:
            h = h @ weights["projection/W"]
        return h, (h, c)

    return step


def gru(activation: Callable = np.tanh, gate: Callable = sigmoid, reset_after: bool = True) -> Callable:
    """Gates r, z, n; h' = (1 - z) * n + z * h."""

    def step(weights: Weights, x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x_r, x_z, x_n = np.split(x @ weights["x2h/W"] + weights.get("b", 0), 3, axis=1)
        u_r, u_z, u_n = np.split(weights["h2h/W"], 3, axis=1)
        r, z = gate(x_r + h @ u_r), gate(x_z + h @ u_z)
        h_n = r * (h @ u_n + weights.get("h2h/b", 0)) if reset_after else (r * h) @ u_n
        h = (1 - z) * activation(x_n + h_n) + z * h
        return h, h

    return step


def stateless(function: Callable[[Weights, np.ndarray], np.ndarray]) -> Callable:
    return lambda weights, x, state: (function(weights, x), state)


def affine(weights: Weights, x: np.ndarray) -> np.ndarray:
    return x @ weights["affine/W"] + weights["affine/b"]


def below(scope: str, weights: Weights) -> Weights:
    return {name[len(scope) + 1 :]: array for name, array in weights.items() if name.startswith(scope + "/")}


def scoped(scope: str, step: Callable) -> Callable:
    """A step whose weights are below a scope."""
    return lambda weights, x, state: step(below(scope, weights), x, state)


def stacked(*steps: Callable) -> Callable:
    """One after another; a step is that of its position, a pair `(name, step)` that of its name."""
    named = [(step if isinstance(step, tuple) else (str(position), step)) for position, step in enumerate(steps)]

    def step(weights: Weights, x: np.ndarray, states: Tree) -> tuple[np.ndarray, Tree]:
        after = []
        for (scope, one), state in zip(named, states):
            x, state = one(below(scope, weights), x, state)
            after.append(state)
        return x, tuple(after)

    return step


def residual(step: Callable) -> Callable:
    def plus(weights: Weights, x: np.ndarray, state: Tree) -> tuple[np.ndarray, Tree]:
        y, state = step(weights, x, state)
        return x + y, state

    return plus


def leaves(tree: Tree) -> list[np.ndarray]:
    return [leaf for branch in tree for leaf in leaves(branch)] if isinstance(tree, tuple) else [tree]


def refill(tree: Tree, values: list[np.ndarray]) -> Tree:
    """The tree's structure with other leaves."""
    left = iter(values)

    def fill(node: Tree) -> Tree:
        return tuple(fill(branch) for branch in node) if isinstance(node, tuple) else next(left)

    return fill(tree)


def choose(keep: np.ndarray, new: Tree, old: Tree) -> Tree:
    """Row by row, new where keep `(B,)` is 1, else old."""
    pairs = zip(leaves(new), leaves(old))
    return refill(new, [np.where(keep.reshape(-1, *[1] * (a.ndim - 1)) != 0, a, b) for a, b in pairs])


def run(
    step: Callable,
    weights: Weights,
    x: np.ndarray,
    state: Tree,
    mask: np.ndarray | None = None,
    reverse: bool = False,
) -> tuple[np.ndarray, Tree]:
    """Runs over `(B, T, D)`; a masked step keeps the state and repeats the last output, zero before there is one."""
    length = x.shape[1]
    ys, last = [None] * length, 0
    for t in reversed(range(length)) if reverse else range(length):
        y, after = step(weights, x[:, t], state)
        if mask is not None:
            keep = mask[:, t]
            y, after = choose(keep, y, np.zeros_like(y) + last), choose(keep, after, state)
        ys[t], last, state = y, y, after
    return np.stack(ys, axis=1), state


def gradients(loss: Callable[[Weights], float], arrays: Weights, epsilon: float = 1e-5) -> Weights:
    """The gradients of a loss of named arrays by central differences, exact to about 1e-9 in float64."""
    found = {}
    for name, array in arrays.items():
        gradient = np.empty(array.size)
        for i in range(array.size):
            sides = []
            for side in (epsilon, -epsilon):
                moved = array.astype(np.float64).ravel()
                moved[i] += side
                sides.append(loss({**arrays, name: moved.reshape(array.shape)}))
            gradient[i] = (sides[0] - sides[1]) / (2 * epsilon)
        found[name] = gradient.reshape(array.shape)
    return found
