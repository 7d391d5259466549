"""The brokers of a node's devices, and what an attempt is told of its own."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dovetail_workers.device_brokers import DeviceBrokers
from dovetail_workers.devices import Device
from dovetail_workers.launch import Launch
from dovetail_workers.process_tree import ATTEMPT_VARIABLE
from dovetail_workers.program import environment as program_environment
from dovetail_workers.shared_device import (
    LONGEST_PATH_BYTES,
    DeviceShares,
    JobShare,
    environment,
    socket_path,
)
from helpers.attempts import script_launch, wait_for
from tensile.coordinator import Member, declared
from tensile.coordinator.lease import Lease

NODE = "f00dfacef00dfacef00dface"
DEVICES = [Device(name="cpu:0", bytes=1000), Device(name="cpu:1", bytes=500)]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's temporary folder, of this test alone; a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="dt-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def brokers() -> Iterator[DeviceBrokers]:
    brokers = DeviceBrokers(NODE, DEVICES)
    brokers.look()
    yield brokers
    brokers.stop()


def shares(brokers: DeviceBrokers, device: str = "cpu:0") -> tuple[JobShare, ...]:
    return next(each.jobs for each in brokers.look() if each.device == device)


def lease(device: str, job: str, size_bytes: int) -> Lease:
    """Of a job that was on the device before: a new broker lets it in at once."""
    member = Member(job=job, profile=declared(size_bytes))
    return Lease(socket_path(NODE, device), member, holds_bytes=size_bytes)


def test_each_device_has_a_broker_of_its_own(brokers: DeviceBrokers) -> None:
    assert brokers.look() == (
        DeviceShares(device="cpu:0", bytes=1000),
        DeviceShares(device="cpu:1", bytes=500),
    )
    with lease("cpu:0", "a.1", 900) as first, lease("cpu:1", "b.1", 400) as second:
        assert first.join(10)
        assert second.join(10)
        wait_for("both", lambda: shares(brokers) and shares(brokers, "cpu:1"))
        assert [(share.job, share.lease_bytes) for share in shares(brokers)] == [("a.1", 900)]
        assert [share.job for share in shares(brokers, "cpu:1")] == ["b.1"]


def test_only_its_user_may_join(brokers: DeviceBrokers) -> None:
    folder = socket_path(NODE, "cpu:0").parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(("device", "is_told"), [("cpu:0", True), ("cuda:0", False)])
def test_resident_memory_says_nothing_of_a_gpu(device: str, is_told: bool) -> None:
    sleeper = subprocess.Popen(["sleep", "1000"], env={**os.environ, ATTEMPT_VARIABLE: "a.1"})
    brokers = DeviceBrokers(NODE, [Device(name=device, bytes=1000)])
    try:
        brokers.look()
        with lease(device, "a.1", 900):
            (share,) = wait_for("its share", lambda: shares(brokers, device))
        assert (share.resident_bytes is not None) == is_told
    finally:
        brokers.stop()
        sleeper.kill()
        sleeper.wait()


def test_what_an_attempt_holds_is_counted_over_all_its_processes(brokers: DeviceBrokers) -> None:
    held = "import sys; memory = bytearray(b'x' * 2**25); print(flush=True); sys.stdin.read()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", held],
            env={**os.environ, ATTEMPT_VARIABLE: "a.1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        with lease("cpu:0", "a.1", 900) as joined:
            assert joined.join(10)
            (share,) = wait_for("its share", lambda: shares(brokers))
        assert share.resident_bytes is not None
        assert share.file_bytes is not None
        assert share.resident_bytes - share.file_bytes > 2 * 2**25
    finally:
        for process in processes:
            process.communicate()


def test_an_agent_that_comes_while_the_last_one_dies_serves_after_it(
    brokers: DeviceBrokers, capfd: pytest.CaptureFixture[str]
) -> None:
    with lease("cpu:0", "a.1", 900) as joined:
        assert joined.join(10)
        second = DeviceBrokers(NODE, DEVICES)
        try:
            assert shares(second) == ()
            assert "another broker serves it already" in capfd.readouterr().err
            brokers.stop()
            wait_for("the job at the new broker", lambda: shares(second))
            assert shares(second)[0].lease_bytes == 900
        finally:
            second.stop()


def test_a_device_of_another_size_is_divided_anew_among_those_who_are_there(
    brokers: DeviceBrokers,
) -> None:
    with lease("cpu:0", "a.1", 900) as joined:
        wait_for("its share", lambda: shares(brokers))
        looked = {device.device: device for device in brokers.look({"cpu:0": 2000, "cpu:1": 500})}
        assert (looked["cpu:0"].bytes, looked["cpu:1"].bytes) == (2000, 500)
        wait_for("the job at the new broker", lambda: shares(brokers))
        assert joined.is_connected
        assert [(share.job, share.lease_bytes) for share in shares(brokers)] == [("a.1", 900)]
        with lease("cpu:0", "b.1", 1000):
            wait_for("room for another", lambda: len(shares(brokers)) == 2)
            assert shares(brokers)[1].lease_bytes == 1000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broker_that_failed_is_replaced_at_the_next_look_and_its_jobs_come_back(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = threading.Event()

    def clock() -> float:
        if broken.is_set():
            raise OSError("no broker is prepared for this")
        return time.monotonic()

    brokers = DeviceBrokers(NODE, DEVICES, clock)
    brokers.look()
    try:
        with lease("cpu:0", "a.1", 900) as joined:
            wait_for("its share", lambda: shares(brokers))
            broken.set()
            wait_for("the broker's end", lambda: not joined.is_connected)
            broken.clear()
            wait_for(
                "a new one",
                lambda: brokers.look() and "broker of cpu:0 failed" in capfd.readouterr().err,
            )
            wait_for("the job there", lambda: shares(brokers))
            assert shares(brokers)[0].lease_bytes == 900
    finally:
        brokers.stop()


def test_what_a_dead_node_left_behind_is_removed_and_what_lives_is_not(
    brokers: DeviceBrokers,
) -> None:
    folder = socket_path(NODE, "cpu:0").parent
    for suffix in (".socket", ".lock"):
        (folder / f"dead-cpu-0{suffix}").touch()
    other = DeviceBrokers("beef" * 6, DEVICES[:1])
    other.look()
    try:
        assert not list(folder.glob("dead*"))
        with lease("cpu:0", "a.1", 900) as joined:
            assert joined.join(10)
    finally:
        other.stop()


def test_a_folder_of_another_kind_is_said_and_costs_no_agent(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    socket_path(NODE, "cpu:0").parent.symlink_to(place)
    brokers = DeviceBrokers(NODE, DEVICES)
    for _ in range(2):
        assert not any(device.jobs for device in brokers.look())
    brokers.stop()
    said = capfd.readouterr().err
    assert said.count("no broker for cpu:0 yet") == 1
    assert "belongs to another user" in said


@pytest.mark.parametrize("folder", ["/tmp", "/a/very/long" * 10])
def test_a_socket_path_is_short_enough(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", folder)
    assert len(os.fsencode(socket_path("ab" * 28, "cuda:15"))) <= LONGEST_PATH_BYTES


def told(launch: Launch, inherited: dict[str, str]) -> dict[str, str]:
    """What of the environment of the training process is about its device's broker."""
    found = program_environment(
        launch, Path("/s"), Path("/f"), inherited, {}, None, environment(launch, NODE)
    )
    names = {
        "TENSILE_BROKER",
        "TENSILE_JOB",
        "TENSILE_WEIGHT",
        "TENSILE_PRIORITY",
        "TENSILE_OVERRUN",
    }
    return {name: found[name] for name in names & found.keys()}


def test_an_attempt_that_shares_is_told_its_broker_and_its_name(tmp_path: Path) -> None:
    launch = replace(script_launch(tmp_path, "true"), share=True, weight=2.0, priority=70)
    launch = replace(launch, overrun=1.5)
    assert Launch.from_json(json.loads(json.dumps(launch.to_json()))) == launch
    assert told(launch, {"TENSILE_BROKER": "/of/another"}) == {
        "TENSILE_BROKER": str(socket_path(NODE, "cpu:0")),
        "TENSILE_JOB": "abc123.1",
        "TENSILE_WEIGHT": "2.0",
        "TENSILE_PRIORITY": "70",
        "TENSILE_OVERRUN": "1.5",
    }


def test_one_that_has_a_device_alone_is_told_nothing_whatever_its_server_was_told(
    tmp_path: Path,
) -> None:
    inherited = {"TENSILE_BROKER": "/of/another", "TENSILE_JOB": "another.1"}
    assert told(script_launch(tmp_path, "true"), inherited) == {}
