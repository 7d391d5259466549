"""The server dies at every commit of the store and around every command to the cluster, once each.
Afterwards a new one finds everything: nothing acknowledged is lost, no job runs twice at a time, no
state lies.
"""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dovetail.daemon import Daemon
from dovetail.scheduler.policies import priority
from dovetail.service.changes import Changes
from dovetail.service.cluster_state import ClusterState
from dovetail.store.records import JobRecord
from dovetail.store.store import Store
from dovetail_jobs.lifecycle import CancelRequested, State
from dovetail_jobs.spec import JobSpec
from dovetail_workers.journal import read_segments
from dovetail_workers.reports import CheckpointSaved, Ended, Metrics, Progress, Report, Started
from dovetail_workers.storage.local import LocalStorage
from helpers.crash_points import CrashPoints, run_until
from helpers.databases import Kind, Postgres
from helpers.lasting_cluster import LastingCluster

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # some 120 servers on PostgreSQL

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
TRAINED: tuple[Report, ...] = (
    Progress(step=5, steps=10),
    Metrics(step=5, values={"loss": 0.5}),
    CheckpointSaved(step=5, key="jobs/x/checkpoints/5", uri="/x", bytes=9),
)


class World:
    """What outlives a server: database, storage, cluster and what its users were told."""

    def __init__(self, folder: Path, url: str) -> None:
        folder.mkdir()
        self.folder, self.url = folder, url
        self.storage = LocalStorage(folder / "storage")

    def told(self, word: str) -> None:
        with (self.folder / "told").open("a") as file:
            file.write(f"{word}\n")

    def was_told(self) -> list[str]:
        file = self.folder / "told"
        return file.read_text().splitlines() if file.exists() else []


class Server:
    """Store and daemon over a world, turned by hand."""

    def __init__(self, world: World, points: CrashPoints) -> None:
        self.world, self.now = world, NOON
        self.store = Store(world.url)
        self.daemon = Daemon(
            store=self.store,
            storage=world.storage,
            storage_uri=world.storage.uri(""),
            state=ClusterState(),
            changes=Changes(),
            policy=priority,
            cluster=lambda deliver: LastingCluster(
                deliver, world.storage, world.folder / "cluster", points.here
            ),
            holder="the one server",
            clock=lambda: self.now,
            monotonic=lambda: (self.now - NOON).total_seconds(),
        )

    @property
    def cluster(self) -> LastingCluster:
        assert isinstance(self.daemon.cluster, LastingCluster)
        return self.daemon.cluster

    def turn(self, times: int = 3) -> None:
        for _ in range(times):
            self.now += timedelta(seconds=1)
            self.daemon.step(self.daemon.pending())

    def submit(self, name: str) -> str:
        spec = JobSpec(name=name, script="true").to_json()
        job, _ = self.store.submit(spec, user="u", key=name, now=self.now)
        self.world.told(f"submitted {name} {job.id}")
        return job.id

    def cancel(self, job_id: str) -> None:
        job = self.store.job(job_id)
        if job.state.terminal:
            return
        assert self.store.apply(job_id, job.version, CancelRequested(by="u"), self.now)
        self.world.told(f"cancelled {job_id}")

    def begin(self, attempt_id: str) -> None:
        self.cluster.report(attempt_id, Started(pid=1, node="n1", device="cpu:0"))


def a_day(world: World, points: CrashPoints) -> None:
    """Submit, launch, report, cancel and finish: every way a job can go."""
    server = Server(world, points)
    trains, waits = server.submit("trains"), server.submit("waits")
    server.turn()
    server.begin(f"{trains}.1")
    server.turn()
    server.cluster.report(f"{trains}.1", *TRAINED)
    server.turn()
    server.cancel(waits)
    stopped, fails = server.submit("stopped"), server.submit("fails")
    server.cluster.finish(f"{trains}.1")
    server.turn()
    server.begin(f"{stopped}.1")
    server.turn()
    server.cancel(stopped)
    server.turn()
    server.begin(f"{fails}.1")
    server.cluster.end(f"{fails}.1", Ended(outcome="failed", exit_code=3, message="exited with 3"))
    server.turn()
    server.store.close()


