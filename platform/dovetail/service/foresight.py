"""Foresees the memory of jobs while they start, one after the other, beside the daemon's loop."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from dovetail.service.code import CodeShelf
from dovetail.service.forecasts import Forecasts
from dovetail.store.records import JobRecord
from dovetail_jobs.errors import DovetailError
from dovetail_jobs.spec import JobSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """A job's step peaks at so many bytes, if nothing is done about it."""

    job_id: str
    peak_bytes: int


class Foresight:
    """`ask` returns at once; what is found out goes to `deliver`. A job is asked about once, and
    one that cannot be foreseen is heard of in the log only.

    The thread ends with the process; a rehearsal that runs then ends with it.
    """

    def __init__(
        self, forecasts: Forecasts, code: CodeShelf, deliver: Callable[[Foreseen], None]
    ) -> None:
        self._forecasts, self._code, self._deliver = forecasts, code, deliver
        self._asked: set[str] = set()
        self._jobs: queue.SimpleQueue[JobRecord] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="foresight", daemon=True)

    def ask(self, job: JobRecord) -> None:
        """Only the daemon's thread calls this."""
        if job.id in self._asked or job.spec["family"] is None:
            return
        self._asked.add(job.id)
        self._jobs.put(job)
        if not self._thread.is_alive():
            self._thread.start()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                with self._code.opened(job.code) as folder:
                    spec = JobSpec.model_validate(job.spec)
                    answer = self._forecasts.of(
                        spec, workdir=folder, code=job.code, in_background=True
                    )
                self._deliver(Foreseen(job_id=job.id, peak_bytes=answer["forecast"]["peak_bytes"]))
            except DovetailError as error:
                log.info("no forecast job=%s: %s", job.id, error)
            except Exception:  # the outermost loop: the next job is another matter
                log.exception("no forecast job=%s", job.id)
