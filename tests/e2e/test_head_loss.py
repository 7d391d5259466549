"""Ray's head dies in mid-run: the server answers all the time, Ray is started again, and the job
goes on from its checkpoint as if nothing had happened.
"""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dovetail.cluster import ray_record
from dovetail.cluster.ray_process import NODE_VARIABLE, SESSION_VARIABLE
from dovetail.cluster.ray_record import Head
from dovetail_workers.process_tree import ATTEMPT_VARIABLE, processes_with
from helpers.attempts import wait_for
from helpers.disturbed_run import RUN, assert_as_undisturbed, at_step
from helpers.installation import EXAMPLE, Installation

pytestmark = pytest.mark.ray

FIRST_ATTEMPT_STAYS = 'echo begun; test "$DOVETAIL_ATTEMPT" != 1 || sleep 1000'


@pytest.fixture(scope="module")
def dovetail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("home"))
    try:
        up = installation.run("up", "--cpu-devices", "1", "--device-memory", "2GiB")
        assert up.returncode == 0, up.stderr
        yield installation
    finally:
        installation.close()


def head_of(dovetail: Installation) -> Head:
    head = ray_record.read(dovetail.home / "ray.json")
    assert head is not None
    return head


def kill(head: Head, which: Callable[[psutil.Process], bool] = lambda _: True) -> None:
    """SIGKILL those processes of the head's session."""
    found = [p for p in processes_with(SESSION_VARIABLE, head.session) if which(p)]
    assert found
    for process in found:
        process.kill()


def of_head(name: str) -> Callable[[psutil.Process], bool]:
    return lambda process: process.name() == name and NODE_VARIABLE not in process.environ()


def is_dashboard(process: psutil.Process) -> bool:
    return any(part.endswith("dashboard/dashboard.py") for part in process.cmdline())


def ray_state(dovetail: Installation) -> str:
    state: str = dovetail.json("status")["ray"]["state"]
    return state


def assert_resumed_after_the_loss(dovetail: Installation, job_id: str, dead: Head) -> None:
    ended = dovetail.wait_for_state(job_id, "SUCCEEDED", "FAILED")
    assert ended["state"] == "SUCCEEDED", ended["message"]
    first, second = ended["attempts"]
    assert (first["reason"], second["state"]) == ("WORKER_LOST", "SUCCEEDED")
    assert list(processes_with(SESSION_VARIABLE, dead.session)) == []
    assert list(processes_with(ATTEMPT_VARIABLE, f"{job_id}.1")) == []
    assert head_of(dovetail).session != dead.session


@pytest.mark.parametrize("part", ["gcs_server", pytest.param("raylet", marks=pytest.mark.long)])
def test_a_head_that_has_lost_a_vital_part_is_started_again_whole(
    dovetail: Installation, tmp_path: Path, part: str
) -> None:
    job = dovetail.submit_script(tmp_path, FIRST_ATTEMPT_STAYS)
    dovetail.wait_for_state(job["id"], "RUNNING")
    head = head_of(dovetail)
    begin_s = time.monotonic()
    kill(head, of_head(part))
    wait_for("the loss", lambda: ray_state(dovetail) == "lost")
    assert time.monotonic() - begin_s < 20
    assert dovetail.run("logs", job["id"]).stdout == "begun\n"
    assert_resumed_after_the_loss(dovetail, job["id"], head)
    (lost,) = (e for e in dovetail.json("events", job["id"]) if e["kind"] == "WorkerLost")
    assert "attempt 1 lost its worker: " in lost["message"]
    assert "Ray" in lost["message"]


def test_a_dashboard_that_dies_takes_nothing_with_it(
    dovetail: Installation, tmp_path: Path
) -> None:
    head = head_of(dovetail)
    kill(head, is_dashboard)
    done = dovetail.submit_script(tmp_path, "echo still here", "--wait")
    assert (done["state"], len(done["attempts"])) == ("SUCCEEDED", 1)
    assert head_of(dovetail) == head


@pytest.mark.long
def test_a_job_continues_bitwise_and_the_server_answers_all_the_time(
    dovetail: Installation,
) -> None:
    undisturbed = dovetail.json("submit", EXAMPLE, *RUN, "--wait")
    job = dovetail.submit(EXAMPLE, *RUN)
    at_step(dovetail, job, 10)
    printed = dovetail.run("logs", job["id"]).stdout
    head = head_of(dovetail)
    kill(head)
    states, answers = set(), 0
    while (now := dovetail.json("ps", "--all"))[0]["state"] not in ("SUCCEEDED", "FAILED"):
        states.add(ray_state(dovetail))
        logs = dovetail.run("logs", job["id"], "--attempt", "1")
        assert (logs.returncode, logs.stdout.startswith(printed)) == (0, True)
        assert now[0]["id"] == job["id"]
        answers += 1
    assert answers > 5
    assert "lost" in states
    assert_resumed_after_the_loss(dovetail, job["id"], head)
    ended = dovetail.json("show", job["id"])
    assert ended["attempts"][1]["resumed_from_step"] >= 10
    assert_as_undisturbed(dovetail, ended, undisturbed)


@pytest.mark.long
def test_extra_nodes_come_back_with_the_head(dovetail: Installation) -> None:
    names = [socket.gethostname(), f"{socket.gethostname()}-2"]
    assert [node["name"] for node in dovetail.json("node", "add")] == names[1:]
    kill(head_of(dovetail))
    wait_for("the loss", lambda: ray_state(dovetail) == "lost")
    wait_for("both nodes", lambda: [n["name"] for n in dovetail.json("status")["nodes"]] == names)
    assert dovetail.run("node", "rm", names[1]).returncode == 0
