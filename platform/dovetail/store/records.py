"""What the store hands out: frozen values, detached from any row. Times are aware, in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict

from dovetail_jobs.lifecycle import Reason, State


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRecord:
    rank: int
    pid: int | None = None
    node: str | None = None
    device: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """A device of a node, by their names, that the cluster has or had of late."""

    node: str
    device: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One try of a job on one device.

    `cursor` counts the journal segments that were read. `refusal` is the sentence of a program that
    refused its input. What it holds is free once `released_at` is set.

    `cap_bytes` is the most that it may hold, None for what the spec says; `budget_bytes` and
    `peak_bytes` are what it was given and what it held at most, by its own report; `neighbours` how
    many others were on its device when memory ran out, and `overrun` how many times what its plans
    foresee it held, if that ended it; `busy` what part of its processors, or of its GPU, it kept
    computing.
    """

    job_id: str
    number: int
    state: State
    reason: Reason
    message: str
    node: str
    node_id: str
    device: str
    cpus: float
    pid: int | None
    exit_code: int | None
    refusal: str | None
    resumed_from_step: int | None
    ranks: tuple[RankRecord, ...]
    cursor: int
    placed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    stop_requested_at: datetime | None
    released_at: datetime | None
    cap_bytes: int | None = None
    budget_bytes: int | None = None
    peak_bytes: int | None = None
    neighbours: int | None = None
    overrun: float | None = None
    busy: float | None = None

    @property
    def attempt_id(self) -> str:
        return f"{self.job_id}.{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A whole checkpoint under storage prefix `key`."""

    key: str
    attempt: int
    phase: str
    step: int
    uri: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressRecord:
    phase: str
    step: int
    steps: int | None = None
    steps_per_s: float | None = None
    samples_per_s: float | None = None

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end of this phase at the present speed; None while either is unknown."""
        if self.steps is None or not self.steps_per_s:
            return None
        return max(self.steps - self.step, 0) / self.steps_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRecord:
    """Bytes, None until known. `provenance` is how the forecast was made, `peak_bytes` the highest
    growth over `base_bytes` so far; what follows `base_bytes` is the newest attempt's, of the
    tensile policy; `fence` is who keeps it to its budget.
    """

    forecast_bytes: int | None = None
    provenance: str | None = None
    peak_bytes: int | None = None
    budget_bytes: int | None = None
    base_bytes: int | None = None
    swapped_out_bytes: int | None = None
    swapped_in_bytes: int | None = None
    recomputed_bytes: int | None = None
    passive_fetches: int | None = None
    stall_s: float | None = None
    replans: int | None = None
    fence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job with its attempts and checkpoints, oldest first.

    `version` counts changes of the lifecycle; `metrics` holds each metric's last value, None where
    it was not finite; `origin_job` is the job that this one tries again; `code` is the content hash
    of its code snapshot, None for a job that brings no code.
    """

    id: str
    seq: int
    name: str
    project: str
    user: str
    labels: dict[str, str]
    parent: str | None
    origin_job: str | None
    code: str | None
    spec: dict[str, Any]
    state: State
    reason: Reason
    message: str
    priority: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    version: int
    progress: ProgressRecord | None
    metrics: dict[str, float | None]
    memory: MemoryRecord
    attempts: tuple[AttemptRecord, ...]
    checkpoints: tuple[CheckpointRecord, ...]

    @property
    def newest_attempt(self) -> AttemptRecord | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def unreleased(self) -> tuple[AttemptRecord, ...]:
        """The attempts that still hold a device."""
        return tuple(attempt for attempt in self.attempts if attempt.released_at is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """One line of a job's story: what happened, and where the job stood after it."""

    id: int
    job_id: str
    attempt: int | None
    at: datetime
    kind: str
    state: State
    reason: Reason
    message: str

    def __str__(self) -> str:
        where = f"{self.kind} → {self.state} ({self.reason})"
        return f"{self.at:%Y-%m-%d %H:%M:%S} {where}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPoint:
    """A point of a curve. `value` is None where the program reported something not finite."""

    metric: str
    phase: str
    step: int
    attempt: int
    value: float | None


class AttemptDetails(TypedDict, total=False):
    """What is known of an attempt when its event is applied; only the keys given are written."""

    node_id: str
    cpus: float
    cap_bytes: int | None
    pid: int
    exit_code: int
    resumed_from_step: int
    ranks: tuple[RankRecord, ...]
