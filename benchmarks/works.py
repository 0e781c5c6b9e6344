"""What is measured: the same works for all rivals, and what is required of nnshop beside each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

NNSHOP, COMPILED, UNROLLED, LOOP = "nnshop", "nnshop, compiled", "nnshop, unrolled", "nnshop, loop"
BEFORE = "nnshop, before"  # an earlier commit: see run.py's --before
THREADS = {"nnshop, one thread": 1, "nnshop, four threads": 4}  # whatever run.py's --threads gives the others
ONE, FOUR = THREADS
SEED, STOCK, TORCH, JAX = "plain graph", "stock", "PyTorch", "JAX"
WAY = {NNSHOP: "auto", BEFORE: "auto", ONE: "auto", FOUR: "auto", COMPILED: "compiled", UNROLLED: "unrolled", LOOP: "loop"}
LIBRARY = {TORCH: "torch", JAX: "jax"}  # the rivals that are in torch_*.py and jax_*.py; all others are in nnabla_*.py
NOT_SLOWER = 0.97  # of another's speed, as closely as it can be measured
START, END, NEVER = 1, 0, -30  # tokens of decoding, and a bias by which the end token is never said


@dataclass(frozen=True)
class Case:
    """One work at one size. Each rival computes it in a process of its own, once in each round.

    Args:
        work: The title under which it is reported.
        size: Its name there.
        function: What each rival's file calls it.
        arguments: For that function, after the rival's name.
        rivals: Who takes part. The first is the one that requirements are about.
        family: Which file of a library has the function: "rivals" for `torch_rivals.py` and `nnabla_rivals.py`.
        warmup, repeats: How often it is computed before it is timed, and then in each process.
        rounds: At most so many processes for each rival.
        once: Rivals that take part in the first round only.
        patience: Seconds after which a process does not repeat the work again.
        limit: Seconds that a process may take.
        cached: Cells that are computed before, each process starting from an empty cache folder; None for the user's folder.
        compared: The values and gradients of all rivals must be equal.
        faster: By what factor the first rival must be faster than others.
        smaller: At most what part of others' peak memory it may take.
        seconds: The longest time it may take.
        words: How many words one repeat processes.
    """

    work: str
    size: str
    function: str
    arguments: dict = field(default_factory=dict)
    rivals: tuple[str, ...] = (NNSHOP, TORCH)
    family: str = "rivals"
    warmup: int = 2
    repeats: int = 10
    rounds: int = 3
    once: tuple[str, ...] = ()
    patience: float = 5
    limit: float = 600
    cached: tuple[str, ...] | None = None
    compared: bool = False
    faster: dict[str, float] = field(default_factory=dict)
    smaller: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    words: int = 0

    def rivals_of(self, turn: int) -> list[str]:
        """Who takes part in a round; every second one is in reverse, so that nobody is always behind the same rival."""
        some = [rival for rival in self.rivals if turn == 0 or rival not in self.once]
        return some[::-1] if turn % 2 else some

    @property
    def processes(self) -> int:
        """How many processes it takes at most."""
        return sum(len(self.rivals_of(turn)) for turn in range(self.rounds))

    def with_rounds(self, rounds: int | None) -> Case:
        """As many rounds, where there is more than one."""
        return replace(self, rounds=rounds) if rounds and self.rounds > 1 else self

    def without(self, rival: str) -> Case:
        """The same without a rival."""
        return replace(self, rivals=tuple(other for other in self.rivals if other != rival))


def language_models() -> list[Case]:
    sizes = [(200, 20, 20, 10), (650, 20, 35, 3)]
    return [
        Case(
            "Language model, a training step",
            f"2 x {units} LSTM, V=10000, B={batch}, T={steps}",
            "language_model",
            {"units": units, "batch": batch, "steps": steps},
            (NNSHOP, BEFORE, UNROLLED, TORCH, SEED, STOCK),
            warmup=1,
            repeats=repeats,
            faster={SEED: 5, TORCH: 1.7 if units == 200 else 1.5},
            smaller={TORCH: 0.75} if units == 200 else {},
            words=batch * steps,
        )
        for units, batch, steps, repeats in sizes
    ]


def layers() -> list[Case]:
    sizes = [(1, 1000, 32, 20), (32, 100, 128, 20), (20, 35, 650, 6), (64, 50, 512, 4)]
    small = [(32, 50, 32, 100), (1, 50, 32, 100), (1, 50, 128, 100)]
    return [
        replace(
            _layer("Layers, forward and backward", kind, batch, steps, units, repeats),
            rounds=2,
            rivals=(NNSHOP, BEFORE, TORCH, STOCK) if units < 500 else (NNSHOP, BEFORE, TORCH),
            once=(STOCK,),
            faster={TORCH: 1 if kind == "lstm" else 1.2, BEFORE: NOT_SLOWER},
        )
        for kind in ("lstm", "gru", "rnn")
        for batch, steps, units, repeats in (sizes + small if kind == "lstm" else sizes)
    ]


def _layer(work: str, kind: str, batch: int, steps: int, units: int, repeats: int) -> Case:
    arguments = {"kind": kind, "batch": batch, "steps": steps, "units": units}
    return Case(work, f"{kind}, B={batch}, T={steps}, H={units}", "layer", arguments, repeats=repeats)


def threads() -> list[Case]:
    """What a second thread brings, for `--threads 2`, and what it costs if there are more threads than cores."""
    sizes = [(32, 100, 64, 30), (32, 100, 128, 20), (20, 35, 650, 6), (64, 50, 512, 4)]
    own = {"rivals": (NNSHOP, ONE, FOUR, TORCH), "rounds": 2}
    layers = [
        replace(
            _layer("Threads: layers", kind, batch, steps, units, repeats),
            **own,
            faster={ONE: 1.6 if units == 64 else 1.7, TORCH: 1.3 if kind != "lstm" else 0.95 if units == 650 else 1},
        )
        for kind in ("lstm", "gru", "rnn")
        for batch, steps, units, repeats in sizes
    ]
    models = [
        replace(
            case,
            work="Threads: language model",
            **own,
            smaller={},
            faster={ONE: 1.6, TORCH: 1.4} if case.arguments["units"] == 200 else {ONE: 1.7, TORCH: 1.3},
        )
        for case in language_models()
    ]
    return layers + models


def loops() -> list[Case]:
    return [
        Case(
            "A cell of one's own, over long sequences",
            f"T={steps}, B=32, H=128",
            "own_cell",
            {"steps": steps, "batch": 32, "units": 128},
            (LOOP, UNROLLED) if steps <= 2000 else (LOOP,),
            warmup=int(steps <= 1000),
            repeats=3,
            rounds=1,  # times as long as these vary little
            faster={100: {UNROLLED: 0.5}, 2000: {UNROLLED: 1}}.get(steps, {}),
            smaller={UNROLLED: 0.5} if steps == 1000 else {},
        )
        for steps in (100, 1000, 2000, 10_000, 64_000)
    ]


# What must not grow with T, by phase: from T to T, at most so many times. Time is per step.
LOOP_GROWTH = {"build": (100, 10_000, 1.5), "total": (1000, 64_000, 1.5)}


def generation() -> list[Case]:
    title, size = "Greedy generation, word by word", "2 x 200 LSTM, V=10000, one stream"
    return [
        Case(
            title,
            size,
            "generation",
            {"units": 200},
            (NNSHOP, BEFORE, TORCH),
            warmup=50,
            repeats=500,
            faster={TORCH: 2.5, BEFORE: 1.3},
            words=1,
        )
    ]


def decoding() -> list[Case]:
    """The end token is watched for, but never said: all texts are of one length."""
    return [
        Case(
            "Decoding, 2 x 200 LSTM, V=10000, 20 words",
            f"{'greedy' if width == 1 else f'beam of {width}'}, B={batch}",
            "decoding",
            {"units": 200, "batch": batch, "width": width, "length": 20},
            (NNSHOP, BEFORE, TORCH),
            repeats=20,
            faster={TORCH: 2.5, BEFORE: 1.3} if (width, batch) == (5, 32) else {TORCH: 1},
            words=batch * 20,
        )
        for width in (1, 5)
        for batch in (1, 32)
    ]


def imports() -> list[Case]:
    title, size = "Import", "`import nnshop` after `import nnabla`"
    return [Case(title, size, "import_time", {}, (NNSHOP,), "imports", warmup=0, repeats=1, rounds=7, seconds=0.2)]


GROWTH = "Growth of an LSTM layer"
BASE = {"batch": 32, "steps": 50, "units": 128}
AXES = {"steps": (10, 25, 50, 100, 200), "batch": (1, 4, 16, 32, 64), "units": (32, 64, 128, 256, 512)}


def growth() -> list[Case]:
    sizes = [{**BASE, axis: value} for axis, values in AXES.items() for value in values]
    distinct = [size for i, size in enumerate(sizes) if size not in sizes[:i]]
    return [replace(_layer(GROWTH, "lstm", **size, repeats=20), rounds=1, faster={TORCH: 1}) for size in distinct]


WORKS = {
    "language_model": language_models,
    "layers": layers,
    "loop": loops,
    "generation": generation,
    "decoding": decoding,
    "import": imports,
    "growth": growth,
    "threads": threads,
}


def quick(case: Case) -> Case | None:
    """A case that only tries out whether all works; None for one that takes long."""
    big = case.arguments.get("units", 0) > 500 or case.arguments.get("steps", 0) > 1000
    return None if big else replace(case, warmup=1, repeats=min(case.repeats, 3), rounds=1)
