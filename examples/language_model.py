"""A recurrent language model: train one on a text, evaluate it, let it write.

    python examples/language_model.py train --preset demo --output runs/demo
    python examples/language_model.py evaluate --output runs/demo
    python examples/language_model.py generate --output runs/demo --prompt "in the beginning"
    mpirun -n 2 python examples/language_model.py train --output runs/two

Without --data the text is the American Standard Version of the Bible. The presets small, medium and large are those of
Zaremba, Sutskever and Vinyals, Recurrent neural network regularization, 2014, with the settings of TensorFlow's ptb_word_lm:
contiguous batches, state carried from batch to batch, SGD, gradients clipped by their global norm. After two epochs of
`--preset small` on the default text expect a validation perplexity near 38.5.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
from nnabla.initializer import UniformInitializer
from nnabla.monitor import Monitor, MonitorSeries
from nnabla.parameter import get_parameter_or_create
from tqdm import tqdm

import nnshop
from nnshop.archive import damage_named, read_json
from nnshop.context import ContextError
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
from nnshop.distributed import DistributedError, Workers, connect
from nnshop.functions import faster, linear_cross_entropy
from nnshop.parameters import check_weights
from nnshop.training import (
    CarriedState,
    Checkpoint,
    CheckpointError,
    Checkpoints,
    LossScale,
    StopSignal,
    TrainingError,
    atomic_write,
    check_matplotlib,
    check_writable,
    clip_grad_by_global_norm,
    load_parameters,
    plot_curves,
    save_parameters,
)

CELLS = {"simple": nnshop.SimpleRNNCell, "gru": nnshop.GRUCell, "lstm": nnshop.LSTMCell}
SOLVERS = {"sgd": S.Sgd, "adam": S.Adam}
CURVE_STEPS = 50  # a point of the training curve is the mean of so many batches
CHANGEABLE = ("epochs", "learning_rate", "max_norm", "save_every")  # by --resume
ALONE = Workers()
# What a checkpoint holds beside parameters, solver and random states.
PROGRESS = {"settings", "data", "corpus", "step", "epoch", "batch", "epoch_loss", "curve_loss", "loss_scale", "history"}
MOST_LAYERS, MOST_UNITS = 1000, 1 << 20  # a damaged file may ask for any number
TEST_STEPS = 100  # the test runs one stream; how many steps at once changes the speed only


@dataclass(frozen=True)
class Settings:
    """What is trained, and how. Each is an option of the command line."""

    cell: str = "lstm"
    layers: int = 2
    units: int = 200
    dropout: float = 0.0  # the share of units that are dropped, between layers only
    tied: bool = False  # the output layer uses the embedding's weights
    init_scale: float = 0.1  # all parameters start from U(-init_scale, init_scale)
    vocabulary_size: int = 10_000
    batch_size: int = 20
    num_steps: int = 20
    epochs: int = 13
    max_steps: int = (
        0  # ends there, if the epochs do not before, with a learning rate that falls over the last half; 0 for none
    )
    solver: str = "sgd"
    learning_rate: float = 1.0
    full_rate_epochs: int = 4  # after these, each epoch multiplies the learning rate by decay
    decay: float = 0.5
    max_norm: float = 5.0
    save_every: int = 200  # steps from one checkpoint to the next; there is one at the end of each epoch too
    seed: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):  # a file may hold anything
            value, kind = getattr(self, field.name), type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise TrainingError(f"--{field.name.replace('_', '-')} is of type {kind.__name__}; got {value!r}.")
        if self.cell not in CELLS or self.solver not in SOLVERS:
            raise TrainingError(f"--cell is one of {', '.join(CELLS)}, --solver of {', '.join(SOLVERS)}; got {self}.")
        for name in (
            "layers",
            "units",
            "batch_size",
            "num_steps",
            "epochs",
            "learning_rate",
            "decay",
            "max_norm",
            "save_every",
            "init_scale",
        ):
            if not getattr(self, name) > 0:
                raise TrainingError(f"--{name.replace('_', '-')} must be positive; got {getattr(self, name)}.")
        if self.layers > MOST_LAYERS or self.units > MOST_UNITS:
            raise TrainingError(f"--layers go up to {MOST_LAYERS}, --units to {MOST_UNITS:,}; got {self}.")
        if self.max_steps < 0 or not 0 <= self.seed < 2**32:
            raise TrainingError(f"--max-steps and --seed must be at least 0; got {self.max_steps} and {self.seed}.")
        if not 0 <= self.dropout < 1:
            raise TrainingError(f"--dropout is the share that is dropped, from 0 to below 1; got {self.dropout}.")


PRESETS = {
    "demo": Settings(
        layers=1, units=128, tied=True, batch_size=16, num_steps=12, epochs=1, max_steps=1250,
        solver="adam", learning_rate=0.007,
    ),
    "small": Settings(),
    "medium": Settings(
        units=650, num_steps=35, dropout=0.5, init_scale=0.05, epochs=39, full_rate_epochs=6, decay=0.8
    ),
    "large": Settings(
        units=1500, num_steps=35, dropout=0.65, init_scale=0.04, epochs=55, full_rate_epochs=14, decay=1 / 1.15, max_norm=10
    ),
}  # fmt: skip


def layers(settings: Settings, init: UniformInitializer | None = None, training: bool = False) -> nnshop.AbstractCell:
    """The recurrent layers, with dropout between them and before the output where it acts."""
    dropout = [nnshop.lift(F.dropout, settings.dropout)] if training and settings.dropout else []
    make = partial(CELLS[settings.cell], settings.units, w_init=init, recurrent_w_init=init, b_init=init)
    made = [make(name=f"layer{i}") for i in range(settings.layers)]
    return nnshop.stack(*[part for layer in made for part in (*dropout, layer)], *dropout)


def output_weights(
    size: int, settings: Settings, init: UniformInitializer | None = None
) -> tuple[nn.Variable, nn.Variable, bool]:
    """The weight (H, V), or the embedding's (V, H), the bias, and which weight it is."""
    if settings.tied:
        weight = get_parameter_or_create("embedding/embed/W", (size, settings.units))
        return weight, get_parameter_or_create("output/b", (size,), init), True
    weight = get_parameter_or_create("output/affine/W", (settings.units, size), init)
    return weight, get_parameter_or_create("output/affine/b", (size,), init), False


