"""A daemon without its thread, over a real store and a scripted cluster."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dovetail.cluster.fake import FakeCluster, one_node
from dovetail.daemon import Daemon
from dovetail.scheduler.policies import priority
from dovetail.service.changes import Changes
from dovetail.service.cluster_state import ClusterState
from dovetail.service.foresight import Foresight
from dovetail.service.outlooks import Foreseen, Outlooks, sharing
from dovetail.service.server_state import ServerState
from dovetail.store.records import JobRecord
from dovetail.store.store import Store
from dovetail_jobs.lifecycle import CancelRequested
from dovetail_jobs.spec import JobSpec
from dovetail_workers.launch import Launch
from dovetail_workers.storage.local import LocalStorage
from helpers.databases import migrated_sqlite
from tensile.coordinator import Profile

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Bench:
    """A daemon without its thread, and time that only passes when told.

    `set_back` is how far the wall clock is behind it; `monotonic` may be made a running clock.
    """

    def __init__(
        self,
        folder: Path,
        *,
        url: str | None = None,
        devices: int = 1,
        cpus: float = 2.0,
        device_bytes: int = 2**30,
        auto_release: bool = True,
        foresight: Callable[[Callable[[Foreseen], None]], Foresight] | None = None,
    ) -> None:
        self.folder = folder
        self.now, self.set_back = NOON, timedelta()
        self.monotonic: Callable[[], float] = lambda: (self.now - NOON).total_seconds()
        self.store = Store(url or migrated_sqlite(folder / "store.sqlite3"))
        self.storage = LocalStorage(folder / "storage")
        self.state, self.server, self.changes = ClusterState(), ServerState(), Changes()
        self.nodes = one_node(devices, device_bytes, cpus)
        self.auto_release, self.foresight = auto_release, foresight
        self.daemon = self.new_daemon()
        self.turn()

    def new_daemon(self) -> Daemon:
        self.outlooks = Outlooks()
        return Daemon(
            store=self.store,
            storage=self.storage,
            storage_uri=str(self.storage.uri("")),
            state=self.state,
            changes=self.changes,
            policy=priority,
            cluster=lambda deliver: FakeCluster(
                deliver,
                self.storage,
                self.nodes,
                auto_release=self.auto_release,
                profile_of=self._profile_of,
            ),
            holder="bench",
            server=self.server,
            foresight=self.foresight,
            outlooks=self.outlooks,
            clock=lambda: self.now - self.set_back,
            monotonic=lambda: self.monotonic(),
        )

    def _profile_of(self, launch: Launch) -> Profile | None:
        """A worker's own trace says what the forecast said."""
        found = self.outlooks.of(launch.job_id)
        return sharing(JobSpec.model_validate(launch.spec), found).profile

    @property
    def cluster(self) -> FakeCluster:
        assert isinstance(self.daemon.cluster, FakeCluster)
        return self.daemon.cluster

    def turn(self, times: int = 3) -> None:
        for _ in range(times):
            self.daemon.step(self.daemon.pending())

    def submit(self, name: str = "a", **spec: Any) -> str:
        resolved = JobSpec(name=name, script="true", **spec).to_json()
        job, _ = self.store.submit(resolved, user="u", key=None, now=self.now)
        self.turn()
        return job.id

    def job(self, job_id: str) -> JobRecord:
        return self.store.job(job_id)

    def cancel(self, job_id: str) -> None:
        job = self.job(job_id)
        assert self.store.apply(job_id, job.version, CancelRequested(by="u"), self.now)
        self.turn()
