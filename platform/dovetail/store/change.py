"""How an event becomes rows: job, attempt and story change together or not at all."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from sqlalchemy import CursorResult, func, select, update
from sqlalchemy.orm import Session

from dovetail.store.curves import last_values
from dovetail.store.records import AttemptDetails, RankRecord
from dovetail.store.tables import Attempt, Event, Job
from dovetail_jobs import lifecycle
from dovetail_jobs.lifecycle import Change, InvalidTransition, JobFacts, Reason


def apply_event(
    session: Session, job: Job, event: lifecycle.Event, now: datetime, details: AttemptDetails
) -> bool:
    """Carry out one lifecycle event on a loaded job; False if it was stale or another writer won.

    The job row is written `WHERE version = job.version`. Raises InvalidTransition with the story.
    """
    try:
        change = lifecycle.transition(facts_of(job), event)
    except InvalidTransition as error:
        story = told(session, job.id)
        raise InvalidTransition(error.job_id, error.state, error.event, story) from None
    if change is None or not _write_job(session, job, event, change, now):
        return False
    number = _write_attempt(session, job, event, change, now, details)
    session.add(
        Event(
            job_id=job.id,
            attempt=number,
            at=now,
            kind=type(event).__name__,
            state=change.state,
            reason=change.reason,
            message=change.message,
        )
    )
    session.flush()
    return True


def facts_of(job: Job) -> JobFacts:
    ends = [attempt.reason for attempt in job.attempts]
    retry = job.spec["retry"]
    return JobFacts(
        job_id=job.id,
        state=job.state,
        reason=job.reason,
        attempt=job.attempts[-1].number if job.attempts else 0,
        losses=ends.count(Reason.WORKER_LOST) + ends.count(Reason.LAUNCH_FAILED),
        shortages=ends.count(Reason.OUT_OF_MEMORY),
        failures=ends.count(Reason.PROGRAM_FAILED),
        retry_max=retry["max"],
        retry_on_failure="failure" in retry["on"],
    )


def told(session: Session, job_id: str) -> list[str]:
    """The newest events of a job as lines, oldest first."""
    newest = select(Event).where(Event.job_id == job_id).order_by(Event.id.desc())
    rows = session.scalars(newest.limit(lifecycle.STORY_LENGTH)).all()
    return [str(row.record()) for row in reversed(rows)]


def begin(session: Session, job: Job, attempt: Attempt, now: datetime) -> None:
    """The attempt runs from its `resumed_from_step`; later points of earlier ones are history."""
    attempt.started_at = attempt.started_at or max(now, attempt.placed_at)
    session.flush()
    if attempt is job.attempts[-1]:
        job.metrics = last_values(session, job.id)


def _write_job(
    session: Session, job: Job, event: lifecycle.Event, change: Change, now: datetime
) -> bool:
    moved = (change.state, change.reason) != (job.state, job.reason)
    values = {
        "state": change.state,
        "reason": change.reason,
        "message": change.message if moved else job.message,
        "version": job.version + 1,
    }
    # The clock may have been set back: no time of a job lies before an earlier one.
    if isinstance(event, lifecycle.AttemptStarted) and job.started_at is None:
        values["started_at"] = max(now, job.created_at)
    if change.state.terminal and job.ended_at is None:
        values["ended_at"] = max(now, job.started_at or job.created_at)
    guarded = update(Job).where(Job.id == job.id, Job.version == job.version).values(**values)
    result = session.execute(guarded.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    if result.rowcount == 0:
        return False
    session.refresh(job, list(values))
    return True


def _write_attempt(
    session: Session,
    job: Job,
    event: lifecycle.Event,
    change: Change,
    now: datetime,
    details: AttemptDetails,
) -> int | None:
    """Bring the attempt's row up to the event; returns its number, None for a job without one."""
    if isinstance(event, lifecycle.Placed):
        job.attempts.append(_placed(job, event, change, now, details))
        return event.attempt
    if not job.attempts:
        return None
    attempt = job.attempts[-1]
    if change.attempt_state is not None and change.attempt_reason is not None:
        attempt.state = change.attempt_state
        attempt.reason = change.attempt_reason
        attempt.message = change.message
        if attempt.state.terminal:
            attempt.ended_at = attempt.ended_at or max(now, attempt.started_at or attempt.placed_at)
    match event:
        case lifecycle.ProgramFailed(exit_code=exit_code) if exit_code is not None:
            attempt.exit_code = exit_code
        case lifecycle.AttemptSucceeded():
            attempt.exit_code = 0
        case lifecycle.MemoryRanOut():
            attempt.neighbours = _neighbours(session, attempt)
        case lifecycle.AttemptReleased():
            attempt.released_at = attempt.released_at or now
        case _:
            pass
    for key, value in details.items():
        setattr(attempt, key, _ranks(details["ranks"]) if key == "ranks" else value)
    if isinstance(event, lifecycle.AttemptStarted):
        begin(session, job, attempt, now)
    return attempt.number


def _placed(
    job: Job, event: lifecycle.Placed, change: Change, now: datetime, details: AttemptDetails
) -> Attempt:
    if "node_id" not in details or "cpus" not in details:
        raise TypeError("Placed needs the details node_id and cpus: what the attempt will hold")
    assert change.attempt_state is not None
    assert change.attempt_reason is not None
    rank = RankRecord(rank=0, node=event.node, device=event.device)
    return Attempt(
        job_id=job.id,
        number=event.attempt,
        state=change.attempt_state,
        reason=change.attempt_reason,
        message=change.message,
        node=event.node,
        node_id=details["node_id"],
        device=event.device,
        cpus=details["cpus"],
        cap_bytes=details.get("cap_bytes"),
        ranks=_ranks(details.get("ranks", (rank,))),
        cursor=0,
        placed_at=now,
    )


def _neighbours(session: Session, attempt: Attempt) -> int:
    """How many other attempts hold its device now."""
    others = select(func.count()).where(
        Attempt.node_id == attempt.node_id,
        Attempt.device == attempt.device,
        Attempt.job_id != attempt.job_id,
        Attempt.released_at.is_(None),
    )
    return session.scalar(others) or 0


def _ranks(ranks: tuple[RankRecord, ...]) -> list[dict[str, object]]:
    return [asdict(rank) for rank in ranks]
