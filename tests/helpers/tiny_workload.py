"""A family of the user's own, small enough for a step in half a millisecond, that asks for much.

Two streams per step, two optimizers, dropout, an EMA teacher, and a queue that is a buffer: what
the self-supervised families need of the loop.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from dovetail_jobs.workload import Draw, Feed, Member, StepResult, WorkloadContext

CLASSES = 3
WIDTH = 8
QUEUE = 16


class Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = 8
    samples: int = 40
    dropout: float = 0.2
    noise: float = 0.1
    loss_factor: float = 1.0
    nan_from_step: int | None = None
    prefetch: bool = False


class Points:
    """Points around one centre per class; each draw adds noise of its own."""

    def __init__(self, samples: int, noise: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(samples) % CLASSES
        centres = torch.randn(CLASSES, WIDTH, generator=generator)
        self.points = centres[self.labels] + torch.randn(samples, WIDTH, generator=generator) / 2
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.tensor([draw.index for draw in draws])
        noise = [
            torch.randn(WIDTH, generator=torch.Generator().manual_seed(draw.seed % 2**63))
            for draw in draws
        ]
        return self.points[chosen] + self.noise * torch.stack(noise), self.labels[chosen]


class Student(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.register_buffer("queue", torch.zeros(QUEUE, CLASSES))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.queue: torch.Tensor
        self.place: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(x))
        return logits

    @torch.no_grad()
    def remember(self, logits: torch.Tensor) -> None:
        for row in logits.float():
            self.queue[int(self.place)] = row
            self.place.copy_((self.place + 1) % QUEUE)


class Tiny:
    phases = ("train",)

    def __init__(self, params: Params, context: WorkloadContext) -> None:
        self.params = params
        self.student = Student(params.dropout).to(context.device)
        self.teacher = copy.deepcopy(self.student).eval()
        self.points = Points(params.samples, params.noise, seed=1)
        self.models = {
            "student": Member(module=self.student),
            "teacher": Member(
                module=self.teacher,
                role="ema",
                follows="student",
                momentum=lambda step, steps: 0.5 + 0.5 * step / (steps + 1),
            ),
        }
        self.optimizers = {
            "body": context.optimizer([{"params": self.student.body.parameters()}]),
            "head": context.optimizer(
                [{"params": self.student.head.parameters(), "lr_factor": 0.5}]
            ),
        }
        self.feeds = {
            "labelled": Feed(
                source=self.points, batch_size=context.global_batch, prefetch=params.prefetch
            ),
            "unlabelled": Feed(
                source=Points(params.samples + 9, params.noise, seed=2),
                batch_size=2 * context.global_batch,
            ),
        }
        self.steps_seen = 0

    def step(self, batches: Mapping[str, Any]) -> StepResult:
        points, labels = batches["labelled"]
        loss = cross_entropy(self.student(points), labels)
        more, _ = batches["unlabelled"]
        with torch.no_grad():
            taught = self.teacher(more)
        loss = loss + 0.1 * mse_loss(self.student(more).float(), taught.float())
        loss = loss + 0.01 * self.student.queue.mean() ** 2
        self.student.remember(taught[:4])
        self.steps_seen += 1
        if self.params.nan_from_step is not None and self.steps_seen >= self.params.nan_from_step:
            loss = loss * float("nan")
        return StepResult(loss=loss * self.params.loss_factor, samples=len(labels))

    def validate(self) -> dict[str, float]:
        torch.rand(7)  # a validation that draws; the run must not notice
        answers = self.student(self.points.points).argmax(1)
        return {"accuracy": float((answers == self.points.labels).double().mean())}


def build(params: Params, context: WorkloadContext) -> Tiny:
    return Tiny(params, context)
