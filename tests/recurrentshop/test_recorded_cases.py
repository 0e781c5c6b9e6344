"""What the original RecurrentShop computed, recorded from it: outputs, returned states and all gradients.

The folder is named by NNSHOP_REFERENCE (default ../shared/reference, beside the checkout). Networks are built from a case's
config, never from its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest

import nnshop.recurrentshop as rs
from nnshop import lift, seq2seq
from nnshop.functions import ACTIVATIONS
from nnshop.recurrentshop import basic_cells
from nnshop.recurrentshop.weights import Place, places, places_of

FOLDER = Path(os.environ.get("NNSHOP_REFERENCE", Path(__file__).resolve().parents[3] / "shared" / "reference"))
CASES = sorted((FOLDER / "vectors").glob("*.npz"))
MODULES = {"adv": rs, "advanced_cells": rs, "basic": basic_cells, "seq2seq.cells": seq2seq}


def load_config(path: Path) -> dict:
    with np.load(path) as file:
        return json.loads(str(file["config"]))


def affine(x: nn.Variable, units: int, name: str, with_bias: bool = True) -> nn.Variable:
    return PF.affine(x, units, name=name, with_bias=with_bias)


def simple(x: nn.Variable, h: nn.Variable) -> tuple:
    h = F.tanh(affine(x, 6, "a") + affine(h, 6, "b", False))
    return h, h


LSTM_6, GRU_6 = rs.LSTMCell(6, name="lstm"), rs.GRUCell(6, name="gru")
SYNCED = [rs.LSTMCell(4, name=f"lstm{i}") for i in range(3)]


def lstm_and_gru(x: nn.Variable, h: nn.Variable, c: nn.Variable, g: nn.Variable) -> tuple:
    a, (h, c) = LSTM_6(x, (h, c))
    b, (g,) = GRU_6(x, (g,))
    return F.tanh(a + b), h, c, g


def half_readout(x: nn.Variable, h: nn.Variable, c: nn.Variable, last: nn.Variable) -> tuple:
    y, state = x + 0.5 * last, (h, c)
    for cell in SYNCED:
        y, state = cell(y, state)
    return (y, *state)


def wide_readout(x: nn.Variable, h: nn.Variable, last: nn.Variable) -> tuple:
    h = F.tanh(affine(x, 5, "a") + affine(h, 5, "b", False) + affine(last, 5, "c", False))
    return F.softmax(affine(h, 6, "d")), h


def two_states(x: nn.Variable, a: nn.Variable, c: nn.Variable) -> tuple:
    a = F.tanh(affine(x, 5, "a") + affine(c, 5, "b", False) + a)
    c = F.sigmoid(affine(a, 6, "c") + c)
    return affine(F.concatenate(a, c, axis=1), 4, "d"), a, c


def attention(x: nn.Variable, h: nn.Variable) -> tuple:
    q = affine(h, x.shape[2], "q", False)
    weights = F.softmax(F.batch_matmul(x, F.reshape(q, (*q.shape, 1))), axis=1)  # (B, T, 1)
    y, (h,) = GRU_6(F.sum(x * weights, axis=1), (h,))
    return y, h


def of_affine(*names: str, without_bias: str = "") -> list[tuple[str, None, int]]:
    return [(f"{n}/affine/{p}", None, 0) for n in names for p in ("W", "b") if p == "W" or n not in without_bias]


def of_cells(*cells: Any) -> list[Place]:
    return [place for cell in cells for place in places_of(cell, "")]


# Networks that a case describes in words: the step, its states, its readout, and its weights in Keras' order.
STEPS: dict[str, tuple[Callable, list, Any, Callable]] = {
    "h=tanh(Dense(H)(x)+Dense(H,nobias)(h_tm1)); output=h; final_states=[h]": (
        simple, [(6,)], None, lambda: of_affine("a", "b", without_bias="b"),
    ),
    "README: lstm,s1,s2=LSTMCell(H)([x,s1,s2]); gru,s3=GRUCell(H)([x,s3]); output=tanh(lstm+gru); final_states=[s1,s2,s3]": (
        lstm_and_gru, [(6,), (6,), (6,)], None, lambda: of_cells(LSTM_6, GRU_6),
    ),
    "docs/readout.md: 3 LSTMCells sharing (h,c) in series on x+0.5*readout; readout_input given": (
        half_readout, [(4,), (4,)], (4,), lambda: of_cells(*SYNCED),
    ),
    "h1=tanh(Dense(5)(x)+Dense(5,nobias)(h)+Dense(5,nobias)(readout[6])); output=softmax(Dense(6)(h1)); final=[h1]": (
        wide_readout, [(5,)], (6,), lambda: of_affine("a", "b", "c", "d", without_bias="bc"),
    ),
    "states a(5),c(6): a1=tanh(Dense(5)(x)+Dense(5,nobias)(c)+a); c1=sigmoid(Dense(6)(a1)+c); "
    "output=Dense(4)(concat[a1,c1]); final=[a1,c1]": (
        two_states, [(5,), (6,)], None, lambda: of_affine("a", "b", "c", "d", without_bias="b"),
    ),
    "x(T,D): q=Dense(D,nobias)(h); a=softmax(x.q); ctx=sum_t a_t x_t; o,h1=GRUCell(H)([ctx,h])": (
        attention, [(6,)], None, lambda: [*of_affine("q", without_bias="q"), *of_cells(GRU_6)],
    ),
}  # fmt: skip


def sequential(cells: list, **options: Any) -> rs.RecurrentSequential:
    rnn = rs.RecurrentSequential(**options)
    for kind, arguments in cells:
        arguments = dict(arguments)
        module, _, word = kind.rpartition(".")
        if word == "Dense":
            rnn.add(PF.affine, arguments["units"], with_bias=arguments.get("use_bias", True))
            if arguments.get("activation"):
                rnn.add(ACTIVATIONS[arguments["activation"]])
        elif word == "Activation":
            rnn.add(ACTIVATIONS[arguments["activation"]])
        elif word == "Dropout":
            rnn.add(F.dropout, arguments.get("rate", arguments.get("p", 0.5)))
        else:
            rnn.add(getattr(MODULES[module or "adv"], word)(**arguments))
    return rnn


def options_of(config: dict) -> dict:
    options = dict(config.get("ctor") or config.get("layer_args") or {})
    init = options.get("state_initializer")
    if init is not None:
        one = lambda v: nn.initializer.ConstantInitializer(v["Constant"]) if isinstance(v, dict) else v  # noqa: E731
        options["state_initializer"] = [one(v) for v in init] if isinstance(init, list) else one(init)
    return options


def at(rnn: Any, order: list) -> list[Place]:
    """Places below the scope of a layer."""
    path = f"{rnn.path}/" if rnn.path else ""
    made = [p if isinstance(p, Place) else Place(*p) for p in order]
    return [Place(path + p.name, p.gates, p.units) for p in made]


def as_function(graph: str, shape: tuple, **options: Any) -> tuple[rs.RecurrentModel, Callable]:
    step, states, last, order = STEPS[graph]
    rnn = rs.RecurrentModel(step, initial_states=states, readout_input=last, **options)
    return rnn, lambda: at(rnn, order())


def as_graph(graph: str, shape: tuple, **options: Any) -> tuple[rs.RecurrentModel, Callable]:
    """Wired at batch size 2, to be run at that of the case."""
    step, states, last, order = STEPS[graph]
    x, before = nn.Variable((2, *shape)), [nn.Variable((2, *s)) for s in states]
    fed = None if last is None else nn.Variable((2, *last))
    y, *after = step(x, *before, *([] if fed is None else [fed]))
    rnn = rs.RecurrentModel(x, y, initial_states=before, final_states=after, readout_input=fed, **options)
    return rnn, lambda: [p if isinstance(p, Place) else Place(*p) for p in order()]


SIMPLE, README = list(STEPS)[:2]


def inner_three() -> rs.RecurrentSequential:
    return sequential([["LSTMCell", {"units": 6}], ["Dense", {"units": 5}], ["GRUCell", {"units": 4}]])


def with_cells(*cells: Any, **options: Any) -> rs.RecurrentSequential:
    rnn = rs.RecurrentSequential(**options)
    for cell in cells:
        rnn.add(cell)
    return rnn


def nested_once(**options: Any) -> tuple[Any, Callable]:
    rnn = with_cells(inner_three().get_cell(), rs.SimpleRNNCell(6), **options)
    return rnn, lambda: places(rnn)


def nested_twice(**options: Any) -> tuple[Any, Callable]:
    b = with_cells(inner_three().get_cell(), rs.SimpleRNNCell(5))
    rnn = with_cells(b.get_cell(), rs.SimpleRNNCell(6), **options)
    return rnn, lambda: places(rnn)


def nested_shared(**options: Any) -> tuple[Any, Callable]:
    inner = with_cells(rs.GRUCell(4))
    rnn = with_cells(inner.get_cell(), inner.get_cell(), **options)
    return rnn, lambda: places(rnn)


def nested_model(**options: Any) -> tuple[Any, Callable]:
    model, order = as_function(README, (4,))
    top = rs.SimpleRNNCell(5)
    rnn = with_cells(model.get_cell(), top, **options)
    return rnn, lambda: [*order(), *at(rnn, list(places_of(top, "")))]


def nested_from_model(**options: Any) -> tuple[Any, Callable]:
    model, order = as_function(SIMPLE, (4,))
    top = rs.GRUCell(5)
    rnn = with_cells(model.get_cell(), top, **options)
    return rnn, lambda: [*order(), *at(rnn, list(places_of(top, "")))]


def nested_layer(**options: Any) -> tuple[Any, Callable]:
    model, order = as_function(README, (4,))
    return rs.RecurrentModel(cell=model.get_cell(), **options), order


def regularized(**options: Any) -> tuple[Any, Callable]:
    rnn = rs.RecurrentSequential(return_sequences=True)
    rules = {"kernel_regularizer": rs.l2(0.01), "recurrent_regularizer": rs.l1(0.02), "bias_regularizer": rs.l2(0.03)}
    rnn.add(rs.LSTMCell(6, **rules))
    rnn.add(rs.penalized(lift(PF.affine, 5), {"affine/W": rs.l2(0.05)}))
    rnn.add(rs.GRUCell(4, recurrent_regularizer=rs.l2(0.07)))
    return rnn, lambda: places(rnn)


class Chain:
    """Two layers; the second starts from the states of the first."""

    def __init__(self) -> None:
        self.layers = [with_cells(rs.LSTMCell(6), return_sequences=True, return_states=True) for _ in range(2)]

    def __call__(self, x: nn.Variable, **_: Any) -> list:
        y, *states = self.layers[0](x)
        return self.layers[1](y, initial_state=states)


class BothWays:
    """Forwards and backwards, flipped back, summed."""

    def __init__(self) -> None:
        self.layers = [with_cells(rs.LSTMCell(6), return_sequences=True, go_backwards=back) for back in (False, True)]

    def __call__(self, x: nn.Variable, **_: Any) -> nn.Variable:
        return self.layers[0](x) + F.flip(self.layers[1](x), axes=[1])


def both(make: Callable) -> Callable:
    def builder(**options: Any) -> tuple[Any, Callable]:
        made = make()
        return made, lambda: [place for layer in made.layers for place in places(layer)]

    return builder


# Whole networks that a case describes in words.
NETWORKS: dict[str, Callable] = {
    "inner=RS[LSTM(6),Dense(5),GRU(4)]; outer=RS[inner.get_cell(), SimpleRNN(6)]": nested_once,
    "a=RS[LSTM(6),Dense(5),GRU(4)]; b=RS[a.cell, SimpleRNN(5)]; outer=RS[b.cell, SimpleRNN(6)]": nested_twice,
    "inner=RS[GRU(4)]; outer=RS[inner.get_cell(), inner.get_cell()] -> both share the inner weights, separate states": (
        nested_shared
    ),
    "RS[ README-LSTM+GRU RecurrentModel.get_cell(), SimpleRNN(5)]": nested_model,
    "RS[RNNCellFromModel(Model([x,h],[o,o])), GRU(5)], o=tanh(Dense(6)(x)+Dense(6,nobias)(h))": nested_from_model,
    "README-LSTM+GRU RecurrentModel.get_cell().get_layer()": nested_layer,
    "RS[LSTM(6, kernel l2 .01, recurrent l1 .02, bias l2 .03), Dense(5, l2 .05), "
    "GRU(4, recurrent l2 .07 (both recurrent kernels))]": regularized,
    "y,h,c=RS[LSTM(6)](x); z,h2,c2=RS[LSTM(6)](y, initial_state=[h,c])": both(Chain),
    "Bidirectional(RS[LSTM(6)] return_sequences, merge_mode=sum)": both(BothWays),
}


def build(config: dict, wire: Callable, unroll: bool) -> tuple[Any, Callable]:
    """The layer of a case, and a function that lists its weights in Keras' order after a call."""
    options = {**options_of(config), "unroll": unroll}
    if config["kind"] == "seq2seq":
        model = getattr(seq2seq, config["function"])(**{**config["args"], "unroll": unroll})
        return model, lambda: places(model)
    if config.get("graph") in STEPS:
        step_shape = config["input_shape"] if options.get("decode") else config["input_shape"][1:]
        return wire(config["graph"], tuple(step_shape), **options)
    if config.get("graph") in NETWORKS:
        return NETWORKS[config["graph"]](**options)
    if config["kind"] == "get_layer":
        # One case does not say how many units there are; the last kernel is the recurrent one.
        arguments = config.get("cell_args") or {"units": config["weights"][-1]["shape"][0]}
        rnn = getattr(MODULES[config["module"]], config["cell"])(**arguments).get_layer(**options)
    else:
        rnn = sequential(config["cells"], **options)
    return rnn, lambda: places(rnn)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    largest = np.abs(b).max()
    if 0 < largest < 1e-12:  # zero, but for the recorded float64's rounding: a bias that shifts all scores of a softmax alike
        largest = 1.0
    return float(np.abs(a - b).max() / max(largest, 1e-30))


