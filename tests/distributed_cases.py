"""What tests start under `mpirun`: each rank trains its share, and leaves what it has at the end.

mpirun -n 2 python tests/distributed_cases.py CASE FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
from example_loader import load_example

import nnshop
from nnshop.data import EOS, UNKNOWN, Corpus, Vocabulary, pad
from nnshop.distributed import DistributedError, Workers, _loaded_mpi, connect
from nnshop.seq2seq import EncoderDecoder
from nnshop.training import clip_grad_by_global_norm

STEPS = 20
PATIENCE = 3.0  # seconds, of the cases about it


def language_model(workers: Workers, folder: Path) -> list[float]:
    """Twelve streams, over the start of an epoch, with a learning rate at which clipping acts."""
    example = load_example("language_model")
    ids = np.random.RandomState(0).randint(0, 60, 1000).astype(np.int32)
    corpus = Corpus("random", Vocabulary([EOS, UNKNOWN, *map(str, range(58))]), ids, ids[:200], ids[:200])
    settings = example.Settings(units=8, batch_size=12, num_steps=5, max_norm=0.5)
    training = example.Training(settings, corpus, None, folder, workers)
    training.open_monitors()
    losses = [training.train_one_batch() for _ in range(STEPS)]
    return [*losses, training.validation.perplexity(training.validation_streams, workers)]


def encoder_decoder(workers: Workers, folder: Path) -> list[float]:
    """Seven pairs of unlike lengths, so that the ranks have unlike numbers of rows and of tokens."""
    network = EncoderDecoder(9, 11, start=0, end=1, encoder=nnshop.GRUCell(6), decoder=nnshop.GRUCell(6), width=4)
    rng = np.random.RandomState(1)
    pairs = [(rng.randint(2, 9, n), rng.randint(2, 11, m)) for n, m in zip((3, 1, 4, 1, 5, 9, 2), (2, 7, 1, 8, 2, 8, 1))]
    (sources, n), (targets, m) = map(pad, zip(*pairs[workers.share(len(pairs))]))
    variables = [nn.Variable.from_numpy_array(array) for array in (sources, targets, n, m)]
    loss = network.loss(*variables)
    solver = S.Adam(0.01)
    solver.set_parameters(nn.get_parameters())
    workers.broadcast_parameters()
    tokens = float(np.sum(m + 1))  # with the end
    losses = []
    for _ in range(STEPS):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        losses.append(workers.average(float(loss.d), tokens))
        workers.average_gradients(solver, tokens)
        clip_grad_by_global_norm(solver, 0.5)
        solver.update()
    return losses


def one_layer(workers: Workers, units: int = 3) -> tuple[nn.Variable, Any]:
    nn.seed(workers.rank)
    loss = F.mean(PF.affine(nn.Variable((4, 8)), units) ** 2)
    solver = S.Sgd(0.1)
    solver.set_parameters(nn.get_parameters())
    loss.forward()
    loss.backward()
    return loss, solver


def starts_alike(workers: Workers, folder: Path) -> list[float]:
    one_layer(workers)
    workers.broadcast_parameters()
    return []


def other_parameters(workers: Workers, folder: Path) -> list[float]:
    _, solver = one_layer(workers, units=3 + workers.rank)
    workers.average_gradients(solver)
    return []


def other_starts(workers: Workers, folder: Path) -> list[float]:
    one_layer(workers, units=3 + workers.rank)
    workers.broadcast_parameters()
    return []


def second_solver(workers: Workers, folder: Path) -> list[float]:
    _, solver = one_layer(workers)
    workers.average_gradients(solver)
    with nn.parameter_scope(f"second{workers.rank}"):
        loss = F.mean(PF.affine(nn.Variable((4, 8)), 3))
    solver.set_parameters(nn.get_parameters(), reset=True)
    loss.forward()
    loss.backward()
    workers.average_gradients(solver)
    return []


def other_texts(workers: Workers, folder: Path) -> list[float]:
    workers.check_same("texts", "the same")
    workers.check_same("texts", f"a{workers.rank}")
    return []


def thread(workers: Workers, folder: Path) -> list[float]:
    """One that fails, with a thread for which Python would wait before it ends."""
    if workers.rank == workers.size - 1:
        threading.Thread(target=time.sleep, args=(1000,)).start()
        raise ValueError("rank trouble")
    workers.barrier()
    return []


def negative(workers: Workers, folder: Path) -> list[float]:
    workers.average_gradients(one_layer(workers)[1], weight=3 - 4 * workers.rank)
    return []


def no_rows(workers: Workers, folder: Path) -> list[float]:
    """The last rank has no tokens: its mean is 0 / 0."""
    _, solver = one_layer(workers)
    mine = workers.rank < workers.size - 1
    for v in solver.get_parameters().values():
        v.grad.fill(workers.rank + 1.0 if mine else np.nan)
    workers.average_gradients(solver, weight=float(mine))
    return [float(v.g.ravel()[0]) for v in solver.get_parameters().values()]


def no_weight(workers: Workers, folder: Path) -> list[float]:
    workers.average_gradients(one_layer(workers)[1], weight=0)
    return []


def talk(workers: Workers, folder: Path) -> list[float]:
    """All that is no gradient."""
    rows = np.arange(7.0)[workers.share(7)]
    assert workers.gather(rows).tolist() == list(range(7))
    assert workers.on_first(lambda: f"from {workers.rank}") == "from 0"
    assert workers.any(workers.rank == workers.size - 1)
    assert not workers.any(False)
    assert workers.average(workers.rank, weight=workers.rank) > 0 or workers.size == 1
    workers.barrier()
    with workers.one_voice():
        print("heard once")
    assert workers.local_rank == workers.rank  # one machine
    assert workers.size == 1 or (Path(os.environ["OMPI_HOME"]) / "lib/libmpi.so").samefile(_loaded_mpi())
    try:
        workers.share(workers.size - 1)
    except DistributedError as error:
        assert "at least as many rows" in str(error)  # noqa: PT017 -- there is no pytest in here
        return [1.0]
    return []


def killed(workers: Workers, folder: Path) -> list[float]:
    """The last rank dies while the others wait for it."""
    _, solver = one_layer(workers)
    for step in range(1_000_000):
        if workers.rank == workers.size - 1 and step == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        workers.average_gradients(solver)
    return []


def raises(workers: Workers, folder: Path) -> list[float]:
    _, solver = one_layer(workers)
    for step in range(1_000_000):
        if workers.rank == workers.size - 1 and step == 10:
            raise ValueError("rank trouble")
        workers.average_gradients(solver)
    return []


def stopped(workers: Workers, folder: Path) -> list[float]:
    """The last rank is stopped, as by a debugger or a batch system, at any moment."""
    _, solver = one_layer(workers, units=300_000)  # so that averaging takes long
    if workers.rank == workers.size - 1:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGSTOP)).start()
    while True:
        workers.average_gradients(solver)


def first_stopped(workers: Workers, folder: Path) -> list[float]:
    """Rank 0, of which the others wait for what it computes alone."""

    def stop() -> list[float]:
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(PATIENCE)  # who ends it lets it go on first, for a moment
        return []

    return workers.on_first(stop)


def busy(workers: Workers, folder: Path) -> list[float]:
    """Rank 0 takes longer than the patience."""
    workers.on_first(lambda: time.sleep(1.5 * PATIENCE))
    return []


def half(workers: Workers, folder: Path) -> list[float]:
    """One rank computes in float, the others in half precision."""
    with workers.use_context("cpu", type_config="half" if workers.rank else "float"):
        _, solver = one_layer(workers)
        workers.average_gradients(solver)
    return []


CASES: dict[str, Callable[[Workers, Path], list[float]]] = {
    case.__name__: case
    for case in (
        language_model,
        encoder_decoder,
        starts_alike,
        other_starts,
        other_parameters,
        second_solver,
        other_texts,
        thread,
        negative,
        no_rows,
        no_weight,
        talk,
        killed,
        raises,
        stopped,
        first_stopped,
        busy,
        half,
    )
}


IMPATIENT = ("stopped", "first_stopped", "busy")


def main(name: str, folder: Path) -> int:
    try:
        with connect(PATIENCE if name in IMPATIENT else 120) as workers:
            numbers = CASES[name](workers, folder)
            parameters = {name.replace("/", "."): v.d for name, v in nn.get_parameters().items()}
            np.savez(folder / f"rank{workers.rank}.npz", numbers=np.array(numbers), **parameters)
    except (DistributedError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
