"""The dates example: what it learns from, what it leaves, and what it says to bad input."""

from __future__ import annotations

import datetime
import json
import random
from pathlib import Path

import numpy as np
import pytest
from babel import Locale
from example_loader import load_example

from nnshop.data import DataError

dates = load_example("dates")


def test_every_text_says_which_day_it_is() -> None:
    day = datetime.date(2021, 3, 4)
    for name in dates.LANGUAGES:
        texts = dates.ways_to_write(day, Locale.parse(name))
        assert texts
        assert all("2021" in text and "4" in text and text == dates.normalize(text) for text in texts)
    american = dates.ways_to_write(day, Locale.parse("en"))
    assert "thursday, march 4, 2021" in american
    assert not any("/" in text for text in american)  # 3/4 is 4/3 elsewhere


def test_no_text_means_two_days() -> None:
    """Else nobody could learn it."""
    rng = random.Random(0)
    languages = [Locale.parse(name) for name in dates.LANGUAGES]
    meaning: dict[str, datetime.date] = {}
    for number in range(400):
        day = datetime.date(2021, 1, 1) + datetime.timedelta(number)
        for language in rng.sample(languages, 10):
            for text in dates.ways_to_write(day, language):
                assert meaning.setdefault(text, day) == day, text


def test_the_test_has_other_days() -> None:
    learnt, held_out = dates.make_dates(300, 100, seed=1)
    assert (len(learnt), len(held_out)) == (300, 100)
    assert not {b for _, b in learnt} & {b for _, b in held_out}
    assert dates.make_dates(300, 100, seed=1) == (learnt, held_out)
    assert dates.make_dates(300, 100, seed=2) != (learnt, held_out)
    for _, iso in learnt:
        assert datetime.date.fromisoformat(iso).isoformat() == iso


def test_symbols() -> None:
    characters = dates.Symbols.of(["abba", "ac"], by_words=False, size=6)
    assert characters.symbols == ("<unknown>", "<start>", "<end>", "a", "b", "c")
    assert characters.encode("cabx") == [5, 3, 4, 0]
    assert characters.decode([5, 3]) == "ca"
    words = dates.Symbols.of(["to be, or", "to be"], by_words=True, size=5)
    assert words.encode("be to x") == [3, 4, 0]
    assert words.decode([4, 3]) == "to be"


def test_all_rows_come_once_before_any_comes_again() -> None:
    rows = [([0] * n, [n]) for n in range(12)]
    stream = dates.batches(rows, 4, random.Random(0))
    for _ in range(3):
        seen = [row[1][0] for _ in range(3) for row in next(stream)]
        assert sorted(seen) == list(range(12))


def run(*arguments: object) -> int:
    return dates.main([str(argument) for argument in arguments])


SMALL = ("--steps", 6, "--samples", 60, "--units", 8, "--batch-size", 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dates")
    dates_make = dates.make_dates
    dates.make_dates = lambda count, held_out, seed: dates_make(count, 20, seed)
    try:
        assert run("train", "--output", folder, *SMALL) == 0
    finally:
        dates.make_dates = dates_make
    return folder


def test_a_training_leaves_a_network_curves_and_attention(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {"model.npz", "symbols.json", "curves.png", "attention.png"}


def test_it_translates_what_is_typed(trained: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("translate", "--output", trained, "4. März 2021", "4 mars 2021") == 0
    first = capsys.readouterr().out
    assert [line.split("\t")[0] for line in first.splitlines()] == ["4. März 2021", "4 mars 2021"]
    monkeypatch.setattr("sys.stdin", iter(["4. März 2021\n", "\n", "4 mars 2021\n"]))
    assert run("translate", "--output", trained, "--beam", 1) == 0
    assert capsys.readouterr().out == first
    assert run("translate", "--output", trained, "--beam", 3, "4. März 2021") == 0


def test_any_parallel_text(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rng = np.random.RandomState(0)
    numbers = ["one two three four five".split()[i] for i in rng.randint(5, size=400)]
    lines = [numbers[i : i + 1 + i % 4] for i in range(300)]
    (tmp_path / "a.txt").write_text("\n".join(" ".join(line) for line in lines))
    (tmp_path / "b.txt").write_text("\n".join(" ".join(line).upper() for line in lines))
    files = ("--source", tmp_path / "a.txt", "--target", tmp_path / "b.txt", "--output", tmp_path / "run")
    assert run("train", *files, *SMALL) == 0
    told = capsys.readouterr().out
    assert "285 pairs to learn from, 15 held out" in told
    assert "BLEU" in told
    assert json.loads((tmp_path / "run/symbols.json").read_text())["by_words"]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("a\nb\n", "a\n", r"a\.txt has 2 lines, .*b\.txt 1"),
        ("a\n\nb\n", "a\nb\nc\n", r"a\.txt: line 2 is empty \(1 in all\)"),
        ("a\nb\n", "a\nb\n", "needs 20 pairs"),
        (None, "a\n", r"a\.txt: cannot be read"),
        (b"\xff\xfe", "a\n", r"a\.txt: cannot be read"),
    ],
)
def test_bad_texts_are_named(tmp_path: Path, source: str | bytes | None, target: str, message: str) -> None:
    if source is not None:
        (tmp_path / "a.txt").write_bytes(source if isinstance(source, bytes) else source.encode())
    (tmp_path / "b.txt").write_text(target)
    with pytest.raises(DataError, match=message):
        dates.read_parallel(tmp_path / "a.txt", tmp_path / "b.txt", 1)


def test_a_folder_without_a_network_is_named(tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("translate", "--output", tmp_path, "x") == 1
    assert "model.npz: there is no such encoder-decoder" in capsys.readouterr().err
    for name in ("model.npz", "symbols.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes()[:-20])
        assert run("translate", "--output", tmp_path, "x") == 1
        assert name in capsys.readouterr().err
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert run("translate", "--output", tmp_path, "x") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--steps", 0), "--steps must be at least 2; got 0"),
        (("train", "--batch-size", 1), "--batch-size must be at least 2; got 1"),
        (("train", "--vocabulary", 3), "--vocabulary must be at least 4; got 3"),
        (("train", "--seed", -1), "--seed must be at least 0; got -1"),
        (("train", "--dropout", 1.5), "--dropout must be from 0 to below 1; got 1.5"),
        (("train", "--learning-rate", "nan"), "--learning-rate must be a positive number; got nan"),
        (("translate", "--beam", 0), "--beam must be at least 1; got 0"),
    ],
)
def test_options_out_of_range(arguments: tuple, message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err


def test_a_beam_wider_than_the_alphabet(trained: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("translate", "--output", trained, "--beam", 500, "x") == 1
    assert "500" in capsys.readouterr().err


def test_sentences_hold_what_only_looks_like_the_end_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\u2028b\nc\x0cd\n")
    assert dates.read_lines(tmp_path / "a.txt") == ["a\u2028b", "c\x0cd"]


def test_a_loss_that_is_no_number_ends_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dates, "make_dates", lambda *_: ([("1", "1")] * 20, [("1", "1")] * 10))
    assert run("train", "--output", tmp_path, *SMALL, "--learning-rate", 1e38) == 1
    assert "lower --learning-rate" in capsys.readouterr().err


def test_source_and_target_belong_together(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run("train", "--source", "a.txt")
    assert "--source and --target belong together" in capsys.readouterr().err