@pytest.mark.skipif(not CASES, reason=f"no recorded cases in {FOLDER} (NNSHOP_REFERENCE)")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    check(path, as_function)


@pytest.mark.skipif(not CASES, reason=f"no recorded cases in {FOLDER} (NNSHOP_REFERENCE)")
@pytest.mark.parametrize("path", [p for p in CASES if "RecurrentModel" in load_config(p)["kind"]], ids=lambda path: path.stem)
def test_case_wired_as_a_graph(path: Path) -> None:
    check(path, as_graph)


class Case:
    """A recorded case, built and loaded, to be compared."""

    def __init__(self, path: Path, wire: Callable, unroll: bool) -> None:
        self.unroll = unroll
        with np.load(path) as file:
            self.arrays = dict(file)
        self.config = json.loads(str(self.arrays["config"]))
        if self.config["recorded_bug"]:
            pytest.skip(f"holds a bug of the original: {self.config['recorded_bug']}")
        self.inputs = {}
        for i, name in enumerate(self.config["inputs"]):
            self.inputs[name] = nn.Variable.from_numpy_array(self.arrays[f"input_{i}"]).apply(need_grad=True)
        self._call_cell() if self.config["kind"] == "cell" else self._call_layer(wire)
        assert len(self.outputs) == len(self.config["outputs"])
        assert len(self.order) == len(self.config["weights"])
        self.parameters = nn.get_parameters()
        for i, place in enumerate(self.order):
            place.fill(self.parameters[place.name], self.arrays[f"weight_{i}"])

    def _call_cell(self) -> None:
        cell = getattr(MODULES[self.config["module"]], self.config["cell"])(**self.config["args"])
        x, *states = self.inputs.values()
        y, after = cell(x, tuple(states))
        self.outputs, self.order = [y, *after], list(places_of(cell, ""))

    def _call_layer(self, wire: Callable) -> None:
        self.rnn, order = build(self.config, wire, self.unroll)
        states = [v for name, v in self.inputs.items() if name.startswith("initial_state")]
        mask = self.config.get("mask")
        given = {
            "initial_state": states or None,
            "initial_readout": self.inputs.get("initial_readout"),
            "ground_truth": self.inputs.get("ground_truth"),
            "mask": None if mask is None else nn.Variable.from_numpy_array(np.array(mask)),
        }
        options = {name: value for name, value in given.items() if value is not None}
        made = self.rnn(self.inputs["x"], **options, training=bool(self.config["learning_phase"]))
        self.outputs, self.order = made if isinstance(made, list) else [made], order()

    def check_outputs(self, prefix: str) -> None:
        nn.forward_all(self.outputs)
        for i, v in enumerate(self.outputs):
            assert relative(v.d, self.arrays[f"{prefix}{i}"]) < 1e-5, self.config["outputs"][i]

    def check_gradients(self) -> None:
        weighted = [F.sum(v * nn.Variable.from_numpy_array(self.arrays[f"R_{i}"])) for i, v in enumerate(self.outputs)]
        loss = sum(weighted[1:], weighted[0])
        for v in (*self.parameters.values(), *self.inputs.values()):
            v.g = 0
        loss.forward()
        loss.backward()
        for i, (name, v) in enumerate(self.inputs.items()):
            if f"grad_input_{i}" in self.arrays:
                assert relative(v.g, self.arrays[f"grad_input_{i}"]) < 1e-5, name
        for i, place in enumerate(self.order):
            if f"grad_weight_{i}" in self.arrays:
                got = self.parameters[place.name].g[..., place.columns()]
                assert relative(got, self.arrays[f"grad_weight_{i}"]) < 1e-5, place

    def check_next_batch(self) -> None:
        """stateful: the next batch goes on from the final states of this one."""
        self.rnn.carry()
        self.inputs["x"].d = self.arrays["x_call2"]
        self.check_outputs("intended_call2_out_")

    def check_training(self) -> None:
        """Some updates by gradient descent give the recorded losses and weights."""
        y, target = self.outputs[0], nn.Variable.from_numpy_array(self.arrays["train_target"])
        loss, solver = F.mean((y - target) ** 2), S.Sgd(self.config["lr"])
        solver.set_parameters(self.parameters)
        for recorded in self.arrays["train_losses"]:
            solver.zero_grad()
            loss.forward()
            assert float(loss.d) == pytest.approx(float(recorded), rel=1e-5)
            loss.backward()
            solver.update()
        for i, place in enumerate(self.order):
            got = self.parameters[place.name].d[..., place.columns()]
            assert relative(got, self.arrays[f"trained_weight_{i}"]) < 1e-5, place

    def check_penalties(self) -> None:
        penalties = list(rs.regularization_losses(self.rnn).values())
        nn.forward_all(penalties)
        got, recorded = sorted(float(v.d) for v in penalties), [float(v) for v in self.arrays["losses"]]
        assert sum(got) == pytest.approx(sum(recorded), rel=1e-5)
        assert len(got) == len(recorded) - 1  # the two recurrent kernels of a GRU are one weight here


def check(path: Path, wire: Callable) -> None:
    """Both with unroll=True and False: the recorded values are the same."""
    for unroll in (True, False):
        nn.clear_parameters()
        check_once(Case(path, wire, unroll))


def check_once(case: Case) -> None:
    case.check_outputs("output_")
    case.check_gradients()
    for key, follow in (
        ("x_call2", case.check_next_batch),
        ("train_losses", case.check_training),
        ("losses", case.check_penalties),
    ):
        if key in case.arrays:
            follow()
