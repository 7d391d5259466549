"""The scheduler's picture of the store's jobs: which attempts hold what, and which jobs wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from dovetail.scheduler.view import ClusterView, Holding, NodeView, QueuedJob, Sharing
from dovetail.service.elapsed import Elapsed
from dovetail.service.outlooks import Foreseen, Outlooks, sharing
from dovetail.store.records import JobRecord
from dovetail_jobs.lifecycle import Reason, State
from dovetail_jobs.spec import JobSpec

LONGEST_PAUSE_S = 60.0
_SAME = timedelta(seconds=1)
_LOSSES = (Reason.WORKER_LOST, Reason.LAUNCH_FAILED)


def cluster_view(
    nodes: tuple[NodeView, ...] | None,
    active: Sequence[JobRecord],
    now: datetime,
    elapsed: Elapsed,
    outlooks: Outlooks,
) -> ClusterView:
    queued = [job for job in active if job.state is State.QUEUED]
    return ClusterView(
        nodes=nodes,
        holdings=holdings(active, outlooks),
        queued=tuple(_waiting(job, now, elapsed, outlooks) for job in queued),
    )


def with_queued(view: ClusterView, job: QueuedJob) -> ClusterView:
    return replace(view, queued=(*view.queued, job))


def holdings(active: Sequence[JobRecord], outlooks: Outlooks | None = None) -> tuple[Holding, ...]:
    """Without `outlooks`, who holds what, and not whether others may join."""

    def known(job: JobRecord) -> Sharing:
        if outlooks is None:
            return Sharing()
        return _sharing(job, outlooks)

    return tuple(
        Holding(
            sharing=known(job),
            job_id=job.id,
            job_name=job.name,
            attempt=attempt.number,
            node_id=attempt.node_id,
            device=attempt.device,
            cpus=attempt.cpus,
        )
        for job in active
        for attempt in job.unreleased
    )


def queued_job(job_id: str, spec: JobSpec, seq: int, found: Foreseen | None) -> QueuedJob:
    memory = spec.resources.memory
    return QueuedJob(
        id=job_id,
        name=spec.name,
        seq=seq,
        priority=spec.priority,
        devices=spec.resources.devices,
        cpus=spec.resources.cpus,
        memory_bytes=memory if isinstance(memory, int) else None,
        sharing=sharing(spec, found),
    )


def pause_s(losses: int) -> float:
    """How long a job waits after its latest loss: not at all after the first, then ever longer."""
    return 0.0 if losses <= 1 else min(LONGEST_PAUSE_S, 2.0**losses)


def _waiting(job: JobRecord, now: datetime, elapsed: Elapsed, outlooks: Outlooks) -> QueuedJob:
    asked = queued_job(job.id, JobSpec.model_validate(job.spec), job.seq, outlooks.of(job.id))
    return replace(
        asked,
        waits_for_release=bool(job.unreleased),
        after=_after(job, now, elapsed),
        sharing=_sharing(job, outlooks),
    )


def _sharing(job: JobRecord, outlooks: Outlooks) -> Sharing:
    shortages = sum(attempt.reason is Reason.OUT_OF_MEMORY for attempt in job.attempts)
    return sharing(JobSpec.model_validate(job.spec), outlooks.of(job.id), shortages)


def _after(job: JobRecord, now: datetime, elapsed: Elapsed) -> datetime | None:
    """When the pause after the latest loss is over, whatever was done to the clock since."""
    losses = sum(attempt.reason in _LOSSES for attempt in job.attempts)
    ended_at = job.attempts[-1].ended_at if job.attempts else None
    pause = timedelta(seconds=pause_s(losses))
    if ended_at is None or not pause:
        return None
    planned = ended_at + pause
    after = now + pause - elapsed.since(job.id, ended_at, now)
    # Without a jump of the clock both are the same, and the sentence with it must not flicker.
    return planned if abs(after - planned) < _SAME else after
