"""What NNabla does with its own functions only is refused for ours, with the way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from measuring import constant, randomize, variable
from nnabla.utils import save

import nnshop
from nnshop.functions import faster

MASK = np.array([[1, 1, 0, 0], [1, 0, 1, 1]])
GRAPHS: dict[str, Callable[[nn.Variable], nn.Variable]] = {
    "nnshop.Compiled": lambda x: nnshop.lstm(x, 5, way="compiled"),
    "nnshop.Loop": lambda x: nnshop.run(nnshop.SimpleRNNCell(5), x, way="loop")[0],
    "nnshop.Hold": lambda x: nnshop.run(nnshop.SimpleRNNCell(5), x, mask=constant(MASK))[0],
    "nnshop.LinearCrossEntropy": lambda x: nnshop.linear_cross_entropy(x, constant(np.zeros((2, 4))), 5),
    "nnshop.Affine": lambda x: faster(PF.affine(F.tile(x, (1, 1, 100)), 1000, base_axis=2)),
}
each_graph = pytest.mark.parametrize("name", GRAPHS)


@each_graph
def test_gradient_graphs(name: str) -> None:
    x = variable(2, 4, 4)
    y = GRAPHS[name](x)
    with pytest.raises(ValueError, match=rf"{name}, which is computed in Python.*portable\(\).*way='unrolled'"):
        nn.grad([F.sum(y)], [x])


@each_graph
def test_files(name: str, tmp_path: Path) -> None:
    x = variable(2, 4, 4)
    y = PF.affine(
        F.reshape(GRAPHS[name](x), (-1, 1)), 2, name="top"
    )  # for the reshape NNabla's writer asserts something, later
    network = {"name": "n", "batch_size": 2, "names": {"x": x}, "outputs": {"y": y}}
    executor = {"name": "r", "network": "n", "data": ["x"], "output": ["y"]}
    with pytest.raises(ValueError, match=rf"hold .*{name}.*portable\(\).*way='unrolled'.*save_nnp"):
        save.save(str(tmp_path / "y.nnp"), {"networks": [network], "executors": [executor]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layer", [nnshop.lstm, nnshop.gru, nnshop.simple_rnn])
def test_the_way_out_of_gradient_graphs_is_one(layer: Callable) -> None:
    """The gradient of the squares of a gradient, by the graph of gradients and by differences."""
    x = variable(2, 3, 4)
    with nnshop.portable():
        y = layer(x, 5)
    randomize()
    (gradient,) = nn.grad([F.sum(y)], [x])
    total = F.sum(gradient * gradient)

    def penalty(moved: np.ndarray) -> float:
        x.d = moved
        total.forward()
        return float(total.d)

    at, direction = x.d.copy(), np.random.RandomState(1).randn(2, 3, 4)
    difference = (penalty(at + 0.01 * direction) - penalty(at - 0.01 * direction)) / 0.02
    penalty(at)
    x.grad.zero()
    total.backward()
    np.testing.assert_allclose((x.g * direction).sum(), difference, rtol=1e-2)


def test_nnabla_s_functions_are_saved_as_before(tmp_path: Path) -> None:
    x = variable(2, 4)
    y = PF.affine(F.tanh(x), 3)
    network = {"name": "n", "batch_size": 2, "names": {"x": x}, "outputs": {"y": y}}
    executor = {"name": "r", "network": "n", "data": ["x"], "output": ["y"]}
    save.save(str(tmp_path / "y.nnp"), {"networks": [network], "executors": [executor]})
    assert (tmp_path / "y.nnp").is_file()
