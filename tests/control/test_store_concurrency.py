"""Several writers at once: nothing doubles, nothing is lost, and who comes late changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest
from sqlalchemy import text

from dovetail.store.engine import open_engine
from dovetail.store.store import Store
from dovetail_jobs.lifecycle import CancelRequested, Placed, State
from dovetail_workers.reports import Metrics
from helpers.build import at, spec_json
from helpers.databases import run_statement

pytestmark = pytest.mark.long

SUBMITTER = """
import json, sys
from datetime import UTC, datetime
from dovetail.store.store import Store

spec = json.loads(sys.argv[2])
with Store(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    now = datetime(2026, 1, 5, tzinfo=UTC)
    for number in range(20):
        job, created = store.submit(spec, user="ada", key=f"key-{number}", now=now)
        print(job.id, int(created), flush=True)
"""


def test_processes_that_submit_with_the_same_keys_make_each_job_once(
    empty_database_url: str,
) -> None:
    """They also open, and so create and migrate, the database at the same moment."""
    command = [sys.executable, "-c", SUBMITTER, empty_database_url, json.dumps(spec_json())]
    racers = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n", racer.communicate()[1]
    for racer in racers:  # all of them are open; let them go
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers: list[list[tuple[str, str]]] = []
    for racer in racers:
        out, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors
        pairs = [line.split() for line in out.splitlines()]
        answers.append([(job_id, created) for job_id, created in pairs])
    ids = [[job_id for job_id, _ in answer] for answer in answers]
    assert ids[0] == ids[1] == ids[2]
    assert sum(created == "1" for answer in answers for _, created in answer) == 20
    with Store(empty_database_url) as store:
        assert Counter(job.id for job in store.jobs()) == Counter(ids[0])


def test_of_writers_that_decided_on_one_version_exactly_one_wins(database_url: str) -> None:
    with Store(database_url) as store:
        job, _ = store.submit(spec_json(), user="ada", key=None, now=at())
        barrier = Barrier(6)

        def race(number: int) -> bool:
            barrier.wait()
            if number % 2:
                event = CancelRequested(by=f"user{number}")
                return store.apply(job.id, job.version, event, at()) is not None
            placed = Placed(attempt=1, node=f"n{number}", device="cpu:0")
            changed = store.apply(job.id, job.version, placed, at(), node_id="id", cpus=1.0)
            return changed is not None

        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(race, range(6)))
        assert won.count(True) == 1
        now = store.job(job.id)
        assert now.version == 2
        assert len(store.events(job.id)) == 2
        if won.index(True) % 2:
            assert (now.state, now.attempts) == (State.CANCELLED, ())
        else:
            assert (now.state, len(now.attempts)) == (State.STARTING, 1)


def test_readers_of_one_segment_write_it_once(database_url: str) -> None:
    with Store(database_url) as store:
        job, _ = store.submit(spec_json(), user="ada", key=None, now=at())
        placed = Placed(attempt=1, node="n1", device="cpu:0")
        assert store.apply(job.id, job.version, placed, at(), node_id="id", cpus=1.0)
        barrier = Barrier(4)

        def race(number: int) -> bool:
            barrier.wait()
            reports = [Metrics(step=1, values={"reader": float(number)})]
            recorded = store.record(
                job.id, 1, cursor_from=0, cursor_to=1, reports=reports, now=at()
            )
            return recorded is not None

        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(race, range(4)))
        assert won.count(True) == 1
        assert store.job(job.id).metrics == {"reader": float(won.index(True))}


def test_a_reader_is_not_held_up_by_a_writer(database_url: str) -> None:
    with Store(database_url) as store:
        job, _ = store.submit(spec_json(), user="ada", key=None, now=at())
        engine = open_engine(database_url)
        with engine.connect() as writer, writer.begin() as half_done:
            writer.execute(text("UPDATE jobs SET message = 'half done'"))
            assert store.job(job.id) == job  # the state before, at once
            assert store.active() == [job]
            half_done.rollback()
        engine.dispose()


def test_many_writers_of_every_kind_never_fail_nor_lock_each_other_out(database_url: str) -> None:
    """One decides under the lease; others submit, cancel, read, and renew beside it."""
    with Store(database_url) as store:
        decider = store.take_lease("one", store.lease())
        assert decider is not None
        barrier = Barrier(5)

        def submits(number: int) -> None:
            for index in range(8):
                store.submit(spec_json(), user="ada", key=f"{number}-{index}", now=at())

        def cancels() -> None:
            for _ in range(12):
                for job in store.active():
                    store.apply(job.id, job.version, CancelRequested(by="ada"), at())

        def decides() -> None:
            for _ in range(12):
                decider.renew_lease()
                for job in decider.active():
                    if job.state is State.QUEUED:
                        placed = Placed(attempt=1, node="n1", device="cpu:0")
                        decider.apply(job.id, job.version, placed, at(), node_id="n", cpus=1.0)
                    elif job.state is State.STARTING:
                        said = [Metrics(step=1, values={"loss": 1.0})]
                        decider.record(
                            job.id, 1, cursor_from=0, cursor_to=1, reports=said, now=at()
                        )
                    else:
                        decider.mark_released(job.id, 1, at())

        def race(work: Callable[[], None]) -> None:
            barrier.wait()
            work()

        works = [partial(submits, 1), partial(submits, 2), cancels, cancels, decides]
        with ThreadPoolExecutor(len(works)) as pool:
            list(pool.map(race, works))
        jobs = store.jobs()
        assert len(jobs) == 16
        for job in jobs:
            ids = [event.id for event in store.events(job.id)]
            assert ids == sorted(ids)
            assert len(store.events(job.id)) == job.version
    if database_url.startswith("postgresql"):
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert run_statement(database_url, query) == [(0,)]


def test_the_number_of_a_job_follows_the_order_of_acknowledged_submissions(
    database_url: str,
) -> None:
    """Also where an attempt to submit used up a number and came to nothing."""
    with Store(database_url) as store:
        first, _ = store.submit(spec_json(), user="ada", key="k", now=at())
        again, created = store.submit(spec_json(), user="ada", key="k", now=at())
        assert (again.id, created) == (first.id, False)
        with ThreadPoolExecutor(4) as pool:
            same = list(
                pool.map(
                    lambda _: store.submit(spec_json(), user="ada", key="once", now=at()), range(4)
                )
            )
        last, _ = store.submit(spec_json(), user="ada", key=None, now=at())
        assert [created for _, created in same].count(True) == 1
        assert first.seq < same[0][0].seq < last.seq
        assert [job.id for job in store.active()] == [first.id, same[0][0].id, last.id]
