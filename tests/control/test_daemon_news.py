"""News that cannot be taken in now, and news of what is not ours: they hold up nobody else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dovetail.cluster.protocol import ClusterLost, ClusterUp, NodesSeen, Woken
from dovetail_jobs.lifecycle import Reason, State
from dovetail_workers import keys
from helpers.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, devices=2)
    yield bench
    bench.store.close()


def unreadable(bench: Bench, job_id: str) -> Path:
    """The attempt's next segment is there, and cannot be read: a link that leads to itself."""
    segment = Path(bench.storage.uri(keys.journal_segment(job_id, 1, 2)))
    segment.symlink_to(segment)
    return segment


def running(bench: Bench, name: str) -> str:
    job_id = bench.submit(name)
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    return job_id


def test_word_of_an_attempt_that_this_database_does_not_know_stops_no_turn(bench: Bench) -> None:
    bench.cluster.tell(Woken(attempt_id="nobody.1"))
    job_id = bench.submit()
    assert f"{job_id}.1" in bench.cluster.launched


def test_an_unreadable_journal_holds_up_the_news_of_its_own_attempt_only(bench: Bench) -> None:
    first, second = running(bench, "first"), running(bench, "second")
    segment = unreadable(bench, first)
    bench.cluster.lose(f"{first}.1")
    bench.cluster.finish(f"{second}.1")
    bench.turn()
    assert bench.job(first).state is State.RUNNING
    assert bench.job(second).state is State.SUCCEEDED
    segment.unlink()
    bench.turn()
    assert bench.job(first).attempts[0].reason is Reason.WORKER_LOST
    assert f"{first}.2" in bench.cluster.launched


def test_nothing_starts_until_the_cluster_that_came_up_is_met(bench: Bench) -> None:
    first = running(bench, "first")
    segment = unreadable(bench, first)
    bench.cluster.live.clear()
    bench.cluster.tell(ClusterLost(cause="the head is gone"))
    bench.cluster.tell(ClusterUp(address="fake", dashboard_url=None, live=()))
    bench.cluster.tell(NodesSeen(nodes=bench.nodes))
    second = bench.submit("second")
    assert f"{second}.1" not in bench.cluster.launched
    segment.unlink()
    bench.turn()
    assert bench.job(first).attempts[0].reason is Reason.WORKER_LOST
    assert f"{second}.1" in bench.cluster.launched
    assert len(bench.job(second).attempts) == 1
