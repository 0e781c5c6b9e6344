"""A user's cells in JAX: each a step `(weights, state, x) -> (state, y)` in a jitted `lax.scan`."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from cells import draw, start
from jax.nn import sigmoid, softmax
from jax.numpy import tanh

Phases = dict[str, Callable]
Weights = dict[str, jax.Array]


def versions() -> dict[str, str]:
    return {"JAX": jax.__version__, "Python of JAX": platform.python_version()}


# -------------------------------------------------------------------------------------------------------------- the cells


def affine(w: Weights, name: str, x: jax.Array) -> jax.Array:
    y = x @ w[f"{name}/W"]
    return y + w[f"{name}/b"] if f"{name}/b" in w else y


def gates(z: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    i, f, g, o = jnp.split(z, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def norm(w: Weights, name: str, z: jax.Array) -> jax.Array:
    mean, variance = z.mean(-1, keepdims=True), z.var(-1, keepdims=True)
    return (z - mean) * jax.lax.rsqrt(variance + 1e-5) * w[f"{name}/gamma"] + w[f"{name}/beta"]


def lstm(w, state, x):
    h, c = state
    h, c = gates(affine(w, "x", x) + affine(w, "h", h), c)
    return (h, c), h


def layer_norm_lstm(w, state, x):
    h, c = state
    z = norm(w, "norm_x", affine(w, "x", x)) + norm(w, "norm_h", affine(w, "h", h))
    i, f, g, o = jnp.split(z, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(norm(w, "norm_c", c))
    return (h, c), h


def mgu(w, h, x):
    f = sigmoid(affine(w, "xf", x) + affine(w, "hf", h))
    n = tanh(affine(w, "xn", x) + affine(w, "hn", f * h))
    h = (1 - f) * h + f * n
    return h, h


def _built_in(w, scope, x, h):
    return x @ w[f"{scope}x2h/W"] + h @ w[f"{scope}h2h/W"] + w[f"{scope}b"]


def two_lstms(w, state, x):
    h, c, h2, c2 = state
    h, c = gates(_built_in(w, "0/", x + h2, h), c)
    h2, c2 = gates(_built_in(w, "1/", h, h2), c2)
    return (h, c, h2, c2), h2


def hard_sigmoid(x: jax.Array) -> jax.Array:
    return jnp.clip(0.2 * x + 0.5, 0, 1)


def rs_lstm(w, state, x):
    h, c = state
    i, f, g, o = jnp.split(_built_in(w, "rs/", x, h), 4, axis=-1)
    c = tanh(hard_sigmoid(f) * c + hard_sigmoid(i) * tanh(g))
    h = hard_sigmoid(o) * c
    return (h, c), h


def rs_gru(w, h, x):
    x_r, x_z, x_n = jnp.split(x @ w["rs/x2h/W"] + w["rs/b"], 3, axis=-1)
    n = h.shape[-1]
    h_r, h_z = jnp.split(h @ w["rs/h2h/W"][:, : 2 * n], 2, axis=-1)
    r, z = hard_sigmoid(x_r + h_r), hard_sigmoid(x_z + h_z)
    new = tanh(x_n + (r * h) @ w["rs/h2h/W"][:, 2 * n :])
    h = z * new + (1 - z) * h
    return h, h


def attention(w, state, x):
    h, c, attended = state
    h, c = gates(_built_in(w, "", jnp.concatenate([x, attended], axis=-1), h), c)
    scores = jnp.einsum("bm,bsm->bs", h @ w["attention/query/W"], w["memory"])
    context = jnp.einsum("bs,bsm->bm", softmax(scores), w["memory"])
    attended = tanh(jnp.concatenate([h, context], axis=-1) @ w["attention/output/W"])
    return (h, c, attended), attended


def scan(w, h, x):
    h = tanh(affine(w, "h", h) + x)
    return h, h


def cornn(w, state, x):
    h, c = state
    act = tanh(affine(w, "x", x) + affine(w, "h", h) + affine(w, "c", c))
    c = c + 0.1 * (act - h - c)
    h = h + 0.1 * c
    return (h, c), h


def minimal_rnn(w, h, x):
    z = tanh(affine(w, "x", x))
    u = sigmoid(affine(w, "h", h) + affine(w, "z", z))
    h = u * h + (1 - u) * z
    return h, h


def mlstm(w, state, x):
    memory, total = state
    q, k, v = affine(w, "q", x), affine(w, "k", x) * x.shape[-1] ** -0.5, affine(w, "v", x)
    i, f = jnp.split(sigmoid(affine(w, "gates", x)), 2, axis=-1)
    memory = f[:, :, None] * memory + i[:, :, None] * (v[:, :, None] * k[:, None, :])
    total = f * total + i * k
    y = jnp.einsum("bvk,bk->bv", memory, q) / jnp.maximum(jnp.abs((total * q).sum(-1, keepdims=True)), 1)
    return (memory, total), sigmoid(affine(w, "o", x)) * y


def peephole_lstm(w, state, x):
    h, c = state
    i, f, g, o = jnp.split(affine(w, "x", x) + affine(w, "h", h), 4, axis=-1)
    p_i, p_f, p_o = jnp.split(w["peephole"], 3)
    c = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)
    h = sigmoid(o + p_o * c) * tanh(c)
    return (h, c), h


def nested_lstm(w, state, x):
    h, c, inner = state
    i, f, g, o = jnp.split(affine(w, "x", x) + affine(w, "h", h), 4, axis=-1)
    c, inner = gates(affine(w, "inner_x", sigmoid(i) * tanh(g)) + affine(w, "inner_h", sigmoid(f) * c), inner)
    h = sigmoid(o) * tanh(c)
    return (h, c, inner), h


def sru(w, c, x):
    a, f, r = jnp.split(affine(w, "x", x), 3, axis=-1)
    f, r = sigmoid(f), sigmoid(r)
    c = f * c + (1 - f) * a
    return c, r * tanh(c) + (1 - r) * x


STEPS: dict[str, Callable] = {
    step.__name__: step
    for step in (lstm, layer_norm_lstm, mgu, two_lstms, rs_lstm, rs_gru, attention, scan)
    + (cornn, minimal_rnn, mlstm, peephole_lstm, nested_lstm, sru)
}


# ----------------------------------------------------------------------------------------------------------- what is timed


def jitted(cell: str, batch: int, units: int) -> Callable:
    """A function of weights, inputs and the gradient of the outputs: the outputs, and all gradients."""

    def outputs(w: Weights, xs: jax.Array) -> jax.Array:
        first = start(cell, units, lambda shape: jnp.zeros((batch, *shape)))
        return jax.lax.scan(partial(STEPS[cell], w), first, xs)[1]

    def both(w: Weights, xs: jax.Array, gradient: jax.Array) -> tuple:
        ys, pull = jax.vjp(outputs, w, xs)
        return ys, pull(gradient)

    return jax.jit(both)


def call_of(cell: str, batch: int, steps: int, units: int) -> Callable[[], tuple]:
    """A call of such a function, on arrays with time first, which suits `lax.scan`."""
    weights, x, gradient = draw(cell, batch, steps, units)
    given = {name: jnp.asarray(w) for name, w in weights.items()}, *(jnp.asarray(a.swapaxes(0, 1)) for a in (x, gradient))
    function = jitted(cell, batch, units)
    return lambda: jax.block_until_ready(function(*given))


def both_passes(rival: str, cell: str, batch: int, steps: int, units: int) -> Phases:
    call = call_of(cell, batch, steps, units)

    def values() -> dict[str, np.ndarray]:
        ys, (weights, xs) = call()
        arrays = {"y": ys.swapaxes(0, 1), "x": xs.swapaxes(0, 1), **weights}
        return {name: np.asarray(array) for name, array in arrays.items()}

    return {"step": call, "values": values}


def first_use(rival: str, cell: str, batch: int, steps: int, units: int, after: str | None = None) -> Phases:
    """The first call, which compiles, and the second; perhaps after another cell has been computed."""
    if after:
        call_of(after, batch, steps, units)()
    call = call_of(cell, batch, steps, units)
    return {"first": call, "again": call}
