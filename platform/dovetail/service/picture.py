"""The scheduler's picture of the store's jobs: which attempts hold what, and which jobs wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from dovetail.scheduler.readmission import Shortage, Terms, terms
from dovetail.scheduler.view import ClusterView, DeviceView, Holding, NodeView, QueuedJob, Sharing
from dovetail.service.elapsed import Elapsed
from dovetail.service.outlooks import Foreseen, Outlooks, corrected, on_terms, sharing
from dovetail.store.records import JobRecord
from dovetail_jobs.lifecycle import Reason, State
from dovetail_jobs.spec import JobSpec

LONGEST_PAUSE_S = 60.0
_TOO_MUCH = "its command took more than a device has before"
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
        queued=tuple(
            _on_a_device_that_is(_waiting(job, now, elapsed, outlooks), nodes or ())
            for job in queued
        ),
    )


def overrun(job: JobRecord, outlooks: Outlooks) -> float:
    """How many times what its plans foresee the job is known to hold."""
    found = outlooks.of(job.id)
    known = (attempt.overrun or 1.0 for attempt in job.attempts)
    return max(1.0 if found is None else found.raised, *known)


def device(nodes: Sequence[NodeView], node_id: str, name: str) -> DeviceView | None:
    named = (each for node in nodes if node.id == node_id for each in node.devices)
    return next((each for each in named if each.name == name), None)


def with_queued(view: ClusterView, job: QueuedJob) -> ClusterView:
    return replace(view, queued=(*view.queued, job))


def holdings(active: Sequence[JobRecord], outlooks: Outlooks | None = None) -> tuple[Holding, ...]:
    """Without `outlooks`, who holds what, and not whether others may join."""

    def known(job: JobRecord, cap_bytes: int | None) -> Sharing:
        if outlooks is None:
            return Sharing()
        offered, agreed = _offered(job, outlooks)
        return on_terms(offered, cap_bytes, agreed is not None and agreed.alone)

    return tuple(
        Holding(
            sharing=known(job, attempt.cap_bytes),
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
    memory, batch_size = spec.resources.memory, spec.params.get("batch_size")
    return QueuedJob(
        id=job_id,
        name=spec.name,
        seq=seq,
        priority=spec.priority,
        devices=spec.resources.devices,
        cpus=spec.resources.cpus,
        memory_bytes=memory if isinstance(memory, int) else None,
        peak_bytes=_peak_bytes(spec, found),
        batch_size=batch_size if type(batch_size) is int else None,
        sharing=sharing(spec, found),
    )


def _peak_bytes(spec: JobSpec, found: Foreseen | None) -> int | None:
    """What a job takes that nothing keeps to less. One that declares is ended where it takes
    more.
    """
    if found is None or spec.memory.policy != "none" or isinstance(spec.resources.memory, int):
        return None
    return found.peak_bytes


def pause_s(losses: int) -> float:
    """How long a job waits after its latest loss: not at all after the first, then ever longer."""
    return 0.0 if losses <= 1 else min(LONGEST_PAUSE_S, 2.0**losses)


def _waiting(job: JobRecord, now: datetime, elapsed: Elapsed, outlooks: Outlooks) -> QueuedJob:
    asked = queued_job(job.id, JobSpec.model_validate(job.spec), job.seq, outlooks.of(job.id))
    offered, agreed = _offered(job, outlooks)
    if agreed is not None:
        offered = on_terms(offered, agreed.cap_bytes, agreed.alone)
    return replace(
        asked,
        waits_for_release=bool(job.unreleased),
        after=_after(job, now, elapsed),
        sharing=offered,
        terms=agreed,
    )


def _on_a_device_that_is(job: QueuedJob, nodes: Sequence[NodeView]) -> QueuedJob:
    """A script is not refused for what one of its command took before: if that is more than any
    device, it has one alone.
    """
    largest_bytes = max((each.bytes for node in nodes for each in node.devices), default=0)
    profile, declared_bytes = job.sharing.profile, job.memory_bytes
    if profile is None or declared_bytes is None or len(profile.rungs) > 1:
        return job
    if not declared_bytes <= largest_bytes < profile.minimum_bytes:
        return job
    return replace(job, sharing=replace(job.sharing, share=False, profile=None, alone=_TOO_MUCH))


def _offered(job: JobRecord, outlooks: Outlooks) -> tuple[Sharing, Terms | None]:
    """What the job asks of a device, and what it comes back on if it ran out of memory."""
    spec, found = JobSpec.model_validate(job.spec), outlooks.of(job.id)
    shortages = tuple(
        Shortage(
            attempt=attempt.number,
            node_id=attempt.node_id,
            device=attempt.device,
            neighbours=attempt.neighbours or 0,
            limit_bytes=attempt.budget_bytes,
            peak_bytes=attempt.peak_bytes,
            overrun=attempt.overrun,
        )
        for attempt in job.attempts
        if attempt.reason is Reason.OUT_OF_MEMORY
    )
    busy = [attempt.busy for attempt in job.attempts]
    if not shortages:
        return sharing(spec, found, busy), None
    # the forecasts learn it too, a moment later
    known = None
    if found is not None:
        overruns = (each.overrun for each in shortages if each.overrun is not None)
        known = corrected(found, job.memory.peak_bytes, max(overruns, default=None))
    offered = sharing(spec, known, busy)
    unmanaged = spec.family is not None and spec.memory.policy == "none"
    agreed = terms(
        shortages, offered.profile, shares=offered.share is not False, unmanaged=unmanaged
    )
    return offered, agreed


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
