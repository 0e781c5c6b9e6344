"""Losses: what a step compares with what it should give."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..nodes import View
from ..translate import Translation, translates
from .reducing import log_softmax

TINY = float(np.finfo(np.float32).tiny)  # NNabla takes the logarithm of nothing smaller


def _log(t: Translation, x: View) -> View:
    return t.graph.apply("log", t.graph.apply("maximum", x, t.number(TINY)))


@translates("SquaredError")
def squared_error(t: Translation, f: Any) -> View:
    d = t.graph.apply("sub", *t.inputs(f))
    return t.graph.apply("mul", d, d)


@translates("AbsoluteError")
def absolute_error(t: Translation, f: Any) -> View:
    return t.graph.apply("abs", t.graph.apply("sub", *t.inputs(f)))


@translates("HuberLoss")
def huber_loss(t: Translation, f: Any) -> View:
    """d^2 near 0, and a line from `delta` on."""
    g, delta = t.graph, t.number(f.info.args["delta"])
    d = g.apply("sub", *t.inputs(f))
    size = g.apply("abs", d)
    line = g.apply("mul", delta, g.apply("sub", g.apply("mul", 2.0, size), delta))
    return g.apply("select", g.apply("less", size, delta), g.apply("mul", d, d), line)


@translates("EpsilonInsensitiveLoss")
def epsilon_insensitive_loss(t: Translation, f: Any) -> View:
    g, epsilon = t.graph, t.number(f.info.args["epsilon"])
    size = g.apply("abs", g.apply("sub", *t.inputs(f)))
    return g.apply("select", g.apply("greater", size, epsilon), g.apply("sub", size, epsilon), 0.0)


@translates("BinaryCrossEntropy")
def binary_cross_entropy(t: Translation, f: Any) -> View:
    g = t.graph
    x, target = t.inputs(f)
    yes = g.apply("mul", target, _log(t, x))
    no = g.apply("mul", g.apply("sub", 1.0, target), _log(t, g.apply("sub", 1.0, x)))
    return g.apply("neg", g.apply("add", yes, no))


@translates("SigmoidCrossEntropy")
def sigmoid_cross_entropy(t: Translation, f: Any) -> View:
    g = t.graph
    x, target = t.inputs(f)
    return g.apply("sub", g.apply("softplus", x), g.apply("mul", x, g.apply("stop", target)))


@translates("KLMultinomial")
def kl_multinomial(t: Translation, f: Any) -> View:
    g = t.graph
    p, q = t.inputs(f)
    axes = [t.axis(f.inputs[0], a) for a in range(f.info.args["base_axis"], len(p.shape))]
    return g.reshape(g.reduce("sum", g.apply("mul", p, g.apply("sub", _log(t, p), _log(t, q))), axes), t.shape(f.outputs[0]))


def _of_label(t: Translation, f: Any, x: View) -> View:
    """What x has where the label is, along an axis; 0 where that is nowhere."""
    axis = t.axis(f.inputs[0], f.info.args["axis"])
    places = t.graph.array(np.arange(x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(x.shape))]))
    label = t.graph.reshape(t.value(f.inputs[1]), t.shape(f.outputs[0]))
    hot = t.graph.apply("equal", places, label)
    return t.graph.reduce("sum", t.graph.apply("select", hot, x, 0.0), [axis], keep=True)


@translates("SoftmaxCrossEntropy")
def softmax_cross_entropy(t: Translation, f: Any) -> View:
    return t.graph.apply("neg", _of_label(t, f, log_softmax(t, f)))


@translates("CategoricalCrossEntropy")
def categorical_cross_entropy(t: Translation, f: Any) -> View:
    return t.graph.apply("neg", _of_label(t, f, _log(t, t.value(f.inputs[0]))))
