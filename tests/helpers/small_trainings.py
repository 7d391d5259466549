"""Small trainings of different kinds, the same each time they are made: what a session is compared
on. Nothing here knows of a session.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Training:
    """`step(batch)` is a whole training step; its losses are kept as numbers."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Sequence[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    losses: list[float] = field(default_factory=list)
    clip: float | None = None
    generator: Tensor = field(default_factory=torch.get_rng_state)

    def start(self) -> None:
        """Let the generator stand where it stood when this was made."""
        torch.set_rng_state(self.generator)

    def step(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        loss = self.loss(self.model, batch)
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.losses.append(loss.item())


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = (batch, length, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(self.norm(x)).view(split).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)).softmax(-1)
        mixed = (scores @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.dropout(self.out(mixed))
        return x + self.mlp(x)


class TiedLanguageModel(nn.Module):
    def __init__(self, words: int = 600, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Attention(width, 4) for _ in range(3))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(64, 64, batch_first=True) for _ in range(5))
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)[0])
        result: Tensor = self.head(x)
        return result


def perceptron() -> Training:
    torch.manual_seed(0)
    hidden = [layer for _ in range(6) for layer in (nn.Linear(192, 192), nn.ReLU(), nn.Tanh())]
    model = nn.Sequential(nn.Linear(64, 192), *hidden, nn.Linear(192, 10))
    batches = [(torch.randn(512, 64), torch.randint(10, (512,))) for _ in range(4)]
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        batches=batches,
        loss=_classified,
        clip=1.0,
    )


def convolutions() -> Training:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
    for number in range(6):
        layers += [nn.BatchNorm2d(8), nn.ReLU(inplace=number % 2 == 0)]
        layers.append(nn.Conv2d(8, 8, 3, padding=1))
    head = (nn.MaxPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * 4 * 4, 10))
    model = nn.Sequential(*layers, *head)
    batches = [(torch.randn(16, 3, 16, 16), torch.randint(10, (16,))) for _ in range(4)]
    return Training(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        batches=batches,
        loss=_classified,
    )


def attention() -> Training:
    torch.manual_seed(0)
    model = nn.Sequential(Attention(64, 4), Attention(64, 4), nn.Linear(64, 10))
    batches = [torch.randn(8, 64, 64) for _ in range(4)]
    return Training(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        batches=batches,
        loss=lambda m, x: m(x).square().mean(),
    )


def language() -> Training:
    torch.manual_seed(0)
    model = TiedLanguageModel()
    batches = [torch.randint(600, (4, 65)) for _ in range(4)]
    return Training(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        batches=batches,
        loss=lambda m, x: F.cross_entropy(m(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()),
        clip=1.0,
    )


def recurrent() -> Training:
    torch.manual_seed(0)
    model = Recurrent()
    batches = [torch.randn(16, 24, 64) for _ in range(4)]
    return Training(
        model=model,
        optimizer=torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.5),
        batches=batches,
        loss=lambda m, x: m(x).square().mean(),
    )


KINDS: dict[str, Callable[[], Training]] = {
    "perceptron": perceptron,
    "convolutions": convolutions,
    "attention": attention,
    "language": language,
    "recurrent": recurrent,
}


def contents(training: Training) -> dict[str, Any]:
    """Everything that training changed: parameters, buffers, optimizer state, losses, generator."""
    return copy.deepcopy(
        {
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict()["state"],
            "losses": training.losses,
            "generator": torch.get_rng_state(),
        }
    )


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two such contents are not bit for bit equal."""
    if isinstance(left, Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
        return [] if same else [path]
    if isinstance(left, dict):
        if left.keys() != right.keys():
            return [f"{path}: keys"]
        return [d for key in left for d in differences(left[key], right[key], f"{path}.{key}")]
    if isinstance(left, list):
        pairs = enumerate(zip(left, right, strict=True))
        return [d for index, (a, b) in pairs for d in differences(a, b, f"{path}.{index}")]
    return [] if left == right else [path]


def _classified(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)
