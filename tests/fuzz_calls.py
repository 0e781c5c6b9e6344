"""Calls of every public function with arguments that are spoilt at a few places, each call in a process of its own.

    python tests/fuzz_calls.py FIRST COUNT

It is a process that imports nnshop once, warms it up, and forks for each case; it prints what went wrong, a line for each.
A case is a number: `python tests/fuzz_calls.py N 1` is that case again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import resource
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np

import nnshop
from nnshop import decoding, recurrentshop, scores, seq2seq, training
from nnshop.core import StateSpec, tree_leaves
from nnshop.functions import linear_cross_entropy
from nnshop.running import Loop

PATIENCE = 20.0  # seconds for one case, of which the slowest takes a part of one
MEMORY = 3 * 2**30  # what a case may take, beside what is there


class Made(NamedTuple):
    """A call: what is called, and what may be spoilt of what it is given."""

    function: Callable
    arguments: tuple
    options: dict[str, Any] = {}  # noqa: RUF012 - a field of a tuple


# ---------------------------------------------------------------------------------------------------- calls that are right

B, T, D, H, V = 2, 3, 4, 5, 6


def real(*shape: int) -> nn.Variable:
    return nn.Variable.from_numpy_array(np.random.RandomState(0).randn(*shape), need_grad=True)


def ids(*shape: int, size: int = V) -> nn.Variable:
    return nn.Variable.from_numpy_array(np.random.RandomState(0).randint(size, size=shape))


def mask() -> nn.Variable:
    return nn.Variable.from_numpy_array(np.array([[1, 1, 0], [1, 0, 0]]))


def probability() -> nn.Variable:
    return nn.Variable.from_numpy_array(np.array([0.5]))


def lstm_state() -> tuple:
    return real(B, H), real(B, H)


def speaker() -> Any:
    cell = nnshop.stack(nnshop.lift(PF.embed, V, D), nnshop.GRUCell(H), nnshop.lift(PF.affine, V))
    cell(nn.Variable((B,)), cell.initial_state(B))
    return cell


def layer(kind: str) -> Made:
    options = {"return_sequences": True, "return_state": True, "go_backwards": False, "mask": mask(), "way": "auto"}
    return Made(getattr(nnshop, kind), (real(B, T, D), H), {**options, "initial_state": None, "name": "a"})


def called(make: Callable, given: tuple, options: dict[str, Any], arguments: tuple, named: dict[str, Any]) -> Made:
    """What is made, and then called."""
    return Made(lambda g, o, a, n: make(*g, **o)(*a, **n), (given, options, arguments, named))


def sequential(cells: tuple, options: dict, x: Any, named: dict) -> Any:
    rnn = recurrentshop.RecurrentSequential(**options)
    for cell in cells:
        rnn.add(cell)
    return rnn(x, **named)


def wired(x: Any, h: Any, units: Any, sequence: Any, options: dict) -> Any:
    if 0 in (*x.shape, *h.shape):
        raise ValueError("NNabla dies of these")
    with nn.parameter_scope("wired"):
        y = F.tanh(PF.affine(x, H, name="x") + PF.affine(h, H, name="h"))
    return recurrentshop.RecurrentModel(x, y, initial_states=[h], final_states=[y], **options)(sequence)


def solver() -> Any:
    weight = nn.parameter.get_parameter_or_create("w", (2,), np.zeros(2))
    weight.g = 1
    made = S.Sgd()
    made.set_parameters(nn.get_parameters())
    return made


def carried(cell: Any, batch: Any, x: Any) -> Any:
    state = training.CarriedState(cell, batch)
    ys, final = nnshop.run(cell, x, state.initial)
    state.follow(final)
    nn.forward_all([ys, *tree_leaves(final)])
    state.carry()
    state.set(state.get())
    state.reset()
    return ys


def dense(x: nn.Variable, width: Any) -> nn.Variable:
    if not 1 <= width < 2**31:
        raise ValueError(f"NNabla dies of {width}")
    return PF.affine(x, int(width))


def added(x: nn.Variable, y: nn.Variable) -> nn.Variable:
    return x + y


def scanned(x: nn.Variable, y: nn.Variable) -> Any:
    return F.tanh(x + y)


def until(x: nn.Variable, y: nn.Variable) -> Any:
    return x + y, nnshop.until(F.greater_scalar(F.sum(y), 1.0))


def decoded(method: str, **options: Any) -> Made:
    given = {"end": 1, "max_length": 3, "batch_size": B, **options}
    return Made(getattr(decoding, method), (speaker(), 0, None), given)


def stepped(cell: Any, batch: Any, numbers: Any, rows: Any) -> Any:
    step = decoding.Step(cell, batch)
    step.begin(cell.initial_state(batch))
    step(numbers)
    return step(numbers, rows)


def with_weights(cell: Any) -> Any:
    cell(nn.Variable((B, D)), cell.initial_state(B))
    return cell


def served(cell: Any, example: Any, batch: Any, x: Any, rows: Any) -> Any:
    stepper = nnshop.Stepper(cell, example, batch)
    stepper.step(x)
    stepper.reset(rows=rows)
    return stepper.step(x)


def translated(model: dict, source: Any, target: Any, named: dict) -> Any:
    cells = {"encoder": nnshop.GRUCell(H), "decoder": nnshop.LSTMCell(H)}
    return seq2seq.EncoderDecoder(**{**cells, **model}).loss(source, target, **named)


def generated(model: dict, source: Any, named: dict) -> Any:
    made = seq2seq.EncoderDecoder(**{"encoder": nnshop.GRUCell(H), "decoder": nnshop.LSTMCell(H), **model})
    made.loss(nn.Variable((1, 1)), nn.Variable((1, 1)))
    return made.generate(source, **named)


def model() -> dict[str, Any]:
    return {"source_size": V, "target_size": V, "start": 4, "end": 5, "width": D, "attention": "general", "dropout": 0.1}


def cells_of(kind: str, **options: Any) -> Made:
    cell = getattr(nnshop, kind)
    return Made(lambda given, x, o: nnshop.run(cell(*given, **o), x), ((H,), real(B, T, D), options))


def rules(factor: Any, limit: Any, x: Any) -> Any:
    cell = recurrentshop.LSTMCell(
        H, kernel_regularizer=recurrentshop.l2(factor), kernel_constraint=recurrentshop.MaxNorm(limit)
    )
    rnn = cell.get_layer()
    rnn(x)
    recurrentshop.apply_constraints(rnn)
    return recurrentshop.regularization_losses(rnn)


def fused(kind: str) -> dict[str, np.ndarray]:
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[kind]
    made = {"x2h/W": np.ones((D, gates * H)), "h2h/W": np.ones((H, gates * H)), "b": np.ones(gates * H)}
    return {**made, "h2h/b": np.ones(H)} if kind == "gru" else made


def saved(x: Any, freeze: Any) -> None:
    with nnshop.portable():
        y = F.tanh(x)
    with tempfile.TemporaryDirectory() as folder:
        nnshop.save_nnp(Path(folder) / "y.nnp", {"x": x}, {"y": y}, freeze)


def in_context(context: Any, device: Any, kind: Any) -> None:
    with nnshop.use_context(context, device, kind):
        pass


TARGETS = {"reduction": "mean", "ignore_index": 3, "label_smoothing": 0.1}
LAYER = {"return_sequences": True, "return_states": True, "go_backwards": False, "stateful": False, "unroll": False}
DECODER = {"output_dim": H, "output_length": T, "hidden_dim": D, "depth": 1, "dropout": 0.1}

# By the name in nnshop, then what distinguishes several of one name.
CALLS: dict[str, Callable[[], Made]] = {
    "lstm": lambda: layer("lstm"),
    "gru": lambda: layer("gru"),
    "simple_rnn": lambda: layer("simple_rnn"),
    "lstm loop": lambda: Made(nnshop.lstm, (real(B, T, D), H), {"way": "loop", "lengths": [2, 3], "peephole": True}),
    "gru before": lambda: Made(nnshop.gru, (real(B, T, D), H), {"reset_after": False, "initial_state": real(B, H)}),
    "bidirectional": lambda: Made(
        nnshop.bidirectional, (real(B, T, D), nnshop.GRUCell(H), nnshop.GRUCell(H)), {"merge_mode": "sum", "lengths": [2, 3]}
    ),
    "TimeDistributed": lambda: called(nnshop.TimeDistributed, (dense,), {"fold": True}, (real(B, T, D), H), {}),
    "TimeDistributed step by step": lambda: called(nnshop.TimeDistributed, (F.tanh,), {"fold": False}, (real(B, T, D),), {}),
    "each": lambda: Made(lambda x, y: nnshop.TimeDistributed(added)(x, nnshop.each(y)), (real(B, T, D), real(B, T, D))),
    "embed": lambda: Made(nnshop.embed, (ids(B, T), V, D)),
    "lift embed": lambda: Made(nnshop.run, (nnshop.lift(PF.embed, V, D), ids(B, T)), {"way": "auto"}),
    "LSTMCell": lambda: cells_of("LSTMCell", forget_bias=1.0, peephole=False, projection_size=3),
    "GRUCell": lambda: cells_of("GRUCell", activation="tanh", reset_after=True, with_bias=True),
    "SimpleRNNCell": lambda: cells_of("SimpleRNNCell", activation="relu", name="a"),
    "lstm_cell": lambda: Made(nnshop.lstm_cell, (real(B, D), real(B, H), real(B, H), H), {"peephole": True}),
    "gru_cell": lambda: Made(nnshop.gru_cell, (real(B, D), real(B, H), H), {"reset_after": False}),
    "simple_rnn_cell": lambda: Made(nnshop.simple_rnn_cell, (real(B, D), real(B, H), H), {"activation": "tanh"}),
    "run": lambda: Made(
        nnshop.run, (nnshop.LSTMCell(H), real(B, T, D), lstm_state()), {"mask": mask(), "reverse": True, "way": "auto"}
    ),
    "run loop": lambda: Made(
        nnshop.run, (nnshop.GRUCell(H), real(B, T, D)), {"way": Loop(checkpoint_every=2), "lengths": ids(B, size=T)}
    ),
    "run peephole": lambda: Made(nnshop.run, (nnshop.LSTMCell(H, peephole=True), real(B, T, D)), {"lengths": [1, 3]}),
    "run without input": lambda: Made(
        nnshop.run, (nnshop.Cell(lambda x, h: (h, F.tanh(h)), StateSpec((H,))), None, real(B, H)), {"length": T}
    ),
    "iterate": lambda: Made(
        nnshop.iterate, (lambda x, h: (x + h, x + h), real(T, D), real(D)), {"length": T, "reverse": False, "way": "unrolled"}
    ),
    "iterate loop": lambda: Made(
        nnshop.iterate, (lambda x, h: (x + h, x + h), real(T, D), real(D)), {"way": Loop(checkpoint_every=2)}
    ),
    "Cell": lambda: Made(lambda f, s, x: nnshop.run(nnshop.Cell(f, s), x), (scanned_cell, StateSpec((D,)), real(B, T, D))),
    "StateSpec": lambda: Made(lambda shape, init: nnshop.StateSpec(shape, init), ((3,), None)),
    "output_shape": lambda: Made(nnshop.output_shape, (nnshop.LSTMCell(H), real(B, D))),
    "stack": lambda: Made(lambda *p: nnshop.run(nnshop.stack(*p[1:]), p[0]), (real(B, T, D), nnshop.GRUCell(H), F.tanh)),
    "sync": lambda: Made(
        lambda *p: nnshop.run(nnshop.sync(*p[1:]), p[0]), (real(B, T, D), nnshop.GRUCell(H), nnshop.GRUCell(H))
    ),
    "residual": lambda: Made(lambda cell, x: nnshop.run(nnshop.residual(cell), x), (nnshop.GRUCell(D), real(B, T, D))),
    "readout": lambda: Made(
        lambda x, *a, **o: nnshop.run(nnshop.readout(*a, **o), x),
        (real(B, T, D), nnshop.GRUCell(D), (D,)),
        {"merge": "add", "activation": "tanh", "feed": None},
    ),
    "teacher_forced": lambda: Made(
        lambda cell, p, x, y: nnshop.run(nnshop.teacher_forced(cell, p), (x, y)),
        (nnshop.readout(nnshop.GRUCell(D), (D,)), probability(), real(B, T, D), real(B, T, D)),
    ),
    "lift": lambda: Made(lambda f, x: nnshop.run(nnshop.lift(f), x), (F.tanh, real(B, T, D))),
    "attend": lambda: Made(
        lambda x, *a, **o: nnshop.run(nnshop.attend(*a, **o), x),
        (real(B, T, D), nnshop.GRUCell(H), real(B, T, D), "general"),
        {"units": H, "lengths": [2, 3], "input_feeding": True, "alignments": True},
    ),
    "attend location": lambda: Made(
        lambda x, *a, **o: nnshop.run(nnshop.attend(*a, **o), x),
        (real(B, T, D), nnshop.GRUCell(H), real(B, T, D), scores.Location(D, 2, 3)),
        {"mask": mask()},
    ),
    "sequence_loss": lambda: Made(nnshop.sequence_loss, (real(B, T, V), ids(B, T), mask()), dict(TARGETS)),
    "time_distributed_softmax_cross_entropy": lambda: Made(
        nnshop.time_distributed_softmax_cross_entropy, (real(B, T, V), ids(B, T))
    ),
    "linear_cross_entropy": lambda: Made(nnshop.linear_cross_entropy, (real(B, T, D), ids(B, T), V, mask()), dict(TARGETS)),
    "linear_cross_entropy of weights": lambda: Made(
        linear_cross_entropy, (real(B, T, D), real(V, D), real(V), ids(B, T)), {**TARGETS, "transpose": True}
    ),
    "length_mask": lambda: Made(nnshop.length_mask, ([1, 3], T)),
    "length_mask fed": lambda: Made(nnshop.length_mask, (ids(B), T)),
    "shift": lambda: Made(nnshop.shift, (real(B, T, D), real(B, D))),
    "unstack": lambda: Made(nnshop.unstack, (real(B, T, D), 1)),
    "scan": lambda: Made(
        nnshop.scan,
        (scanned, real(T, D), real(D)),
        {"n_steps": T, "truncate_gradient": 2, "go_backwards": False, "way": "auto", "time_axis": 0, "bptt_window": 2},
    ),
    "scan taps": lambda: Made(
        nnshop.scan,
        (lambda a, b, y: a + b + y, {"input": real(T, D), "taps": [-1, 0]}, {"initial": real(2, D), "taps": [-2]}),
        {"way": Loop(checkpoint_every=1)},
    ),
    "until": lambda: Made(nnshop.scan, (until, real(T, D), real(D)), {"n_steps": T, "way": "auto"}),
    "map": lambda: Made(nnshop.map, (F.tanh, real(T, D))),
    "reduce": lambda: Made(nnshop.reduce, (scanned, real(T, D), real(D))),
    "foldl": lambda: Made(nnshop.foldl, (scanned, real(T, D), real(D))),
    "foldr": lambda: Made(nnshop.foldr, (scanned, real(T, D), real(D))),
    "greedy": lambda: decoded("greedy"),
    "sample": lambda: decoded("sample", temperature=0.5, top_k=3, top_p=0.9, seed=1),
    "beam_search": lambda: decoded("beam_search", width=2, min_length=1, length_penalty=0.5, n_best=2),
    "decode": lambda: Made(
        lambda cell, start, choose, temperature: nnshop.run(
            decoding.decode(cell, start, choose, temperature), None, nnshop.tree_map(lambda v: v, state_of(cell)), length=T
        ),
        (speaker(), 0, "sample", 0.5),
    ),
    "Step": lambda: Made(stepped, (speaker(), B, np.array([0, 1]), np.array([1, 0]))),
    "Stepper": lambda: Made(served, (with_weights(nnshop.GRUCell(H)), np.zeros((B, D)), B, np.ones((B, D)), [1])),
    "Stepper of ids": lambda: Made(served, (speaker(), np.zeros(B), B, np.array([0, 1]), [0])),
    "explain": lambda: Made(nnshop.explain, (nnshop.GRUCell(H), real(B, T, D))),
    "tile": lambda: Made(decoding.tile, (real(B, D), 2)),
    "EncoderDecoder": lambda: Made(
        translated, (model(), ids(B, T), ids(B, T)), {"named": {"source_lengths": [1, 3], "label_smoothing": 0.1}}
    ),
    "EncoderDecoder sampled": lambda: Made(
        translated, (model(), ids(B, T), ids(B, T)), {"named": {"sampling_probability": probability()}}
    ),
    "EncoderDecoder generate": lambda: Made(
        generated, (model(), [[0, 1], [2]]), {"named": {"method": "beam", "max_length": 3, "width": 2}}
    ),
    "SimpleSeq2Seq": lambda: called(seq2seq.SimpleSeq2Seq, (), dict(DECODER), (real(B, T, D),), {}),
    "Seq2Seq": lambda: called(
        seq2seq.Seq2Seq,
        (),
        {**DECODER, "peek": True, "teacher_force": True},
        (real(B, T, D),),
        {"ground_truth": real(B, T, H)},
    ),
    "AttentionSeq2Seq": lambda: called(seq2seq.AttentionSeq2Seq, (), dict(DECODER), (real(B, T, D),), {"training": False}),
    "RecurrentSequential": lambda: Made(
        sequential, ((recurrentshop.LSTMCell(H),), dict(LAYER), real(B, T, D), {"mask": mask(), "initial_state": None})
    ),
    "RecurrentSequential readout": lambda: Made(
        sequential,
        (
            (recurrentshop.GRUCell(D),),
            {"readout": "add", "teacher_force": True, "readout_activation": "tanh"},
            real(B, T, D),
            {"ground_truth": real(B, T, D), "training": True, "initial_readout": real(B, D)},
        ),
    ),
    "RecurrentSequential decode": lambda: Made(
        sequential, ((recurrentshop.RHNCell(D, recurrence_depth=2),), {"decode": True, "output_length": T}, real(B, D), {})
    ),
    "RecurrentModel": lambda: Made(wired, (real(B, D), real(B, H), H, real(B, T, D), dict(LAYER))),
    "recurrentshop cells": lambda: Made(
        lambda units, x, o: recurrentshop.SimpleRNNCell(units, **o).get_layer()(x), (H, real(B, T, D), {"activation": "tanh"})
    ),
    "recurrentshop rules": lambda: Made(rules, (0.1, 1.0, real(B, T, D))),
    "CarriedState": lambda: Made(carried, (nnshop.GRUCell(H), B, real(B, T, D))),
    "clip_grad_by_global_norm": lambda: Made(nnshop.clip_grad_by_global_norm, (solver(), 1.0)),
    "LossScale": lambda: Made(training.LossScale, (8.0,)),
    "to_fused": lambda: Made(nnshop.to_fused, ("lstm", [[fused("lstm")]])),
    "from_fused": lambda: Made(nnshop.from_fused, ("gru", nnshop.to_fused("gru", [[fused("gru")]]))),
    "save_nnp": lambda: Made(saved, (real(B, D), True)),
    "set_threads": lambda: Made(nnshop.set_threads, (2,)),
    "use_context": lambda: Made(in_context, ("cpu", 0, "float")),
}


def scanned_cell(x: nn.Variable, state: nn.Variable) -> Any:
    y = F.tanh(x + state)
    return y, y


def state_of(cell: Any) -> Any:
    return cell.initial_state(B), ids(B)


# --------------------------------------------------------------------------------------------------------------- spoiling

STRANGE: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 7, 1.5, -0.5, math.nan, math.inf, -math.inf, 1e-46, 1e300, 2**31, 2**63, 10**6, 10**30),
    *("", "x", "3", "tanh", "loop", "a/b", (), [], {}, (1,), [1, 2], [[1], [2, 3]], (3, -1), (0,), b"x", object, len),
]
STEPS = ("length", "max_length", "n_steps", "output_length", "depth")  # what is asked for so many steps takes its time
NUMBERS = [math.nan, math.inf, -math.inf, 1e30, -1.0, 2.7, 1e9, float(V), 1e-45]


def places(value: Any) -> list[tuple]:
    """All ways into nested tuples, lists and dictionaries."""
    found: list[tuple] = [()]
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (tuple, list)) else ()
    for key, child in children:
        found += [(key, *way) for way in places(child)]
    return found


def put(value: Any, way: tuple, change: Callable[[Any], Any]) -> Any:
    """The same with one part changed."""
    if not way:
        return change(value)
    key, *rest = way
    if isinstance(value, dict):
        return {k: put(v, tuple(rest), change) if k == key else v for k, v in value.items()}
    parts = [put(v, tuple(rest), change) if k == key else v for k, v in enumerate(value)]
    return tuple(parts) if isinstance(value, tuple) else parts


def spoil(rng: Random, value: Any, key: Any) -> Any:
    if isinstance(value, nn.Variable) and rng.random() < 0.85:
        return spoil_variable(rng, value)
    if isinstance(value, np.ndarray) and rng.random() < 0.8:
        kinds = [
            value.ravel()[:0],
            value[None],
            value.astype("U3"),
            value * np.nan,
            value.astype(np.float64) + 0.5,
            value * 10**9,
        ]
        return rng.choice([*kinds, value.astype(object)])
    strange = [v for v in STRANGE if v != 10**6] if key in STEPS else STRANGE
    return rng.choice([*strange, real(B, T, D), real(B, D), real(0, 3), real(), np.zeros((2, 3)), np.array(1)])


def spoil_variable(rng: Random, v: nn.Variable) -> nn.Variable:
    shape, kind = list(v.shape), rng.choice(["zero", "zero", "size", "rank", "rank", "number", "number", "number", "huge"])
    at = rng.randrange(len(shape) + 1) if kind != "huge" or not v.need_grad else len(shape) - 1
    if kind == "number" and v.size:
        made = nn.Variable.from_numpy_array(v.d.copy(), need_grad=v.need_grad)
        made.d.flat[rng.randrange(v.size)] = rng.choice(NUMBERS)
        return made
    if kind == "rank" or at == len(shape):
        shape = rng.choice([[], shape[1:], shape[:-1], [1, *shape], [*shape, 1], [*shape, *shape]])
    else:
        shape[at] = {
            "zero": 0,
            "size": rng.choice([1, shape[at] + 1, max(1, shape[at] - 1)]),
            "huge": 10**5 if v.need_grad else 100,
        }.get(kind, 0)
    return nn.Variable(tuple(shape), need_grad=v.need_grad)


def variables(value: Any) -> list[nn.Variable]:
    if isinstance(value, nn.Variable):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [v for child in children for v in variables(child)]


# ---------------------------------------------------------------------------------------------------------------- one case


def describe(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(describe, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {describe(v)}' for k, v in value.items())}}}"
    if isinstance(value, nn.Variable):
        wrong = "" if not value.size or np.isfinite(value.d).all() else " not finite"
        return f"<{value.shape}{wrong}>" if value.size > 4 else f"<{value.shape} {value.d.tolist()}>"
    return repr(value)[:60]


def run_case(number: int, say: Callable[[str], None]) -> None:
    """Makes the call of this number, spoils it, calls it, and computes what it returned, forward and backward."""
    rng = Random(number)
    name = list(CALLS)[number % len(CALLS)]
    say(name)
    made = CALLS[name]()
    given: Any = (made.arguments, made.options)
    for _ in range(0 if number < len(CALLS) else rng.choice([1, 1, 1, 2, 3])):
        ways = [way for way in places(given) if len(way) > 1]
        way = rng.choice(ways)
        given = put(given, way, lambda v, key=way[-1]: spoil(rng, v, key))
    say(f"{name}: {describe(given)}")
    graph = [v for v in variables(made.function(*given[0], **given[1])) if v.parent is not None]
    if not graph:
        return
    compute(graph)
    fed = [v for v in variables(given) if v.parent is None and v.ndim]
    if fed and number >= len(CALLS) and rng.random() < 0.5:
        v = rng.choice(fed)
        shape = spoil_variable(rng, v).shape
        if 0 in shape:  # of that NNabla's own functions die
            return
        say(f"{name}: {describe(given)}, then {v.shape} becomes {shape}")
        v.reset_shape(shape, True)
        with contextlib.suppress(Exception):  # functions set themselves up anew, or say why not
            compute(graph)


def compute(graph: list[nn.Variable]) -> None:
    with nn.auto_forward(False):
        total = F.add_n(*map(F.sum, graph))
    for v in nn.get_parameters().values():
        v.grad.zero()
    total.forward()
    total.backward()


OURS = str(Path(nnshop.__file__).parent)


def is_fair(error: BaseException) -> bool:
    """Whether nnshop says it, a type is wrong, a function of this file met NNabla with what it was given, or memory ran out."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith((OURS, __file__))]
    if isinstance(error, MemoryError) or "memory error in alloc" in str(error):
        return True
    if not own:
        return False
    if any(frame.name == "compute" for frame in own):  # when it runs, nnshop's functions must say it
        return frames[-1].filename.startswith(OURS) and isinstance(error, ValueError)
    users = own[-1].filename == __file__ and own[-1].name != "run_case"
    says = frames[-1].filename.startswith(OURS) and isinstance(error, (ValueError, nnshop.ContextError))
    return users or says or isinstance(error, TypeError)


