"""The language model's script, at a tiny size, as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from example_loader import load_example

import nnshop
from nnshop.data import Streams, bigram_perplexity, load_corpus, unigram_perplexity
from nnshop.training import load_checkpoint

SCRIPT = Path(__file__).parents[1] / "examples" / "language_model.py"
TINY = "--units 8 --layers 2 --batch-size 4 --num-steps 5 --epochs 2 --context cpu".split()


@pytest.fixture(scope="module")
def example() -> Any:
    return load_example("language_model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language of four kinds of sentences, in 200 lines."""
    rng = np.random.RandomState(0)
    sentences = ["the cat sat on the mat.", "the dog ran to the cat!", "a bird sang in the tree.", "who saw the bird?"]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(sentences[i] for i in rng.randint(4, size=200)), encoding="utf-8")
    return path


def run(example: Any, *arguments: Any) -> int:
    return example.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(example: Any, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training."""
    folder = tmp_path_factory.mktemp("trained")
    learns = "--solver adam --learning-rate 0.03 --epochs 8 --dropout 0.1".split()
    assert run(example, "train", "--data", text, *TINY, *learns, "--output", folder) == 0
    return folder


def test_training_learns_and_leaves_all_that_it_promises(trained: Path, text: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    corpus = load_corpus(text)
    assert results["unigram"]["test"] == pytest.approx(unigram_perplexity(corpus))
    assert results["interpolated bigram"]["test"] == pytest.approx(bigram_perplexity(corpus))
    assert results["2 x 8 lstm"]["test"] < results["unigram"]["test"] / 2
    assert (trained / "curves.png").read_bytes()[:4] == b"\x89PNG"
    series = (trained / "Validation-perplexity.series.txt").read_text().splitlines()
    assert len(series) == 8
    assert min(float(line.split()[1]) for line in series) == pytest.approx(results["2 x 8 lstm"]["valid"], rel=1e-4)
    assert len(list(trained.glob("checkpoint-*.npz"))) == 2
    assert not list(trained.glob(".*"))


def test_evaluate_prints_the_same_table(example: Any, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(example, "evaluate", "--output", trained) == 0
    table = json.loads((trained / "results.json").read_text())
    printed = capsys.readouterr().out
    for row in table.values():
        assert f"{row['valid']:>8.2f}{row['test']:>8.2f}" in printed


def test_perplexity_does_not_depend_on_how_a_text_is_cut(example: Any, trained: Path, text: Path) -> None:
    settings, vocabulary, _ = example.load_model(trained)
    ids = load_corpus(text).test
    one, other = (example.perplexity(settings, len(vocabulary), ids, 1, steps) for steps in (7, len(ids) - 1))
    assert one == pytest.approx(other, rel=1e-5)


def test_perplexity_against_numpy(example: Any, trained: Path, text: Path) -> None:
    settings, vocabulary, _ = example.load_model(trained)
    ids = load_corpus(text).test
    model = example.evaluation_model(settings, len(vocabulary), 1, len(ids) - 1)
    ((model.words.d, targets),) = Streams(ids, 1, len(ids) - 1)
    model.logits.forward()
    logits = model.logits.d[0].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = np.exp(-log_p[np.arange(len(log_p)), targets[0]].mean())
    assert model.perplexity(Streams(ids, 1, len(ids) - 1)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [["--cell", "gru", "--tied"], ["--cell", "simple", "--solver", "adam", "--max-steps", 30]])
def test_other_models(example: Any, text: Path, tmp_path: Path, options: list) -> None:
    assert run(example, "train", "--data", text, *TINY, *options, "--output", tmp_path) == 0
    names = set(np.load(next(tmp_path.glob("checkpoint-*.npz"))).files)
    assert ("parameter:output/affine/W" in names) == ("--tied" not in options)
    assert run(example, "generate", "--output", tmp_path, "--words", 5) == 0


def test_resume_after_ctrl_c_gives_the_numbers_of_an_uninterrupted_run(example: Any, text: Path, tmp_path: Path) -> None:
    options = ["--data", str(text), *TINY, "--dropout", "0.3", "--epochs", "3", "--units", "64", "--batch-size", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(example, "train", *options, "--output", whole) == 0

    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "train", *options, "--output", str(parts)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while process.poll() is None and not list(parts.glob("checkpoint-*.npz")):  # until the end of the first epoch
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    stopped = int(re.search(r"stopped at step (\d+)", printed)[1])  # type: ignore[index]
    last = load_checkpoint(sorted(whole.glob("checkpoint-*.npz"))[-1])
    assert 0 < stopped < last.progress["step"]

    assert run(example, "train", *options, "--output", parts, "--resume") == 0
    again = load_checkpoint(sorted(parts.glob("checkpoint-*.npz"))[-1])
    assert again.progress["history"] == last.progress["history"]
    for name, value in last.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], value)
    assert (parts / "results.json").read_text() == (whole / "results.json").read_text()
    for name in ("Training", "Validation"):
        series = f"{name}-perplexity.series.txt"
        assert (parts / series).read_text() == (whole / series).read_text()


def test_generation_is_sampled_from_the_softmax(example: Any) -> None:
    rng = np.random.RandomState(0)
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4]], np.float32))
    drawn = [int(example.sample(logits, 1.0, rng, forbidden=3)[0]) for _ in range(6000)]
    # Three standard errors of a share of 1/2 are 0.02.
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 6000, [1 / 6, 1 / 3, 1 / 2, 0], atol=0.02)
    assert {int(example.sample(logits, 1e-3, rng, forbidden=3)[0]) for _ in range(50)} == {2}


def test_generate_goes_on_from_the_prompt(example: Any, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["generate", "--output", trained, "--prompt", "The cat", "--words", 6]
    assert run(example, *options) == 0
    first = capsys.readouterr().out
    assert len(first.splitlines()) == 3
    assert all(line.startswith("the cat") for line in first.splitlines())
    assert run(example, *options) == 0
    assert capsys.readouterr().out == first  # the seed
    assert run(example, *options, "--seed", 2) == 0
    assert capsys.readouterr().out != first


def test_cold_generation_takes_the_best_word_that_one_long_graph_finds(example: Any, trained: Path) -> None:
    settings, vocabulary, _ = example.load_model(trained)
    steps = example.evaluation_model(settings, len(vocabulary), 1, 1)
    words, rng = [*vocabulary.encode(["<eos>", "the"])], np.random.RandomState(0)
    for t in range(10):
        steps.words.d = words[t]
        steps.logits.forward()
        steps.state.carry()
        if t > 0:
            words += [int(example.sample(steps.logits.d[:, 0], 1e-4, rng, forbidden=vocabulary.ids["<unk>"])[0])]
    text = example.generate_texts(settings, vocabulary, ["<eos>", "the"], 1, 9, 1e-4, 0)
    assert text == [example.to_text(vocabulary.decode(words))]
    whole = example.evaluation_model(settings, len(vocabulary), 1, 10)
    whole.words.d = np.array(words[:10])
    whole.logits.forward()
    logits = whole.logits.d[0].copy()
    logits[:, vocabulary.ids["<unk>"]] = -np.inf
    assert logits[1:].argmax(axis=1).tolist() == words[2:]


def error_of(example: Any, capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert run(example, *arguments) == 1
    return capsys.readouterr().err


def test_bad_input_is_named(
    example: Any, trained: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: Any) -> str:
        return error_of(example, capsys, *arguments)

    assert "'catt' is not among the" in error("generate", "--output", trained, "--prompt", "the catt")
    assert "--temperature must be above 0" in error("generate", "--output", trained, "--temperature", 0)
    assert "holds no trained model" in error("generate", "--output", tmp_path / "none")
    assert "no such file" in error("train", "--data", tmp_path / "none.txt", "--output", tmp_path / "a")
    assert "fewer than one batch" in error("train", "--data", text, "--num-steps", 5000, "--output", tmp_path / "a")
    assert "--units must be positive; got 0" in error("train", "--data", text, "--units", 0, "--output", tmp_path / "a")
    assert "--dropout is the share" in error("train", "--data", text, "--dropout", 1.0, "--output", tmp_path / "a")
    assert "cannot be written: Not a directory" in error("train", "--data", text, "--output", text / "sub")
    assert "context must be one of" in error("evaluate", "--output", trained, "-c", "gpu")
    assert "device_id must be a whole number" in error("evaluate", "--output", trained, "-c", "cpu", "-d", "x")
    assert "--max-steps and --seed must be at least 0" in error(
        "train", "--data", text, "--seed", -1, "--output", tmp_path / "a"
    )
    assert "--seed at least 0" in error("generate", "--output", trained, "--seed", -1)
    assert "--cell is one of" in error("train", "--data", text, "--cell", "foo", "--output", tmp_path / "a")


def test_a_training_is_not_overwritten_or_mixed(
    example: Any, trained: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in trained.iterdir()}
    options = ["train", "--output", trained]
    assert "holds a training; --resume" in error_of(example, capsys, *options, "--data", text)
    assert "was trained with {'units': 8}, not {'units': 9}" in error_of(
        example, capsys, *options, "--data", text, "--resume", "--units", 9
    )
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("bird", "fish"))
    assert "was trained on another text" in error_of(example, capsys, *options, "--data", other, "--resume")
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


def test_a_truncated_model_or_checkpoint(example: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["train", "--data", text, *TINY, "--output", tmp_path]
    assert run(example, *options) == 0
    newest = sorted(tmp_path.glob("checkpoint-*.npz"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    assert run(example, *options, "--resume") == 0
    printed = capsys.readouterr().out
    assert f"passed over: {newest}: is not a whole checkpoint" in printed
    assert "goes on from" in printed
    (tmp_path / "best.npz").write_bytes((tmp_path / "best.npz").read_bytes()[:500])
    assert "holds no trained model that can be read" in error_of(example, capsys, "evaluate", "--output", tmp_path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    example: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["train", "--data", text, *TINY, "--output", tmp_path]
    assert run(example, *options, "--epochs", 1) == 0
    steps = load_checkpoint(next(tmp_path.glob("checkpoint-*.npz"))).progress["step"]
    good = {path.name: path.read_bytes() for path in tmp_path.glob("*") if path.suffix in (".npz", ".h5")}
    monkeypatch.setattr(example, "clip_grad_by_global_norm", lambda solver, norm: float("nan"))
    message = error_of(example, capsys, *options, "--epochs", 2, "--resume")
    assert f"step {steps + 1}: the loss is" in message
    assert f"checkpoint-{steps:08d}.npz holds the last good state" in message
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*") if path.suffix in (".npz", ".h5")} == good


def test_half_precision_trains_alike_and_leaves_overflows_out(
    example: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = []
    for kind in ("float", "half"):
        # Two streams: the loss is divided by 2 only, and the gradient of the commonest word overflows at the first scale.
        options = [*TINY, *"--batch-size 2 --num-steps 20 --epochs 6 --solver adam --learning-rate 0.03".split(), "-t", kind]
        assert run(example, "train", "--data", text, *options, "--output", tmp_path / kind) == 0
        checkpoint = load_checkpoint(sorted((tmp_path / kind).glob("checkpoint-*.npz"))[-1])
        curves.append(np.array(checkpoint.progress["history"]["train"])[:, 1])
    value, _, skipped, _ = checkpoint.progress["loss_scale"]
    assert 0 < skipped < 5
    assert value == 2.0 ** (15 - skipped)
    steps = checkpoint.progress["step"]
    assert f"{skipped} of {steps} steps were left out: their gradients were beyond 16 bits" in capsys.readouterr().out
    assert all(value.dtype == np.float32 for value in checkpoint.parameters.values())
    np.testing.assert_allclose(curves[0][:2], curves[1][:2], rtol=0.1)  # the steps left out count
    assert all(curve[-1] < 0.3 * curve[0] for curve in curves)


def test_presets_are_those_of_the_literature(example: Any) -> None:
    small, medium, large = (example.PRESETS[name] for name in ("small", "medium", "large"))
    assert (small.units, small.num_steps, small.epochs, small.full_rate_epochs, small.decay) == (200, 20, 13, 4, 0.5)
    assert (medium.units, medium.num_steps, medium.dropout, medium.epochs, medium.decay) == (650, 35, 0.5, 39, 0.8)
    assert (large.units, large.dropout, large.epochs, large.max_norm) == (1500, 0.65, 55, 10)
    for settings in (small, medium, large):
        assert (settings.cell, settings.layers, settings.batch_size, settings.solver) == ("lstm", 2, 20, "sgd")


def test_learning_rates_of_the_small_preset(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    training = object.__new__(example.Training)
    training.settings, training.streams = example.PRESETS["small"], range(100)
    rates = []
    for training.step in range(0, 1300, 100):
        rates.append(training.learning_rate())
    assert rates == [1.0] * 4 + [0.5**k for k in range(1, 10)]
    assert nnshop.__version__


def test_a_training_goes_on_where_its_text_moved_but_not_where_it_changed(
    example: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "text.txt"
    source.write_text(text.read_text())
    options = ["train", *TINY, "--output", tmp_path / "run", "--resume"]
    assert run(example, *options, "--data", source, "--epochs", 1) == 0
    moved = source.rename(tmp_path / "moved.txt")
    assert run(example, *options, "--data", moved, "--epochs", 2) == 0
    before = (tmp_path / "run" / "vocabulary.json").read_text()
    for old, new in (("cat", "cau"), ("who saw the bird?\n", "")):
        moved.write_text(text.read_text().replace(old, new))
        assert "was trained on another text" in error_of(example, capsys, *options, "--data", moved, "--epochs", 3)
    assert (tmp_path / "run" / "vocabulary.json").read_text() == before


def test_the_learning_rate_may_change_on_resume(example: Any, text: Path, tmp_path: Path) -> None:
    options = ["train", "--data", text, *TINY, "--output", tmp_path, "--resume"]
    assert run(example, *options, "--epochs", 1) == 0
    assert run(example, *options, "--epochs", 2, "--learning-rate", 0.25, "--max-norm", 2) == 0
    progress = load_checkpoint(sorted(tmp_path.glob("checkpoint-*.npz"))[-1]).progress
    assert (progress["settings"]["learning_rate"], progress["settings"]["max_norm"]) == (0.25, 2.0)


def test_a_failed_best_or_a_missing_library_is_named(
    example: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    options = ["train", "--data", text, *TINY, "--output", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(example, "save_parameters", full)
        assert "best.npz could not be saved: No space left on device; nothing was saved" in error_of(example, capsys, *options)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pictures need matplotlib" in error_of(example, capsys, *options)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_clock_may_stand_still(example: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = SimpleNamespace(time=lambda: 1.0, perf_counter=lambda: 1.0)
    monkeypatch.setattr(example, "time", frozen)
    assert run(example, "train", "--data", text, *TINY, "--epochs", 1, "--output", tmp_path) == 0


def test_a_second_training_in_a_folder_is_told_of_the_first(
    example: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import sys; from pathlib import Path; from nnshop.training import Checkpoints;"
        "checkpoints = Checkpoints(Path(sys.argv[1])); checkpoints.lock(); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    options = ["train", "--data", text, *TINY, "--epochs", 1, "--output", tmp_path, "--resume"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        said = error_of(example, capsys, *options)
        assert f"language_model.py: {tmp_path}: process {first.pid} on " in said
        assert not list(tmp_path.glob("*.json"))
        first.kill()
    assert run(example, *options) == 0


@pytest.mark.parametrize("name", ["settings.json", "vocabulary.json", "best.npz"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_text("[" * 100_000)], ids=["FIFO", "deep"])
def test_a_model_whose_files_are_none_is_named(
    example: Any, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, make: Any
) -> None:
    folder = shutil.copytree(trained, tmp_path / "model")
    (folder / name).unlink()
    make(folder / name)
    assert f"{folder / name}: " in error_of(example, capsys, "generate", "--output", folder)


@pytest.mark.parametrize("changed", [{"units": 1_000_000}, {"layers": 3}, {"layers": 1}, {"tied": True}, {"cell": "gru"}])
def test_settings_that_do_not_fit_the_weights_are_named(
    example: Any, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict
) -> None:
    folder = shutil.copytree(trained, tmp_path / "model")
    saved = json.loads((folder / "settings.json").read_text())
    saved["settings"].update(changed)
    (folder / "settings.json").write_text(json.dumps(saved))
    assert "holds no trained model that can be read: " in error_of(example, capsys, "generate", "--output", folder)
