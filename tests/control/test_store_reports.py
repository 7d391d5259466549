"""How a worker's journal becomes progress, curves, checkpoints and memory: exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.store.records import CheckpointRecord, JobRecord, MemoryRecord, ProgressRecord
from dovetail.store.store import Store
from dovetail_jobs.errors import NotFound
from dovetail_jobs.lifecycle import (
    AttemptReleased,
    AttemptStarted,
    AttemptSucceeded,
    InvalidTransition,
    LaunchFailed,
    Placed,
    State,
    WorkerLost,
)
from dovetail_workers.reports import (
    CheckpointRemoved,
    CheckpointSaved,
    Ended,
    MemoryUsed,
    Metrics,
    Progress,
    Refused,
    Report,
    Started,
)
from helpers.build import at, spec_json
from helpers.databases import migrated_sqlite


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store(database_url) as opened:
        yield opened


def placed(store: Store) -> JobRecord:
    job, _ = store.submit(spec_json(retry={"max": 9}), user="ada", key=None, now=at())
    return place(store, job)


def place(store: Store, job: JobRecord) -> JobRecord:
    event = Placed(attempt=len(job.attempts) + 1, node="n1", device="cpu:0")
    again = store.apply(job.id, job.version, event, at(), node_id="id-n1", cpus=1.0)
    assert again is not None
    return again


def record(
    store: Store, job: JobRecord, *reports: Report, attempt: int = 0, **more: Any
) -> JobRecord:
    """One more journal segment of an attempt, the newest unless told."""
    number = attempt or len(job.attempts)
    cursor = store.job(job.id).attempts[number - 1].cursor
    recorded = store.record(
        job.id, number, cursor_from=cursor, cursor_to=cursor + 1, reports=reports, now=at(), **more
    )
    assert recorded is not None
    return recorded


def begin(store: Store, job: JobRecord, resumed_from_step: int | None = None) -> JobRecord:
    number = len(job.attempts)
    started = Started(pid=number, node="n1", device="cpu:0", resumed_from_step=resumed_from_step)
    return record(store, job, started, events=[AttemptStarted(attempt=number)])


def lose(store: Store, job: JobRecord) -> JobRecord:
    lost = WorkerLost(attempt=len(job.attempts), cause="gone")
    again = store.apply(job.id, job.version, lost, at())
    assert again is not None
    return again


def loss(step: int, value: float) -> Metrics:
    return Metrics(step=step, values={"loss": value})


def curve(store: Store, job: JobRecord, metric: str | None = "loss") -> list[tuple[int, Any]]:
    return [(point.step, point.value) for point in store.metric_points(job.id, metric)]


def saved(step: int, attempt: int = 1) -> CheckpointSaved:
    key = f"jobs/j/checkpoints/{step:010d}-{attempt}/"
    return CheckpointSaved(step=step, key=key, uri=f"/data/{key}", bytes=step * 10)


def test_reports_and_what_they_mean_are_written_together(store: Store) -> None:
    job = begin(store, placed(store), resumed_from_step=100)
    attempt = job.attempts[0]
    assert (job.state, attempt.pid, attempt.resumed_from_step) == (State.RUNNING, 1, 100)
    job = record(
        store,
        job,
        Progress(step=101, steps=200, steps_per_s=4.0, samples_per_s=512.0),
        loss(101, 2.5),
        Ended(outcome="succeeded", exit_code=0, message="done"),
        events=[AttemptSucceeded(attempt=1)],
    )
    assert job == store.job(job.id)
    assert (job.state, job.metrics) == (State.SUCCEEDED, {"loss": 2.5})
    assert job.progress == ProgressRecord(
        phase="train", step=101, steps=200, steps_per_s=4.0, samples_per_s=512.0
    )
    assert job.progress.eta_s == 24.75
    (rank,) = job.attempts[0].ranks
    assert (rank.pid, rank.exit_code, job.attempts[0].cursor) == (1, 0, 2)


def test_a_segment_counts_once_whoever_reads_it_twice(store: Store) -> None:
    job = begin(store, placed(store))

    def read(value: float, cursor_from: int = 1) -> JobRecord | None:
        return store.record(
            job.id, 1, cursor_from=cursor_from, cursor_to=2, reports=[loss(1, value)], now=at()
        )

    assert read(2.5) is not None
    before = store.job(job.id)
    assert read(9.9) is None
    assert read(9.9, cursor_from=0) is None
    assert store.job(job.id) == before
    assert curve(store, job) == [(1, 2.5)]
    with pytest.raises(ValueError, match="the cursor moves forward, not from 2 to 2"):
        store.record(job.id, 1, cursor_from=2, cursor_to=2, reports=[], now=at())
    with pytest.raises(NotFound, match="has no attempt 7"):
        store.record(job.id, 7, cursor_from=0, cursor_to=1, reports=[], now=at())


def test_an_illegal_event_leaves_its_segment_unread(store: Store) -> None:
    job = placed(store)
    again = store.apply(job.id, job.version, AttemptSucceeded(attempt=1), at())
    with pytest.raises(InvalidTransition):
        record(store, job, loss(1, 2.5), events=[AttemptStarted(attempt=1)])
    assert store.job(job.id) == again
    assert curve(store, job) == []


def test_progress_does_not_make_a_decision_late(store: Store) -> None:
    job = begin(store, placed(store))
    record(store, job, Progress(step=5), loss(5, 1.0))
    after = store.apply(job.id, job.version, AttemptSucceeded(attempt=1), at(9))
    assert after is not None
    assert after.progress == ProgressRecord(phase="train", step=5)
    assert after.metrics == {"loss": 1.0}


def test_the_last_report_of_a_step_counts_and_other_metrics_stay(store: Store) -> None:
    job = begin(store, placed(store))
    job = record(store, job, loss(1, 3.0), loss(1, 2.0), Metrics(step=1, values={"accuracy": 0.5}))
    job = record(store, job, loss(1, 1.0), loss(2, 0.5))
    assert job.metrics == {"loss": 0.5, "accuracy": 0.5}
    assert curve(store, job) == [(1, 1.0), (2, 0.5)]
    assert curve(store, job, "accuracy") == [(1, 0.5)]
    assert [point.metric for point in store.metric_points(job.id)] == ["accuracy", "loss", "loss"]


def test_a_value_that_is_not_finite_is_kept_as_unknown(store: Store) -> None:
    job = begin(store, placed(store))
    job = record(store, job, loss(1, float("nan")), loss(2, float("inf")))
    assert job.metrics == {"loss": None}
    assert curve(store, job) == [(1, None), (2, None)]


def test_a_resumed_attempt_takes_the_place_of_later_points_from_its_start_on(store: Store) -> None:
    job = begin(store, placed(store))
    job = record(store, job, *[loss(step, 1.0) for step in range(1, 6)])
    job = place(store, lose(store, job))
    assert job.metrics == {"loss": 1.0}
    assert len(curve(store, job)) == 5  # placed, but not started
    job = begin(store, job, resumed_from_step=3)
    assert curve(store, job) == [(1, 1.0), (2, 1.0), (3, 1.0)]
    job = record(store, job, loss(4, 2.0))
    assert curve(store, job) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    assert job.metrics == {"loss": 2.0}


def test_an_attempt_from_the_beginning_takes_the_place_of_everything(store: Store) -> None:
    job = record(store, begin(store, placed(store)), loss(0, 1.0), loss(1, 1.0))
    job = begin(store, place(store, lose(store, job)))
    assert (job.metrics, curve(store, job)) == ({}, [])


def test_an_attempt_that_never_started_takes_nobodys_place(store: Store) -> None:
    job = place(store, lose(store, record(store, begin(store, placed(store)), loss(9, 1.0))))
    failed = LaunchFailed(attempt=2, cause="no room")
    again = store.apply(job.id, job.version, failed, at())
    assert again is not None
    assert (again.metrics, curve(store, again)) == ({"loss": 1.0}, [(9, 1.0)])


def test_late_reports_of_a_lost_attempt_do_not_speak_for_the_job(store: Store) -> None:
    job = record(store, begin(store, placed(store)), loss(1, 1.0), loss(2, 1.0))
    job = begin(store, place(store, lose(store, job)), resumed_from_step=1)
    job = record(store, job, Progress(step=2), loss(2, 2.0))
    late = (
        Progress(step=90),
        loss(3, 9.0),
        saved(3),
        Ended(outcome="lost", exit_code=-9, message=""),
    )
    job = record(store, job, *late, attempt=1, events=[AttemptSucceeded(attempt=1)])
    assert (job.state, job.metrics) == (State.RUNNING, {"loss": 2.0})
    assert job.progress is not None
    assert job.progress.step == 2
    assert curve(store, job) == [(1, 1.0), (2, 2.0)]
    assert [checkpoint.step for checkpoint in job.checkpoints] == [3]  # whole, so of use
    assert [attempt.exit_code for attempt in job.attempts] == [-9, None]


def test_checkpoints_come_and_go_with_the_reports(store: Store) -> None:
    job = begin(store, placed(store))
    job = record(store, job, saved(100), saved(200), CheckpointRemoved(key=saved(100).key))
    assert job.checkpoints == (
        CheckpointRecord(
            key=saved(200).key, attempt=1, phase="train", step=200, uri=saved(200).uri, bytes=2000
        ),
    )
    job = record(store, job, saved(200), saved(300), CheckpointRemoved(key="never there"))
    assert [checkpoint.step for checkpoint in job.checkpoints] == [200, 300]


def test_memory_keeps_the_highest_peak_and_what_is_known(store: Store) -> None:
    job = begin(store, placed(store))
    assert job.memory == MemoryRecord()
    job = record(store, job, MemoryUsed(base_bytes=100))
    job = record(store, job, MemoryUsed(peak_bytes=900), MemoryUsed(peak_bytes=700))
    assert job.memory == MemoryRecord(base_bytes=100, peak_bytes=900)


def test_a_refusal_is_kept_for_the_end_that_follows_in_a_later_segment(store: Store) -> None:
    job = record(store, begin(store, placed(store)), Refused(message="dataset: /x is empty"))
    job = record(store, job, Ended(outcome="failed", exit_code=2, message="exit code 2"))
    assert (job.attempts[0].refusal, job.attempts[0].exit_code) == ("dataset: /x is empty", 2)


def test_the_end_of_a_stopped_attempt_and_its_release_can_come_in_one_go(store: Store) -> None:
    job = begin(store, placed(store))
    job = record(
        store,
        job,
        Ended(outcome="succeeded", exit_code=0, message=""),
        events=[AttemptSucceeded(attempt=1), AttemptReleased(attempt=1)],
    )
    assert (job.state, job.unreleased) == (State.SUCCEEDED, ())
    assert [event.kind for event in store.events(job.id)][-2:] == [
        "AttemptSucceeded", "AttemptReleased",
    ]  # fmt: skip


RUNS = st.lists(
    st.tuples(st.integers(0, 100), st.lists(st.integers(1, 5), max_size=8)), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=10)
@given(runs=RUNS)
def test_the_curve_is_that_of_a_run_that_had_never_stopped(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, list[int]]]
) -> None:
    follow(tmp_path_factory, runs)


@pytest.mark.long
@settings(deadline=None, max_examples=60)
@given(runs=RUNS)
def test_the_curves_of_many_runs_are_those_of_runs_that_had_never_stopped(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, list[int]]]
) -> None:
    follow(tmp_path_factory, runs)


def follow(tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, list[int]]]) -> None:
    """However often a run resumes, and from where, its curve is the one its last words make."""
    folder = tmp_path_factory.mktemp("store")
    expected: dict[int, float] = {}
    with Store(migrated_sqlite(folder / "store.sqlite3")) as store:
        job = placed(store)
        for number, (where, strides) in enumerate(runs, start=1):
            if number > 1:
                job = place(store, lose(store, job))
            reached = max(expected, default=0)
            resumed = where % (reached + 1) if number > 1 else 0
            job = begin(store, job, resumed_from_step=resumed or None)
            expected = {step: v for step, v in expected.items() if resumed and step <= resumed}
            steps = [resumed + sum(strides[: i + 1]) for i in range(len(strides))]
            job = record(store, job, *[loss(step, float(number)) for step in steps])
            expected.update(dict.fromkeys(steps, float(number)))
            assert curve(store, job) == sorted(expected.items())
            last = expected[max(expected)] if expected else None
            assert job.metrics.get("loss") == last
