"""One worker speaks for an attempt, and none once it was given up."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dovetail_workers import fence
from dovetail_workers.fence import Fenced, FenceWatch
from dovetail_workers.reports import Ended, Started
from dovetail_workers.storage.local import LocalStorage
from dovetail_workers.storage.protocol import StorageError
from helpers.attempts import alive, ended, entries, log_text, script_launch, start, wait_for
from helpers.faulty_storage import RefusingStorage

UNTIL_GO = "echo $$ >> pids; echo waiting; while [ ! -e go ]; do sleep 0.05; done"


def test_an_attempt_belongs_to_the_first_that_claims_it(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert not fence.is_claimed(storage, "j", 1)
    fence.claim(storage, "j", 1, "n1 7")
    assert fence.is_claimed(storage, "j", 1)
    with pytest.raises(Fenced, match=r"attempt j\.1 belongs to n1 7"):
        fence.claim(storage, "j", 1, "n2 8")
    fence.claim(storage, "j", 2, "n2 8")


def test_a_claim_whose_answer_was_lost_is_not_taken_for_another_workers(tmp_path: Path) -> None:
    storage = RefusingStorage(tmp_path)
    storage.uncertain = True
    with pytest.raises(StorageError):
        fence.claim(storage, "j", 1, "n1 7")
    storage.uncertain = False
    fence.claim(storage, "j", 1, "n1 7")
    with pytest.raises(Fenced):
        fence.claim(storage, "j", 1, "n2 8")


def test_a_fence_may_be_raised_again_and_is_of_one_attempt(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    fence.raise_fence(storage, "j", 1)
    fence.raise_fence(storage, "j", 1)
    assert fence.is_fenced(storage, "j", 1)
    assert not fence.is_fenced(storage, "j", 2)


def test_a_watch_sees_the_fence_also_after_a_storage_that_could_not_be_read(
    tmp_path: Path,
) -> None:
    class Unreadable(LocalStorage):
        failed = threading.Event()
        fails = True

        def stat(self, key: str):  # type: ignore[no-untyped-def]
            if self.fails:
                self.failed.set()
                raise StorageError("cannot read: Stale file handle")
            return super().stat(key)

    storage, noticed = Unreadable(tmp_path), threading.Event()
    watch = FenceWatch(storage, "j", 1, noticed.set, check_s=0.01)
    try:
        assert storage.failed.wait(10)
        fence.raise_fence(storage, "j", 1)
        assert not noticed.is_set()
        storage.fails = False
        assert noticed.wait(10)
    finally:
        watch.close()


@pytest.mark.long
def test_a_worker_whose_attempt_is_given_up_ends_its_program_and_says_nothing_more(
    tmp_path: Path,
) -> None:
    launch = script_launch(tmp_path / "storage", UNTIL_GO, workdir=str(tmp_path))
    process = start(launch, tmp_path)
    (started,) = wait_for("start", lambda: [e.report for e in entries(launch)])
    assert isinstance(started, Started)
    wait_for("its first line", lambda: log_text(launch))
    fence.raise_fence(LocalStorage(tmp_path / "storage"), launch.job_id, launch.attempt)
    assert process.wait(20) == 1
    assert not alive(started.pid)
    assert [e.report for e in entries(launch)] == [started]
    assert log_text(launch) == "waiting\n"


def test_a_worker_that_comes_after_the_fence_starts_nothing(tmp_path: Path) -> None:
    launch = script_launch(tmp_path / "storage", "touch ran", workdir=str(tmp_path))
    fence.raise_fence(LocalStorage(tmp_path / "storage"), launch.job_id, launch.attempt)
    assert start(launch, tmp_path).wait(20) == 1
    assert not (tmp_path / "ran").exists()
    assert entries(launch) == []


def test_of_two_workers_of_one_attempt_exactly_one_runs(tmp_path: Path) -> None:
    launch = script_launch(tmp_path / "storage", UNTIL_GO, workdir=str(tmp_path))
    two = [start(launch, tmp_path), start(launch, tmp_path)]

    def first_end() -> list[int]:
        codes = [process.poll() for process in two]
        return [code for code in codes if code is not None]

    assert wait_for("the end of one", first_end) == [1]
    wait_for("the other's program", lambda: (tmp_path / "pids").exists())
    (tmp_path / "go").touch()
    assert sorted(process.wait(20) for process in two) == [0, 1]
    assert len((tmp_path / "pids").read_text().split()) == 1
    assert ended(launch) == Ended(outcome="succeeded", exit_code=0, message="ran to its end")
    assert log_text(launch) == "waiting\n"
    assert os.listdir(tmp_path / "storage" / ".tmp") == []
