"""Two servers on one database and one cluster, turned by hand, each with clocks of its own.

A server may *nap*: at its n-th look at a clock, in the middle of a turn, time passes and the other
server goes on. That is what a frozen process or a long pause of its machine does.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dovetail.cluster.fake import FakeCluster, one_node
from dovetail.cluster.protocol import Deliver
from dovetail.daemon import Daemon
from dovetail.scheduler.policies import priority
from dovetail.service.changes import Changes
from dovetail.service.cluster_state import ClusterState
from dovetail.service.server_state import ServerState
from dovetail.store.store import Store
from dovetail_jobs.spec import JobSpec
from dovetail_workers.launch import Launch
from dovetail_workers.storage.local import LocalStorage

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class SharedCluster(FakeCluster):
    """One driver of the world's one cluster: what runs is seen by all drivers."""

    def __init__(self, deliver: Deliver, world: World) -> None:
        super().__init__(deliver, world.storage, one_node(world.devices))
        self._world = world
        self.live, self.launched = world.live, world.launched
        self._segments, self._entries = world.segments, world.entries

    def launch(self, launch: Launch, node_id: str, cpus: float) -> None:
        if launch.attempt_id not in self.live:
            self._world.launches.append(launch.attempt_id)
        super().launch(launch, node_id, cpus)
        self._world.check()


class Server:
    def __init__(self, world: World, name: str, *, set_back: timedelta, monotonic_s: float) -> None:
        self.world, self.store = world, Store(world.url)
        self.state = ServerState()
        self._set_back, self._monotonic_s = set_back, monotonic_s
        self._looks_left: int | None = None
        self._nap: Callable[[], None] = lambda: None
        self.daemon = Daemon(
            store=self.store,
            storage=world.storage,
            storage_uri=world.storage.uri(""),
            state=ClusterState(),
            changes=Changes(),
            policy=priority,
            cluster=lambda deliver: SharedCluster(deliver, world),
            holder=name,
            server=self.state,
            clock=self._clock,
            monotonic=self._monotonic,
        )

    @property
    def decides(self) -> bool:
        return self.state.facts.role == "decides"

    @property
    def cluster(self) -> SharedCluster:
        assert isinstance(self.daemon.cluster, SharedCluster)
        return self.daemon.cluster

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.world.now_s += 1.0
            self.daemon.step(self.daemon.pending())
            self.world.check()

    def turn_and_nap(self, look: int, nap: Callable[[], None]) -> None:
        """One turn; at its `look`-th look at a clock (from 0), `nap` happens."""
        self._looks_left, self._nap = look, nap
        self.turn()
        self._looks_left = None

    def _clock(self) -> datetime:
        self._look()
        return NOON + timedelta(seconds=self.world.now_s) - self._set_back

    def _monotonic(self) -> float:
        self._look()
        return self._monotonic_s + self.world.now_s

    def _look(self) -> None:
        if self._looks_left is None:
            return
        self._looks_left -= 1
        if self._looks_left < 0:
            self._looks_left = None
            self._nap()


class World:
    """Database, storage, cluster and time, and what must hold in them at every moment."""

    def __init__(self, url: str, folder: Path, *, devices: int = 2) -> None:
        self.url, self.devices = url, devices
        self.storage = LocalStorage(folder)
        self.now_s = 0.0
        self.live: set[str] = set()
        self.launched: dict[str, Launch] = {}
        self.launches: list[str] = []
        self.segments: dict[str, int] = {}
        self.entries: dict[str, int] = {}
        hour = timedelta(hours=1)
        self.a = Server(self, "a", set_back=timedelta(0), monotonic_s=5000.0)
        self.b = Server(self, "b", set_back=hour, monotonic_s=3.0)
        self.servers = (self.a, self.b)
        self.submitted: list[str] = []

    def close(self) -> None:
        for server in self.servers:
            server.store.close()

    def submit(self, server: Server) -> str:
        name = f"job-{len(self.submitted)}"
        spec = JobSpec(name=name, script="true").to_json()
        job, _ = server.store.submit(spec, user="u", key=name, now=NOON)
        self.submitted.append(job.id)
        return job.id

    def begin_and_finish_all(self, server: Server) -> None:
        """Every worker that lives runs to its end; this server's driver hears of it, if any."""
        for attempt_id in sorted(self.live):
            server.cluster.begin(attempt_id)
            server.cluster.finish(attempt_id)

    def check(self) -> None:
        """No attempt was launched twice, no job and no device has two."""
        assert len(self.launches) == len(set(self.launches)), self.launches
        jobs = [attempt_id.partition(".")[0] for attempt_id in self.live]
        assert len(jobs) == len(set(jobs)), f"a job runs twice: {sorted(self.live)}"
        held = [self.launched[attempt_id].device for attempt_id in self.live]
        assert len(held) == len(set(held)), f"a device has two: {sorted(self.live)}"
