"""What the store promises about jobs: submit, find, change, and the story of it all."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from dovetail.store.records import EventRecord, JobRecord
from dovetail.store.store import Store
from dovetail_jobs.errors import Conflict, DovetailError, NotFound, UserError
from dovetail_jobs.lifecycle import (
    AttemptReleased,
    AttemptStarted,
    AttemptSucceeded,
    CancelRequested,
    InvalidTransition,
    LaunchFailed,
    Placed,
    ProgramFailed,
    Reason,
    State,
    WorkerLost,
)
from helpers.build import at, spec_json
from helpers.databases import run_statement


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store(database_url) as opened:
        yield opened


def submit(store: Store, **changes: Any) -> JobRecord:
    job, created = store.submit(spec_json(**changes), user="ada", key=None, now=at())
    assert created
    return job


def change(
    store: Store, job: JobRecord, event: Any, seconds: float = 0, **details: Any
) -> JobRecord:
    changed = store.apply(job.id, job.version, event, at(seconds), **details)
    assert changed is not None
    return changed


def place(store: Store, job: JobRecord, attempt: int = 1, seconds: float = 1) -> JobRecord:
    placed = Placed(attempt=attempt, node="n1", device="cpu:0")
    return change(store, job, placed, seconds, node_id="id-n1", cpus=1.0)


def test_a_submitted_job_is_found_again_as_it_was_acknowledged(store: Store) -> None:
    job = submit(store, name="swin-digits", labels={"team": "vision"}, priority=70)
    assert store.job(job.id) == job
    assert (job.name, job.labels, job.priority) == ("swin-digits", {"team": "vision"}, 70)
    assert (job.user, job.project, job.created_at) == ("ada", "default", at())
    assert (job.state, job.reason, job.version) == (State.QUEUED, Reason.SUBMITTED, 1)
    assert (job.attempts, job.checkpoints, job.metrics, job.progress) == ((), (), {}, None)
    assert len(job.id) == 6
    assert not set(job.id) & set("ilo01")


def test_a_job_survives_closing_and_opening_the_store(database_url: str) -> None:
    with Store(database_url) as first:
        job = submit(first)
    with Store(database_url) as second:
        assert second.job(job.id) == job


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    loose = tmp_path / "loose.sqlite3"
    loose.touch(mode=0o644)
    for file in (tmp_path / "deep" / "store.sqlite3", loose):
        with Store(f"sqlite:///{file}") as store:
            submit(store)
            files = sorted(file.parent.glob(f"{file.name}*"))
            assert [each.name for each in files] == [
                file.name, f"{file.name}-shm", f"{file.name}-wal",
            ]  # fmt: skip
            assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}


def test_one_key_makes_one_job_and_another_spec_under_it_is_a_conflict(store: Store) -> None:
    job, created = store.submit(spec_json(name="a"), user="ada", key="k1", now=at())
    again, created_again = store.submit(spec_json(name="a"), user="ada", key="k1", now=at(9))
    assert (created, created_again) == (True, False)
    assert again == job
    assert len(store.jobs()) == 1
    with pytest.raises(Conflict, match=f"key k1: was already used to submit {job.id} \\(a\\)"):
        store.submit(spec_json(name="b"), user="ada", key="k1", now=at())
    with pytest.raises(Conflict):
        store.submit(spec_json(name="a"), user="ada", key="k1", now=at(), origin=job.id)


def test_a_job_that_tries_another_again_says_so(store: Store) -> None:
    first = submit(store)
    second, _ = store.submit(first.spec, user="ada", key=None, now=at(), origin=first.id)
    assert second.origin_job == first.id
    assert store.events(second.id)[0].message == f"submitted by ada, to try {first.id} again"


def test_a_job_is_found_by_id_by_the_beginning_of_its_id_and_by_its_newest_name(
    store: Store,
) -> None:
    older, newer = submit(store, name="twin"), submit(store, name="twin")
    assert store.job(older.id).id == older.id
    assert store.job("twin").id == newer.id
    if older.id[:5] != newer.id[:5]:
        assert store.job(older.id[:5]).id == older.id
    with pytest.raises(NotFound):
        store.job(older.id[:3])


def test_a_name_wins_over_the_beginning_of_another_jobs_id(store: Store) -> None:
    first = submit(store)
    named = submit(store, name=first.id[:4])
    assert store.job(first.id[:4]).id == named.id


def test_the_beginning_of_several_ids_names_them_all(store: Store, database_url: str) -> None:
    one, two = submit(store), submit(store)
    run_statement(database_url, "DELETE FROM events")  # which refer to the ids
    run_statement(database_url, f"UPDATE jobs SET id = 'wxyz23' WHERE id = '{one.id}'")
    run_statement(database_url, f"UPDATE jobs SET id = 'wxyz45' WHERE id = '{two.id}'")
    with pytest.raises(NotFound, match=r"several ids begin so \(wxyz23, wxyz45\); give more"):
        store.job("wxyz")


def test_a_job_that_does_not_exist_is_answered_with_near_names(store: Store) -> None:
    submit(store, name="swin-digits")
    with pytest.raises(NotFound) as caught:
        store.job("swin-digit")
    assert str(caught.value) == (
        "job swin-digit: no job has this id or name; did you mean swin-digits?"
    )
    with pytest.raises(NotFound, match="`dovetail ps --all` lists them"):
        store.job("%")


def test_jobs_are_listed_newest_first_by_state_and_project(store: Store) -> None:
    one, two = submit(store, name="one"), submit(store, name="two", project="vision")
    three = change(store, submit(store, name="three"), CancelRequested(by="ada"))
    assert [job.name for job in store.jobs()] == ["three", "two", "one"]
    assert store.jobs(limit=1) == [three]
    assert store.jobs(states={State.QUEUED}) == [two, one]
    assert store.jobs(states=[], project="vision") == []
    assert store.jobs(project="vision") == [two]
    assert store.active() == [one, two]
    assert store.counts() == {"QUEUED": 2, "CANCELLED": 1}


def test_a_whole_life_is_written_to_job_attempt_and_story(store: Store) -> None:
    job = place(store, submit(store))
    attempt = job.attempts[0]
    assert (job.state, attempt.state, attempt.attempt_id) == (
        State.STARTING, State.STARTING, f"{job.id}.1",
    )  # fmt: skip
    assert (attempt.node, attempt.node_id, attempt.device, attempt.cpus) == (
        "n1", "id-n1", "cpu:0", 1.0,
    )  # fmt: skip
    assert [(rank.rank, rank.node, rank.device) for rank in attempt.ranks] == [(0, "n1", "cpu:0")]
    job = change(store, job, AttemptStarted(attempt=1), 2, pid=4242)
    assert (job.state, job.started_at, job.attempts[0].pid) == (State.RUNNING, at(2), 4242)
    job = change(store, job, AttemptSucceeded(attempt=1), 3)
    assert (job.state, job.ended_at, job.attempts[0].exit_code) == (State.SUCCEEDED, at(3), 0)
    assert store.active() == [job]  # its attempt still holds the device
    job = change(store, job, AttemptReleased(attempt=1), 4)
    attempt = job.attempts[0]
    assert (attempt.placed_at, attempt.started_at, attempt.ended_at, attempt.released_at) == (
        at(1), at(2), at(3), at(4),
    )  # fmt: skip
    assert (job.ended_at, job.unreleased, store.active()) == (at(3), (), [])
    assert store.job(job.id) == job
    story = store.events(job.id)
    assert [(event.kind, event.state, event.attempt) for event in story] == [
        ("Submitted", State.QUEUED, None),
        ("Placed", State.STARTING, 1),
        ("AttemptStarted", State.RUNNING, 1),
        ("AttemptSucceeded", State.SUCCEEDED, 1),
        ("AttemptReleased", State.SUCCEEDED, 1),
    ]
    assert [event.at for event in story] == [at(0), at(1), at(2), at(3), at(4)]
    assert store.events(job.id, after=story[2].id) == story[3:]
    assert str(story[3]) == (
        "2026-01-05 12:00:03 AttemptSucceeded → SUCCEEDED (FINISHED): attempt 1 finished"
    )


def test_a_release_leaves_the_jobs_own_sentence_alone(store: Store) -> None:
    job = change(store, place(store, submit(store)), AttemptStarted(attempt=1))
    failed = ProgramFailed(attempt=1, exit_code=3, message="the script exited with 3")
    job = change(store, job, failed)
    assert job.attempts[0].exit_code == 3
    job = change(store, job, AttemptReleased(attempt=1))
    assert job.message == "the script exited with 3"


def test_retries_are_counted_from_the_rows_of_the_attempts(store: Store) -> None:
    job = submit(store, retry={"max": 2})
    ends: list[Any] = [WorkerLost, LaunchFailed, WorkerLost]
    for number, lost in enumerate(ends, start=1):
        assert job.state is State.QUEUED
        job = change(store, place(store, job, number), lost(attempt=number, cause="gone"))
        store.mark_released(job.id, number, at(9))
    assert (job.state, job.reason) == (State.FAILED, Reason.RETRIES_EXHAUSTED)
    assert [attempt.reason for attempt in job.attempts] == [
        Reason.WORKER_LOST, Reason.LAUNCH_FAILED, Reason.WORKER_LOST,
    ]  # fmt: skip
    assert store.active() == []


def test_a_change_decided_on_an_old_version_is_dropped_without_a_trace(store: Store) -> None:
    job = submit(store)
    cancelled = change(store, job, CancelRequested(by="ada"))
    story = store.events(job.id)
    placed = Placed(attempt=1, node="n1", device="cpu:0")
    assert store.apply(job.id, job.version, placed, at(), node_id="id-n1", cpus=1.0) is None
    assert store.job(job.id) == cancelled
    assert store.events(job.id) == story


def test_late_news_of_an_earlier_attempt_are_dropped(store: Store) -> None:
    job = change(store, place(store, submit(store)), WorkerLost(attempt=1, cause="gone"))
    job = place(store, job, attempt=2)
    assert store.apply(job.id, job.version, AttemptSucceeded(attempt=1), at()) is None
    assert store.job(job.id) == job
    assert store.mark_released(job.id, 1, at(5))
    assert not store.mark_released(job.id, 1, at(6))
    assert store.job(job.id).attempts[0].released_at == at(5)


def test_an_illegal_event_writes_nothing_and_tells_the_story(store: Store) -> None:
    job = place(store, submit(store))
    job = change(store, job, AttemptSucceeded(attempt=1), 3)
    with pytest.raises(InvalidTransition) as caught:
        store.apply(job.id, job.version, AttemptStarted(attempt=1), at(4))
    assert [line.split()[2] for line in caught.value.story] == [
        "Submitted", "Placed", "AttemptSucceeded",
    ]  # fmt: skip
    assert store.job(job.id) == job
    assert len(store.events(job.id)) == 3


def test_the_books_need_to_know_what_a_placed_attempt_holds(store: Store) -> None:
    job = submit(store)
    with pytest.raises(TypeError, match="node_id and cpus"):
        store.apply(job.id, job.version, Placed(attempt=1, node="n1", device="cpu:0"), at())
    assert store.job(job.id) == job


def test_waiting_is_told_once_per_reason(store: Store) -> None:
    job = submit(store)
    held = "waits for a device: cpu:0 on n1 is held by {}"

    def wait(message: str, reason: Reason = Reason.WAITING_FOR_DEVICE, version: int = 1) -> bool:
        return store.set_waiting(job.id, version, reason, message, at(1))

    assert wait(held.format("a"))
    assert not wait(held.format("a"))
    assert wait(held.format("b"))
    assert wait("too large", Reason.DOES_NOT_FIT)
    assert not wait("late", version=2)
    now = store.job(job.id)
    assert (now.reason, now.message, now.version) == (Reason.DOES_NOT_FIT, "too large", 1)
    told = [(event.kind, event.message) for event in store.events(job.id)][1:]
    assert told == [("Waiting", held.format("a")), ("Waiting", "too large")]
    change(store, now, CancelRequested(by="ada"))
    assert not wait("no more")


def test_a_stop_is_remembered_once(store: Store) -> None:
    job = place(store, submit(store))
    assert store.mark_stop_requested(job.id, 1, at(2))
    assert not store.mark_stop_requested(job.id, 1, at(3))
    assert store.job(job.id).attempts[0].stop_requested_at == at(2)


def test_times_come_back_in_utc_whatever_zone_they_were_given_in(store: Store) -> None:
    east = timezone(timedelta(hours=8))
    when = datetime(2026, 1, 5, 20, 0, 0, 123456, tzinfo=east)
    job, _ = store.submit(spec_json(), user="ada", key=None, now=when)
    created = store.job(job.id).created_at
    assert (created, created.tzinfo) == (when, UTC)
    with pytest.raises(Exception, match="has no time zone"):
        store.submit(spec_json(), user="ada", key=None, now=datetime(2026, 1, 5))


def test_the_story_of_one_job_is_not_mixed_with_anothers(store: Store) -> None:
    one, two = submit(store), submit(store)
    change(store, two, CancelRequested(by="ada"))
    stories: list[list[EventRecord]] = [store.events(one.id), store.events(two.id)]
    assert [len(story) for story in stories] == [1, 2]


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("nonsense", "use sqlite:///FILE"),
        ("mysql://localhost/x", "use sqlite:///FILE"),
        ("sqlite://", "names no file"),
    ],
)
def test_a_url_that_cannot_keep_jobs_is_refused(url: str, rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        Store(url)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but somebody's notes\n" * 50)
    with pytest.raises(DovetailError, match="cannot be opened: file is not a database"):
        Store(f"sqlite:///{file}")
    assert file.read_text().startswith("not a database")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="the database cannot be written: Is a directory"):
        Store(f"sqlite:///{tmp_path}")
