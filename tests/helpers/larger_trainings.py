"""Trainings of about 100 MB, large enough that the operating system's count of their memory means
something: `python -m` with the folder of a session, the kind and the number of steps trains one at
half of its natural peak, then without a session, and says how the two compare.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.budgeted_process import warm
from helpers.small_trainings import (
    TiedLanguageModel,
    Training,
    contents,
    convolutions,
    differences,
)
from tensile import Session

BATCHES = 2


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)),
            nn.ReLU(inplace=True),
            *(nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)),
        )
        self.skip = nn.Sequential(
            nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class DeepRecurrent(nn.Module):
    def __init__(self, width: int = 128, depth: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(torch.tanh(layer(x)[0]))
        return x


def swin() -> Training:
    from dovetail_jobs import torchvision_shim

    torchvision_shim.apply()
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        img_size=64, window_size=4, embed_dim=48, depths=(2, 2), num_heads=(3, 6), num_classes=10
    )
    images = [(torch.randn(24, 3, 64, 64), torch.randint(10, (24,))) for _ in range(BATCHES)]
    return _classifying(model, images)


def residual() -> Training:
    blocks = [Residual(24, 24, 1), Residual(24, 24, 1), Residual(24, 48, 2), Residual(48, 48, 1)]
    stem = (nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    images = [(torch.randn(64, 3, 32, 32), torch.randint(10, (64,))) for _ in range(BATCHES)]
    return _classifying(nn.Sequential(*stem, *blocks, *head), images)


def language() -> Training:
    model = TiedLanguageModel(words=1000, width=128)
    batches = [torch.randint(1000, (12, 129)) for _ in range(BATCHES)]
    return _training(
        model,
        batches,
        lambda m, x: F.cross_entropy(m(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()),
    )


def recurrent() -> Training:
    batches = [torch.randn(48, 48, 128) for _ in range(BATCHES)]
    return _training(DeepRecurrent(), batches, lambda m, x: m(x).square().mean())


KINDS: dict[str, Callable[[], Training]] = {
    "swin": swin,
    "residual": residual,
    "language": language,
    "recurrent": recurrent,
}


def made(kind: str) -> Training:
    torch.manual_seed(0)
    return KINDS[kind]()


def trained(training: Training, number: int) -> None:
    training.step(training.batches[number % BATCHES])


def compared(folder: str, kind: str, steps: int) -> dict[str, Any]:
    """At half of the natural peak, against nothing. The session comes first: what the other run
    leaves in the heap is not its.
    """
    training = made(kind)
    with Session(training.model, training.optimizer, 0.5, folder=folder) as session:
        session.prepare(training.step, training.batches[0])
        training.start()
        for number in range(steps):
            with session.step():
                trained(training, number)
        stats = session.stats()
    found = contents(training)
    free = made(kind)
    free.start()
    for number in range(steps):
        trained(free, number)
    return {"differences": differences(found, contents(free)), "stats": asdict(stats)}


def _classifying(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Training:
    return _training(model, batches, lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]))


def _training(
    model: nn.Module, batches: list[Any], loss: Callable[[nn.Module, Any], Tensor]
) -> Training:
    return Training(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        batches=batches,
        loss=loss,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 512 * 1024)
    warm(sys.argv[1])
    trained(convolutions(), 0)  # their kernels belong to the bare process
    print(json.dumps(compared(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
