"""Following a job: its log piece by piece, its progress, and its end.

One loop, woken by the server's change number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from dovetail.cli.options import connect_again
from dovetail.cli.output import Json, say
from dovetail_jobs.errors import DatabaseLost, Unreachable

if TYPE_CHECKING:
    from dovetail.client import Client

OVER = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
LAST_LINES_S = 10.0  # how long the end of a log may come after the end of its job


class LogReader:
    """Reads the log of each attempt once, from attempt `first` on; `write` gets every piece."""

    def __init__(
        self, client: Client, job_id: str, write: Callable[[Json], None], first: int = 1
    ) -> None:
        self.client, self._job_id, self._write = client, job_id, write
        self._attempt, self._offset = first, 0
        self.within_line = False

    def read(self, attempt: int, wait_s: float | None = None) -> None:
        """Everything of `attempt` that is not read yet; nothing of an attempt that is behind."""
        if attempt < self._attempt:
            return
        if attempt > self._attempt:
            self._attempt, self._offset = attempt, 0
        while True:
            chunk = self.client.logs(
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
    again: Callable[[Unreachable], Client] = connect_again,
) -> Json:
    """Read on and show each state of the job until it is over; the job then.

    A server that dies in between is no end: `again` gives its successor, or raises.
    """
    change: int | None = None
    while True:
        try:
            job, change = client.job(job_id, after=change)
            over = job["state"] in OVER
            show(job)
            if reader:
                for attempt in job["attempts"]:
                    reader.read(attempt["number"], LAST_LINES_S if over else None)
        except DatabaseLost as lost:
            say(lost.message)
            with contextlib.suppress(Unreachable):  # then the server is gone too, as found above
                client.wait_for_database()
            change = None
            continue
        except Unreachable as lost:
            client, change = again(lost), None  # each server counts its changes from 0
            if reader:
                reader.client = client
            continue
        if over:
            return job


def wait_until_over(client: Client, job_id: str) -> Json:
    """The job in its final state."""
    return follow_job(client, job_id)
