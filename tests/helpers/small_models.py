"""Small models of different kinds with a batch and a usual training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """`step(batch)` does forward, backward, update and zero_grad."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: tuple[Tensor, Tensor]
    step: Callable[[tuple[Tensor, Tensor]], object]

    def found(self) -> list[Tensor]:
        """What a steady step finds: parameters, buffers, optimizer state."""
        states = [
            tensor
            for state in self.optimizer.state.values()
            for tensor in state.values()
            if isinstance(tensor, Tensor)
        ]
        return [*self.model.parameters(), *self.model.buffers(), *states]


def mlp(width: int = 32) -> Training:
    model = nn.Sequential(
        nn.Linear(16, width), nn.GELU(), nn.LayerNorm(width), nn.Dropout(0.1), nn.Linear(width, 4)
    )
    return training(model, torch.randn(8, 16), torch.randint(4, (8,)))


def cnn() -> Training:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return training(model, torch.randn(4, 3, 12, 12), torch.randint(4, (4,)))


class Attention(nn.Module):
    """A GPT-like block whose embedding is tied to its output."""

    def __init__(self, words: int = 20, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.mix = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.embed(words)
        q, k, v = self.mix(self.norm(hidden)).view(*words.shape, 3, 2, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden + mixed.transpose(1, 2).flatten(2)
        scores: Tensor = self.head(hidden)
        return scores.flatten(0, 1)


def attention() -> Training:
    return training(Attention(), torch.randint(20, (2, 6)), torch.randint(20, (12,)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, sequence: Tensor) -> Tensor:
        hidden, _ = self.lstm(sequence)
        scores: Tensor = self.head(hidden[:, -1])
        return scores


def lstm() -> Training:
    return training(Recurrent(), torch.randn(3, 5, 6), torch.randint(4, (3,)))


KINDS: dict[str, Callable[[], Training]] = {
    "mlp": mlp,
    "cnn": cnn,
    "attention": attention,
    "lstm": lstm,
}


def training(model: nn.Module, inputs: Tensor, targets: Tensor, **options: Any) -> Training:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **options)

    def step(batch: tuple[Tensor, Tensor]) -> None:
        loss = functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Training(model=model, optimizer=optimizer, batch=(inputs, targets), step=step)
