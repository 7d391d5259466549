"""The database goes away in mid-run and comes back: jobs go on, the server says so, and no news is
lost. PostgreSQL is stopped and started again; under SQLite the file system takes no more writes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dovetail.cli.doctor import check_database
from dovetail.cli.follow import follow_job
from dovetail.settings import Settings
from dovetail.store.store import Store
from dovetail_jobs.errors import DatabaseLost, Unreachable
from dovetail_jobs.lifecycle import Reason, State
from dovetail_workers.reports import Ended, Metrics
from helpers.attempts import wait_for
from helpers.bench import Bench
from helpers.bench_api import api_of
from helpers.build import at, spec_json
from helpers.databases import Kind, Postgres
from helpers.installation import Installation
from helpers.outages import database_away

pytestmark = pytest.mark.long


@pytest.fixture
def bench(database_url: str, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, url=database_url, auto_release=False)
    yield bench
    bench.store.close()


def test_a_store_says_that_its_database_is_away_and_uses_it_again(
    database_url: str, database_kind: Kind, postgres: Postgres
) -> None:
    with Store(database_url) as store:
        before, _ = store.submit(spec_json(), user="ada", key="one", now=at())
        with (
            database_away(database_kind, postgres),
            pytest.raises(DatabaseLost) as caught,
        ):
            store.submit(spec_json(), user="ada", key="two", now=at())
        assert str(caught.value).startswith(f"the database at {store.place} does not answer (")
        assert str(caught.value).endswith("); jobs go on, try again")
        after, created = store.submit(spec_json(), user="ada", key="two", now=at())
        assert created
        assert [job.id for job in store.jobs()] == [after.id, before.id]


@pytest.mark.parametrize("news", ["gone", "ended", "released", "refused"])
def test_news_that_come_during_an_outage_are_written_after_it(
    bench: Bench, database_kind: Kind, postgres: Postgres, news: str
) -> None:
    job, _ = bench.store.submit(spec_json(), user="ada", key=None, now=bench.now)
    bench.cluster.refuse_launches = "no room" if news == "refused" else None
    bench.turn(2 if news != "refused" else 1)  # what comes of the launch is not heard yet
    job_id, attempt_id = job.id, f"{job.id}.1"
    if news != "refused":
        bench.cluster.begin(attempt_id)
        bench.turn()
    if news == "released":
        bench.cancel(job_id)
    with database_away(database_kind, postgres):
        if news == "gone":
            bench.cluster.lose(attempt_id)
        elif news == "ended":
            bench.cluster.end(attempt_id, Ended(outcome="failed", exit_code=3, message="exit 3"))
        elif news == "released":
            bench.cluster.confirm_release(attempt_id)
        for _ in range(3):
            with pytest.raises(DatabaseLost):
                bench.daemon.step(bench.daemon.pending())
        assert bench.server.facts.outage is not None
    bench.turn()
    assert bench.server.facts.outage is None
    job = bench.job(job_id)
    match news:
        case "gone":
            assert job.attempts[0].reason is Reason.WORKER_LOST
        case "ended":
            assert (job.state, job.attempts[0].exit_code) == (State.FAILED, 3)
        case "released":
            assert (job.state, job.unreleased) == (State.CANCELLED, ())
        case "refused":
            assert job.attempts[-1].reason is Reason.LAUNCH_FAILED


def test_a_job_trains_on_and_ends_while_the_database_is_away(
    bench: Bench, database_kind: Kind, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole server but for Ray: its loop in a thread, its API on a port."""
    caplog.set_level(logging.INFO, "dovetail.daemon")
    job_id = bench.submit()
    attempt_id = f"{job_id}.1"
    bench.cluster.begin(attempt_id)
    bench.turn()
    bench.monotonic = time.monotonic
    bench.daemon.start()
    with ThreadPoolExecutor(1) as followers, api_of(bench) as client:
        assert client.status()[0]["database"]["state"] == "up"
        follower = followers.submit(follow_job, client, job_id)
        with database_away(database_kind, postgres):
            for step in range(1, 4):
                bench.cluster.report(attempt_id, Metrics(step=step, values={"loss": 1.0 / step}))
            bench.cluster.finish(attempt_id)
            wait_for("the outage to be noticed", lambda: bench.server.facts.outage)
            with pytest.raises(DatabaseLost, match=r"does not answer .*; jobs go on, try again"):
                client.submit(spec_json(), key="k")
            status, change = client.status()
            assert status["database"]["state"] == "lost"
            assert "does not answer" in status["database"]["message"]
        while client.status()[0]["database"]["state"] == "lost":
            change = client.status(after=change)[1]
        client.wait_for_database()
        job = wait_for(
            "the end of the job",
            lambda: (found := client.job(job_id)[0])["state"] == "SUCCEEDED" and found,
        )
        assert len(job["attempts"]) == 1
        assert follower.result(timeout=30)["state"] == "SUCCEEDED"
        assert [point["step"] for point in client.metrics(job_id)] == [1, 2, 3]
    bench.daemon.stop(stop_cluster=False)
    said = [record.message for record in caplog.records if "the database" in record.message]
    assert len(said) == 2, said
    assert "does not answer" in said[0]
    assert said[1] == "the database answers again"


def test_a_server_can_end_while_its_database_is_away(
    bench: Bench, database_kind: Kind, postgres: Postgres
) -> None:
    bench.monotonic = time.monotonic
    with database_away(database_kind, postgres):
        bench.daemon.start()
        wait_for("the outage to be noticed", lambda: bench.server.facts.outage)
        bench.daemon.stop(stop_cluster=False)
    assert bench.store.lease().holder == "bench"  # nobody could be told; the lease ends by itself


def test_a_read_only_file_system_stops_deciding_but_not_looking(
    bench: Bench, postgres: Postgres
) -> None:
    with database_away("sqlite", postgres):
        assert bench.store.jobs() == []


def test_a_server_whose_database_does_not_answer_is_refused_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    url = "postgresql+psycopg://ada:s3cret@/jobs?host=/nowhere"
    installation = Installation(tmp_path / "home", DOVETAIL_DATABASE=url)
    done = installation.run("ps")
    assert done.returncode == Unreachable.exit_code
    assert "the database at /nowhere/jobs cannot be reached: " in done.stderr
    assert "start it, or correct DOVETAIL_DATABASE" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    found = check_database(Settings.from_environment(installation.environment))
    assert (found.level, found.fact) == ("fail", str(refusal_of(url)))
    written = [path.read_bytes() for path in installation.home.rglob("*") if path.is_file()]
    for text in (done.stdout, done.stderr, found.fact, *map(repr, written)):
        assert "s3cret" not in text
    assert not (installation.home / "server.json").exists()
    installation.close()


def refusal_of(url: str) -> DatabaseLost:
    with pytest.raises(DatabaseLost) as caught:
        Store(url)
    return caught.value
