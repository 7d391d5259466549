"""Foresees the memory of jobs while they wait and start, one after the other, beside the daemon's
loop.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dovetail.service.code import CodeShelf
from dovetail.service.forecasts import Forecasts
from dovetail.service.outlooks import Foreseen, Outlooks, foreseen
from dovetail.store.records import JobRecord
from dovetail_jobs.errors import DovetailError
from dovetail_jobs.lifecycle import Reason
from dovetail_jobs.spec import JobSpec

log = logging.getLogger(__name__)

_CAUSE_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of an attempt: its peak, where that was higher than foreseen, how busy it kept its device,
    and how many times what its plan foresees it held.
    """

    peak_bytes: int | None = None
    busy: float | None = None
    overrun: float | None = None


class Foresight:
    """`ask` and `learn` return at once; what is found out goes to `deliver`. Each is done once for
    a job, or for an attempt of it.

    The thread ends with the process; a rehearsal that runs then ends with it.
    """

    def __init__(
        self, forecasts: Forecasts, code: CodeShelf, deliver: Callable[[Foreseen], None]
    ) -> None:
        self._forecasts, self._code, self._deliver = forecasts, code, deliver
        self._asked: set[str] = set()
        self._jobs: queue.SimpleQueue[tuple[JobRecord, Measured | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="foresight", daemon=True)

    def consider(self, active: Sequence[JobRecord], outlooks: Outlooks) -> None:
        """Ask what is not known of these jobs, and learn from what they took. Only the daemon's
        thread calls this.
        """
        for job in active:
            if job.spec["family"] is None:
                self._consider_script(job, outlooks)
                continue
            known, newest = job.memory, job.newest_attempt
            managed = job.spec["memory"]["policy"] == "tensile" and not job.state.terminal
            if known.forecast_bytes is None or (managed and outlooks.of(job.id) is None):
                self.ask(job)
            if newest is None or newest.ended_at is None or known.forecast_bytes is None:
                continue
            peak_bytes = known.peak_bytes or 0
            higher_bytes = peak_bytes if peak_bytes > known.forecast_bytes else None
            measured = Measured(peak_bytes=higher_bytes, busy=newest.busy, overrun=newest.overrun)
            if measured != Measured():
                self.learn(job, measured)

    def _consider_script(self, job: JobRecord, outlooks: Outlooks) -> None:
        """Nothing is traced, so what one of its command took is known, or not, at once: before the
        scheduler looks at it. A session of its own, which says what it moved, takes as much as
        there is and does with less: then only what ran out of memory tells what is needed.
        """
        spec = JobSpec.model_validate(job.spec)
        took = [attempt for attempt in job.attempts if attempt.ended_at is not None]
        if job.memory.swapped_out_bytes is not None:
            took = [attempt for attempt in took if attempt.reason is Reason.OUT_OF_MEMORY]
        peak_bytes = max((attempt.peak_bytes or 0 for attempt in took), default=0)
        if isinstance(spec.resources.memory, int) and peak_bytes > spec.resources.memory:
            self._once(
                f"{job.id}.{len(took)}",
                lambda: self._forecasts.remember(spec, job.code, measured_bytes=peak_bytes),
            )
        if job.state.terminal or outlooks.of(job.id) is not None:
            return
        answer = self._forecasts.kept(spec, job.code)
        found = Foreseen(job_id=job.id) if answer is None else foreseen(job.id, answer)
        outlooks.put(found)
        if answer is not None:
            self._deliver(found)

    def _once(self, mark: str, do: Callable[[], None]) -> None:
        if mark not in self._asked:
            self._asked.add(mark)
            do()

    def ask(self, job: JobRecord) -> None:
        self._put(job.id, job, None)

    def learn(self, job: JobRecord, measured: Measured) -> None:
        """An attempt is over that was measured so."""
        self._put(f"{job.id}.{len(job.attempts)}", job, measured)

    def _put(self, mark: str, job: JobRecord, measured: Measured | None) -> None:
        if mark in self._asked or job.spec["family"] is None:
            return
        self._asked.add(mark)
        self._jobs.put((job, measured))
        if not self._thread.is_alive():
            self._thread.start()

    def _run(self) -> None:
        while True:
            job, measured = self._jobs.get()
            cause: str
            try:
                self._deliver(self._find_out(job, measured))
                continue
            except DovetailError as error:
                log.info("no forecast job=%s: %s", job.id, error)
                cause = str(error)
            except Exception as error:  # the outermost loop: the next job is another matter
                log.exception("no forecast job=%s", job.id)
                cause = f"{type(error).__name__}: {error}"
            line = (cause.strip().splitlines() or [""])[0][:_CAUSE_CHARACTERS]
            self._deliver(Foreseen(job_id=job.id, cause=line))

    def _find_out(self, job: JobRecord, measured: Measured | None) -> Foreseen:
        """Who may share a device waits for the answer, so that is not left to idle processors."""
        spec = JobSpec.model_validate(job.spec)
        if measured is not None:
            self._forecasts.remember(
                spec,
                job.code,
                measured_bytes=measured.peak_bytes,
                measured_busy=measured.busy,
                measured_overrun=measured.overrun,
            )
        with self._code.opened(job.code) as folder:
            answer = self._forecasts.of(
                spec, workdir=folder, code=job.code, in_background=not spec.shares
            )
        return foreseen(job.id, answer)
