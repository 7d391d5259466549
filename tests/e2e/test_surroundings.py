"""What the platform shows to others: the Ray dashboard, its ports, and how it behaves when
something is in its way.
"""

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from dovetail.cluster import ray_head
from dovetail_workers.process_tree import processes_with
from helpers.attempts import wait_for
from helpers.installation import Installation

pytestmark = pytest.mark.ray


def ask_dashboard(dovetail: Installation, path: str, token: str | None) -> Any:
    url = dovetail.json("status")["ray"]["dashboard_url"] + path
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        return answer.read().decode()


def test_the_ray_dashboard_lists_the_job_with_its_log_and_only_for_the_token(
    dovetail: Installation, tmp_path: Path
) -> None:
    job = dovetail.submit_script(tmp_path, "echo hello from the job; sleep 1000")
    dovetail.wait_for_state(job["id"], "RUNNING")
    token_file = dovetail.home / "ray.token"
    assert token_file.stat().st_mode & 0o777 == 0o600
    token = token_file.read_text()
    listed = json.loads(ask_dashboard(dovetail, "/api/v0/actors?detail=1&limit=1000", token))
    (actor,) = (
        item
        for item in listed["data"]["result"]["result"]
        if item["state"] == "ALIVE" and item["name"].startswith(f"{job['id']}:scripted:")
    )
    assert actor["repr_name"] == f"{job['id']} scripted"
    query = f"/api/v0/logs/file?actor_id={actor['actor_id']}&suffix=out&lines=50"
    wait_for("its log", lambda: "hello from the job" in ask_dashboard(dovetail, query, token))
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask_dashboard(dovetail, "/api/v0/actors", None)
    assert refused.value.code == 401
    refused.value.close()
    dovetail.run("cancel", job["id"])
    dovetail.wait_for_state(job["id"], "CANCELLED")


def test_every_port_of_server_and_ray_is_bound_to_loopback(dovetail: Installation) -> None:
    head = ray_head.read(dovetail.home / "ray.json")
    assert head is not None
    found = [*processes_with(ray_head.SESSION_VARIABLE, head.session)]
    processes = [*found, psutil.Process(dovetail.server_pid())]
    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses <= {"127.0.0.1", "::1"}
    assert len(processes) > 5


def test_the_server_imports_neither_ray_nor_torch(dovetail: Installation) -> None:
    mapped = Path(f"/proc/{dovetail.server_pid()}/maps").read_text()
    assert "pydantic" in mapped
    assert "/ray/" not in mapped
    assert "/torch/" not in mapped


def test_a_server_killed_in_mid_run_is_followed_by_one_that_adopts_the_worker(
    dovetail: Installation, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    job = dovetail.submit_script(
        tmp_path, f"echo before; until test -e {go}; do sleep 0.1; done; echo after"
    )
    dovetail.wait_for_state(job["id"], "RUNNING")
    psutil.Process(dovetail.server_pid()).kill()
    assert dovetail.run("up", "--cpu-devices", "2", "--device-memory", "2GiB").returncode == 0
    go.touch()
    done = dovetail.wait_for_state(job["id"], "SUCCEEDED", "FAILED")
    assert (done["state"], len(done["attempts"])) == ("SUCCEEDED", 1)
    assert dovetail.run("logs", job["id"]).stdout == "before\nafter\n"


def test_a_port_already_taken_is_said_and_nothing_is_left(own: Installation) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = own.run("up", "--port", port)
    assert done.returncode == 2
    assert f"port {port}: address already in use on 127.0.0.1" in done.stderr
    assert not (own.home / "ray.json").exists()


def test_a_second_server_on_the_same_home_is_refused(dovetail: Installation) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "dovetail.serve"],
        env=dovetail.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 6
    assert (
        f"a server already runs on {dovetail.home} (pid {dovetail.server_pid()})" in second.stderr
    )


def test_stale_ray_files_do_not_stand_in_the_way(own: Installation, tmp_path: Path) -> None:
    own.home.mkdir(mode=0o700)
    dead = {
        "session": "0" * 16,
        "pid": 2**22 - 1,
        "address": "127.0.0.1:1",
        "dashboard_url": "http://127.0.0.1:2",
        "temp_dir": str(tmp_path / "gone"),
    }
    (own.home / "ray.json").write_text(json.dumps(dead))
    (own.home / "server.json").write_text(
        json.dumps({"url": "http://127.0.0.1:9", "pid": 2**22 - 1})
    )
    stale = tmp_path / "ray"
    stale.mkdir()
    (stale / "ray_current_cluster").write_text("127.0.0.1:1")
    own.environment["RAY_TMPDIR"] = str(stale)
    own.environment["RAY_ADDRESS"] = "127.0.0.1:1"
    up = own.run("up")
    assert up.returncode == 0, up.stderr
    assert own.json("status")["ray"]["address"] != "127.0.0.1:1"
