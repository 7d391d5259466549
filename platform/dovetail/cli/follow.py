"""Following a job: its log piece by piece, its progress, and its end.

One loop, woken by the server's change number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dovetail.cli.output import Json

if TYPE_CHECKING:
    from dovetail.client import Client

OVER = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
LAST_LINES_S = 10.0  # how long the end of a log may come after the end of its job


class LogReader:
    """Reads the log of each attempt once, from attempt `first` on; `write` gets every piece."""

    def __init__(
        self, client: Client, job_id: str, write: Callable[[Json], None], first: int = 1
    ) -> None:
        self._client, self._job_id, self._write = client, job_id, write
        self._attempt, self._offset = first, 0
        self.within_line = False

    def read(self, attempt: int, wait_s: float | None = None) -> None:
        """Everything of `attempt` that is not read yet; nothing of an attempt that is behind."""
        if attempt < self._attempt:
            return
        if attempt > self._attempt:
            self._attempt, self._offset = attempt, 0
        while True:
            chunk = self._client.logs(
                self._job_id, attempt=attempt, offset=self._offset, wait_s=wait_s
            )
            self._offset = chunk["next_offset"]
            if chunk["data"]:
                self.within_line = not chunk["data"].endswith("\n")
                self._write(chunk)
            if chunk["complete"] or not chunk["data"]:
                return


def follow_job(
    client: Client,
    job_id: str,
    reader: LogReader | None = None,
    show: Callable[[Json], None] = lambda job: None,
) -> Json:
    """Read on and show each state of the job until it is over; the job then."""
    job, change = client.job(job_id)
    while True:
        over = job["state"] in OVER
        show(job)
        if reader:
            for attempt in job["attempts"]:
                reader.read(attempt["number"], LAST_LINES_S if over else None)
        if over:
            return job
        job, change = client.job(job_id, after=change)


def wait_until_over(client: Client, job_id: str) -> Json:
    """The job in its final state."""
    return follow_job(client, job_id)