def the_morning_after(world: World) -> dict[str, JobRecord]:
    """A new server takes over, and all that still runs goes on to its end."""
    server = Server(world, CrashPoints(None))
    for name in ("trains", "waits", "stopped", "fails"):
        server.submit(name)  # whoever got no answer asks again, under the same key
    for _ in range(12):
        server.turn()
        if all(job.state.terminal and not job.unreleased for job in server.store.jobs()):
            break
        for attempt_id in sorted(server.cluster.live):
            job_id, _, number = attempt_id.partition(".")
            said = [
                entry.report.type
                for _, entries in read_segments(world.storage, job_id, int(number), 1)
                for entry in entries
            ]
            if "started" not in said:
                server.begin(attempt_id)
            if "ended" not in said:
                server.cluster.finish(attempt_id)
    found = {job.name: job for job in server.store.jobs()}
    assert len(found) == len(server.store.jobs()) == 4
    server.store.close()
    return found


def assert_nothing_lies(world: World, jobs: dict[str, JobRecord]) -> None:
    told = [line.split() for line in world.was_told()]
    for word, *rest in told:
        if word == "submitted":
            name, job_id = rest
            assert jobs[name].id == job_id, "an acknowledged job is another one now"
    cancelled = {rest[0] for word, *rest in told if word == "cancelled"}
    for job in jobs.values():
        assert job.state.terminal, f"{job.name} is {job.state}: {job.message}"
        assert not job.unreleased, f"{job.name} holds its device"
        assert len(job.attempts) <= 1, f"{job.name} was started again, though nothing was lost"
        ends = [report for report in reports_of(world, job) if isinstance(report, Ended)]
        if job.id in cancelled or not ends:  # a cancel may have happened before it was acknowledged
            assert job.state is State.CANCELLED
            assert job.name in ("waits", "stopped")
        else:
            (end,) = ends
            assert job.state.value.lower() == end.outcome
    running: set[str] = set()
    for line in LastingCluster(
        lambda _: None, world.storage, world.folder / "cluster", bool
    ).history():
        word, attempt_id = line.split()
        job_id = attempt_id.partition(".")[0]
        if word == "live":
            assert job_id not in running, "a job ran twice at a time"
            running.add(job_id)
        else:
            running.remove(job_id)


def reports_of(world: World, job: JobRecord) -> Iterator[Report]:
    for attempt in job.attempts:
        for _, entries in read_segments(world.storage, job.id, attempt.number, 1):
            yield from (entry.report for entry in entries)


def test_a_server_that_dies_at_any_point_loses_nothing(
    tmp_path: Path, database_kind: Kind, new_url: Callable[[], str]
) -> None:
    count = None
    fatal = 0
    while True:
        world = World(tmp_path / f"at-{fatal}", new_url())
        Store(world.url).close()
        died, passed = run_until(fatal or None, functools.partial(a_day, world))
        if not died:
            if count is not None:
                break
            count = passed
        print(f"died at point {fatal} of {count}")
        assert_nothing_lies(world, the_morning_after(world))
        shutil.rmtree(world.folder)
        fatal += 1
    assert fatal == count + 1, "every point was hit once"
    assert count > 60


@pytest.fixture
def new_url(
    database_kind: Kind, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[], str]]:
    """Each call gives a database of its own."""
    numbers = itertools.count()
    if database_kind == "sqlite":
        yield lambda: f"sqlite:///{tmp_path}/{next(numbers)}.sqlite3"
        return
    server: Postgres = request.getfixturevalue("postgres")
    made: list[str] = []

    def new() -> str:
        made.append(server.new_database(migrated=True))
        return server.url(made[-1])

    yield new
    for database in made:
        server.drop(database)
