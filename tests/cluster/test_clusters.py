"""The fake keeps the contract that the real cluster keeps, so that what tests prove on it holds."""

import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from dovetail.cluster import ray_head
from dovetail.cluster.fake import FakeCluster, one_node
from dovetail.cluster.protocol import ClusterLost, ClusterUp, DevicesSeen, Released
from dovetail.cluster.ray_cluster import RayCluster
from dovetail.cluster.wire import BridgeSettings
from dovetail_workers.launch import Launch
from dovetail_workers.process_tree import processes_with
from dovetail_workers.reports import Started
from dovetail_workers.shared_device import JobShare, socket_path
from dovetail_workers.storage.local import LocalStorage
from helpers.attempts import alive, entries, script_launch, wait_for
from helpers.cluster_contract import ClusterContract, Listener


class TestFakeCluster(ClusterContract):
    @pytest.fixture(autouse=True)
    def made(self, tmp_path: Path) -> None:
        self.storage, self.listener = tmp_path, Listener()
        self.cluster = self.fake = FakeCluster(self.listener, LocalStorage(tmp_path), one_node(2))
        self.cluster.start()

    def kill_worker(self, launch: Launch) -> None:
        self.fake.lose(launch.attempt_id)


JOIN = """
import os, pathlib, signal
from tensile.coordinator import Member, declared
from tensile.coordinator.lease import Lease

member = Member(job=os.environ["TENSILE_JOB"], profile=declared(1000))
with Lease(pathlib.Path(os.environ["TENSILE_BROKER"]), member) as lease:
    assert lease.join(30)
    signal.pause()
"""


def broker_pid(path: Path) -> int | None:
    """The process that serves this socket; None while nobody does."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return None
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def ray_cluster(home: Path, listener: Listener, address: str | None = None) -> RayCluster:
    settings = BridgeSettings(
        namespace="dovetail",
        address=address,
        cpu_devices=2,
        device_bytes=2**30,
        ray_record=str(home / "ray.json"),
        ray_token=str(home / "ray.token"),
        ray_log=str(home / "ray.log"),
    )
    return RayCluster(settings, listener, home / "bridge.log")


@pytest.mark.ray
class TestRayCluster(ClusterContract):
    @pytest.fixture(scope="class")
    @staticmethod
    def shared(
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[tuple[RayCluster, Listener, Path]]:
        home, listener = tmp_path_factory.mktemp("home"), Listener()
        cluster = ray_cluster(home, listener)
        cluster.start()
        yield cluster, listener, home
        head = ray_head.read(home / "ray.json")
        cluster.stop()
        assert head is not None
        assert list(processes_with(ray_head.SESSION_VARIABLE, head.session)) == []
        assert not Path(head.temp_dir).exists()

    @pytest.fixture(autouse=True)
    def made(self, shared: tuple[RayCluster, Listener, Path]) -> None:
        self.cluster, self.listener, self.storage = shared

    def kill_worker(self, launch: Launch) -> None:
        (started,) = wait_for("start", lambda: [e.report for e in entries(launch)])
        assert isinstance(started, Started)
        supervisor = psutil.Process(started.pid).parent()
        assert supervisor is not None
        supervisor.kill()

    def test_a_bridge_killed_in_the_middle_of_a_launch_leaves_no_worker_idle(self) -> None:
        self.listener.forget_all(ClusterUp)
        launch = self.launch("halfway", "sleep 1000")
        children = psutil.Process().children()
        (bridge,) = (each for each in children if "dovetail.cluster.bridge" in each.cmdline())
        os.kill(bridge.pid, signal.SIGKILL)
        if launch.attempt_id not in self.listener.wait(ClusterUp).live:
            self.cluster.launch(launch, self.node().id, 1.0)  # it is still due, as the daemon knows
        (started,) = wait_for("start", lambda: [e.report for e in entries(launch)])
        assert isinstance(started, Started)
        self.cluster.release(launch.attempt_id, 0.5)
        self.listener.wait(Released, lambda e: e.attempt_id == launch.attempt_id)

    def test_a_bridge_that_was_killed_is_followed_by_one_that_knows_the_worker(self) -> None:
        launch = self.launch("adopted", "sleep 1000")
        (started,) = wait_for("start", lambda: [e.report for e in entries(launch)])
        assert isinstance(started, Started)
        self.listener.forget_all(ClusterUp)
        (bridge,) = (
            process
            for process in psutil.Process().children()
            if "dovetail.cluster.bridge" in process.cmdline()
        )
        os.kill(bridge.pid, signal.SIGKILL)
        self.listener.wait(ClusterLost)
        assert self.listener.wait(ClusterUp).live == (launch.attempt_id,)
        assert alive(started.pid)
        self.cluster.release(launch.attempt_id, 0.5)
        self.listener.wait(Released, lambda e: e.attempt_id == launch.attempt_id)
        assert not alive(started.pid)

    def test_an_attempt_that_shares_its_device_joins_the_broker_of_it(self) -> None:
        program = self.storage / "join.py"
        program.write_text(JOIN)
        script = f"{sys.executable} {program}"
        attempt = replace(script_launch(self.storage, script), job_id="sharing", share=True)
        self.cluster.launch(attempt, self.node().id, 1.0)

        def jobs(event: DevicesSeen) -> list[JobShare]:
            return [
                job for device in event.devices if device.device == "cpu:0" for job in device.jobs
            ]

        def is_in(event: DevicesSeen) -> bool:
            return any(job.admitted and job.resident_bytes is not None for job in jobs(event))

        (share,) = jobs(self.listener.wait(DevicesSeen, is_in))
        assert (share.job, share.lease_bytes, share.rung) == (attempt.attempt_id, 1000, 0)
        self.listener.forget_all(DevicesSeen)
        self.cluster.release(attempt.attempt_id, 0.5)
        assert self.listener.wait(DevicesSeen, lambda event: not jobs(event)).node_id

    def test_an_agent_that_was_killed_is_followed_by_one_that_serves_its_brokers(self) -> None:
        path = socket_path(self.node().id, "cpu:0")
        before = wait_for("a broker", lambda: broker_pid(path))
        os.kill(before, signal.SIGKILL)
        wait_for("another broker", lambda: broker_pid(path) not in (None, before))


def test_a_ray_that_is_joined_but_not_there_is_waited_for(tmp_path: Path) -> None:
    listener = Listener()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and never listens
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        cluster = ray_cluster(tmp_path, listener, address)
        cluster.start()
        try:
            for _ in range(2):
                lost = listener.wait(ClusterLost)
                assert lost.cause == f"no Ray cluster answers at {address}"
                listener.forget_all(ClusterLost)
        finally:
            cluster.close()
    assert not (tmp_path / "ray.json").exists()


def test_a_record_that_is_not_whole_counts_as_none(tmp_path: Path) -> None:
    record = tmp_path / "ray.json"
    assert ray_head.read(record) is None
    for text in ("", "{", '{"pid": 1}', "[]", '{"pid": 1, "who": 2}'):
        record.write_text(text)
        assert ray_head.read(record) is None


def test_the_token_is_made_once_and_belongs_to_its_owner_only(tmp_path: Path) -> None:
    token = tmp_path / "token"
    ray_head.ensure_token(token)
    first = token.read_text()
    token.chmod(0o644)
    ray_head.ensure_token(token)
    assert token.read_text() == first
    assert len(first) == 64
    assert token.stat().st_mode & 0o777 == 0o600
