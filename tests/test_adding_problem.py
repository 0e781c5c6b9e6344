"""The example of the adding problem draws what it says, learns where it should, and refuses bad settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest
from example_loader import EXAMPLES, load_example
from matplotlib.image import imread

adding = load_example("adding_problem")

TINY = {"units": 4, "batch_size": 3, "test_size": 5, "test_every": 2}


@pytest.mark.parametrize("length", [2, 3, 8, 101])
def test_each_half_has_one_marker_and_the_target_is_the_marked_sum(length):
    x, target = adding.make_batch(np.random.RandomState(0), 200, length)
    assert x.shape == (200, length, 2)
    assert target.shape == (200, 1)
    numbers, markers = x[..., 0], x[..., 1]
    assert numbers.min() >= 0
    assert numbers.max() <= 1
    assert set(np.unique(markers)) <= {0, 1}
    np.testing.assert_array_equal(markers[:, : length // 2].sum(axis=1), 1)
    np.testing.assert_array_equal(markers[:, length // 2 :].sum(axis=1), 1)
    np.testing.assert_allclose(target[:, 0], (numbers * markers).sum(axis=1), rtol=1e-6)


def test_markers_are_at_all_steps():
    x, _ = adding.make_batch(np.random.RandomState(0), 4000, 10)
    np.testing.assert_allclose(x[..., 1].mean(axis=0), 0.2, atol=0.03)


def test_always_1_has_the_error_of_the_baseline():
    _, target = adding.make_batch(np.random.RandomState(0), 100_000, 4)
    assert ((target - 1) ** 2).mean() == pytest.approx(adding.BASELINE, rel=0.02)


def test_a_seed_gives_the_same_batches():
    first, second = (adding.make_batch(np.random.RandomState(5), 4, 6) for _ in range(2))
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", adding.DEFAULT_CELLS)
def test_at_a_short_length_it_learns(name):
    result = adding.train(name, adding.Settings(length=8, steps=300, units=16, test_size=200))
    assert result.errors[-1] < 0.25 * adding.BASELINE


def test_training_again_gives_the_same():
    settings = adding.Settings(length=5, steps=4, **TINY)
    first, second = (adding.train("custom", settings) for _ in range(2))
    assert first.updates == second.updates == [0, 2, 4]
    assert first.errors == second.errors
    assert first.errors[0] != first.errors[-1]
    assert first.solved_at is None


def test_the_last_update_is_tested_too():
    assert adding.train("rhn", adding.Settings(length=3, steps=3, **TINY)).updates == [0, 2, 3]


def test_solved_at_is_the_first_time_below_the_limit():
    assert adding.Result([0, 50, 100, 150], [0.2, 0.009, 0.02, 0.001], 1.0).solved_at == 50


def test_the_custom_cell_keeps_its_state_where_its_gate_is_closed():
    cell = adding.HighwayCell(3, bias_initializer=lambda shape: np.repeat([0, -100], 3))
    h = nn.Variable.from_numpy_array([[0.3, -2, 5]])
    y, (after,) = cell(nn.Variable.from_numpy_array(np.ones((1, 2))), (h,))
    y.forward()
    np.testing.assert_allclose(after.d, h.d, rtol=1e-6)


def test_the_custom_cell_is_its_equation():
    cell = adding.HighwayCell(3, bias_initializer=adding.remember((0, -1), 20))
    random = np.random.RandomState(0)
    x, h = random.randn(4, 2), random.randn(4, 3)
    y, _ = cell(nn.Variable.from_numpy_array(x), (nn.Variable.from_numpy_array(h),))
    y.forward()
    weights = {name.split("/")[-1]: value.d for name, value in nn.get_parameters().items()}
    z = np.concatenate([x, h], axis=1) @ weights["W"] + weights["b"]
    t = 1 / (1 + np.exp(-z[:, 3:]))
    np.testing.assert_allclose(y.d, t * np.tanh(z[:, :3]) + (1 - t) * h, rtol=1e-4, atol=1e-6)


def test_the_biases_remember_for_one_to_all_steps():
    i, f, g, o = adding.remember((-1, 1, 0, 0), 100)((400,)).reshape(4, 100)
    np.testing.assert_array_equal(i, -f)
    np.testing.assert_array_equal([g, o], 0)
    assert 0 <= f.min() < np.log(10)
    assert np.log(50) < f.max() <= np.log(99)


def test_it_prints_the_table_and_leaves_the_picture(tmp_path, capsys):
    output = tmp_path / "deep" / "adding"
    adding.main(["--length", "2", "--steps", "2", "--cells", ",".join(adding.CELLS), "--output", str(output)])
    table = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert table == ["cell", *adding.CELLS, "always", "Picture:"]
    assert [path.name for path in output.iterdir()] == ["adding_problem.png"]
    pixels = imread(output / "adding_problem.png")
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 0.05


def test_the_table_tells_when_each_cell_solved_it(capsys):
    adding.print_table({"a": adding.Result([0, 50], [1.0, 0.005], 2.4), "b": adding.Result([0, 50], [1.0, 0.5], 1.0)})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [["a", "0.0050", "50", "updates", "2"], ["b", "0.5000", "never", "1"], ["always", "1", "0.1667"]]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--length", "1", "--length must be at least 2, one step for each marker; got 1."),
        ("--steps", "0", "--steps must be at least 1; got 0. The table needs 1000."),
        (
            "--cells",
            "lstm,gro",
            "--cells must be some of lstm, rhn, custom, lstm_plain, rhn_relu, with commas between; got 'gro'.",
        ),
        ("--cells", "", "with commas between; got ''."),
    ],
)
def test_bad_settings_are_refused(tmp_path, capsys, option, value, message):
    with pytest.raises(SystemExit):
        adding.main(["--output", str(tmp_path / "new"), option, value])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("below", ["", "below"])
def test_an_output_that_cannot_be_written_is_found_before_training(tmp_path, monkeypatch, below):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(adding, "train", lambda *_: pytest.fail("training started"))
    with pytest.raises(SystemExit, match=r"file.*: the output folder cannot be written: .*\. Choose another"):
        adding.main(["--output", str(tmp_path / "file" / below)])


def test_the_script_fails_with_1_and_no_traceback(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    command = [sys.executable, EXAMPLES / "adding_problem.py", "--output", tmp_path / "file"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "the output folder cannot be written" in result.stderr
    assert "Traceback" not in result.stderr