def project(h: nn.Variable, weight: nn.Variable, bias: nn.Variable, tied: bool) -> nn.Variable:
    """The logits of outputs `(..., H)`."""
    return F.affine(h, F.transpose(weight, (1, 0)) if tied else weight, bias, base_axis=h.ndim - 1)


def speaker(settings: Settings, size: int) -> nnshop.AbstractCell:
    """The model as a cell from words `(B,)` to logits `(B, V)`, on weights that exist."""
    cell = layers(settings)

    def step(words: nn.Variable, state: Any) -> tuple[nn.Variable, Any]:
        h, state = cell(nnshop.embed(words, size, settings.units, name="embedding"), state)
        return project(h, *output_weights(size, settings)), state

    return nnshop.Cell(step, cell.state)


class LanguageModel:
    """A graph of the model; all graphs with the same settings share their weights, found by name.

    Args:
        settings: What is built.
        size: V, the number of words.
        batch_size, num_steps: B and T of this graph.
        training: Whether dropout acts.
        rng: Draws the weights where there are none yet.
    """

    def __init__(
        self, settings: Settings, size: int, batch_size: int, num_steps: int, training: bool = False, rng: Any = None
    ) -> None:
        init = UniformInitializer((-settings.init_scale, settings.init_scale), rng=rng)
        cell = layers(settings, init, training)
        self.words = nn.Variable((batch_size, num_steps))
        self.targets = nn.Variable((batch_size, num_steps))
        self.mask = nn.Variable((batch_size, num_steps))
        self.state = CarriedState(cell, batch_size)

        h = nnshop.embed(self.words, size, settings.units, initializer=init, name="embedding")  # (B, T, H)
        h, final = nnshop.run(cell, h, self.state.initial)
        self.state.follow(final)
        weight, bias, tied = output_weights(size, settings, init)
        # NNabla computes what is asked for: the logits, or a loss, which needs none.
        self.logits = faster(project(h, weight, bias, tied))  # (B, T, V)
        loss = partial(linear_cross_entropy, h, weight, bias, self.targets, transpose=tied)
        self.losses = loss(reduction="batch_mean")
        self.masked_sum = loss(weights=self.mask, reduction="sum")

    def perplexity(self, streams: Streams, workers: Workers = ALONE) -> float:
        """The perplexity of streams to their end, with the state carried on; each of the workers has some of them."""
        self.state.reset()
        total = count = 0.0
        for self.words.d, self.targets.d, mask in streams.to_the_end():
            self.mask.d = mask
            self.masked_sum.forward(clear_buffer=True)
            self.state.carry()
            total, count = total + float(self.masked_sum.d), count + float(mask.sum())
        return float(np.exp(workers.average(total / count, count)))


