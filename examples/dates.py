"""Translates dates, written as people do in 29 languages, to ISO 8601, character by character, with attention.

    python examples/dates.py train --output runs/dates
    python examples/dates.py translate --output runs/dates "4. März 2021" "jeudi 14 juillet 1994" "2021年3月4日木曜日"

The texts are made with Babel from the Unicode CLDR: every way in which a language writes a date with its whole year. Left
out is what nobody can tell: American dates in numbers, whose month and day look like other people's day and month. No day of
the test is among those that it learns from.

The same script learns from any parallel text, a sentence in each line, by words:

    python examples/dates.py train --source a.txt --target b.txt --output runs/text
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import random
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import TextIOWrapper
from pathlib import Path
from time import perf_counter
from typing import Any

import nnabla as nn
import nnabla.solvers as S
import numpy as np
from babel import Locale, dates
from tqdm import tqdm

import nnshop
from nnshop.archive import atomic_write, open_regular, read_json
from nnshop.context import ContextError
from nnshop.data import DataError, pad
from nnshop.decoding import Decoded
from nnshop.distributed import DistributedError, Workers, connect
from nnshop.seq2seq import EncoderDecoder
from nnshop.training import (
    LossScale,
    StopSignal,
    TrainingError,
    check_writable,
    clip_grad_by_global_norm,
    plot_alignments,
    plot_curves,
)

Pair = tuple[str, str]
Rows = list[tuple[list[int], list[int]]]  # the ids of pairs
Curves = dict[str, tuple[list, list]]
LANGUAGES = "en en_GB de fr es it pt nl sv da nb fi pl cs hu ro tr ru uk el ja zh ko vi id he ar hi th".split()
STYLES = ("full", "long", "medium", "short")
SKELETONS = ("yMMMd", "yMMMMd", "yMMMEd", "yMd", "yMEd")
FIRST_DAY, DAYS = datetime.date(1900, 1, 1), 73_049  # two centuries
LONGEST = 60  # words; longer sentences are left out


# ---------------------------------------------------------------------------------------------------------------- the texts


def normalize(text: str) -> str:
    """Makes one text of those that look alike: no capitals, no marks of direction, one kind of space."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return " ".join("".join(c for c in folded if unicodedata.category(c) != "Cf").split())


def ways_to_write(day: datetime.date, language: Locale) -> list[str]:
    """All texts of a day in a language that say which day it is."""
    texts = [dates.format_date(day, style, locale=language) for style in STYLES]
    texts += [dates.format_skeleton(s, day, locale=language) for s in SKELETONS if s in language.datetime_skeletons]
    found = dict.fromkeys(normalize(text) for text in texts if str(day.year) in text)
    return [text for text in found if not (str(language) == "en" and "/" in text)]


