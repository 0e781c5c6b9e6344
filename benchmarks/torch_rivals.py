"""PyTorch's own layers, at what nnshop is measured by."""

from __future__ import annotations

import platform
from itertools import cycle
from typing import Callable

import torch
from torch import nn

VOCABULARY = 10_000
LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
Phases = dict[str, Callable[[], None]]


def versions() -> dict[str, str]:
    return {"PyTorch": torch.__version__, "Python of PyTorch": platform.python_version()}


class LanguageModel(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, units)
        self.lstm = nn.LSTM(units, units, num_layers=2, batch_first=True)
        self.output = nn.Linear(units, VOCABULARY)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def forward(self, words: torch.Tensor, state: tuple) -> tuple[torch.Tensor, tuple]:
        h, state = self.lstm(self.embedding(words), state)
        return self.output(h), state


def zero_state(batch: int, units: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(2, batch, units), torch.zeros(2, batch, units)


def language_model(rival: str, units: int, batch: int, steps: int) -> Phases:
    torch.manual_seed(0)
    model, state = LanguageModel(units), zero_state(batch, units)
    solver = torch.optim.SGD(model.parameters(), lr=1.0)
    batches = cycle([torch.randint(VOCABULARY, (2, batch, steps)) for _ in range(4)])

    def step() -> None:
        nonlocal state
        words, targets = next(batches)
        logits, state = model(words, state)
        loss = nn.functional.cross_entropy(logits.view(-1, VOCABULARY), targets.reshape(-1), reduction="sum") / batch
        loss.item()
        solver.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        solver.step()
        state = tuple(s.detach() for s in state)

    return {"step": step}


def generation(rival: str, units: int) -> Phases:
    torch.manual_seed(0)
    model, state, word = LanguageModel(units).eval(), zero_state(1, units), 0

    def token() -> None:
        nonlocal state, word
        with torch.inference_mode():
            logits, state = model(torch.tensor([[word]]), state)
            word = int(logits[0, 0].argmax())

    return {"token": token}


def layer(rival: str, kind: str, batch: int, steps: int, units: int) -> Phases:
    torch.manual_seed(0)
    made = LAYERS[kind](units, units, batch_first=True)
    x, gradient = torch.randn(batch, steps, units, requires_grad=True), torch.randn(batch, steps, units)
    leaves, outputs = [x, *made.parameters()], []

    def forward() -> None:
        outputs.append(made(x)[0])

    def backward() -> None:
        for leaf in leaves:
            leaf.grad = None
        outputs.pop().backward(gradient)

    return {"forward": forward, "backward": backward}
