"""The loop turned by hand over a real store and a scripted cluster: what the store says after each
piece of news.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dovetail.cluster.protocol import ClusterLost, ClusterUp, NodesSeen
from dovetail_jobs.lifecycle import Reason, State
from dovetail_workers import fence, keys
from dovetail_workers.reports import (
    CheckpointSaved,
    CheckpointSkipped,
    Ended,
    Metrics,
    Progress,
    Refused,
    Started,
)
from helpers.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def test_a_job_runs_from_submit_to_end(bench: Bench) -> None:
    job_id = bench.submit()
    assert bench.job(job_id).state is State.STARTING
    launch = bench.cluster.launched[f"{job_id}.1"]
    assert (launch.node, launch.device) == ("n1", "cpu:0")

    bench.cluster.begin(f"{job_id}.1", pid=77)
    bench.turn()
    assert bench.job(job_id).state is State.RUNNING
    assert bench.job(job_id).attempts[0].pid == 77

    bench.cluster.report(
        f"{job_id}.1", Progress(step=5, steps=5), Metrics(step=5, values={"loss": 0.25})
    )
    bench.cluster.finish(f"{job_id}.1")
    bench.turn()
    job = bench.job(job_id)
    assert (job.state, job.reason) == (State.SUCCEEDED, Reason.FINISHED)
    assert job.metrics == {"loss": 0.25}
    assert job.attempts[0].released_at is not None


def test_the_second_job_waits_for_the_device_and_gets_it(bench: Bench) -> None:
    first, second = bench.submit("a"), bench.submit("b")
    waiting = bench.job(second)
    assert (waiting.state, waiting.reason) == (State.QUEUED, Reason.WAITING_FOR_DEVICE)
    assert first in waiting.message
    bench.cluster.begin(f"{first}.1")
    bench.cluster.finish(f"{first}.1")
    bench.turn()
    assert bench.job(second).state is State.STARTING


def test_a_higher_priority_goes_first(bench: Bench) -> None:
    running, low, high = bench.submit(), bench.submit(priority=10), bench.submit(priority=90)
    bench.cluster.begin(f"{running}.1")
    bench.cluster.finish(f"{running}.1")
    bench.turn()
    assert bench.job(high).state is State.STARTING
    assert bench.job(low).state is State.QUEUED


def test_a_cancelled_job_is_over_only_when_nothing_of_it_is_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path, auto_release=False)
    job_id = bench.submit()
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    bench.cancel(job_id)
    assert bench.job(job_id).state is State.STOPPING
    assert bench.cluster.released == [f"{job_id}.1"]
    bench.cluster.end(f"{job_id}.1", Ended(outcome="stopped", exit_code=-15, message="stopped"))
    bench.turn()
    assert bench.job(job_id).state is State.STOPPING
    bench.cluster.confirm_release(f"{job_id}.1")
    bench.turn()
    job = bench.job(job_id)
    assert (job.state, job.reason) == (State.CANCELLED, Reason.CANCELLED_BY_USER)
    bench.store.close()


def test_a_job_cancelled_in_the_queue_never_starts(bench: Bench) -> None:
    first, second = bench.submit(), bench.submit()
    bench.cancel(second)
    assert bench.job(second).state is State.CANCELLED
    bench.cluster.begin(f"{first}.1")
    bench.cluster.finish(f"{first}.1")
    bench.turn()
    assert list(bench.cluster.launched) == [f"{first}.1"]


def test_a_lost_worker_is_followed_by_an_attempt_that_may_resume(bench: Bench) -> None:
    job_id = bench.submit()
    bench.cluster.begin(f"{job_id}.1")
    saved = CheckpointSaved(step=3, key=f"jobs/{job_id}/checkpoints/3-1/", uri="x", bytes=9)
    bench.cluster.report(f"{job_id}.1", saved)
    bench.cluster.lose(f"{job_id}.1")
    bench.turn()
    job = bench.job(job_id)
    assert [attempt.reason for attempt in job.attempts] == [Reason.WORKER_LOST, Reason.PLACED]
    assert bench.cluster.launched[f"{job_id}.2"].resume_from == (f"jobs/{job_id}/checkpoints/",)
    assert [event.kind for event in bench.store.events(job_id)][-3:] == [
        "WorkerLost", "AttemptReleased", "Placed",
    ]  # fmt: skip


def test_losses_end_in_failure_when_the_retries_are_used_up(bench: Bench) -> None:
    job_id = bench.submit(retry={"max": 2})
    for attempt in (1, 2, 3):
        bench.cluster.lose(f"{job_id}.{attempt}")
        bench.turn()
        bench.now += timedelta(minutes=5)
        bench.turn()
    job = bench.job(job_id)
    assert (job.state, job.reason) == (State.FAILED, Reason.RETRIES_EXHAUSTED)
    assert len(job.attempts) == 3


def test_repeated_losses_wait_before_the_next_attempt(bench: Bench) -> None:
    job_id = bench.submit()
    for attempt in (1, 2):
        bench.cluster.lose(f"{job_id}.{attempt}")
        bench.turn()
    assert bench.job(job_id).reason is Reason.BACKING_OFF
    bench.now += timedelta(seconds=4)
    bench.turn()
    assert bench.job(job_id).state is State.STARTING


def test_a_worker_that_wrote_its_end_before_it_went_is_not_lost(bench: Bench) -> None:
    job_id = bench.submit()
    attempt_id = f"{job_id}.1"
    bench.cluster.begin(attempt_id)
    ended = Ended(outcome="succeeded", exit_code=0, message="ran to its end")
    bench.cluster.report(attempt_id, ended, wake=False)
    bench.cluster.lose(attempt_id, "ActorDiedError: Ray is gone")
    bench.turn()
    assert bench.job(job_id).state is State.SUCCEEDED


def test_a_programs_own_failure_is_final_unless_asked_otherwise(bench: Bench) -> None:
    failed = Ended(outcome="failed", exit_code=3, message="the script exited with code 3")
    final, again = bench.submit(), bench.submit(retry={"max": 1, "on": ["failure"]})
    bench.cluster.begin(f"{final}.1")
    bench.cluster.end(f"{final}.1", failed)
    bench.turn()
    assert bench.job(final).state is State.FAILED
    assert bench.job(final).attempts[0].exit_code == 3
    bench.cluster.begin(f"{again}.1")
    bench.cluster.end(f"{again}.1", failed)
    bench.turn()
    assert bench.job(again).state is State.STARTING
    bench.cluster.begin(f"{again}.2")
    bench.cluster.end(f"{again}.2", failed)
    bench.turn()
    assert bench.job(again).state is State.FAILED


def test_what_the_user_must_mend_is_not_tried_again(bench: Bench) -> None:
    job_id = bench.submit(retry={"max": 3, "on": ["failure"]})
    bench.cluster.begin(f"{job_id}.1")
    bench.cluster.report(f"{job_id}.1", Refused(message="params.dataset: no images"))
    bench.cluster.end(
        f"{job_id}.1", Ended(outcome="failed", exit_code=2, message="params.dataset: no images")
    )
    bench.turn()
    job = bench.job(job_id)
    assert (job.state, job.reason) == (State.FAILED, Reason.REFUSED)
    assert job.message == "params.dataset: no images"


def test_a_launch_that_fails_is_tried_elsewhere_or_again(bench: Bench) -> None:
    bench.cluster.refuse_launches = "no room"
    job_id = bench.submit()
    assert bench.job(job_id).attempts[0].reason is Reason.LAUNCH_FAILED
    bench.cluster.refuse_launches = None
    bench.turn()
    bench.now += timedelta(minutes=5)
    bench.turn()
    newest = bench.job(job_id).attempts[-1].attempt_id
    assert newest in bench.cluster.launched


def test_max_duration_stops_a_job_as_failed(bench: Bench) -> None:
    job_id = bench.submit(max_duration="1h")
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    bench.now += timedelta(minutes=59)
    bench.turn()
    assert bench.job(job_id).state is State.RUNNING
    bench.now += timedelta(minutes=1)
    bench.turn()
    job = bench.job(job_id)
    assert (job.state, job.reason) == (State.FAILED, Reason.TIME_LIMIT)


def test_nothing_starts_before_the_cluster_has_answered(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.cluster.lose_ray()
    bench.turn()
    job_id = bench.submit()
    assert bench.job(job_id).reason is Reason.WAITING_FOR_CLUSTER
    bench.cluster.start()
    bench.turn()
    assert bench.job(job_id).state is State.STARTING
    bench.store.close()


def test_ray_lost_with_its_workers_means_new_attempts_when_it_is_back(bench: Bench) -> None:
    job_id = bench.submit()
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    bench.cluster.lose_ray()
    bench.turn()
    assert bench.job(job_id).state is State.RUNNING
    bench.cluster.start()
    bench.turn()
    job = bench.job(job_id)
    assert [attempt.reason for attempt in job.attempts] == [Reason.WORKER_LOST, Reason.PLACED]


def test_a_new_server_adopts_the_workers_it_finds(bench: Bench) -> None:
    job_id = bench.submit()
    attempt_id = f"{job_id}.1"
    bench.cluster.begin(attempt_id)
    bench.turn()
    old = bench.cluster
    bench.daemon = bench.new_daemon()
    old.report(attempt_id, Metrics(step=1, values={"loss": 1.0}), wake=False)
    bench.daemon.step([ClusterUp(address="fake", dashboard_url=None, live=(attempt_id,))])
    bench.daemon.step([NodesSeen(nodes=bench.nodes)])
    job = bench.job(job_id)
    assert (job.state, len(job.attempts)) == (State.RUNNING, 1)
    assert job.metrics == {"loss": 1.0}
    assert bench.cluster.launched == {}


def test_a_server_that_died_between_deciding_and_launching_launches_without_a_loss(
    bench: Bench,
) -> None:
    job_id = bench.submit()
    bench.daemon = bench.new_daemon()
    bench.cluster.start()
    bench.turn()
    assert list(bench.cluster.launched) == [f"{job_id}.1"]
    assert len(bench.job(job_id).attempts) == 1


def test_news_reaches_those_who_wait_for_changes(bench: Bench) -> None:
    job_id = bench.submit()
    before = bench.changes.number
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    assert bench.changes.wait(before, timeout_s=0) > before
    assert bench.changes.wait(bench.changes.number, timeout_s=0) == bench.changes.number


def test_a_lost_attempt_is_fenced_before_the_next_one_begins(bench: Bench) -> None:
    job_id = bench.submit()
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    assert not fence.is_fenced(bench.storage, job_id, 1)
    bench.cluster.lose(f"{job_id}.1")
    bench.turn()
    assert f"{job_id}.2" in bench.cluster.launched
    assert fence.is_fenced(bench.storage, job_id, 1)
    assert not fence.is_fenced(bench.storage, job_id, 2)


def test_a_stop_that_its_worker_does_not_follow_becomes_a_fence(tmp_path: Path) -> None:
    bench = Bench(tmp_path, auto_release=False)
    job_id = bench.submit()
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    bench.cancel(job_id)
    bench.now += timedelta(seconds=9)
    bench.turn()
    assert not fence.is_fenced(bench.storage, job_id, 1)
    bench.now += timedelta(seconds=1)
    bench.turn()
    assert fence.is_fenced(bench.storage, job_id, 1)
    bench.store.close()


def test_a_job_cancelled_while_the_cluster_is_away_is_fenced_at_once(bench: Bench) -> None:
    job_id = bench.submit()
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    bench.cluster.tell(ClusterLost(cause="the head is gone"))
    bench.turn()
    bench.cancel(job_id)
    assert bench.job(job_id).state is State.STOPPING
    assert fence.is_fenced(bench.storage, job_id, 1)


def test_no_attempt_begins_while_the_fence_of_the_last_cannot_be_raised(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job_id = bench.submit()
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    away = tmp_path / "storage" / ".tmp"
    away.rmdir()
    bench.cluster.lose(f"{job_id}.1")
    bench.turn()
    assert bench.job(job_id).state is State.STARTING
    assert f"{job_id}.2" not in bench.cluster.launched
    away.mkdir()
    bench.turn()
    assert f"{job_id}.2" in bench.cluster.launched
    assert fence.is_fenced(bench.storage, job_id, 1)
    bench.store.close()


def test_a_worker_that_claimed_its_attempt_and_went_silently_is_lost(bench: Bench) -> None:
    job_id = bench.submit()
    fence.claim(bench.storage, job_id, 1, "n1 7")
    bench.daemon = bench.new_daemon()
    bench.turn()
    attempts = bench.job(job_id).attempts
    assert [item.reason for item in attempts] == [Reason.WORKER_LOST, Reason.PLACED]


def test_the_story_names_a_damaged_checkpoint_and_where_the_run_goes_on(bench: Bench) -> None:
    job_id = bench.submit()
    bench.cluster.begin(f"{job_id}.1")
    bench.cluster.lose(f"{job_id}.1")
    bench.turn()
    damage = CheckpointSkipped(
        key=f"jobs/{job_id}/checkpoints/0000000040-1/",
        step=40,
        attempt=1,
        cause="model.pt is missing",
        instead_step=20,
    )
    started = Started(pid=1, node="n1", device="cpu:0", resumed_from_step=20)
    bench.cluster.report(f"{job_id}.2", damage, started)
    bench.turn()
    told = [(event.kind, event.message) for event in bench.store.events(job_id)][-2:]
    assert told == [
        (
            "CheckpointSkipped",
            "checkpoint of step 40 (attempt 1) is damaged: model.pt is missing; "
            "the one of step 20 serves",
        ),
        ("AttemptStarted", "attempt 2 is training, resumed from step 20"),
    ]


def test_a_journal_cut_in_the_middle_is_told_once_and_its_attempt_is_followed_by_another(
    bench: Bench,
) -> None:
    job_id = bench.submit()
    attempt_id = f"{job_id}.1"
    bench.cluster.begin(attempt_id)
    bench.turn()
    ended = Ended(outcome="succeeded", exit_code=0, message="ran to its end")
    said = [Progress(step=step) for step in (1, 2, 3, 4, 5)]
    bench.cluster.report(attempt_id, *said, ended, wake=False)
    key = keys.journal_segment(job_id, 1, 2)
    bench.storage.put(key, bench.storage.get(key)[:-10])
    bench.cluster.lose(attempt_id, "the attempt is over")
    bench.turn()
    job = bench.job(job_id)
    assert [item.reason for item in job.attempts] == [Reason.WORKER_LOST, Reason.PLACED]
    assert job.progress is not None
    assert job.progress.step == 5
    story = [event.message for event in bench.store.events(job_id)]
    damage = [text for text in story if "damaged" in text]
    assert damage == [
        "journal segment 2 of attempt 1 is damaged after 5 of its reports: its last line is cut off"
    ]


def test_a_journal_that_makes_no_sense_stops_no_other_job(tmp_path: Path) -> None:
    bench = Bench(tmp_path, devices=2)
    mad, other = bench.submit(), bench.submit()
    for job_id in (mad, other):
        bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    bench.cluster.begin(f"{mad}.1")
    bench.cluster.finish(f"{other}.1")
    bench.turn()
    assert bench.job(mad).state is State.RUNNING
    assert bench.job(other).state is State.SUCCEEDED
    bench.store.close()
