"""PyTorch's own layers, at what nnshop is measured by."""

from __future__ import annotations

import platform
from collections.abc import Callable
from itertools import cycle

import torch
from torch import nn
from works import END, NEVER, START

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


def decoding(rival: str, units: int, batch: int, width: int, length: int) -> Phases:
    torch.manual_seed(0)
    model = LanguageModel(units).eval()
    with torch.no_grad():
        model.output.bias[END] = NEVER
    decode = greedy if width == 1 else beam_search

    def text() -> None:
        with torch.inference_mode():
            decode(model, zero_state(batch * width, units), batch, width, length)

    return {"text": text}


def greedy(model: LanguageModel, state: tuple, batch: int, width: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids, scores = torch.full((batch,), START), torch.zeros(batch)
    finished, text = torch.zeros(batch, dtype=torch.bool), []
    for _ in range(length):
        logits, state = model(ids[:, None], state)
        best, ids = logits[:, 0].log_softmax(dim=1).max(dim=1)
        ids, scores = torch.where(finished, END, ids), scores + torch.where(finished, 0.0, best)
        text.append(ids)
        finished = ids == END
        if finished.all():
            break
    return torch.stack(text, dim=1), scores


def beam_search(model: LanguageModel, state: tuple, batch: int, width: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the ways to write it that were tried, a top-k of each hypothesis and then of these was not faster."""
    ids, text = torch.full((batch * width,), START), torch.empty((batch * width, 0), dtype=torch.long)
    scores = torch.full((batch, width), -torch.inf)
    scores[:, 0] = 0
    finished, first = torch.zeros(batch * width, dtype=torch.bool), torch.arange(batch)[:, None] * width
    only_end = torch.full((VOCABULARY,), -torch.inf)
    only_end[END] = 0
    for _ in range(length):
        logits, state = model(ids[:, None], state)
        log_p = logits[:, 0].log_softmax(dim=1)
        if finished.any():
            log_p[finished] = only_end
        candidates = (log_p.view(batch, width, VOCABULARY) + scores[:, :, None]).view(batch, -1)
        scores, places = candidates.topk(width, dim=1)
        rows, ids = (first + places // VOCABULARY).view(-1), (places % VOCABULARY).view(-1)
        state = tuple(s.index_select(1, rows) for s in state)
        text = torch.cat([text.index_select(0, rows), ids[:, None]], dim=1)
        finished = finished.index_select(0, rows) | (ids == END)
        if finished.all():
            break
    return text.view(batch, width, -1), scores


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
