"""Layers as JSON data and back, here and in a new process."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.initializer as I
import nnabla.parametric_functions as PF
import numpy as np
import pytest

import nnshop
from nnshop import lift
from nnshop.recurrentshop import (
    GRUCell,
    LSTMCell,
    MaxNorm,
    RecurrentModel,
    RecurrentSequential,
    RHNCell,
    RNNCell,
    SimpleRNNCell,
    basic_cells,
    from_config,
    l2,
    penalized,
)
from nnshop.recurrentshop.config import decode


def built(*cells: Any, **options: Any) -> RecurrentSequential:
    rnn = RecurrentSequential(**options)
    for cell in cells:
        rnn.add(cell)
    return rnn


def nested() -> RecurrentSequential:
    inner = built(LSTMCell(3), lift(PF.affine, 3), readout="mul", readout_activation="sigmoid")
    return built(inner.get_cell(), F.tanh, inner.get_cell(), GRUCell(3), readout="add", return_sequences=True)


LAYERS = {
    "stack": lambda: built(LSTMCell(4), lift(PF.affine, 5), GRUCell(3), SimpleRNNCell(2), return_states=True),
    "settings": lambda: built(
        LSTMCell(4, activation="relu", kernel_initializer=I.UniformInitializer((-0.1, 0.1)), kernel_regularizer=l2(0.1)),
        GRUCell(3, recurrent_initializer=I.OrthogonalInitializer(0.5), bias_constraint=MaxNorm(1.0), use_bias=True),
        state_initializer=["ones", None, I.ConstantInitializer(0.5)],
    ),
    "sync": lambda: built(LSTMCell(3), LSTMCell(3), state_sync=True, unroll=True, return_states=True),
    "readout": lambda: built(RHNCell(3, recurrence_depth=2), readout="avg", readout_activation="tanh", go_backwards=True),
    "dropout": lambda: built(SimpleRNNCell(3), lift(F.dropout, 0.3), penalized(lift(PF.affine, 2), {"affine/W": l2(0.1)})),
    "basic": lambda: built(basic_cells.LSTMCell(3), basic_cells.GRUCell(4)),
    "textbook": lambda: built(nnshop.LSTMCell(4, forget_bias=1.0), nnshop.residual(nnshop.GRUCell(4, name="top"))),
    "nested": nested,
    "get_layer": lambda: LSTMCell(4).get_layer(return_sequences=True, return_states=True),
}


def call(rnn: Any) -> list[np.ndarray]:
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 5, 3))
    made = rnn(x, training=False)
    made = made if isinstance(made, list) else [made]
    nn.forward_all(made)
    return [v.d.copy() for v in made]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_comes_back_with_its_weights(kind: str) -> None:
    rnn = LAYERS[kind]()
    values = call(rnn)
    names = list(nn.get_parameters())
    text = json.dumps(rnn.get_config())
    back = from_config(json.loads(text))
    assert json.dumps(back.get_config()) == text
    for a, b in zip(values, call(back)):
        np.testing.assert_array_equal(a, b)
    assert list(nn.get_parameters()) == names


def test_in_a_new_process_with_saved_parameters_outputs_are_bit_equal(tmp_path: Path) -> None:
    rnn = nested()
    (values,) = call(rnn)
    nn.save_parameters(str(tmp_path / "weights.h5"))
    (tmp_path / "config.json").write_text(json.dumps(rnn.get_config()))
    script = (
        "import json, sys; import numpy as np; import nnabla as nn; from nnshop import no_new_parameters;"
        "from nnshop.recurrentshop import from_config;"
        "nn.load_parameters('weights.h5'); rnn = from_config(json.load(open('config.json')));"
        "x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 5, 3));\n"
        "with no_new_parameters(): y = rnn(x, training=False)\n"
        "y.forward(); np.save('y.npy', y.d)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), values)


def test_custom_objects_are_named_by_the_caller() -> None:
    def double(x: nn.Variable) -> nn.Variable:
        return 2 * x

    rnn = built(SimpleRNNCell(3), double)
    values = call(rnn)
    with pytest.raises(ValueError, match=r"double.* cannot be described as data.*custom_objects"):
        rnn.get_config()
    config = rnn.get_config(custom_objects={"double": double})
    with pytest.raises(ValueError, match="a config names 'double', which is neither"):
        from_config(config)
    np.testing.assert_array_equal(call(from_config(config, custom_objects={"double": double}))[0], values[0])


def test_what_cannot_be_described_says_so() -> None:
    x, h = nn.Variable((1, 3)), nn.Variable((1, 2))
    after = F.tanh(PF.affine(x, 2, name="a") + h)
    for rnn in (
        built(SimpleRNNCell(3), lambda x: x),
        built(SimpleRNNCell(3, kernel_initializer=np.ones((3, 3)))),
        RecurrentModel(x, after, [h], [after]),
        RecurrentModel(lambda x, h: (h, h), initial_states=[(3,)]),
    ):
        with pytest.raises(ValueError, match="cannot be described as data"):
            rnn.get_config()


@pytest.mark.parametrize(
    "config",
    [
        {"name": "os.system"},
        {"name": "nnabla.functions.tanh"},
        {"name": "F.__class__"},
        {"make": "eval", "arguments": {}},
        {"make": "LSTMCell", "arguments": {"foo": 1}},
        {"make": "LSTMCell", "arguments": None},
        {"layer": "object", "arguments": {}},
        {"layer": "RecurrentSequential", "arguments": {}},
        {"cell_of": {"name": "F.tanh"}},
        {"name": ["F.tanh"]},
        {"a": 1},
        {"name": "F.tanh"},
        7,
    ],
)
def test_a_config_that_is_none_is_refused(config: Any) -> None:
    with pytest.raises(ValueError, match=r"config"):
        from_config(config)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("LSTMCell", {"units": 3, "name": True}, "True cannot be the name of LSTMCell in a config"),
        ("nnshop.Residual", {"cell": {"name": "F.tanh"}}, "tanh.* cannot be the cell of Residual"),
        ("nnshop.Residual", {"cell": None}, "this is no config of this nnshop: AttributeError"),
        ("nnshop.Stack", {"cells": {"list": [True]}}, "cannot be the cells of Stack"),
        ("nnshop.Readout", {"cell": None, "shape": None, "merge": "tanh"}, "'tanh' cannot be the merge of Readout"),
        ("nnshop.GRUCell", {"units": 3, "rng": 1.5}, "1.5 cannot be the rng of GRUCell"),
        ("LSTMCell", {"units": 3, "activation": {"name": "I.NormalInitializer"}}, "NormalInitializer is what a config makes"),
        ("Seq2Seq", {"output_dim": 3, "output_length": 2, "depth": 2**31}, "2147483648 cannot be the depth of Seq2Seq"),
        ("I.UniformInitializer", {"lim": {"tuple": [0.1]}}, "cannot be the lim of UniformInitializer"),
        ("LSTMCell", functools.reduce(lambda inner, _: {"list": [inner]}, range(200), 1), "nested at most 100 levels deep"),
    ],
)
def test_a_mistake_is_found_before_the_first_step(kind: str, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode({"make": kind, "arguments": arguments})


def test_what_is_no_part_of_the_library_takes_what_it_likes() -> None:
    @dataclass
    class Own:
        name: int

    assert decode({"make": "own", "arguments": {"name": 3}}, {"own": Own}) == Own(3)


class Lost(RNNCell):
    """The original's pattern: its option would be lost."""

    def __init__(self, hidden_dim: int = 8, **options: Any) -> None:
        self.hidden_dim = hidden_dim
        super().__init__(units=2 * hidden_dim, **options)