def fault(error: BaseException) -> str:
    """What is wrong with an error; nothing where it, or what caused it, is fair."""
    one: BaseException | None = error
    while one is not None:
        if is_fair(one):
            return ""
        one = one.__cause__ or one.__context__
    lines = traceback.format_exception(error)
    return (
        f"{type(error).__name__}: {error}"[:300] + " | " + " | ".join(line.strip().replace("\n", " ") for line in lines[-4:-1])
    )


# ------------------------------------------------------------------------------------------------------------------ server


def in_a_process(number: int) -> dict[str, Any]:
    """Runs a case in a process of its own, and tells how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            code = in_the_child(number, writing)
        finally:
            os._exit(code)
    os.close(writing)
    said = b""
    while select.select([reading], [], [], PATIENCE)[0]:
        part = os.read(reading, 65536)
        if not part:
            break
        said += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    *_, call, wrong = [""] * 2 + said.decode(errors="replace").split("\n")[:-1]
    if os.WIFSIGNALED(status):
        number_of_signal = os.WTERMSIG(status)
        wrong = f"it hung for {PATIENCE} s" if number_of_signal == signal.SIGKILL else signal.Signals(number_of_signal).name
        call = said.decode(errors="replace").split("\n")[-2] if b"\n" in said else call
    return {"case": number, "call": call, "wrong": wrong}


def in_the_child(number: int, writing: int) -> int:
    faulthandler.disable()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def say(text: str) -> None:
        os.write(writing, text.replace("\n", " ").encode(errors="replace") + b"\n")

    wrong = ""
    try:
        with np.errstate(all="ignore"):
            run_case(number, say)
    except BaseException as error:
        wrong = fault(error)
    say(wrong)
    return 0


def main(first: int, count: int) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # `explain` prints
        for number in range(
            len(CALLS)
        ):  # compiled functions are loaded here, once for all; calls that are right are seen to be
            run_case(number, lambda text: None)
            nn.clear_parameters()
    for number in range(first, first + count):
        found = in_a_process(number)
        if found["wrong"]:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
