"""The store: the one place that keeps jobs. Every method is one short session; rows never leave it.

Two guards keep writers honest: a lifecycle change names the job's `version` that it was decided on,
and a journal entry names the attempt's `cursor` that it was read at. A late one changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import datetime, timedelta
from typing import Any, Self, Unpack

from sqlalchemy import CursorResult, Update, delete, exists, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dovetail.store import lease
from dovetail.store.change import apply_event
from dovetail.store.curves import effective
from dovetail.store.engine import open_engine, reading
from dovetail.store.lease import LeaseRecord
from dovetail.store.lookup import WHOLE, find
from dovetail.store.outage import named, place
from dovetail.store.records import AttemptDetails, DeviceRecord, EventRecord, JobRecord, MetricPoint
from dovetail.store.reported import add_reports
from dovetail.store.schema import upgrade
from dovetail.store.submission import add_job, earlier, request_digest
from dovetail.store.tables import Attempt, Device, Event, Job
from dovetail_jobs import lifecycle
from dovetail_jobs.errors import DovetailError, NotFound
from dovetail_jobs.lifecycle import TERMINAL, Reason, State
from dovetail_workers.reports import Report

DEVICE_KEPT = timedelta(days=7)  # a node that is away for longer does not come back
_SUBMIT_TRIES = 10


class Store:
    """Opens the database at `url`, after bringing its tables to the newest schema.

    Safe to use from several threads, and several processes may open one database. Raises UserError
    for a URL that is not understood, Conflict for a schema from a newer Dovetail.
    """

    def __init__(self, url: str) -> None:
        upgrade(url)
        self._engine = open_engine(url)
        self._snapshot = reading(self._engine)
        self._token: int | None = None

    @property
    def place(self) -> str:
        """Where the database is, for people; without user and password."""
        return place(self._engine.url)

    def lease(self) -> LeaseRecord:
        """Who decides."""
        with self._read() as session:
            return lease.look(session)

    def take_lease(self, holder: str, seen: LeaseRecord) -> Store | None:
        """This store for the one who decides: each write proves the lease and renews it.

        Its writes raise LeaseLost once another holder took it. None if the lease is no longer as
        it was `seen`.
        """
        with self._write() as session:
            token = lease.take(session, holder, seen)
        if token is None:
            return None
        bound = copy(self)
        bound._token = token
        return bound

    def renew_lease(self) -> None:
        """Show that the holder of this store's lease lives; raises LeaseLost."""
        with self._write():
            pass

    def give_back_lease(self) -> None:
        """Whoever comes next need not wait. Nothing happens if another holds it by now."""
        if self._token is not None:
            with named(self._engine.url), Session(self._engine) as session, session.begin():
                lease.give_back(session, self._token)

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def submit(
        self,
        spec: dict[str, Any],
        *,
        user: str,
        key: str | None,
        now: datetime,
        origin: str | None = None,
        code: str | None = None,
    ) -> tuple[JobRecord, bool]:
        """The job of this resolved spec, and whether it is new: a key makes one job, however often.

        `origin` is the id of the job that this one tries again, `code` the content hash of its code
        snapshot. Raises Conflict if the key was used for another request.
        """
        digest = request_digest(spec, origin, code)
        for _ in range(_SUBMIT_TRIES):
            try:
                with self._write() as session:
                    found = earlier(session, key, digest) if key is not None else None
                    job = found or add_job(
                        session,
                        spec,
                        user=user,
                        key=key,
                        digest=digest,
                        origin=origin,
                        code=code,
                        now=now,
                    )
                    session.flush()
                    return job.record(), found is None
            except IntegrityError as error:
                clash = error  # another submit took this key or this random id: look again
        raise DovetailError(f"the job could not be stored: {clash.orig}; try again") from clash

    def has(self, key: str) -> bool:
        """Whether a job was submitted under this key."""
        with self._read() as session:
            return bool(session.scalar(select(exists().where(Job.submit_key == key))))

    def job(self, ref: str) -> JobRecord:
        """The job of this id, newest of this name, or only one whose id starts so (from 4 letters).

        Raises NotFound, which names what is near.
        """
        with self._read() as session:
            return find(session, ref).record()

    def jobs(
        self,
        states: Collection[State] | None = None,
        project: str | None = None,
        limit: int | None = None,
    ) -> list[JobRecord]:
        """Jobs, newest first; None leaves a condition out."""
        query = select(Job).order_by(Job.seq.desc()).limit(limit).options(*WHOLE)
        if states is not None:
            query = query.where(Job.state.in_(states))
        if project is not None:
            query = query.where(Job.project == project)
        with self._read() as session:
            return [job.record() for job in session.scalars(query)]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state; states without jobs are left out."""
        query = select(Job.state, func.count()).group_by(Job.state).order_by(Job.state)
        with self._read() as session:
            return {state.value: count for state, count in session.execute(query)}

    def active(self) -> list[JobRecord]:
        """What a control cycle works on, in order of submission, from one snapshot.

        These are the jobs that are not over, and those over whose attempts still hold a device.
        """
        held = exists().where(Attempt.job_id == Job.id, Attempt.released_at.is_(None))
        query = select(Job).where(or_(Job.state.not_in(TERMINAL), held)).order_by(Job.seq)
        with self._read() as session:
            return [job.record() for job in session.scalars(query.options(*WHOLE))]

    def apply(
        self,
        job_id: str,
        version: int,
        event: lifecycle.Event,
        now: datetime,
        **details: Unpack[AttemptDetails],
    ) -> JobRecord | None:
        """Let `event` happen: job, attempt and story are written in one transaction.

        None, and nothing is written, if the job's version is no longer `version` or if the event
        speaks of another attempt than the present one. Placed needs the details `node_id` and
        `cpus`. Raises InvalidTransition, with the job's last events, and NotFound.
        """
        with self._write() as session:
            job = _locked(session, job_id)
            if job.version != version or not apply_event(session, job, event, now, details):
                return None
            return job.record()

    def record(
        self,
        job_id: str,
        attempt: int,
        *,
        cursor_from: int,
        cursor_to: int,
        reports: Sequence[Report],
        now: datetime,
        events: Sequence[lifecycle.Event] = (),
    ) -> JobRecord | None:
        """Write journal segments `cursor_from` to `cursor_to` of an attempt, exactly once.

        `events` are what these reports mean for the lifecycle: they happen in the same transaction,
        so that no crash can lose one after its segment counts as read; stale ones are dropped.
        None, and nothing is written, if the cursor is not at `cursor_from`. The job's version moves
        only with events. Raises InvalidTransition (nothing is written then either) and NotFound.
        """
        if cursor_to <= cursor_from:
            raise ValueError(f"the cursor moves forward, not from {cursor_from} to {cursor_to}")
        guarded = (
            update(Attempt)
            .where(
                Attempt.job_id == job_id, Attempt.number == attempt, Attempt.cursor == cursor_from
            )
            .values(cursor=cursor_to)
        )
        with self._write() as session:
            job = _locked(session, job_id)
            row = _attempt(job, attempt)
            if not _wrote(session, guarded):
                return None
            session.refresh(row, ["cursor"])
            add_reports(session, job, row, reports, now)
            for event in events:
                session.flush()
                apply_event(session, job, event, now, {})
            session.flush()
            session.refresh(job, ["attempts", "checkpoints"])
            return job.record()

    def set_waiting(
        self, job_id: str, version: int, reason: Reason, message: str, now: datetime
    ) -> bool:
        """Say why a queued job waits; True if that was news. The story gets a line per new reason.

        The version stays: what a job waits for must not make a cancel that happens now come late.
        """
        with self._write() as session:
            job = _locked(session, job_id)
            before = (job.reason, job.message)
            stands = job.version == version and job.state is State.QUEUED
            if not stands or before == (reason, message):
                return False
            job.reason, job.message = reason, message
            if before[0] is not reason:
                session.add(
                    Event(
                        job_id=job_id,
                        at=now,
                        kind="Waiting",
                        state=job.state,
                        reason=reason,
                        message=message,
                    )
                )
            return True

    def set_forecast(self, job_id: str, peak_bytes: int, provenance: str = "traced") -> bool:
        """Keep what a job's memory was foreseen to peak at, and how; True if that was not known.
        The worker of a managed job says it too, and is right.
        """
        with self._write() as session:
            job = _locked(session, job_id)
            if job.memory.get("forecast_bytes") is not None:
                return False
            job.memory = {**job.memory, "forecast_bytes": peak_bytes, "provenance": provenance}
            return True

    def tell(self, job_id: str, kind: str, message: str, now: datetime) -> bool:
        """A line of a job's story that changes nothing else; True if it was not told before."""
        said = exists().where(Event.job_id == job_id, Event.kind == kind, Event.message == message)
        with self._write() as session:
            job = _locked(session, job_id)
            if session.scalar(select(said)):
                return False
            session.add(
                Event(
                    job_id=job_id,
                    at=now,
                    kind=kind,
                    state=job.state,
                    reason=job.reason,
                    message=message,
                )
            )
            return True

    def mark_stop_requested(self, job_id: str, attempt: int, now: datetime) -> bool:
        """Remember that the cluster was told to stop this attempt; True the first time."""
        return self._mark(job_id, attempt, Attempt.stop_requested_at.key, now)

    def mark_released(self, job_id: str, attempt: int, now: datetime) -> bool:
        """Remember that this attempt, of whatever age, holds nothing any more; True the first time.

        The state of the job stays; where AttemptReleased may end a job, `apply` it instead.
        """
        return self._mark(job_id, attempt, Attempt.released_at.key, now)

    def saw_devices(self, devices: Sequence[DeviceRecord], now: datetime) -> None:
        """The cluster has these now. Those that were not seen for `DEVICE_KEPT` are forgotten."""
        with self._write() as session:
            session.execute(delete(Device).where(Device.seen_at < now - DEVICE_KEPT))
            for each in devices:
                session.merge(
                    Device(node=each.node, device=each.device, bytes=each.bytes, seen_at=now)
                )

    def devices(self) -> tuple[DeviceRecord, ...]:
        """What the cluster has or had of late, by name."""
        with self._read() as session:
            rows = session.scalars(select(Device).order_by(Device.node, Device.device))
            return tuple(row.record() for row in rows)

    def events(self, job_id: str, after: int = 0) -> list[EventRecord]:
        """The story of a job, oldest first, from behind the event with id `after`."""
        query = select(Event).where(Event.job_id == job_id, Event.id > after).order_by(Event.id)
        with self._read() as session:
            return [event.record() for event in session.scalars(query)]

    def metric_points(self, job_id: str, metric: str | None = None) -> tuple[MetricPoint, ...]:
        """The curve of one metric, or of each, by metric, phase and step.

        Points that a resumed attempt runs through again are left out.
        """
        with self._read() as session:
            return effective(session, job_id, metric)

    def _mark(self, job_id: str, attempt: int, column: str, now: datetime) -> bool:
        unmarked = getattr(Attempt, column).is_(None)
        mark = update(Attempt).where(Attempt.job_id == job_id, Attempt.number == attempt, unmarked)
        with self._write() as session:
            return _wrote(session, mark.values({column: now}))

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with named(self._engine.url), Session(self._snapshot) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        """One transaction, under the lease if this store is bound to one."""
        with named(self._engine.url), Session(self._engine) as session, session.begin():
            if self._token is not None:
                lease.renew(session, self._token)
            yield session


def _locked(session: Session, job_id: str) -> Job:
    """The job, kept from other writers: by SQLite's transaction, or by PostgreSQL's row lock."""
    query = select(Job).where(Job.id == job_id).with_for_update().options(*WHOLE)
    job = session.scalar(query)
    if job is None:
        raise NotFound(f"job {job_id}: no job has this id")
    return job


def _attempt(job: Job, number: int) -> Attempt:
    for attempt in job.attempts:
        if attempt.number == number:
            return attempt
    raise NotFound(f"job {job.id}: has no attempt {number}")


def _wrote(session: Session, guarded: Update) -> bool:
    result = session.execute(guarded.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return bool(result.rowcount)