def make_dates(count: int, held_out: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Draws pairs to learn from, and others, of other days, to test with."""
    rng = random.Random(seed)
    languages = [Locale.parse(name) for name in LANGUAGES]
    days = rng.sample(range(DAYS), DAYS)
    to_learn, to_test = days[held_out:], days[:held_out]

    def draw(days: Sequence[int]) -> Pair:
        day = FIRST_DAY + datetime.timedelta(rng.choice(days))
        return rng.choice(ways_to_write(day, rng.choice(languages))), day.isoformat()

    return [draw(to_learn) for _ in range(count)], [draw(to_test) for _ in range(held_out)]


def read_parallel(source: Path, target: Path, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Reads two files of one sentence in each line; a twentieth, at most 2,000 pairs, is held out.

    Raises:
        DataError: A file cannot be read, they differ in their numbers of lines, a line is empty, or there are too few.
    """
    sides = [read_lines(path) for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        raise DataError(f"{source} has {len(sides[0])} lines, {target} {len(sides[1])}; each needs the other's line by line.")
    for path, lines in zip((source, target), sides):
        empty = [number for number, line in enumerate(lines, 1) if not normalize(line)]
        if empty:
            raise DataError(f"{path}: line {empty[0]} is empty ({len(empty)} in all); remove it, and its partner.")
    pairs = [(normalize(a), normalize(b)) for a, b in zip(*sides)]
    short = [pair for pair in pairs if all(len(words(text)) <= LONGEST for text in pair)]
    if len(short) < 20:
        raise DataError(f"{source}: a training needs 20 pairs of at most {LONGEST} words; there are {len(short)}.")
    if len(short) < len(pairs):
        print(f"{len(pairs) - len(short):,} pairs of more than {LONGEST} words are left out", file=sys.stderr)
    random.Random(seed).shuffle(short)
    held_out = min(2000, len(short) // 20)
    return short[held_out:], short[:held_out]


def read_lines(path: Path) -> list[str]:
    try:
        # splitlines() would also cut at characters that stand within sentences, such as U+2028.
        with open_regular(path) as file, TextIOWrapper(file, encoding="utf-8") as text:
            return text.read().removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


@dataclass(frozen=True)
class Symbols:
    """The characters or words of one side; the id of a symbol is its place."""

    symbols: tuple[str, ...]
    by_words: bool

    SPECIAL = UNKNOWN, START, END = "<unknown>", "<start>", "<end>"

    @classmethod
    def of(cls, texts: Iterable[str], by_words: bool, size: int) -> Symbols:
        """Takes the most frequent ones."""
        counts = Counter(symbol for text in texts for symbol in (words(text) if by_words else text))
        frequent = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))[: size - len(cls.SPECIAL)]
        return cls((*cls.SPECIAL, *frequent), by_words)

    def __len__(self) -> int:
        return len(self.symbols)

    def split(self, text: str) -> list[str]:
        return words(text) if self.by_words else list(text)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    def encode(self, text: str) -> list[int]:
        return [self.ids.get(symbol, 0) for symbol in self.split(text)]

    def decode(self, ids: Iterable[int]) -> str:
        return (" " if self.by_words else "").join(self.symbols[i] for i in ids)


# -------------------------------------------------------------------------------------------------------------- the network


class Translator:
    """A network and the symbols of both its sides, kept in one folder."""

    def __init__(self, network: EncoderDecoder, source: Symbols, target: Symbols) -> None:
        self.network, self.source, self.target = network, source, target

    @classmethod
    def new(cls, source: Symbols, target: Symbols, units: int, dropout: float) -> Translator:
        network = EncoderDecoder(
            *(len(source), len(target)),
            start=target.symbols.index(Symbols.START),
            end=target.symbols.index(Symbols.END),
            encoder=nnshop.GRUCell(units),
            decoder=nnshop.GRUCell(units),
            width=units // 2,
            attention="general",
            attention_width=units,
            dropout=dropout,
            name="dates",
        )
        return cls(network, source, target)

    def save(self, folder: Path) -> None:
        self.network.save(folder / "model.npz")
        sides = {"source": self.source.symbols, "target": self.target.symbols, "by_words": self.source.by_words}
        with atomic_write(folder / "symbols.json") as path:
            path.write_text(json.dumps(sides, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Translator:
        """Reads a folder that `save` wrote; DataError or ArchiveError where it is none."""
        network = EncoderDecoder.load(folder / "model.npz")
        try:
            sides = read_json(folder / "symbols.json", "file of symbols")
            both = [Symbols(tuple(sides[side]), bool(sides["by_words"])) for side in ("source", "target")]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / 'symbols.json'}: cannot be read: {type(error).__name__}: {error}") from error
        if [len(side) for side in both] != [network.source_size, network.target_size]:
            raise DataError(f"{folder}: its symbols are not those of its network; train again.")
        return cls(network, *both)

    def encode(self, pairs: Iterable[Pair]) -> Rows:
        return [(self.source.encode(a), self.target.encode(b)) for a, b in pairs]

    def translate(self, texts: Sequence[str], **options: Any) -> list[str]:
        """Translates some texts at once; options are those of `EncoderDecoder.generate`."""
        found: list[str] = []
        for first in range(0, len(texts), 200):
            said = self.say(texts[first : first + 200], **options)
            found += [self.target.decode(ids[:length]) for ids, length in zip(said.ids, said.lengths)]
        return found

    def say(self, texts: Sequence[str], **options: Any) -> Decoded:
        return self.network.generate([self.source.encode(normalize(text)) for text in texts], **options)


# -------------------------------------------------------------------------------------------------------------------- train


class Graphs:
    """The loss for batches of any lengths: one graph for each pair of lengths, rounded up to tens, on the same weights."""

    def __init__(self, network: EncoderDecoder, batch_size: int, training: bool) -> None:
        self.network, self.batch_size, self.training = network, batch_size, training
        self.graphs: dict[tuple[int, int], tuple[nn.Variable, ...]] = {}

    def loss(self, rows: Rows) -> nn.Variable:
        """The loss of a batch, whose ids are in the graph already."""
        sides = [pad(side) for side in zip(*rows)]
        source, target = (-(-ids.shape[1] // 10) * 10 for ids, _ in sides)
        if (source, target) not in self.graphs:
            self.graphs[source, target] = self._build(source, target)
        *variables, loss = self.graphs[source, target]
        for (ids, count), v, lasting in zip(sides, variables[::2], variables[1::2]):
            v.data.zero()
            v.d[:, : ids.shape[1]] = ids
            lasting.d = count
        return loss

    def _build(self, source: int, target: int) -> tuple[nn.Variable, ...]:
        sizes = (self.batch_size, source), (self.batch_size,), (self.batch_size, target), (self.batch_size,)
        x, x_lengths, y, y_lengths = map(nn.Variable, sizes)
        return x, x_lengths, y, y_lengths, self.network.loss(x, y, x_lengths, y_lengths, training=self.training)


def batches(rows: Rows, size: int, rng: random.Random) -> Iterator[Rows]:
    """Batches without end, of rows of like lengths, all rows once before any comes again."""
    size = min(size, len(rows))
    while True:
        order = rng.sample(rows, len(rows))
        chunks = [order[i : i + 50 * size] for i in range(0, len(order), 50 * size)]
        near = [row for chunk in chunks for row in sorted(chunk, key=lambda row: (len(row[0]), len(row[1])))]
        some = [near[i : i + size] for i in range(0, len(near) - size + 1, size)]
        yield from rng.sample(some, len(some))


def train(args: argparse.Namespace, workers: Workers) -> int:
    workers.on_first(lambda: check_writable(args.output))
    by_words = args.source is not None
    if by_words:
        learnt, held_out = read_parallel(args.source, args.target, args.seed)
    else:
        learnt, held_out = make_dates(args.samples, 2000, args.seed)
    nn.seed(args.seed + workers.rank)  # dropout differs, the parameters are those of rank 0
    source, target = (Symbols.of(texts, by_words, args.vocabulary) for texts in zip(*learnt))
    translator = Translator.new(source, target, args.units, args.dropout)
    print(f"{len(learnt):,} pairs to learn from, {len(held_out):,} held out; {len(source):,} and {len(target):,} symbols")
    print("   ".join(" → ".join(pair) for pair in learnt[:2]))
    stopped, curves = learn(translator, learnt, held_out, args, workers)
    return workers.on_first(lambda: finish(translator, held_out, args.output, stopped, curves))


def finish(translator: Translator, held_out: list[Pair], output: Path, stopped: bool, curves: Curves) -> int:
    translator.save(output)  # before anything else can fail
    plot_curves(output / "curves.png", curves, ylabel="loss of a symbol, nats", title="Learning to translate")
    if stopped:
        print(f"stopped; the network so far is in {output}", file=sys.stderr)
        return 130
    report(translator, held_out, output)
    print(f"network, curves and attention: {output}")
    return 0


def learn(
    translator: Translator, learnt: list[Pair], held_out: list[Pair], args: argparse.Namespace, workers: Workers
) -> tuple[bool, Curves]:
    """Trains; returns whether it was stopped, and the curves."""
    rng = random.Random(args.seed)
    size = min(args.batch_size, len(learnt))
    rows = workers.share(size)  # of each batch
    graphs, test_graphs = (Graphs(translator.network, rows.stop - rows.start, training) for training in (True, False))
    stream = (batch[rows] for batch in batches(translator.encode(learnt), size, rng))
    tests = translator.encode(held_out[:size])[rows] if len(held_out) >= size else []
    graphs.loss(next(stream))  # makes the weights
    solver, scale = S.Adam(args.learning_rate), LossScale.for_context()
    solver.set_parameters(nn.get_parameters())
    workers.broadcast_parameters()
    curves: Curves = {"learning": ([], []), "held out": ([], [])}
    silent = True if workers.rank else None  # None shows the bar on a terminal only
    with StopSignal() as stop, tqdm(total=args.steps, unit="step", dynamic_ncols=True, disable=silent) as bar:
        for step in range(args.steps):
            batch = next(stream)
            losses, count = graphs.loss(batch), symbols(batch)
            solver.zero_grad()
            losses.forward(clear_no_need_grad=True)
            value = workers.average(float(losses.d), count)
            scale.backward(losses, clear_buffer=True)
            workers.average_gradients(solver, count)
            scale.unscale(solver)
            norm = clip_grad_by_global_norm(solver, 5.0)
            if not np.isfinite(value):
                raise TrainingError(f"the loss is {value} at step {step}; lower --learning-rate (now {args.learning_rate}).")
            if scale.accepts(bool(np.isfinite(norm))):
                solver.set_learning_rate(args.learning_rate * (1 - step / args.steps))
                solver.update()
            bar.update()
            if step % 20 == 0 or step + 1 == args.steps:
                add_point(curves["learning"], step + 1, value)
                if tests:
                    test = test_graphs.loss(tests)
                    test.forward(clear_buffer=True)
                    add_point(curves["held out"], step + 1, workers.average(float(test.d), symbols(tests)))
                bar.set_postfix_str(f"loss {value:.4f}")
            stopped = workers.any(stop.requested)
            if stopped:
                break
    if scale.skipped:
        print(f"{scale.skipped} of {step + 1} steps were left out: their gradients were beyond 16 bits")
    return stopped, {label: points for label, points in curves.items() if points[0]}


def symbols(rows: Rows) -> int:
    """How many symbols there are to say, each row's end too: what a mean loss is divided by."""
    return sum(len(target) + 1 for _, target in rows)


def add_point(curve: tuple[list, list], step: int, value: float) -> None:
    curve[0].append(step)
    curve[1].append(max(value, 1e-6))  # the axis is logarithmic


def report(translator: Translator, held_out: list[Pair], output: Path) -> None:
    """Prints how good it is with greedy and with beam search, and draws where it looked."""
    sources, targets = map(list, zip(*held_out))
    for label, options in {"greedy": {}, "beam of 5": {"method": "beam", "width": 5}}.items():
        start = perf_counter()
        found = translator.translate(sources, **options)
        seconds = max(perf_counter() - start, 1e-9)  # a clock may stand still
        right = sum(a == b for a, b in zip(found, targets)) / len(targets)
        quality = f", BLEU {bleu(found, targets):.1f}" if translator.source.by_words else ""
        print(f"{label:10} {right:8.2%} right{quality}, {len(targets) / seconds:,.0f} texts a second")
        wrong = [trio for trio in zip(sources, found, targets) if trio[1] != trio[2]]
    for source, said, wanted in wrong[:3]:
        print(f"  {source}: {said}, not {wanted}")
    shown = next((pair[0] for pair in held_out if pair[0].isascii() and 10 < len(pair[0])), sources[0])
    draw_attention(translator, shown, output / "attention.png")


def bleu(found: list[str], targets: list[str]) -> float:
    import sacrebleu

    return sacrebleu.corpus_bleu(found, [targets]).score


def draw_attention(translator: Translator, text: str, path: Path) -> None:
    said = translator.say([text])
    symbols = [translator.target.symbols[i] for i in said.ids[0][: said.lengths[0]]]
    assert said.alignments is not None  # the network attends
    plot_alignments(path, said.alignments[0][: len(symbols)], translator.source.split(normalize(text)), symbols)


# ------------------------------------------------------------------------------------------------------------ command line


def translate(args: argparse.Namespace, workers: Workers) -> int:
    translator = Translator.load(args.output)
    options = {"method": "beam", "width": args.beam} if args.beam > 1 else {}
    texts = args.texts or (line.rstrip("\n") for line in sys.stdin)
    for text in texts:
        if text.strip():
            print(f"{text}\t{translator.translate([text], **options)[0]}", flush=True)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name: str, function: Callable, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help)
        sub.set_defaults(function=function)
        sub.add_argument("--output", type=Path, default=Path("runs/dates"), help="folder of the network (%(default)s)")
        sub.add_argument("-c", "--context", default="auto", help="cpu, cudnn, or auto: CUDA where a device answers")
        sub.add_argument("-t", "--type-config", default="float", help="float, or half on a GPU")
        return sub

    sub = command("train", train, "train a network, then test it")
    sub.add_argument("--source", type=Path, help="a text to translate from, a sentence in each line, in place of dates")
    sub.add_argument("--target", type=Path, help="its translation, line by line")
    sub.add_argument("--steps", type=int, default=1500, help="updates (%(default)s)")
    sub.add_argument("--batch-size", type=int, default=64, help="pairs in each (%(default)s)")
    sub.add_argument("--units", type=int, default=128, help="of each layer (%(default)s)")
    sub.add_argument("--dropout", type=float, default=0.0, help="(%(default)s)")
    sub.add_argument("--learning-rate", type=float, default=0.003, help="of Adam; it falls to 0 (%(default)s)")
    sub.add_argument("--samples", type=int, default=40_000, help="dates to learn from (%(default)s)")
    sub.add_argument("--vocabulary", type=int, default=10_000, help="at most so many symbols on each side (%(default)s)")
    sub.add_argument("--seed", type=int, default=1)

    sub = command("translate", translate, "translate texts, or the lines that are typed")
    sub.add_argument("texts", nargs="*")
    sub.add_argument("--beam", type=int, default=1, help="width of the beam; 1 is greedy (%(default)s)")
    args = parser.parse_args(argv)
    if args.function is train:
        if (args.source is None) != (args.target is None):
            parser.error("--source and --target belong together.")
    check_ranges(parser, args)
    return args


LEAST = {"steps": 2, "batch_size": 2, "units": 2, "samples": 2, "vocabulary": 4, "beam": 1, "seed": 0}


def check_ranges(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    given = vars(args)
    for option, least in LEAST.items():
        if option in given and given[option] < least:
            parser.error(f"--{option.replace('_', '-')} must be at least {least}; got {given[option]}.")
    if not 0 <= given.get("dropout", 0) < 1:
        parser.error(f"--dropout must be from 0 to below 1; got {args.dropout}.")
    if not 0 < given.get("learning_rate", 1) < float("inf"):
        parser.error(f"--learning-rate must be a positive number; got {args.learning_rate}.")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    for name in ("nnabla", "matplotlib"):  # their notes would break the progress bar
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with connect() as workers, workers.one_voice(), workers.use_context(args.context, type_config=args.type_config):
            return args.function(args, workers)
    except (ValueError, OSError, TrainingError, ContextError, DistributedError) as error:  # DataError is a ValueError
        print(f"dates.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
