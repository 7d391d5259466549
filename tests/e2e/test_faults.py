"""What users lose nights to, injected: the server dies, Ray dies with it, a worker is killed. The
job ends well all the same, and its story says what happened.
"""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from dovetail.cluster import ray_head
from dovetail_workers.journal import read_segments
from dovetail_workers.process_tree import ATTEMPT_VARIABLE, processes_with, wait_gone
from dovetail_workers.reports import Ended
from dovetail_workers.storage.local import LocalStorage
from helpers.attempts import wait_for
from helpers.disturbed_run import RUN, assert_as_undisturbed, at_step
from helpers.installation import EXAMPLE, Installation

pytestmark = [pytest.mark.ray, pytest.mark.long]


@pytest.fixture(scope="module")
def dovetail(on_each_database: Installation) -> Installation:
    start_again(on_each_database)
    return on_each_database


@pytest.fixture(scope="module")
def undisturbed(dovetail: Installation) -> Any:
    """The same job, never killed."""
    job = dovetail.json("submit", EXAMPLE, *RUN, "--wait")
    assert job["state"] == "SUCCEEDED"
    return job


def kill_server(dovetail: Installation) -> None:
    pid = dovetail.server_pid()
    psutil.Process(pid).kill()
    wait_gone([pid], timeout_s=10)


def start_again(dovetail: Installation) -> None:
    up = dovetail.run("up", "--cpu-devices", "1", "--device-memory", "2GiB")
    assert up.returncode == 0, up.stderr


def has_ended(dovetail: Installation, job_id: str) -> bool:
    """Whether the first attempt wrote its end, which no server has read yet."""
    storage = LocalStorage(dovetail.home / "storage")
    return any(
        isinstance(entry.report, Ended)
        for _, entries in read_segments(storage, job_id, 1, 1)
        for entry in entries
    )


def told(dovetail: Installation, job: Any) -> list[str]:
    """Every line of its log, without its id and times."""
    lines = dovetail.run("logs", job["id"]).stdout.replace(job["id"], "JOB").splitlines()
    return [re.sub(r"[\d.]+ ?(s|steps/s|samples/s)\b", "#", line) for line in lines]


def story(dovetail: Installation, job: Any) -> list[str]:
    return [event["kind"] for event in dovetail.json("events", job["id"])]


def test_a_server_killed_in_mid_run_disturbs_neither_the_job_nor_who_follows_it(
    dovetail: Installation, undisturbed: Any
) -> None:
    program = Path(sys.executable).parent / "dovetail"
    follower = subprocess.Popen(
        [str(program), "submit", "--follow", str(EXAMPLE), *RUN, "--json"],
        env=dovetail.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        (job,) = wait_for("the job", lambda: dovetail.json("ps", "--state", "RUNNING"))
        at_step(dovetail, job, 10)
        kill_server(dovetail)
        start_again(dovetail)
        out, err = follower.communicate(timeout=120)
    finally:
        follower.kill()
        follower.communicate()
    assert follower.returncode == 0, err
    ended = json.loads(out)
    assert len(ended["attempts"]) == 1
    assert_as_undisturbed(dovetail, ended, undisturbed)
    assert "accuracy" in err


def test_a_job_that_ends_while_the_server_is_down_and_ray_is_killed_too_has_succeeded(
    dovetail: Installation, undisturbed: Any
) -> None:
    job = dovetail.submit(EXAMPLE, *RUN)
    at_step(dovetail, job, 10)
    kill_server(dovetail)
    assert list(processes_with(ATTEMPT_VARIABLE, f"{job['id']}.1"))
    wait_for("its end in the journal", lambda: has_ended(dovetail, job["id"]))
    head = ray_head.read(dovetail.home / "ray.json")
    assert head is not None
    for process in processes_with(ray_head.SESSION_VARIABLE, head.session):
        process.kill()
    start_again(dovetail)
    ended = dovetail.wait_for_state(job["id"], "SUCCEEDED", "FAILED")
    assert len(ended["attempts"]) == 1
    assert_as_undisturbed(dovetail, ended, undisturbed)
    assert told(dovetail, ended) == told(dovetail, undisturbed)


@pytest.mark.parametrize("victim", ["training process", "supervisor"])
def test_a_worker_killed_in_mid_run_is_followed_by_an_attempt_that_continues_bitwise(
    dovetail: Installation, undisturbed: Any, victim: str
) -> None:
    job = dovetail.submit(EXAMPLE, *RUN)
    running = at_step(dovetail, job, 10)
    training = psutil.Process(running["attempts"][0]["pid"])
    (training if victim == "training process" else training.parent()).send_signal(signal.SIGKILL)
    ended = dovetail.wait_for_state(job["id"], "SUCCEEDED", "FAILED")
    first, second = ended["attempts"]
    assert (first["reason"], second["state"]) == ("WORKER_LOST", "SUCCEEDED")
    assert second["resumed_from_step"] >= 10
    assert_as_undisturbed(dovetail, ended, undisturbed)
    kinds = [kind for kind in story(dovetail, ended) if kind != "Waiting"]
    assert kinds == [
        "Submitted", "Placed", "AttemptStarted", "WorkerLost", "AttemptReleased", "Placed",
        "AttemptStarted", "AttemptSucceeded", "AttemptReleased",
    ]  # fmt: skip


def test_a_damaged_checkpoint_is_named_and_an_older_one_serves(
    dovetail: Installation, undisturbed: Any
) -> None:
    job = dovetail.submit(EXAMPLE, *RUN)
    running = at_step(dovetail, job, 20)
    psutil.Process(running["attempts"][0]["pid"]).send_signal(signal.SIGSTOP)
    newest, older = wait_for(
        "the newest checkpoints",
        lambda: dovetail.json("show", job["id"])["checkpoints"][:-3:-1],
    )
    part = next(path for path in (Path(newest["uri"]) / "parts").rglob("*") if path.is_file())
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    psutil.Process(running["attempts"][0]["pid"]).kill()
    ended = dovetail.wait_for_state(job["id"], "SUCCEEDED", "FAILED")
    assert ended["attempts"][1]["resumed_from_step"] == older["step"]
    assert_as_undisturbed(dovetail, ended, undisturbed)
    (skipped,) = (
        event
        for event in dovetail.json("events", job["id"])
        if event["kind"] == "CheckpointSkipped"
    )
    assert f"step {newest['step']}" in skipped["message"]
    assert part.name in skipped["message"]
