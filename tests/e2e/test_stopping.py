"""What is cancelled ends whole and soon, and its device is free again."""

import time
from pathlib import Path

import pytest

from dovetail_workers.process_tree import ATTEMPT_VARIABLE, processes_with
from helpers.attempts import alive, wait_for
from helpers.installation import EXAMPLE, Installation

pytestmark = pytest.mark.ray


def cancel_within_5_s(dovetail: Installation, job_id: str) -> None:
    begin_s = time.monotonic()
    done = dovetail.run("cancel", job_id)
    assert done.returncode == 0, done.stderr
    job = dovetail.wait_for_state(job_id, "CANCELLED")
    assert time.monotonic() - begin_s < 5
    assert job["reason"] == "CANCELLED_BY_USER"
    assert job["attempts"][-1]["state"] == "CANCELLED"
    holders = [d["job"] for n in dovetail.json("status")["nodes"] for d in n["devices"]]
    assert job_id not in holders
    assert list(processes_with(ATTEMPT_VARIABLE, f"{job_id}.1")) == []


def test_a_training_job_is_cancelled_without_a_checkpoint(dovetail: Installation) -> None:
    job = dovetail.submit(
        EXAMPLE, "--set", "train.steps=100000", "--set", "train.checkpoint.every=90000"
    )
    running = wait_for(
        "training", lambda: (j := dovetail.json("show", job["id"]))["progress"]["step"] and j
    )
    pid = running["attempts"][0]["pid"]
    assert alive(pid)
    cancel_within_5_s(dovetail, job["id"])
    assert not alive(pid)
    assert dovetail.json("show", job["id"])["checkpoints"] == []
    assert dovetail.run("cancel", job["id"]).returncode == 0


def test_a_script_with_children_in_groups_of_their_own_is_cancelled_whole(
    dovetail: Installation, tmp_path: Path
) -> None:
    noted = tmp_path / "pids"
    child = f"sh -c 'echo $$ >> {noted}; exec sleep 1000'"
    job = dovetail.submit_script(
        tmp_path, f"trap '' TERM; (setsid {child} &); (env -i setsid {child} &); {child}"
    )
    pids = wait_for(
        "three children",
        lambda: noted.exists() and len(words := noted.read_text().split()) == 3 and words,
    )
    cancel_within_5_s(dovetail, job["id"])
    assert [pid for pid in pids if alive(int(pid))] == []


def test_what_waits_in_the_queue_is_cancelled_at_once(
    dovetail: Installation, tmp_path: Path
) -> None:
    jobs = [dovetail.submit_script(tmp_path, "sleep 1000") for _ in range(3)]
    third = dovetail.wait_for_state(jobs[2]["id"], "QUEUED")
    assert wait_for(
        "its reason", lambda: dovetail.json("show", third["id"])["reason"] == "WAITING_FOR_DEVICE"
    )
    assert dovetail.json("cancel", third["id"])["state"] == "CANCELLED"
    for job in jobs[:2]:
        dovetail.wait_for_state(job["id"], "RUNNING")
        cancel_within_5_s(dovetail, job["id"])


def test_a_job_over_its_time_is_stopped_as_failed(dovetail: Installation, tmp_path: Path) -> None:
    job = dovetail.submit_script(tmp_path, "sleep 1000", "--set", "max_duration=1s")
    ended = dovetail.wait_for_state(job["id"], "FAILED", "CANCELLED")
    assert (ended["state"], ended["reason"]) == ("FAILED", "TIME_LIMIT")