def evaluation_model(settings: Settings, size: int, batch_size: int, num_steps: int) -> LanguageModel:
    """A graph without dropout and gradients on weights that exist."""
    with nn.no_grad(), nnshop.no_new_parameters():
        return LanguageModel(settings, size, batch_size, num_steps)


# ---------------------------------------------------------------------------------------------------------------- train


class Training:
    """One training in one folder, from its beginning or from a checkpoint."""

    def __init__(self, settings: Settings, corpus: Corpus, data: str | None, folder: Path, workers: Workers = ALONE) -> None:
        self.settings, self.corpus, self.data, self.folder, self.workers = settings, corpus, data, folder, workers
        self.fingerprint = fingerprint(corpus)
        workers.check_same("settings", asdict(settings))
        workers.check_same("texts", self.fingerprint["sha256"])
        self.rows = workers.share(settings.batch_size)  # of each batch
        self.streams, self.validation_streams = self._streams("train"), self._streams("valid")
        size, batch = len(corpus.vocabulary), (len(self.streams.ids), settings.num_steps)
        self.total_steps = settings.epochs * len(self.streams)
        if settings.max_steps:
            self.total_steps = min(self.total_steps, settings.max_steps)
        self.model = LanguageModel(settings, size, *batch, training=True, rng=np.random.RandomState(settings.seed))
        self.validation = evaluation_model(settings, size, *batch)
        self.solver = SOLVERS[settings.solver](settings.learning_rate)
        self.solver.set_parameters(nn.get_parameters())
        self.scale = LossScale.for_context()
        workers.broadcast_parameters()
        self.checkpoints = Checkpoints(folder)
        self.saved: Path | None = None
        self.step = 0
        self.epoch_loss = 0.0  # nats per stream in this epoch, of all workers
        self.curve_loss = 0.0  # and since the last point of the curve
        self.history: dict[str, list] = {"train": [], "valid": []}  # points [step, perplexity]

    def _streams(self, part: str) -> Streams:
        """This worker's streams of a part of the text."""
        try:
            return Streams(getattr(self.corpus, part), self.settings.batch_size, self.settings.num_steps, self.rows)
        except DataError as error:
            raise DataError(f"the {part} part: {error}") from error

    def progress(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "data": self.data,
            "corpus": self.fingerprint,
            "step": self.step,
            "epoch": self.step // len(self.streams),
            "batch": self.step % len(self.streams),
            "epoch_loss": self.epoch_loss,
            "curve_loss": self.curve_loss,
            "loss_scale": self.scale.get(),
            "history": self.history,
        }

    def save(self) -> None:
        state = [self.workers.gather(leaf) for leaf in self.model.state.get()]
        save = partial(self.checkpoints.save, self.step, self.solver, self.progress(), state)
        self.saved = self.workers.on_first(save)

    def restore(self, checkpoint: Checkpoint) -> None:
        progress = checkpoint.progress
        if progress["corpus"]["sha256"] != self.fingerprint["sha256"]:
            raise CheckpointError(f"{checkpoint.path}: was trained on another text, {progress['corpus']['name']}.")
        with damage_named(checkpoint.path, "checkpoint"):
            self.model.state.set([leaf[self.rows] for leaf in checkpoint.state])
            self.scale.set(progress["loss_scale"])
            self.step, self.epoch_loss, self.curve_loss = progress["step"], progress["epoch_loss"], progress["curve_loss"]
            self.history, self.saved = progress["history"], checkpoint.path
        checkpoint.restore(self.solver)

    def learning_rate(self) -> float:
        s = self.settings
        if s.max_steps:
            return s.learning_rate * min(1.0, 2 - 2 * self.step / self.total_steps)
        return s.learning_rate * s.decay ** max(self.step // len(self.streams) + 1 - s.full_rate_epochs, 0)

    def run(self, stop: StopSignal) -> bool:
        """Trains to the end; returns False where it was asked to stop before, with all saved."""
        self.workers.on_first(self.open_monitors)
        began, done_before = time.perf_counter(), self.step
        words = self.settings.batch_size * self.settings.num_steps
        with tqdm(
            total=self.total_steps,
            initial=self.step,
            unit="step",
            mininterval=1,
            dynamic_ncols=True,
            disable=self.workers.rank > 0,
        ) as bar:
            while self.step < self.total_steps:
                loss = self.train_one_batch()
                speed = (self.step - done_before) * words / max(time.perf_counter() - began, 1e-9)  # a clock may stand still
                bar.set_postfix_str(
                    f"{speed:,.0f} words/s, perplexity {np.exp(loss / self.settings.num_steps):.1f}", refresh=False
                )
                bar.update()
                if self.step % len(self.streams) == 0 or self.step == self.total_steps:
                    tqdm.write(self.end_epoch(speed))
                    sys.stdout.flush()  # for a log file
                elif self.step % self.settings.save_every == 0:
                    self.save()
                if self.workers.any(stop.requested):
                    self.save()
                    break
        self.workers.on_first(self.draw)
        return self.step == self.total_steps

    def train_one_batch(self) -> float:
        batch = self.step % len(self.streams)
        if batch == 0:
            self.model.state.reset()
            self.epoch_loss = 0.0
        # So that dropout is as without after a resume, and another one in each worker.
        seed = self.settings.seed + self.step * self.workers.size + self.workers.rank
        nn.random.set_function_seed(seed % 2**31)  # which NNabla keeps as a C int
        self.model.words.d, self.model.targets.d = self.streams[batch]
        self.solver.set_learning_rate(self.learning_rate())
        self.solver.zero_grad()
        self.model.losses.forward(clear_no_need_grad=True)
        rows = len(self.streams.ids)
        loss = self.workers.average(float(self.model.losses.d), rows)
        self.scale.backward(self.model.losses, clear_buffer=True)
        self.workers.average_gradients(self.solver, rows)
        self.scale.unscale(self.solver)
        norm = clip_grad_by_global_norm(self.solver, self.settings.max_norm)
        if self._accepts(loss, norm):
            self.solver.update()
        self.model.state.carry()
        self.step += 1
        self.epoch_loss += loss
        self.curve_loss += loss
        if self.step % CURVE_STEPS == 0:
            self.add_point("train", np.exp(self.curve_loss / (CURVE_STEPS * self.settings.num_steps)))
            self.curve_loss = 0.0
        return loss

    def _accepts(self, loss: float, norm: float) -> bool:
        """Whether the step may be made: in 16 bits an overflow leaves one out; what else is not finite ends the training."""
        try:
            if not np.isfinite(loss):  # no overflow of gradients: nothing that comes after it would be good
                raise TrainingError("it diverges")
            return self.scale.accepts(bool(np.isfinite(norm)))
        except TrainingError as error:
            raise TrainingError(
                f"step {self.step + 1}: the loss is {loss}, the gradient's norm {norm}: {error}; {self.kept()}. "
                "Go on (--resume, where something was saved) with a lower --learning-rate or --max-norm."
            ) from error

    def kept(self) -> str:
        return f"{self.saved} holds the last good state" if self.saved else "nothing was saved before"

    def end_epoch(self, speed: float) -> str:
        """Validates, keeps the best parameters, draws the curves; returns a line for the log."""
        batches = (self.step - 1) % len(self.streams) + 1
        train = float(np.exp(self.epoch_loss / (batches * self.settings.num_steps)))
        valid = self.validation.perplexity(self.validation_streams, self.workers)
        if not np.isfinite(valid):
            raise TrainingError(f"step {self.step}: the validation perplexity is {valid}; {self.kept()}.")
        if all(valid < best for _, best in self.history["valid"]):
            self.workers.on_first(self.save_best)
        self.add_point("valid", valid)
        self.save()  # before what may fail: a picture is none to lose an epoch for
        if self.step < self.total_steps:  # at the end `run` draws
            self.workers.on_first(self.draw)
        epoch = (self.step - 1) // len(self.streams) + 1
        return f"epoch {epoch}: train {train:.2f}, valid {valid:.2f}, {speed:,.0f} words/s"

    def save_best(self) -> None:
        try:
            save_parameters(self.folder / "best.npz")
        except OSError as error:
            raise TrainingError(f"{self.folder}: best.npz could not be saved: {error.strerror}; {self.kept()}.") from error

    def open_monitors(self) -> None:
        """Opens NNabla's monitors, and writes again what a resumed training had written."""
        monitor = Monitor(str(self.folder))
        names = {"train": "Training perplexity", "valid": "Validation perplexity"}
        self.series = {key: MonitorSeries(name, monitor, verbose=False) for key, name in names.items()}
        for key, series in self.series.items():
            for step, value in self.history[key]:
                series.add(step, value)

    def add_point(self, key: str, value: float) -> None:
        self.history[key].append([self.step, float(value)])
        self.workers.on_first(lambda: self.series[key].add(self.step, value))

    @cached_property
    def levels(self) -> dict[str, float]:
        """What simple models reach, to compare the curves with."""
        return {
            "unigram (valid)": unigram_perplexity(self.corpus, "valid"),
            "bigram (valid)": bigram_perplexity(self.corpus, "valid"),
        }

    def draw(self) -> None:
        curves = {key: ([x for x, _ in points], [y for _, y in points]) for key, points in self.history.items() if points}
        s = self.settings
        title = f"{s.layers} x {s.units} {s.cell} on {self.corpus.name}"
        plot_curves(self.folder / "curves.png", curves, self.levels, title=title)


def fingerprint(corpus: Corpus) -> dict[str, Any]:
    """What must agree for a training to go on with a corpus: its words and its parts, wherever it lies."""
    parts = (corpus.train, corpus.valid, corpus.test)
    content = " ".join(corpus.vocabulary.words).encode() + b"".join(ids.tobytes() for ids in parts)
    return {"name": corpus.name, "sha256": hashlib.sha256(content).hexdigest()}


def train(args: argparse.Namespace, workers: Workers) -> int:
    folder = workers.on_first(lambda: check_writable(args.output))
    check_matplotlib()
    checkpoints = Checkpoints(folder)
    workers.on_first(checkpoints.lock)  # until the end of this function
    checkpoint = workers.on_first(lambda: find_checkpoint(checkpoints, args.resume))
    data = str(Path(args.data).resolve()) if args.data else None
    if checkpoint is not None:
        data = data or checkpoint.progress["data"]
    settings = settings_of(args, checkpoint)
    corpus = load_corpus(data, settings.vocabulary_size)
    print(corpus)
    nn.clear_parameters()
    training = Training(settings, corpus, data, folder, workers)
    if checkpoint is not None:
        training.restore(checkpoint)
        print(f"goes on from {checkpoint.path}, step {training.step} of {training.total_steps}")
    workers.on_first(partial(describe, folder, settings, corpus, data))
    try:
        with StopSignal() as stop:
            finished = training.run(stop)
    except OSError as error:
        file = error.filename or folder
        raise TrainingError(f"{file}: could not be written: {error.strerror}; {training.kept()}.") from error
    if training.scale.skipped:
        print(f"{training.scale.skipped} of {training.step} steps were left out: their gradients were beyond 16 bits")
    if not finished:
        print(f"stopped at step {training.step}; saved in {training.saved}. Go on with: train --resume --output {folder}")
        return 130
    workers.on_first(partial(finish, folder, settings, corpus, training.history))
    return 0


def find_checkpoint(checkpoints: Checkpoints, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from; None for a new training."""
    checkpoint, passed_over = checkpoints.load() if resume else (None, [])
    for line in passed_over:
        print(f"passed over: {line}")
    if checkpoint is None and checkpoints.files():
        raise TrainingError(
            f"{checkpoints.folder}: holds a training; --resume goes on with it, another --output leaves it alone."
        )
    if checkpoint is not None and set(checkpoint.progress) != PROGRESS:
        raise CheckpointError(f"{checkpoint.path}: is of another script, or of another version of this one.")
    return checkpoint


def describe(folder: Path, settings: Settings, corpus: Corpus, data: str | None) -> None:
    """Writes what `load_model` needs beside the parameters."""
    write_json(folder / "settings.json", {"settings": asdict(settings), "data": data})
    write_json(folder / "vocabulary.json", corpus.vocabulary.words)


def finish(folder: Path, settings: Settings, corpus: Corpus, history: dict[str, list]) -> None:
    load_model(folder)  # the best by validation, not the last
    write_json(folder / "results.json", report(settings, corpus, valid=min(value for _, value in history["valid"])))
    print(f"curves: {folder / 'curves.png'}")


def settings_of(args: argparse.Namespace, checkpoint: Checkpoint | None) -> Settings:
    """The settings of a new training; or those of the checkpoint, of which only a few may change on the way."""
    given = {f.name: getattr(args, f.name) for f in fields(Settings) if getattr(args, f.name) is not None}
    if checkpoint is None:
        return replace(PRESETS[args.preset or "small"], **given)
    settings = Settings(**checkpoint.progress["settings"])
    if args.preset is not None:
        given = {**asdict(PRESETS[args.preset]), **given}
    other = {name: value for name, value in given.items() if value != getattr(settings, name) and name not in CHANGEABLE}
    if other:
        was = {name: getattr(settings, name) for name in other}
        raise CheckpointError(
            f"{checkpoint.path}: was trained with {was}, not {other}. Leave these options out, or choose another --output."
        )
    return replace(settings, **{name: value for name, value in given.items() if name in CHANGEABLE})


# ------------------------------------------------------------------------------------------------- evaluate and generate


def load_model(folder: Path) -> tuple[Settings, Vocabulary, str | None]:
    """Loads the best parameters of a training, with its settings, vocabulary and text."""
    try:
        saved = read_json(folder / "settings.json", "file of settings")
        settings = Settings(**saved["settings"])
        vocabulary = Vocabulary(read_json(folder / "vocabulary.json", "vocabulary"))
        nn.clear_parameters()
        load_parameters(folder / "best.npz")
        shapes = {name: v.shape for name, v in nn.get_parameters(grad_only=False).items()}
        check_weights(shapes, lambda: LanguageModel(settings, len(vocabulary), 1, 1))
        return settings, vocabulary, saved["data"]
    except (OSError, ValueError, TypeError, KeyError, TrainingError) as error:
        raise CheckpointError(f"{folder}: holds no trained model that can be read: {error}") from error


def perplexity(settings: Settings, size: int, ids: np.ndarray, batch_size: int, num_steps: int) -> float:
    """The perplexity of a text, cut into so many streams and steps, under the loaded model."""
    return evaluation_model(settings, size, batch_size, num_steps).perplexity(Streams(ids, batch_size, num_steps))


def report(settings: Settings, corpus: Corpus, valid: float) -> dict[str, dict[str, float]]:
    """Prints the perplexity of the loaded model beside those of simple ones, and a few sentences; returns the table."""
    size = len(corpus.vocabulary)
    model = {
        "valid": valid,
        "test": perplexity(settings, size, corpus.test, 1, min(TEST_STEPS, len(corpus.test) - 1)),
    }
    table = {
        "unigram": {part: unigram_perplexity(corpus, part) for part in model},
        "interpolated bigram": {part: bigram_perplexity(corpus, part) for part in model},
        f"{settings.layers} x {settings.units} {settings.cell}": model,
    }
    print(f"{'perplexity':<22}{'valid':>8}{'test':>8}")
    for name, row in table.items():
        print(f"{name:<22}{row['valid']:>8.2f}{row['test']:>8.2f}")
    for text in generate_texts(settings, corpus.vocabulary, [EOS], samples=3, length=30, temperature=0.8, seed=1):
        print(f"  | {text}")
    return table


def generate_texts(
    settings: Settings, vocabulary: Vocabulary, prompt: list[str], samples: int, length: int, temperature: float, seed: int
) -> list[str]:
    """Samples texts that go on from a prompt, all at once, step by step."""
    stepper = nnshop.Stepper(speaker(settings, len(vocabulary)), np.zeros(samples, int))
    rng = np.random.RandomState(seed)
    tokens = [vocabulary.encode([word] * samples) for word in prompt]
    for position in range(len(prompt) + length - 1):
        logits = stepper.step(tokens[position])
        if position + 1 >= len(prompt):
            tokens.append(sample(logits, temperature, rng, forbidden=vocabulary.ids[UNKNOWN]))
    return [to_text(vocabulary.decode(row)) for row in np.stack(tokens, axis=1)]


def sample(logits: np.ndarray, temperature: float, rng: np.random.RandomState, forbidden: int) -> np.ndarray:
    """Draws one word for each row of logits `(B, V)`, never the forbidden one."""
    scores = logits.astype(np.float64)
    scores[:, forbidden] = -np.inf
    scores = (scores - scores.max(axis=1, keepdims=True)) / max(temperature, 1e-6)  # colder is no different
    gumbel = -np.log(-np.log(rng.uniform(size=scores.shape)))
    return np.argmax(scores + gumbel, axis=1)


def to_text(words: list[str]) -> str:
    text = " ".join(word for word in words if word != EOS)
    return re.sub(r" ([,.;:?!)])", r"\1", text)


def evaluate(args: argparse.Namespace, workers: Workers) -> int:
    settings, vocabulary, data = load_model(args.output)
    corpus = load_corpus(args.data or data, settings.vocabulary_size)
    if corpus.vocabulary != vocabulary:
        raise DataError(f"{corpus.name}: has another vocabulary than the text that {args.output} was trained on.")
    print(corpus)
    valid = perplexity(settings, len(vocabulary), corpus.valid, settings.batch_size, settings.num_steps)
    report(settings, corpus, valid)
    return 0


def generate(args: argparse.Namespace, workers: Workers) -> int:
    if not args.temperature > 0 or args.words < 1 or args.samples < 1 or not 0 <= args.seed < 2**32:
        raise DataError("--temperature must be above 0, --words and --samples at least 1, --seed at least 0.")
    settings, vocabulary, _ = load_model(args.output)
    prompt = args.prompt.split()
    if any(word not in vocabulary.ids for word in prompt):
        prompt = tokenize(args.prompt)
    for word in prompt:
        if word not in vocabulary.ids:
            close = difflib.get_close_matches(word, vocabulary.words, n=3)
            hint = f" Near it: {', '.join(close)}." if close else ""
            raise DataError(f"--prompt: {word!r} is not among the {len(vocabulary):,} words of {args.output}.{hint}")
    for text in generate_texts(settings, vocabulary, [EOS, *prompt], args.samples, args.words, args.temperature, args.seed):
        print(text)
    return 0


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1))


# ----------------------------------------------------------------------------------------------------------- command line


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, function: Callable, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help)
        sub.set_defaults(function=function)
        sub.add_argument("--output", type=Path, default=Path("runs/language_model"), help="the training's folder")
        sub.add_argument("-c", "--context", default="auto", help="cpu, cudnn, or auto: CUDA where a device answers")
        sub.add_argument("-d", "--device-id", help="which GPU; by default each worker of a machine takes its own")
        sub.add_argument("-t", "--type-config", default="float", help="float, or half on a GPU")
        return sub

    sub = command("train", train, "train a model, then evaluate it")
    sub.add_argument("--data", help="a folder with *.train.txt, *.valid.txt, *.test.txt, or a text file")
    sub.add_argument("--preset", choices=PRESETS, help="settings to start from (small)")
    sub.add_argument("--resume", action="store_true", help="go on with the training in --output, if there is one")
    for field in fields(Settings):
        flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        if kind is bool:
            sub.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            sub.add_argument(flag, type=kind, default=None, metavar=kind.__name__.upper())

    sub = command("evaluate", evaluate, "print the perplexities of a trained model")
    sub.add_argument("--data", help="the text, if it moved since the training")

    sub = command("generate", generate, "let a trained model write")
    sub.add_argument("--prompt", default="", help="words to go on from")
    sub.add_argument("--words", type=int, default=50, help="how many to write")
    sub.add_argument("--samples", type=int, default=3, help="how many texts")
    sub.add_argument("--temperature", type=float, default=0.8, help="below 1 safer, above 1 wilder")
    sub.add_argument("--seed", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    for name in ("nnabla", "matplotlib"):  # their notes would break the progress bar
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with connect() as workers, workers.one_voice(), use_context(args, workers) as used:
            print(f"computes on {used}", file=sys.stderr)
            return args.function(args, workers)
    except (DataError, CheckpointError, TrainingError, ContextError, DistributedError) as error:
        print(f"language_model.py: {error}", file=sys.stderr)
        return 1


def use_context(args: argparse.Namespace, workers: Workers) -> Any:
    try:
        return workers.use_context(args.context, args.device_id, args.type_config)
    except ValueError as error:
        raise ContextError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
