"""A family whose batches are most of its memory, loaded ahead or not; as a program it trains one
job and prints what it used: `python -m helpers.loading_workload FOLDER SPEC`.
"""

from __future__ import annotations

import json
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from dovetail_jobs.workload import Draw, Feed, Member, StepResult, WorkloadContext

WIDTH = 64 * 1024
SAMPLE_BYTES = 4 * WIDTH


class Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = 192
    prefetch: bool = False


class Made:
    """Samples that are made when they are drawn, so that nothing is held but batches."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._latest: Callable[[], torch.Tensor | None] = lambda: None

    def wait_for_another(self, batch: torch.Tensor) -> None:
        """Until one was made after `batch`."""
        with self._changed:
            self._changed.wait_for(lambda: self._latest() is not batch)

    def __len__(self) -> int:
        return 4096

    def batch(self, draws: Sequence[Draw]) -> torch.Tensor:
        samples = torch.empty(len(draws), WIDTH)
        for row, draw in zip(samples, draws, strict=True):
            row.fill_(draw.index / len(self))
        with self._changed:
            self._latest = weakref.ref(samples)
            self._changed.notify_all()
        return samples


class Loading:
    phases = ("train",)

    def __init__(self, params: Params, context: WorkloadContext) -> None:
        self.model = nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, 1))
        self.models = {"model": Member(module=self.model)}
        self.optimizers = {"model": context.optimizer([{"params": self.model.parameters()}])}
        self.source, self.loads_ahead = Made(), params.prefetch
        feed = Feed(source=self.source, batch_size=context.global_batch, prefetch=params.prefetch)
        self.feeds = {"train": feed}

    def step(self, batches: Mapping[str, Any]) -> StepResult:
        samples = batches["train"]
        if self.loads_ahead:
            self.source.wait_for_another(samples)  # so that both are held, whoever is faster
        return StepResult(loss=self.model(samples).square().mean(), samples=len(samples))

    def validate(self) -> Mapping[str, float]:
        return {}


def build(params: Params, context: WorkloadContext) -> Loading:
    return Loading(params, context)


def main(folder: str, spec: str) -> None:
    from dovetail_workers.reports import MemoryUsed, Report
    from dovetail_workers.storage.local import LocalStorage
    from dovetail_workers.train import train
    from helpers.training import launch

    given = json.loads(spec)
    described = launch(
        Path(folder), {"steps": 6, "checkpoint": {"every": 6}}, family=__spec__.name, **given
    )
    reports: list[Report] = []
    train(described, LocalStorage(Path(folder)), reports.append, lambda: False)
    print(json.dumps(asdict([each for each in reports if isinstance(each, MemoryUsed)][-1])))


if __name__ == "__main__":
    main(*sys.argv[1:])
