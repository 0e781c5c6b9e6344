"""Normalizations: of layers, instances, groups, and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..nodes import Unsupported, View
from ..translate import Translation, translates


def normalize(t: Translation, x: View, axes: Sequence[int], eps: float) -> View:
    """(x - mean) / sqrt(variance + eps), over these axes, with a gradient rule of its own."""
    g, share = t.graph, 1 / np.prod([x.shape[a] for a in axes], dtype=float)

    def mean(v: View) -> View:
        return g.apply("mul", g.reduce("sum", v, axes, keep=True), share)

    centred = g.apply("sub", x, mean(x))
    scale = g.apply("rsqrt", g.apply("add", mean(g.apply("mul", centred, centred)), t.number(eps)))
    y = g.keep(g.apply("mul", centred, scale))

    def rule(d: View) -> list[tuple[View, View]]:
        d = g.reshape(d, y.shape)
        along = g.apply("mul", y, mean(g.apply("mul", d, y)))
        return [(x, g.apply("mul", g.apply("sub", g.apply("sub", d, mean(d)), along), scale))]

    g.rules[y.node] = rule
    return y


def _scaled(t: Translation, f: Any, y: View) -> View:
    """What is normalized, times gamma, plus beta; NNabla's inputs are x, beta, gamma, as far as they are there."""
    rest = list(f.inputs[1:])
    beta = None if f.info.args["no_bias"] else t.value(rest.pop(0))
    gamma = None if f.info.args["no_scale"] else t.value(rest.pop(0))
    y = y if gamma is None else t.graph.apply("mul", y, gamma)
    return y if beta is None else t.graph.apply("add", y, beta)


@translates("LayerNormalization")
def layer_normalization(t: Translation, f: Any) -> View:
    x = f.inputs[0]
    apart = {a % x.ndim for a in f.info.args["batch_axis"]}
    axes = [t.axis(x, a) for a in range(x.ndim) if a not in apart]
    return _scaled(t, f, normalize(t, t.value(x), axes, f.info.args["eps"]))


@translates("InstanceNormalization")
def instance_normalization(t: Translation, f: Any) -> View:
    x = f.inputs[0]
    apart = {a % x.ndim for a in [*f.info.args["batch_axis"], f.info.args["channel_axis"]]}
    axes = [t.axis(x, a) for a in range(x.ndim) if a not in apart]
    return _scaled(t, f, normalize(t, t.value(x), axes, f.info.args["eps"]))


@translates("GroupNormalization")
def group_normalization(t: Translation, f: Any) -> View:
    x, arguments, g = f.inputs[0], f.info.args, t.graph
    channels, groups = arguments["channel_axis"] % x.ndim, arguments["num_groups"]
    apart = {a % x.ndim for a in arguments["batch_axis"]}
    value = t.value(x)
    shape = (*value.shape[:channels], groups, value.shape[channels] // groups, *value.shape[channels + 1 :])
    axes = [a + (a >= channels) for a in range(x.ndim) if a not in apart]
    if t.batch is not None and 0 not in apart:
        t.axis(x, 0)
    return _scaled(t, f, g.reshape(normalize(t, g.reshape(value, shape), axes, arguments["eps"]), value.shape))


@translates("BatchNormalization")
def batch_normalization(t: Translation, f: Any) -> View:
    """With the running statistics; with those of the batch it writes to them, step by step."""
    arguments, g = f.info.args, t.graph
    if arguments["batch_stat"]:
        raise Unsupported("BatchNormalization with the statistics of the batch is not translated")
    x, axis = t.value(f.inputs[0]), arguments["axes"][0] % f.inputs[0].ndim
    rest = list(f.inputs[1:])
    beta = None if arguments["no_bias"] else rest.pop(0)
    gamma = None if arguments["no_scale"] else rest.pop(0)

    def spread(v: Any) -> View:
        return g.reshape(t.whole(v), [n if a == axis else 1 for a, n in enumerate(x.shape)])

    mean, variance = (g.apply("stop", spread(v)) for v in rest)
    y = g.apply("mul", g.apply("sub", x, mean), g.apply("rsqrt", g.apply("add", variance, t.number(arguments["eps"]))))
    y = y if gamma is None else g.apply("mul", y, spread(gamma))
    return y if beta is None else g.apply("add", y, spread(beta))


@translates("NormNormalization")
def norm_normalization(t: Translation, f: Any) -> View:
    arguments, g = f.info.args, t.graph
    if arguments["p"] not in (None, 2.0):
        raise Unsupported("NormNormalization with another norm than 2 is not translated")
    x = t.value(f.inputs[0])
    axes = arguments["axes"]
    axes = [t.axis(f.inputs[0], a) for a in (range(len(x.shape)) if not axes else axes)]
    total = g.reduce("sum", g.apply("mul", x, x), axes, keep=True)
    return g.apply("div", x, g.apply("sqrt", total))  # NNabla has a setting eps, which changes nothing
