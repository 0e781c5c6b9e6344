"""Whether memory grows: trains the language model of the demo for long, and lets it write for long.

    python benchmarks/soak.py
    python benchmarks/soak.py --steps 200 --tokens 10000

Every few hundred steps the training validates, draws its curves and saves, since these are where leaks would hide; each 1,000
tokens are written by a graph of their own. Ends with 1 where the resident memory grows by 2 % or more after the warm-up.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import language_model

from nnshop.data import EOS, Corpus, load_corpus

LIMIT = 0.02
SAMPLES, LENGTH = 10, 100  # of each text that is written
VALIDATE_EVERY = 250
SHARE = 5  # growth is from the first fifth of the samples to the last one


def resident_megabytes() -> float:
    """What this process has in memory now, but for garbage: the figures of matplotlib wait long for Python's collector."""
    gc.collect()
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def measure(name: str, do: Callable[[], None], count: int, every: int, warm_up: int, unit: str, worth: int = 1) -> bool:
    """Does something often, prints the memory on the way as a table; returns whether it grows by less than the limit."""
    samples: list[tuple[int, float]] = []
    for done in tqdm(range(1, count + 1), desc=name, unit=unit, mininterval=1, dynamic_ncols=True):
        do()
        if done > warm_up and done % every == 0:
            samples.append((done * worth, resident_megabytes()))
    values = [megabytes for _, megabytes in samples]
    if not values:
        raise SystemExit(f"{name}: needs more than {warm_up * worth + every * worth} to be measured after the warm-up.")
    window = max(1, len(values) // SHARE)
    first, last = median(values[:window]), median(values[-window:])
    growth = last / first - 1
    print(f"\n{name:>12}{'MB':>10}")
    for done, megabytes in samples[:: max(1, len(samples) // 20)]:
        print(f"{done:>12,}{megabytes:>10.1f}")
    verdict = "below" if growth < LIMIT else "NOT below"
    print(f"{name}: {first:.1f} MB after the warm-up, {last:.1f} MB at the end, {growth:+.2%}, {verdict} {LIMIT:.0%}")
    return growth < LIMIT


def soak_training(corpus: Corpus, settings: language_model.Settings, steps: int, folder: Path) -> bool:
    training = language_model.Training(settings, corpus, None, folder)
    training.open_monitors()

    def step() -> None:
        training.train_one_batch()
        if training.step % VALIDATE_EVERY == 0:
            training.end_epoch(speed=0.0)
            training.save()

    return measure("steps", step, steps, every=50, warm_up=min(2 * VALIDATE_EVERY, steps // 2), unit="step")


def soak_generation(corpus: Corpus, settings: language_model.Settings, tokens: int) -> bool:
    def write() -> None:
        language_model.generate_texts(settings, corpus.vocabulary, [EOS], SAMPLES, LENGTH, temperature=0.8, seed=1)

    calls = max(2, tokens // (SAMPLES * LENGTH))
    return measure("tokens", write, calls, every=1, warm_up=min(10, calls // 2), unit="text", worth=SAMPLES * LENGTH)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_000, help="of training")
    parser.add_argument("--tokens", type=int, default=100_000, help="to write")
    args = parser.parse_args()
    corpus = load_corpus()
    settings = replace(language_model.PRESETS["demo"], max_steps=args.steps, epochs=args.steps)
    with tempfile.TemporaryDirectory() as folder:
        trained = soak_training(corpus, settings, args.steps, Path(folder))
    written = soak_generation(corpus, settings, args.tokens)
    return 0 if trained and written else 1


if __name__ == "__main__":
    sys.exit(main())
