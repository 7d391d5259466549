"""How the reports in a worker's journal become rows; the caller guards that each is read once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dovetail.store.change import begin
from dovetail.store.curves import last_values
from dovetail.store.records import ProgressRecord
from dovetail.store.tables import Attempt, Base, Checkpoint, Event, Job, Point
from dovetail_workers import reports as said
from dovetail_workers.reports import Report


def add_reports(
    session: Session, job: Job, attempt: Attempt, reports: Sequence[Report], now: datetime
) -> None:
    """Write what an attempt reported, in its order.

    News of an attempt that is no longer the newest go into the curve and the checkpoints, but do
    not speak for the job's progress.
    """
    newest = attempt is job.attempts[-1]
    points: dict[tuple[str, str, int], float | None] = {}
    for report in reports:
        match report:
            case said.Started():
                attempt.pid = report.pid
                attempt.resumed_from_step = report.resumed_from_step
                _rank_zero(attempt, pid=report.pid, node=report.node, device=report.device)
                begin(session, job, attempt, now)
            case said.Progress() if newest:
                job.progress = asdict(_progress(report))
            case said.Metrics():
                values = {name: _finite(value) for name, value in report.values.items()}
                points.update(
                    {(name, report.phase, report.step): value for name, value in values.items()}
                )
                if newest:
                    job.metrics = {**job.metrics, **values}
            case said.CheckpointSaved():
                _save_checkpoint(session, job, attempt, report)
            case said.CheckpointRemoved():
                _remove_checkpoint(session, job, report)
            case said.CheckpointSkipped():
                _tell(session, job, attempt, report, str(report), now)
            case said.JournalDamaged():
                what = f"journal segment {report.segment} of attempt {attempt.number}"
                cause = f"is damaged after {report.whole} of its reports: {report.cause}"
                _tell(session, job, attempt, report, f"{what} {cause}", now)
            case said.MemoryUsed():
                job.memory = _memory(job.memory, report)
                attempt.overrun = report.overrun or attempt.overrun
                attempt.budget_bytes = report.budget_bytes or attempt.budget_bytes
                attempt.peak_bytes = _highest(attempt.peak_bytes, report.peak_bytes)
            case said.Busy():
                attempt.busy = report.share
            case said.Refused():
                attempt.refusal = report.message
            case said.Ended():
                attempt.exit_code = report.exit_code
                _rank_zero(attempt, exit_code=report.exit_code)
            case _:
                pass
    _save_points(session, job, attempt, points)
    if points and not newest:
        job.metrics = last_values(session, job.id)


def _tell(
    session: Session, job: Job, attempt: Attempt, report: Report, message: str, now: datetime
) -> None:
    """A line of the story that changes no state."""
    session.add(
        Event(
            job_id=job.id,
            attempt=attempt.number,
            at=now,
            kind=type(report).__name__,
            state=job.state,
            reason=job.reason,
            message=message,
        )
    )


def _progress(report: said.Progress) -> ProgressRecord:
    return ProgressRecord(
        phase=report.phase,
        step=report.step,
        steps=report.steps,
        steps_per_s=report.steps_per_s,
        samples_per_s=report.samples_per_s,
    )


def _finite(value: float) -> float | None:
    """Neither JSON nor SQLite keeps NaN; a missing number is None."""
    return float(value) if math.isfinite(value) else None


def _memory(before: dict[str, Any], report: said.MemoryUsed) -> dict[str, Any]:
    told = {name: value for name, value in asdict(report).items() if value is not None}
    told.pop("overrun", None)  # the attempt's
    return {**before, **told, "peak_bytes": _highest(before.get("peak_bytes"), report.peak_bytes)}


def _highest(*peaks: int | None) -> int | None:
    return max((peak for peak in peaks if peak is not None), default=None)


def _rank_zero(attempt: Attempt, **values: object) -> None:
    first, *others = attempt.ranks
    attempt.ranks = [{**first, **values}, *others]


def _save_checkpoint(
    session: Session, job: Job, attempt: Attempt, report: said.CheckpointSaved
) -> None:
    row = {
        "job_id": job.id,
        "key": report.key,
        "attempt": attempt.number,
        "phase": report.phase,
        "step": report.step,
        "uri": report.uri,
        "bytes": report.bytes,
    }
    _upsert(session, Checkpoint, [row])
    session.expire(job, ["checkpoints"])


def _remove_checkpoint(session: Session, job: Job, report: said.CheckpointRemoved) -> None:
    gone = delete(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.key == report.key)
    session.execute(gone.execution_options(synchronize_session=False))
    session.expire(job, ["checkpoints"])


def _save_points(
    session: Session,
    job: Job,
    attempt: Attempt,
    points: dict[tuple[str, str, int], float | None],
) -> None:
    rows = [
        {
            "job_id": job.id,
            "metric": metric,
            "phase": phase,
            "step": step,
            "attempt": attempt.number,
            "value": value,
        }
        for (metric, phase, step), value in points.items()
    ]
    if rows:
        _upsert(session, Point, rows)


_INSERT: Final[dict[str, Callable[[type[Base]], sqlite.Insert | postgresql.Insert]]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


def _upsert(session: Session, table: type[Base], rows: list[dict[str, Any]]) -> None:
    """Insert rows; one whose primary key exists is replaced. Both databases spell this alike."""
    insert = _INSERT[session.get_bind().dialect.name](table)
    keys = [column.name for column in table.__table__.primary_key]
    values = {name: insert.excluded[name] for name in rows[0] if name not in keys}
    session.execute(insert.on_conflict_do_update(index_elements=keys, set_=values), rows)
