"""Models on the device: what they say, scan, a training, and what it costs in memory and in copies."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import nnabla_ext.cpu
import numpy as np
import pytest
from gpu_device import require_device
from measuring import assert_same, constant, randomize, variable, variables

from nnshop import (
    CarriedState,
    GRUCell,
    LSTMCell,
    clip_grad_by_global_norm,
    decoding,
    lift,
    linear_cross_entropy,
    run,
    scan,
    stack,
    tree_leaves,
    until,
)
from nnshop.seq2seq import EncoderDecoder

require_device()

NEAR = 1e-4

# ------------------------------------------------------------------------------------------------------------------ decoding


def speaker() -> Any:
    cell = stack(lift(PF.embed, 50, 8), LSTMCell(12), GRUCell(8), lift(PF.affine, 50))
    cell(nn.Variable((1,)), cell.initial_state(1))
    randomize(scale=1.0)
    return cell


SEARCHES: dict[str, Callable] = {
    "greedy": lambda cell: decoding.greedy(cell, [0, 1, 2, 3], end=7, max_length=20),
    "sample": lambda cell: decoding.sample(cell, [0, 1, 2, 3], end=7, max_length=20, seed=5, top_k=10),
    "beam": lambda cell: decoding.beam_search(
        cell, [0, 1, 2, 3], end=7, max_length=20, width=6, n_best=3, length_penalty=0.6, min_length=2
    ),
}


@pytest.mark.parametrize("auto_forward", [False, True], ids=["static", "eager"])
@pytest.mark.parametrize("search", SEARCHES)
def test_what_is_said_is_that_of_the_cpu(search: str, auto_forward: bool, device: Callable) -> None:
    cell = speaker()
    expected = SEARCHES[search](cell)
    with device(), nn.auto_forward(auto_forward):
        actual = SEARCHES[search](cell)
    np.testing.assert_array_equal(actual.ids, expected.ids)
    np.testing.assert_allclose(actual.scores, expected.scores, rtol=NEAR)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_an_encoder_decoder_is_that_of_the_cpu(method: str, device: Callable) -> None:
    model = EncoderDecoder(20, 20, 18, 19, encoder=GRUCell(8), decoder=LSTMCell(8), attention="general", width=8)
    source, target = (constant(np.random.RandomState(i).randint(18, size=(3, 6))) for i in range(2))

    def computed() -> tuple:
        loss = model.loss(source, target, source_lengths=[6, 2, 4], target_lengths=[3, 6, 1])
        randomize()
        for v in nn.get_parameters().values():
            v.grad.zero()
        loss.forward()
        loss.backward()
        said = model.generate([[3, 14, 15], [9, 2]], method=method, max_length=8)
        return said, (loss.d.copy(), {name: v.g.copy() for name, v in nn.get_parameters().items()})

    expected, of_cpu = computed()
    with device():
        actual, of_device = computed()
    np.testing.assert_array_equal(actual.ids, expected.ids)
    assert_same((actual.scores, actual.alignments), (expected.scores, expected.alignments), rtol=NEAR)
    assert_same(of_device, of_cpu, rtol=NEAR)


# ---------------------------------------------------------------------------------------------------------------------- scan


@pytest.mark.parametrize("way", ["unrolled", "loop"])
def test_scan_is_that_of_the_cpu(way: str, device: Callable) -> None:
    """With taps, a weight from outside, and an end that is known when it runs."""

    def computed() -> tuple:
        xs, weight, first = variable(9, 4, seed=1), variable(4, 4, seed=2), variable(2, 4, seed=3)

        def step(x: nn.Variable, before: nn.Variable, last: nn.Variable) -> tuple:
            y = F.tanh(F.reshape(F.affine(F.reshape(last, (1, 4), inplace=False), weight), (4,), inplace=False) + x - before)
            return y, until(F.greater_scalar(F.max(y), 0.9))

        ys, updates = scan(step, sequences=xs, outputs_info={"initial": first, "taps": [-2, -1]}, way=way)
        loss = F.sum(ys * variable(*ys.shape, seed=4))
        for v in (xs, weight, first):
            v.grad.zero()
        nn.forward_all([ys, loss, updates.lengths])
        loss.backward()
        return ys.d.copy(), updates.lengths.d.copy(), xs.g.copy(), weight.g.copy(), first.g.copy()

    expected = computed()
    with device():
        assert_same(computed(), expected, rtol=NEAR)


# ------------------------------------------------------------------------------------------------------------------ training


class LanguageModel:
    """A small one, with its state carried from batch to batch."""

    def __init__(self, dropout: float = 0.0) -> None:
        drop = [lift(F.dropout, dropout)] if dropout else []
        cell = stack(*drop, LSTMCell(24, name="lower"), *drop, LSTMCell(24, name="upper"), *drop)
        self.words, self.targets = nn.Variable((8, 12)), nn.Variable((8, 12))
        self.state = CarriedState(cell, 8)
        h, final = run(cell, PF.embed(self.words, 30, 24), self.state.initial)
        self.state.follow(final)
        self.loss = linear_cross_entropy(h, self.targets, 30, reduction="batch_mean")
        self.solver = S.Sgd(0.5)

    def train(self, steps: int) -> list[float]:
        self.solver.set_parameters(nn.get_parameters())
        text, losses = synthetic_text(steps), []
        for t in range(steps):
            batch = text[:, 12 * t : 12 * t + 13]
            self.words.d, self.targets.d = batch[:, :-1], batch[:, 1:]
            self.solver.zero_grad()
            self.loss.forward(clear_no_need_grad=True)
            losses.append(float(self.loss.d) / 12)
            self.loss.backward(clear_buffer=True)
            clip_grad_by_global_norm(self.solver, 2.0)
            self.solver.update()
            self.state.carry()
        return losses


def synthetic_text(steps: int) -> np.ndarray:
    """Each word follows from the one before, but for one in ten."""
    rng = np.random.RandomState(0)
    follower, text = rng.permutation(30), rng.randint(30, size=(8, 12 * steps + 1))
    for t in range(1, text.shape[1]):
        text[:, t] = np.where(rng.rand(8) < 0.9, follower[text[:, t - 1]], text[:, t])
    return text


def curve(steps: int) -> np.ndarray:
    nn.clear_parameters()
    model = LanguageModel()
    randomize(scale=0.2)
    return np.array(model.train(steps))


def test_a_training_has_the_curve_of_the_cpu(device: Callable) -> None:
    expected = curve(200)
    with device():
        actual = curve(200)
    np.testing.assert_allclose(actual[:20], expected[:20], rtol=1e-3)
    np.testing.assert_allclose(actual, expected, rtol=3e-2)
    assert expected[-20:].mean() < 0.6 * expected[:5].mean()


def test_a_training_with_dropout_learns(device: Callable) -> None:
    with device():
        model = LanguageModel(dropout=0.2)
        randomize(scale=0.2)
        losses = model.train(200)
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:5])


def test_what_was_built_in_the_block_runs_outside(device: Callable) -> None:
    x, cell = variable(2, 5, 3), LSTMCell(4)
    results = []
    with device():
        inside = run(cell, x)[0]
    for ys in (run(cell, x, way="unrolled")[0], inside, inside):
        ys.forward()
        results.append(ys.d.copy())
    assert_same(tuple(results[1:]), tuple(results[:1] * 2), rtol=NEAR)


# -------------------------------------------------------------------------------------------------------- memory, and copies


def used_megabytes() -> float:
    """What is in use of the device's memory; of this process's, where the CPU stands in for it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    status = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    assert status == 0, f"cuMemGetInfo gave {status}"
    return (total.value - free.value) / 2**20