@dataclass(frozen=True, repr=False)
class Carried(RNNCell):
    """The same, with a field."""

    hidden_dim: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", 2 * self.hidden_dim)
        super().__post_init__()

    def call(self, x: nn.Variable, *states: nn.Variable) -> tuple[nn.Variable, ...]:
        h = F.tanh(PF.affine(x, self.size) + states[0])
        return h, h


def test_an_option_of_a_cell_is_a_field_or_refused() -> None:
    with pytest.raises(TypeError, match="Lost: its __init__ takes hidden_dim, which is no field"):
        Lost(4)
    assert Carried(hidden_dim=3, name="c") != Carried(hidden_dim=4, name="c")
    rnn = built(Carried(hidden_dim=3))
    values = call(rnn)
    (back,) = call(from_config(json.loads(json.dumps(rnn.get_config({"Carried": Carried}))), {"Carried": Carried}))
    assert back.shape == (2, 6)
    np.testing.assert_array_equal(back, values[0])


class Deep(RecurrentSequential):
    """A layer whose option `arguments` does not know."""

    def __init__(self, depth: int = 2, **options: Any) -> None:
        super().__init__(**options)
        self.depth = depth
        for _ in range(depth):
            self.add(nnshop.GRUCell(3))


def test_an_option_of_a_layer_is_carried_or_refused() -> None:
    class Deeper(Deep):
        def arguments(self) -> dict[str, Any]:
            return {"depth": self.depth, "name": self.name}

        @classmethod
        def from_arguments(cls, arguments: dict[str, Any]) -> Any:
            return cls(**arguments)

    with pytest.raises(ValueError, match=r"Deep has an __init__ of its own.*Define Deep\.arguments\(\) too"):
        Deep(3).get_config({"Deep": Deep})
    back = from_config(Deeper(3).get_config({"Deeper": Deeper}), {"Deeper": Deeper})
    assert len(back.cells) == 3
