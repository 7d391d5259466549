"""The wall clock is set back or forward while jobs run: nothing stalls, nothing ends early."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.service.elapsed import Elapsed
from dovetail_jobs.lifecycle import Reason, State
from helpers.bench import Bench
from helpers.build import at

HOUR = timedelta(hours=1)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def lose_twice(bench: Bench) -> str:
    """A job that now waits 4 s for its third attempt."""
    job_id = bench.submit()
    for attempt in (1, 2):
        bench.cluster.lose(f"{job_id}.{attempt}")
        bench.turn()
    assert bench.job(job_id).reason is Reason.BACKING_OFF
    return job_id


def test_a_clock_set_back_does_not_stall_a_retry(bench: Bench) -> None:
    job_id = lose_twice(bench)
    bench.set_back = HOUR
    bench.turn()
    assert bench.job(job_id).state is State.QUEUED
    bench.now += timedelta(seconds=4)
    bench.turn()
    assert bench.job(job_id).state is State.STARTING


def test_a_server_that_starts_after_the_clock_was_set_back_waits_the_pause_and_no_longer(
    bench: Bench,
) -> None:
    job_id = lose_twice(bench)
    bench.set_back = HOUR
    bench.daemon = bench.new_daemon()
    bench.turn()
    assert bench.job(job_id).state is State.QUEUED
    bench.now += timedelta(seconds=4)
    bench.turn()
    assert bench.job(job_id).state is State.STARTING


@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["back", "forward"])
def test_a_limit_is_counted_in_time_that_passed(bench: Bench, jump: timedelta) -> None:
    job_id = bench.submit(max_duration="1h")
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    bench.set_back = jump
    bench.now += timedelta(minutes=59)
    bench.turn()
    assert bench.job(job_id).state is State.RUNNING
    bench.now += timedelta(minutes=1)
    bench.turn()
    assert bench.job(job_id).reason is Reason.TIME_LIMIT


def test_the_sentence_about_a_pause_does_not_change_while_it_lasts(bench: Bench) -> None:
    job_id = lose_twice(bench)
    said = bench.job(job_id).message
    bench.now += timedelta(seconds=1.7)
    bench.turn()
    assert bench.job(job_id).message == said


def test_the_story_keeps_its_order_and_no_time_is_below_zero(bench: Bench) -> None:
    job_id = bench.submit()
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    bench.set_back = HOUR
    bench.cluster.finish(f"{job_id}.1")
    bench.turn()
    kinds = [event.kind for event in bench.store.events(job_id)]
    assert kinds == ["Submitted", "Placed", "AttemptStarted", "AttemptSucceeded", "AttemptReleased"]
    job = bench.job(job_id)
    assert job.started_at is not None
    assert job.ended_at is not None
    assert job.created_at <= job.started_at <= job.ended_at
    attempt = job.attempts[0]
    assert attempt.started_at is not None
    assert attempt.ended_at is not None
    assert attempt.placed_at <= attempt.started_at <= attempt.ended_at


@given(
    steps=st.lists(st.tuples(st.floats(0, 100), st.floats(-7200, 7200)), max_size=20),
    first=st.floats(-7200, 7200),
)
def test_time_since_a_moment_grows_as_time_passes_whatever_the_wall_clock_says(
    steps: list[tuple[float, float]], first: float
) -> None:
    passed_s = 0.0
    elapsed = Elapsed(lambda: passed_s)
    at_first = elapsed.since("job", at(), at(first))
    assert at_first == timedelta(seconds=max(0.0, first))
    for step_s, wall_s in steps:
        passed_s += step_s
        now = elapsed.since("job", at(), at(wall_s))
        assert now.total_seconds() == pytest.approx(at_first.total_seconds() + passed_s, abs=1e-3)
    elapsed.forget_all_but(set())
    assert elapsed.since("job", at(), at(first)) == at_first
