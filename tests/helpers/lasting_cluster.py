"""A scripted cluster that outlives its server: what runs in it is kept in a folder.

`history` lists what happened in it, in order, so that a test can tell whether a job ever ran twice
at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dovetail.cluster.fake import FakeCluster
from dovetail.cluster.protocol import Deliver
from dovetail_workers import keys
from dovetail_workers.launch import Launch
from dovetail_workers.reports import Report
from dovetail_workers.storage.protocol import Storage


class LastingCluster(FakeCluster):
    """`passing` is called around every command: a place where its server may die."""

    def __init__(
        self, deliver: Deliver, storage: Storage, folder: Path, passing: Callable[[], None]
    ) -> None:
        super().__init__(deliver, storage)
        folder.mkdir(exist_ok=True)
        self._storage_of_attempts = storage
        self._history, self._passing = folder / "history", passing
        for line in self.history():
            word, attempt_id = line.split()
            (self.live.add if word == "live" else self.live.discard)(attempt_id)

    def history(self) -> list[str]:
        return self._history.read_text().splitlines() if self._history.exists() else []

    def launch(self, launch: Launch, node_id: str, cpus: float) -> None:
        self._passing()
        if launch.attempt_id not in self.live:
            self._remember("live", launch.attempt_id)
        super().launch(launch, node_id, cpus)
        self._passing()

    def release(self, attempt_id: str, grace_s: float) -> None:
        self._passing()
        if attempt_id in self.live:
            self._remember("gone", attempt_id)
        super().release(attempt_id, grace_s)
        self._passing()

    def report(self, attempt_id: str, *reports: Report, wake: bool = True) -> None:
        """As the worker, which knows what it has written whoever listens."""
        job_id, _, attempt = attempt_id.partition(".")
        journal = keys.journal_segment(job_id, int(attempt), 1).rpartition("/")[0]
        self._segments[attempt_id] = len(list(self._storage_of_attempts.list(journal)))
        super().report(attempt_id, *reports, wake=wake)

    def _remember(self, word: str, attempt_id: str) -> None:
        with self._history.open("a") as file:
            file.write(f"{word} {attempt_id}\n")
