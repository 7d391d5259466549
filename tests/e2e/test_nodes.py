"""Several Ray nodes on one machine: jobs spread over them, and a lost node loses no job."""

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dovetail.cluster import ray_record
from dovetail.cluster.ray_process import NODE_VARIABLE
from dovetail_workers.process_tree import ATTEMPT_VARIABLE, processes_with
from helpers.attempts import alive, wait_for
from helpers.installation import Installation

pytestmark = pytest.mark.ray

HOST = socket.gethostname()
EXTRA = f"{HOST}-2"
FIRST_ATTEMPT_STAYS = 'test "$DOVETAIL_ATTEMPT" != 1 || sleep 1000; echo moved'


@pytest.fixture(scope="module")
def dovetail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("home"))
    try:
        up = installation.run("up", "--nodes", "2", "--cpu-devices", "1")
        assert up.returncode == 0, up.stderr
        yield installation
    finally:
        installation.close()


@pytest.fixture
def two_nodes(dovetail: Installation) -> Installation:
    """Both nodes are there, whatever the test before has left."""
    if EXTRA not in names(dovetail):
        dovetail.json("node", "add")
    return dovetail


def names(dovetail: Installation) -> list[str]:
    return [node["name"] for node in dovetail.json("node", "list")]


def processes_of_extra_node(dovetail: Installation) -> list[psutil.Process]:
    head = ray_record.read(dovetail.home / "ray.json")
    assert head is not None
    (node,) = head.nodes
    return list(processes_with(NODE_VARIABLE, node.mark))


def on_the_extra_node(dovetail: Installation, folder: Path, script: str) -> Any:
    """A running job there; the head's node is free."""
    jobs = [dovetail.submit_script(folder, script) for _ in range(2)]
    running = [dovetail.wait_for_state(job["id"], "RUNNING") for job in jobs]
    places = {job["attempts"][-1]["node"]: job for job in running}
    assert set(places) == {HOST, EXTRA}
    assert dovetail.run("cancel", places[HOST]["id"], "--wait").returncode == 0
    return places[EXTRA]


def assert_moved(dovetail: Installation, job: Any, within_s: float) -> None:
    begin_s = time.monotonic()
    ended = dovetail.wait_for_state(job["id"], "SUCCEEDED", "FAILED")
    assert time.monotonic() - begin_s < within_s
    assert ended["state"] == "SUCCEEDED", ended["message"]
    first, second = ended["attempts"]
    assert (first["node"], first["reason"]) == (EXTRA, "WORKER_LOST")
    assert second["node"] == HOST
    (lost,) = (e for e in dovetail.json("events", job["id"]) if e["kind"] == "WorkerLost")
    assert f"attempt 1 lost its worker: node {EXTRA} is gone" in lost["message"]
    assert dovetail.run("logs", job["id"]).stdout == "moved\n"
    assert list(processes_with(ATTEMPT_VARIABLE, f"{job['id']}.1")) == []


def test_nodes_share_the_memory_of_their_machine(two_nodes: Installation) -> None:
    nodes = two_nodes.json("status")["nodes"]
    assert [node["name"] for node in nodes] == [HOST, EXTRA]
    assert [[device["name"] for device in node["devices"]] for node in nodes] == [["cpu:0"]] * 2
    offered = sum(device["bytes"] for node in nodes for device in node["devices"])
    assert offered < psutil.virtual_memory().total


def test_every_port_of_an_extra_node_is_bound_to_loopback(two_nodes: Installation) -> None:
    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes_of_extra_node(two_nodes)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses
    assert addresses <= {"127.0.0.1", "::1"}


def test_the_job_of_a_killed_node_moves_to_the_other_and_says_why(
    two_nodes: Installation, tmp_path: Path
) -> None:
    job = on_the_extra_node(two_nodes, tmp_path, FIRST_ATTEMPT_STAYS)
    for process in processes_of_extra_node(two_nodes):
        process.kill()
    assert_moved(two_nodes, job, within_s=30)
    assert names(two_nodes) == [HOST]


def test_a_killed_node_stays_away_until_it_is_added(two_nodes: Installation) -> None:
    for process in processes_of_extra_node(two_nodes):
        if process.name() == "raylet":
            process.kill()
    wait_for("its loss", lambda: names(two_nodes) == [HOST])
    assert [node["name"] for node in two_nodes.json("node", "add")] == [EXTRA]
    assert names(two_nodes) == [HOST, EXTRA]


def test_a_node_with_a_job_is_removed_only_by_force_and_the_job_moves(
    two_nodes: Installation, tmp_path: Path
) -> None:
    job = on_the_extra_node(two_nodes, tmp_path, FIRST_ATTEMPT_STAYS)
    refused = two_nodes.run("node", "rm", EXTRA)
    assert refused.returncode == 6
    assert f"node {EXTRA} runs {job['id']}" in refused.stderr
    assert two_nodes.run("node", "rm", EXTRA, "--force").returncode == 0
    assert_moved(two_nodes, job, within_s=30)


def test_nodes_that_are_not_extra_ones_are_not_removed(two_nodes: Installation) -> None:
    head = two_nodes.run("node", "rm", HOST)
    assert (head.returncode, "the head's own node" in head.stderr) == (6, True)
    unknown = two_nodes.run("node", "rm", "nowhere")
    assert (unknown.returncode, EXTRA in unknown.stderr) == (3, True)


@pytest.mark.long
def test_a_frozen_node_is_given_up_and_what_runs_on_it_is_ended(
    two_nodes: Installation, tmp_path: Path
) -> None:
    job = on_the_extra_node(two_nodes, tmp_path, FIRST_ATTEMPT_STAYS)
    processes = processes_of_extra_node(two_nodes)
    for process in processes:
        if process.name() == "raylet":
            process.send_signal(signal.SIGSTOP)
    assert_moved(two_nodes, job, within_s=60)
    assert [process.pid for process in processes if alive(process.pid)] == []