def free_caches() -> None:
    gc.collect()
    nnabla_ext.cpu.clear_memory_cache()
    if "nnabla_ext.cuda" in sys.modules:
        sys.modules["nnabla_ext.cuda"].clear_memory_cache()


@pytest.mark.parametrize("way", ["auto", "unrolled", "loop"])
def test_memory_is_freed_with_the_graph(way: str, device: Callable) -> None:
    """Each graph has tens of megabytes; so has what grows by less than one of them over many kept none."""
    cell = stack(lift(F.dropout, 0.3), LSTMCell(128), GRUCell(128))

    def train_and_forget() -> None:
        ys, state = run(cell, variable(32, 60, 128), way=way)
        loss = F.sum(ys) + sum(F.sum(v) for v in tree_leaves(state))
        loss.forward()
        loss.backward()

    with device():
        for _ in range(3):
            train_and_forget()
        free_caches()
        before = used_megabytes()
        for _ in range(10):
            train_and_forget()
        free_caches()
        assert used_megabytes() - before < 24


@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
def test_no_step_of_a_loop_goes_by_the_host(dropout: bool, device: Callable, host_accesses: Callable) -> None:
    def accesses(length: int) -> int:
        nn.clear_parameters()
        cell = stack(*[lift(F.dropout, 0.5)] * dropout, LSTMCell(4))
        with device():
            x = variables(np.ones((4, length, 3)))
            loss = F.sum(run(cell, x, way="loop")[0])

        def forward_and_backward() -> None:
            loss.forward(clear_no_need_grad=True)
            loss.backward(clear_buffer=True)

        forward_and_backward()
        return host_accesses(forward_and_backward)

    assert accesses(4) == accesses(20)
