"""The counting example reaches the published numbers, draws its pictures and refuses bad settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest
from example_loader import EXAMPLES, load_example
from matplotlib.image import imread

counting = load_example("counting")

PUBLISHED = {
    100: 529.6915,
    200: 504.5684,
    300: 475.302,
    400: 435.951,
    500: 362.6525,
    600: 0.2677,
    1000: 0.1300,
    2000: 0.0663,
}


@pytest.fixture(scope="module")
def problem():
    return counting.make_problem()


@pytest.fixture(scope="module")
def curves(problem):
    """Both solvers with all updates, once for this file."""
    return {name: counting.train(name, *problem) for name in counting.SOLVERS}


def test_the_problem_is_the_published_one(problem):
    sequences, start = problem
    np.random.seed(1)
    expected = [np.around(np.random.rand(10)).astype(int) for _ in range(20)]
    np.testing.assert_array_equal(sequences, expected)
    assert start.tolist() == [np.random.uniform(-0.1, 0.1), np.random.uniform(-0.1, 0.1)]
    np.testing.assert_allclose(start, [0.0900, 0.0113], atol=5e-5)


def test_making_the_problem_leaves_numpys_seed_alone():
    np.random.seed(7)
    expected = np.random.rand()
    np.random.seed(7)
    counting.make_problem()
    assert np.random.rand() == expected


# Tight enough to tell an epoch from its neighbours: epoch 101 has 529.4509, epoch 601 has 0.2333.
@pytest.mark.parametrize(("epoch", "cost"), PUBLISHED.items())
def test_gradient_descent_has_the_published_cost(curves, epoch, cost):
    costs, _ = curves["gradient descent"]
    assert costs[epoch - 1] == pytest.approx(cost, rel=1e-4, abs=6e-5)


def test_gradient_descent_ends_at_the_published_weights(curves):
    costs, weights = curves["gradient descent"]
    assert costs.shape == (2002,)
    assert weights.shape == (2002, 2)
    np.testing.assert_allclose(weights[-1], [1.0597, 0.9863], atol=1e-4)


def test_rmsprop_ends_at_weights_that_count(curves):
    costs, weights = curves["RMSProp"]
    assert max(costs[-2:]) < 0.01
    np.testing.assert_allclose(weights[-1], [1, 1], atol=1e-3)


def test_both_solvers_start_from_the_same_weights(curves, problem):
    for _, weights in curves.values():
        np.testing.assert_allclose(weights[0], problem[1], rtol=1e-6)


def test_the_closed_form_of_the_cost_agrees_with_the_graph(curves, problem):
    for costs, weights in curves.values():
        np.testing.assert_allclose(counting.cost_surface(problem[0], *weights.T), costs, rtol=2e-3, atol=1e-5)


def test_training_again_starts_anew(problem):
    first, second = (counting.train("RMSProp", *problem, updates=3) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_training_gives_the_same_in_auto_forward_mode(problem):
    expected, _ = counting.train("RMSProp", *problem, updates=3)
    with nn.auto_forward(True):
        costs, _ = counting.train("RMSProp", *problem, updates=3)
    np.testing.assert_array_equal(costs, expected)


@pytest.mark.parametrize("auto_forward", [False, True])
@pytest.mark.parametrize("name", counting.SOLVERS)
def test_scan_gives_the_same_to_the_last_digit(problem, name, auto_forward):
    with nn.auto_forward(auto_forward):
        by_cell, by_scan = (
            counting.train(name, *problem, updates=30, last_state=last_state)
            for last_state in (counting.last_by_cell, counting.last_by_scan)
        )
    np.testing.assert_array_equal(by_scan[0], by_cell[0])
    np.testing.assert_array_equal(by_scan[1], by_cell[1])
    assert by_cell[0][-1] < by_cell[0][0]


def test_the_option_for_scan_trains_by_scan_and_prints_the_same(tmp_path, monkeypatch, capsys):
    used, train = [], counting.train

    def noting(*arguments):
        used.append(arguments[-1])
        return train(*arguments)

    monkeypatch.setattr(counting, "train", noting)
    printed = []
    for option in ([], ["--scan"]):
        counting.main(["--output", str(tmp_path), "--epochs", "3", *option])
        printed.append(capsys.readouterr().out)
    assert used == [counting.last_by_cell] * 2 + [counting.last_by_scan] * 2
    assert printed[1] == printed[0]


@pytest.mark.parametrize("epochs", [1, 3])
def test_it_leaves_two_pictures(tmp_path, capsys, epochs):
    output = tmp_path / "deep" / "counting"
    counting.main(["--output", str(output), "--epochs", str(epochs)])
    assert sorted(path.name for path in output.iterdir()) == ["counting_curves.png", "counting_surface.png"]
    for path in output.iterdir():
        pixels = imread(path)  # (height, width, 4), read to its end
        assert pixels.shape[0] > 300
        assert pixels.shape[1] > 300
        assert pixels.std() > 0.05
    assert f"after {epochs} updates" in capsys.readouterr().out


def test_the_table_is_the_one_in_the_docstring_and_on_its_page(curves, capsys):
    counting.print_table(curves, counting.UPDATES)
    page = (EXAMPLES.parent / "docs" / "counting.md").read_text(encoding="utf-8")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert len(rows) == 6
    for text in (counting.__doc__, page):
        assert all(any(same_row(row, line.split()) for line in text.splitlines()) for row in rows), text


def same_row(row: list[str], other: list[str]) -> bool:
    """Compares words exactly, and costs within what another CPU's float32 may change."""

    def same(a: str, b: str) -> bool:
        return float(a) == pytest.approx(float(b), rel=1e-3, abs=2e-3) if "." in a and "." in b else a == b

    return len(row) == len(other) and all(map(same, row, other))


@pytest.mark.parametrize("epochs", ["0", "-5"])
def test_too_few_epochs_are_refused(tmp_path, capsys, epochs):
    with pytest.raises(SystemExit):
        counting.main(["--output", str(tmp_path / "new"), "--epochs", epochs])
    assert f"--epochs must be at least 1; got {epochs}" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("below", ["", "below"])
def test_an_output_that_cannot_be_written_is_found_before_training(tmp_path, monkeypatch, below):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(counting, "train", lambda *_: pytest.fail("training started"))
    with pytest.raises(SystemExit, match=r"file.*: the output folder cannot be written: .*\. Choose another"):
        counting.main(["--output", str(tmp_path / "file" / below)])


def test_the_script_runs_and_fails_with_1(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    command = [sys.executable, EXAMPLES / "counting.py", "--output", tmp_path / "file"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "the output folder cannot be written" in result.stderr
    assert "Traceback" not in result.stderr
