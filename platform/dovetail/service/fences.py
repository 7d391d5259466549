"""Fences around attempts that were given up: a worker that lives on out of our reach finds one in
the storage and ends itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from dovetail.service.elapsed import Elapsed
from dovetail.store.records import AttemptRecord, JobRecord
from dovetail_jobs.lifecycle import Reason, State
from dovetail_workers import fence
from dovetail_workers.storage.protocol import Storage, StorageError

log = logging.getLogger(__name__)

FENCE_AFTER = timedelta(seconds=10)  # a stop that its worker did not follow


class Fences:
    """Remembers which it has raised; a storage that refuses is asked again in the next turn."""

    def __init__(self, storage: Storage, elapsed: Elapsed, clock: Callable[[], datetime]) -> None:
        self._storage, self._elapsed, self._clock = storage, elapsed, clock
        self._raised: set[tuple[str, int]] = set()

    def is_due(self, job: JobRecord, attempt: AttemptRecord, *, cluster_is_up: bool) -> bool:
        """Whether a worker of this attempt that still lives must end itself."""
        if attempt.ended_at is not None:
            return attempt.reason in (Reason.WORKER_LOST, Reason.LAUNCH_FAILED)
        if job.state is not State.STOPPING:
            return False
        if attempt.stop_requested_at is None:
            return not cluster_is_up
        waited = self._elapsed.since(job.id, attempt.stop_requested_at, self._clock())
        return waited >= FENCE_AFTER

    def up(self, job_id: str, number: int) -> bool:
        """Raise the fence of an attempt; False when the storage refused."""
        if (job_id, number) in self._raised:
            return True
        try:
            fence.raise_fence(self._storage, job_id, number)
        except StorageError as error:
            log.warning("fence attempt=%s.%s not raised: %s", job_id, number, error)
            return False
        self._raised.add((job_id, number))
        return True
