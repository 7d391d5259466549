"""Run the training loop in this process and look at what it said and stored."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from dovetail_jobs.spec import JobSpec
from dovetail_workers import checkpoint
from dovetail_workers.keys import checkpoints_prefix
from dovetail_workers.launch import Launch
from dovetail_workers.reports import CheckpointSaved, Metrics, Report
from dovetail_workers.storage.local import LocalStorage
from dovetail_workers.train import train

Kind = TypeVar("Kind", bound=Report)
TINY = "helpers.tiny_workload"
JOB = "k3f9qz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    outcome: str
    reports: list[Report]
    storage: LocalStorage

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [report for report in self.reports if isinstance(report, kind)]

    def metric(self, name: str) -> dict[int, float]:
        """The values by step."""
        found = self.of(Metrics)
        return {item.step: item.values[name] for item in found if name in item.values}

    def state(self) -> dict[str, Any]:
        """All that the newest checkpoint holds, by part."""
        newest = checkpoint.newest(self.storage, [checkpoints_prefix(JOB)])
        assert newest is not None
        assert newest.prefix == self.of(CheckpointSaved)[-1].key
        return {
            name: torch.load(
                io.BytesIO(checkpoint.read(self.storage, newest, name)), weights_only=True
            )
            for name in newest.manifest.parts
        }


def run(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    family: str = TINY,
    params: Mapping[str, Any] | None = None,
    attempt: int = 1,
    resume: bool = False,
    stop_after: int | None = None,
    cpus: float = 1,
    policy: str = "none",
) -> Trained:
    """Train to the end, or until `stop_after` steps. `settings` is the `train` of the spec."""
    described = launch(
        *(folder, settings),
        family=family,
        params=params,
        attempt=attempt,
        resume=resume,
        cpus=cpus,
        policy=policy,
    )
    storage, reports = LocalStorage(folder), list[Report]()
    outcome = train(described, storage, reports.append, _after(stop_after))
    return Trained(outcome=outcome, reports=reports, storage=storage)


def launch(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    family: str = TINY,
    params: Mapping[str, Any] | None = None,
    attempt: int = 1,
    resume: bool = False,
    cpus: float = 1,
    policy: str = "none",
    budget: str | int = "auto",
) -> Launch:
    """An attempt of such a training."""
    spec = JobSpec.model_validate(
        {
            "name": "tiny",
            "family": family,
            "params": dict(params or {}),
            "train": {"optimizer": {"lr": 0.01}, **settings},
            "resources": {"cpus": cpus},
            "memory": {"policy": policy, "budget": budget},
        }
    )
    return Launch(
        job_id=JOB,
        job_name=spec.name,
        attempt=attempt,
        spec=spec.to_json(),
        node="here",
        device="cpu:0",
        device_bytes=2**30,
        storage_uri=str(folder),
        resume_from=(checkpoints_prefix(JOB),) if resume else (),
    )


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Where two nested states differ in as much as one bit."""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and set(one) == set(other):
        for key in one:
            yield from differences(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield place
        for number, pair in enumerate(zip(one, other, strict=False)):
            yield from differences(*pair, f"{place}[{number}]")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield place
    elif one != other:
        yield place


def _after(steps: int | None) -> Callable[[], bool]:
    asked = iter(range(1_000_000))
    return lambda: steps is not None and next(asked) >= steps
