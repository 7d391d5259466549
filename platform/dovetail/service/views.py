"""Records of the store as the contract's JSON types."""

from __future__ import annotations

from dataclasses import asdict

from dovetail.service.contract import (
    AttemptView,
    CheckpointView,
    EventView,
    FilesView,
    JobView,
    MemoryView,
    MetricPointView,
    ProgressView,
    RankView,
)
from dovetail.store.records import AttemptRecord, EventRecord, JobRecord, MetricPoint
from dovetail_workers import keys
from dovetail_workers.storage.protocol import Storage


def job_view(
    job: JobRecord,
    storage: Storage,
    message: str | None = None,
    warnings: tuple[str, ...] = (),
) -> JobView:
    """`message` stands in place of what the store says; `warnings` are for whoever submitted it."""
    return JobView(
        id=job.id,
        name=job.name,
        project=job.project,
        user=job.user,
        labels=job.labels,
        parent=job.parent,
        state=job.state,
        reason=job.reason,
        message=message or job.message,
        priority=job.priority,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        spec=job.spec,
        progress=_progress(job),
        metrics={name: value for name, value in job.metrics.items() if value is not None},
        attempts=tuple(_attempt(attempt) for attempt in job.attempts),
        checkpoints=tuple(
            CheckpointView(step=item.step, uri=item.uri, bytes=item.bytes)
            for item in job.checkpoints
        ),
        memory=_memory(job),
        files=_files(job, storage),
        origin=job.origin_job,
        code=job.code,
        warnings=warnings,
    )


def event_view(event: EventRecord) -> EventView:
    return EventView(
        id=event.id,
        at=event.at,
        attempt=event.attempt,
        kind=event.kind,
        state=event.state,
        reason=event.reason,
        message=event.message,
    )


def metric_view(point: MetricPoint) -> MetricPointView:
    return MetricPointView(
        metric=point.metric,
        phase=point.phase,
        step=point.step,
        attempt=point.attempt,
        value=point.value,
    )


def _progress(job: JobRecord) -> ProgressView:
    """With the seconds that are left at the present speed; none once the job is over."""
    if job.progress is None:
        return ProgressView()
    eta_s = None if job.state.terminal else job.progress.eta_s
    return ProgressView(**asdict(job.progress), eta_s=eta_s)


def _memory(job: JobRecord) -> MemoryView:
    known = asdict(job.memory)
    if job.memory.forecast_bytes is not None:
        known["provenance"] = job.memory.provenance or "traced"  # the worker itself said it first
    declared = job.spec["resources"]["memory"]
    if job.spec["script"] is not None and isinstance(declared, int):
        known["provenance"] = "declared"
    return MemoryView.model_validate(known)


def _attempt(attempt: AttemptRecord) -> AttemptView:
    return AttemptView(
        number=attempt.number,
        state=attempt.state,
        reason=attempt.reason,
        pid=attempt.pid,
        node=attempt.node,
        device=attempt.device,
        exit_code=attempt.exit_code,
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
        resumed_from_step=attempt.resumed_from_step,
        ranks=tuple(RankView(**asdict(rank)) for rank in attempt.ranks),
    )


def _files(job: JobRecord, storage: Storage) -> FilesView:
    if not job.attempts:
        return FilesView()
    newest = job.attempts[-1].number
    return FilesView(
        log=storage.uri(keys.log_prefix(job.id, newest)),
        curves=storage.uri(keys.curves_prefix(job.id, newest)),
    )
