"""A family as a user writes it: one linear layer that learns y = 2x."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dovetail_jobs.workload import Draw, Feed, Member, StepResult, WorkloadContext


class Line:
    def __len__(self) -> int:
        return 64

    def batch(self, draws: Sequence[Draw]) -> torch.Tensor:
        return torch.tensor([[draw.index / 64] for draw in draws])


class Doubling:
    phases = ("train",)

    def __init__(self, context: WorkloadContext) -> None:
        self.layer = nn.Linear(1, 1)
        self.models = {"layer": Member(module=self.layer)}
        self.optimizers = {"all": context.optimizer([{"params": list(self.layer.parameters())}])}
        self.feeds = {"train": Feed(source=Line(), batch_size=context.global_batch)}

    def step(self, batches: Mapping[str, Any]) -> StepResult:
        x = batches["train"]
        return StepResult(loss=((self.layer(x) - 2 * x) ** 2).mean(), samples=len(x))

    def validate(self) -> Mapping[str, float]:
        return {"error": float((self.layer(torch.ones(1, 1)) - 2).abs())}


def build(params: Any, context: WorkloadContext) -> Doubling:
    return Doubling(context)
