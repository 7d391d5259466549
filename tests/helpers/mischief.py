"""A small training in which memory, or the step itself, fails once at a place that is named."""

from __future__ import annotations

import copy
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers.small_trainings import Training, contents
from tensile import freed_memory

ROWS, WIDTH = 4096, 128  # a tensor of 2 MiB
TOO_MUCH_BYTES = 2**47  # more than an address space
PLACES = ("forward", "backward", "gradient", "optimizer")


class Interrupted(Exception):
    pass


def nothing() -> None:
    pass


@dataclass
class Mischief:
    """Does `what` when a step comes to `place`, `times` times."""

    place: str = ""
    what: Callable[[], None] = nothing
    times: int = 0
    met: list[str] = field(default_factory=list)

    def set(self, place: str, what: Callable[[], None], times: int = 1) -> None:
        self.place, self.what, self.times = place, what, times
        self.met.clear()

    def at(self, place: str) -> None:
        self.met.append(place)
        if place == self.place and self.times > 0:
            self.times -= 1
            self.what()


class Passage(nn.Module):
    """Hands on what it gets, and says when forward and backward come through."""

    def __init__(self, mischief: Mischief) -> None:
        super().__init__()
        self.mischief = mischief

    def forward(self, x: Tensor) -> Tensor:
        self.mischief.at("forward")
        if x.requires_grad:
            x.register_hook(lambda _: self.mischief.at("backward"))
        return x * 1


def training_with(mischief: Mischief, *, normed: bool = False) -> Training:
    """Four layers with dropout, a passage in their middle; `normed` puts statistics in buffers."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number in range(4):
        layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.1)]
        if normed:
            layers.append(nn.BatchNorm1d(WIDTH))
        if number == 1:
            layers.append(Passage(mischief))
    model = nn.Sequential(*layers)
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    linear[1].weight.register_post_accumulate_grad_hook(lambda _: mischief.at("gradient"))
    groups = [{"params": list(layer.parameters())} for layer in linear]
    groups += [
        {"params": list(layer.parameters())} for layer in model if isinstance(layer, nn.BatchNorm1d)
    ]
    return Training(
        model=model,
        optimizer=torch.optim.AdamW(groups, lr=1e-3),
        batches=[torch.randn(ROWS, WIDTH) for _ in range(3)],
        loss=lambda m, x: m(x).square().mean(),
    )


def take(training: Training, mischief: Mischief, batch: Tensor) -> None:
    """One step, which says where it is."""
    mischief.at("begin")
    training.optimizer.zero_grad()
    loss = training.loss(training.model, batch)
    mischief.at("loss")
    loss.backward()
    mischief.at("optimizer")
    training.optimizer.step()
    mischief.at("end")
    training.losses.append(loss.item())


def impossible() -> None:
    torch.empty(TOO_MUCH_BYTES, dtype=torch.uint8)


def interrupt() -> None:
    raise Interrupted


def scarce() -> None:
    """An operator finds next to nothing that the system would still give."""
    limit_address_space(2**20)
    try:
        torch.ones(ROWS, WIDTH)
    finally:
        unlimit_address_space()


def limit_address_space(more_bytes: int) -> None:
    """From here on the process gets no more than that from the system."""
    freed_memory.let_wait(0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more_bytes, most))


def unlimit_address_space() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def all_of(training: Training) -> dict[str, Any]:
    gradients = {name: p.grad for name, p in training.model.named_parameters()}
    return {**contents(training), "gradients": copy.deepcopy(gradients)}
