"""What attempts have written, taken over into the store exactly once: reports, and what they mean
for the job's life.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from datetime import datetime

from dovetail.service.changes import Changes
from dovetail.store.records import JobRecord
from dovetail.store.store import Store
from dovetail_jobs import lifecycle
from dovetail_jobs.errors import NotFound
from dovetail_workers import reports
from dovetail_workers.journal import read_segments
from dovetail_workers.launch import parse_attempt_id
from dovetail_workers.reports import Report
from dovetail_workers.storage.protocol import Storage, StorageError

log = logging.getLogger(__name__)


class Journals:
    """The reader of all journals in one storage; its cursors are the store's."""

    def __init__(self, storage: Storage, changes: Changes, clock: Callable[[], datetime]) -> None:
        self._storage, self._changes, self._clock = storage, changes, clock

    def read_all(self, store: Store, attempt_ids: Collection[str]) -> None:
        """Each of them; one that cannot be read now, or makes no sense, stops no other."""
        for attempt_id in sorted(attempt_ids):
            try:
                self.read(store, *parse_attempt_id(attempt_id))
            except (StorageError, NotFound, lifecycle.InvalidTransition) as error:
                log.warning("journal attempt=%s unreadable: %s", attempt_id, error)

    def read(self, store: Store, job_id: str, number: int) -> JobRecord:
        """Take over what the attempt has written since; the job then."""
        job = store.job(job_id)
        attempt = next((item for item in job.attempts if item.number == number), None)
        if attempt is None or attempt.ended_at is not None:
            return job
        refused = attempt.refusal is not None
        for segment, entries in read_segments(self._storage, job_id, number, attempt.cursor + 1):
            said = [entry.report for entry in entries]
            refused = refused or any(isinstance(report, reports.Refused) for report in said)
            recorded = store.record(
                job_id,
                number,
                cursor_from=segment - 1,
                cursor_to=segment,
                reports=said,
                events=[event for report in said for event in _meaning(report, number, refused)],
                now=self._clock(),
            )
            if recorded is None:
                return store.job(job_id)
            job = recorded
            self._changes.bump()
        return job

    def is_empty(self, job_id: str, number: int) -> bool:
        """Whether the attempt has not said a word yet."""
        return next(read_segments(self._storage, job_id, number, 1), None) is None


def _meaning(report: Report, attempt: int, refused: bool) -> Iterator[lifecycle.Event]:
    """What a report means for the job's life; most mean nothing."""
    match report:
        case reports.Started():
            yield lifecycle.AttemptStarted(
                attempt=attempt, resumed_from_step=report.resumed_from_step
            )
        case reports.Ended(outcome="succeeded"):
            yield lifecycle.AttemptSucceeded(attempt=attempt)
        case reports.Ended(outcome="failed"):
            yield lifecycle.ProgramFailed(
                attempt=attempt,
                exit_code=report.exit_code,
                message=report.message,
                refused=refused,
            )
        case reports.Ended(outcome="out_of_memory"):
            yield lifecycle.MemoryRanOut(attempt=attempt, cause=report.message)
        case reports.Ended():
            yield lifecycle.WorkerLost(attempt=attempt, cause=report.message)
        case _:
            return
