"""PyTorch's own layers on a GPU, at what nnshop is measured by."""

from __future__ import annotations

import platform
from collections.abc import Callable
from itertools import cycle

import torch
from torch import nn

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Device:
    """Where tensors lie, of which type those of halves are, and how to wait for them."""

    def __init__(self, context: str, type_config: str) -> None:
        self.place, self.half = torch.device("cpu" if context == "cpu" else "cuda"), type_config == "half"
        self.name = "CPU" if context == "cpu" else torch.cuda.get_device_name()
        torch.zeros(1, device=self.place)  # now the device has what CUDA itself takes of its memory

    def synchronize(self) -> None:
        if self.place.type == "cuda":
            torch.cuda.synchronize()

    def autocast(self) -> torch.autocast:
        """Where halves are asked for: weights in 32 bits, products and layers in 16, as in NNabla."""
        return torch.autocast(self.place.type, torch.float16 if self.place.type == "cuda" else torch.bfloat16, self.half)


def versions() -> dict[str, str]:
    found = {"PyTorch": torch.__version__, "Python of PyTorch": platform.python_version()}
    return {**found, **({"CUDA of PyTorch": torch.version.cuda} if torch.version.cuda else {})}


class LanguageModel(nn.Module):
    def __init__(self, units: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.embedding, self.drop = nn.Embedding(classes, units), nn.Dropout(dropout)
        self.lstm = nn.LSTM(units, units, num_layers=2, batch_first=True, dropout=dropout)
        self.output = nn.Linear(units, classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.05, 0.05)

    def forward(self, words: torch.Tensor, state: tuple) -> tuple[torch.Tensor, tuple]:
        h, state = self.lstm(self.drop(self.embedding(words)), state)
        return self.output(self.drop(h)), state


def language_model(
    device: Device, units: int, batch: int, steps: int, classes: int, dropout: float, max_norm: float
) -> Callable[[], None]:
    torch.manual_seed(0)
    model = LanguageModel(units, classes, dropout).to(device.place)
    state = tuple(torch.zeros(2, batch, units, device=device.place) for _ in range(2))
    solver = torch.optim.SGD(model.parameters(), lr=1.0)
    batches = cycle([torch.randint(classes, (2, batch, steps)) for _ in range(4)])

    def step() -> None:
        nonlocal state
        words, targets = next(batches).to(device.place)
        with device.autocast():
            logits, state = model(words, state)
            loss = nn.functional.cross_entropy(logits.view(-1, classes), targets.reshape(-1), reduction="sum") / batch
        loss.item()
        solver.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        solver.step()
        state = tuple(s.detach() for s in state)

    return step


def layer(device: Device, kind: str, batch: int, steps: int, units: int) -> Callable[[], None]:
    torch.manual_seed(0)
    made = LAYERS[kind](units, units, batch_first=True).to(device.place)
    x, gradient = (torch.randn(batch, steps, units, device=device.place) for _ in range(2))
    leaves = [x.requires_grad_(), *made.parameters()]

    def forward_and_backward() -> None:
        for leaf in leaves:
            leaf.grad = None
        with device.autocast():
            y = made(x)[0]
        y.backward(gradient.to(y.dtype))

    return forward_and_backward
