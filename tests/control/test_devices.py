"""Who shares a device: from the cluster's news to what a person sees."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dovetail.cli.main import main
from dovetail.cli.node import holders
from dovetail.cluster import wire
from dovetail.cluster.protocol import ClusterLost, DevicesSeen
from dovetail.service.contract import (
    DeviceHistoryView,
    DeviceSampleView,
    DeviceUseView,
    HeldView,
    JobUseView,
)
from dovetail.service.devices import Devices
from dovetail.service.shared_devices import MOST_SAMPLES, SharedDevices
from dovetail.service.views import job_view
from dovetail_workers.reports import MemoryUsed
from dovetail_workers.shared_device import DeviceShares, JobShare
from helpers.bench import NOON, Bench
from helpers.fake_server import TOKEN
from helpers.fake_service import FakeService

MIB = 2**20


def share(job: str, **changes: Any) -> JobShare:
    """Of a job on the second of its three plans."""
    given: dict[str, Any] = {
        "admitted": True,
        "lease_bytes": 300 * MIB,
        "cap_bytes": 320 * MIB,
        "minimum_bytes": 200 * MIB,
        "rung": 1,
        "rungs": 3,
        "speed": 0.8,
        "message": "",
        "resident_bytes": 500 * MIB,
        "file_bytes": 100 * MIB,
    }
    return JobShare(job=job, **{**given, **changes})


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def uses(bench: Bench) -> DeviceUseView:
    (found,) = Devices(bench.state, bench.store).now()
    return found


def running(bench: Bench) -> str:
    job_id = bench.submit("swin")
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    return job_id


def test_a_free_device_is_free_whether_its_broker_has_spoken_or_not(bench: Bench) -> None:
    free = DeviceUseView(node="n1", device="cpu:0", bytes=2**30, free_bytes=2**30)
    assert uses(bench) == free
    bench.cluster.share("cpu:0")
    bench.turn()
    assert uses(bench) == free


def test_a_job_without_a_lease_has_the_device_alone(bench: Bench) -> None:
    job_id = running(bench)
    (use,) = uses(bench).jobs
    assert use == JobUseView(job=job_id, name="swin", attempt=1, state="RUNNING")
    assert uses(bench).free_bytes is None


def test_what_a_job_holds_is_counted_over_its_bare_process(bench: Bench) -> None:
    job_id = running(bench)
    bench.cluster.share("cpu:0", share(f"{job_id}.1"))
    bench.turn()
    (use,) = uses(bench).jobs
    assert use.resident_bytes == 400 * MIB  # nobody said yet what the bare process is
    used = MemoryUsed(base_bytes=260 * MIB, swapped_out_bytes=7 * MIB, fence="watched")
    bench.cluster.report(f"{job_id}.1", used)
    bench.turn()
    (use,) = uses(bench).jobs
    assert (use.lease_bytes, use.resident_bytes) == (300 * MIB, 240 * MIB)
    assert (use.rung, use.rungs, use.speed) == (2, 3, 0.8)
    assert (use.swapped_out_bytes, use.fence) == (7 * MIB, "watched")
    assert uses(bench).free_bytes == 2**30 - 300 * MIB


def test_a_job_that_waits_for_its_lease_says_so_until_it_is_let_in(bench: Bench) -> None:
    job_id = bench.submit("swin")
    devices = Devices(bench.state, bench.store)
    assert devices.waits(bench.job(job_id)) is None
    said = "waits for 209715200 bytes, of which 0 are free"
    outside = share(f"{job_id}.1", admitted=False, lease_bytes=0, message=said)
    bench.cluster.share("cpu:0", share("other.1"), outside)
    bench.turn()
    job = bench.job(job_id)
    waits = devices.waits(job)
    assert waits == f"attempt 1 on cpu:0 of n1 {said}"
    shown = (job_view(job, bench.storage, waits), job_view(job, bench.storage))
    assert [view.message for view in shown] == [waits, job.message]
    bench.cluster.share("cpu:0", share(f"{job_id}.1"))
    bench.turn()
    assert devices.waits(bench.job(job_id)) is None
    bench.cluster.share("cpu:0", outside)  # it trains, whatever a broker says of it
    bench.cluster.begin(f"{job_id}.1")
    bench.turn()
    assert devices.waits(bench.job(job_id)) is None


def test_who_joined_the_broker_by_hand_is_seen_too(bench: Bench) -> None:
    bench.cluster.share("cpu:0", share("my-notebook"))
    bench.turn()
    (use,) = uses(bench).jobs
    assert (use.job, use.name, use.lease_bytes) == ("my-notebook", None, 300 * MIB)
    (history,) = Devices(bench.state, bench.store).history()
    assert history.samples[0].jobs[0].job == "my-notebook"


def test_a_lost_cluster_takes_the_present_and_leaves_the_past(bench: Bench) -> None:
    job_id = running(bench)
    bench.cluster.share("cpu:0", share(f"{job_id}.1"))
    bench.turn()
    bench.cluster.tell(ClusterLost(cause="the head is gone"))
    bench.turn()
    node = bench.nodes[0]
    assert bench.state.devices.now(node.id, "cpu:0") is None
    assert len(bench.state.devices.samples(node.id, "cpu:0")) == 1


def test_the_history_holds_what_was_and_ends_with_the_last_job(bench: Bench) -> None:
    job_id = running(bench)
    for lease_bytes in (300 * MIB, 250 * MIB):
        bench.cluster.share("cpu:0", share(f"{job_id}.1", lease_bytes=lease_bytes))
        bench.turn(1)
        bench.now += timedelta(seconds=1)
    for _ in range(2):
        bench.cluster.share("cpu:0")
        bench.turn(1)
    (history,) = Devices(bench.state, bench.store).history()
    leases = [[held.lease_bytes for held in sample.jobs] for sample in history.samples]
    assert leases == [[300 * MIB], [250 * MIB], []]
    assert [sample.at - NOON for sample in history.samples] == [
        timedelta(seconds=second) for second in range(3)
    ]
    assert history.samples[0].jobs[0].name == "swin"


def test_the_history_is_bounded_in_number_and_in_time() -> None:
    devices = SharedDevices()
    shares = DeviceShares(device="cpu:0", bytes=2**30, jobs=(share("a.1"),))
    for half_second in range(2 * MOST_SAMPLES):
        devices.saw(DevicesSeen(node_id="n", devices=(shares,)), NOON, half_second / 2)
    assert len(devices.samples("n", "cpu:0")) == MOST_SAMPLES
    devices.saw(DevicesSeen(node_id="n", devices=(shares,)), NOON, 5 * 3600.0)
    assert len(devices.samples("n", "cpu:0")) == 1


@pytest.mark.parametrize("jump", [timedelta(hours=3), timedelta(hours=-3)])
def test_a_clock_that_jumps_neither_empties_the_history_nor_mixes_it_up(
    bench: Bench, jump: timedelta
) -> None:
    bench.submit("swin")
    for second in range(4):
        bench.cluster.share("cpu:0", share("other.1", lease_bytes=second))
        bench.turn(1)
        bench.now += timedelta(seconds=1)
        bench.set_back = -jump if second >= 1 else timedelta()
    samples = bench.state.devices.samples(bench.nodes[0].id, "cpu:0")
    assert [sample.at - NOON for sample in samples] == [timedelta(seconds=s) for s in range(4)]
    set_to = NOON + jump
    assert bench.state.devices.at(set_to, 5.0) == NOON + timedelta(seconds=5)


def test_a_history_that_begins_again_reads_the_clock_again() -> None:
    devices = SharedDevices()
    assert devices.at(NOON, 7.0) == NOON
    assert devices.at(NOON + timedelta(hours=1), 8.0) == NOON + timedelta(hours=1)


def test_the_pipe_brings_it_as_it_was_sent() -> None:
    jobs = (share("a.1"), share("b.1", admitted=False, resident_bytes=None))
    devices = (DeviceShares(device="cpu:0", bytes=5, jobs=jobs), DeviceShares(device="x", bytes=1))
    event = DevicesSeen(node_id="n", devices=devices)
    assert wire.read_event(wire.event_line(event)) == event


# What a person sees


@pytest.fixture
def dovetail(
    service: FakeService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process; its exit code and what it said."""
    monkeypatch.setenv("DOVETAIL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOVETAIL_URL", service.url)
    monkeypatch.setenv("DOVETAIL_TOKEN", TOKEN)

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(arguments)
        return code, *capfd.readouterr()

    return run


Run = Callable[..., tuple[int, str, str]]
SWIN = JobUseView(
    job="k3f9qz",
    name="swin",
    attempt=1,
    state="RUNNING",
    admitted=True,
    lease_bytes=300 * MIB,
    resident_bytes=240 * MIB,
    cap_bytes=320 * MIB,
    minimum_bytes=200 * MIB,
    rung=2,
    rungs=6,
    speed=0.8,
    swapped_out_bytes=7 * MIB,
    fence="watched",
)
WAITING = JobUseView(
    job="m7w2ab",
    name="gpt",
    attempt=1,
    state="STARTING",
    admitted=False,
    lease_bytes=0,
    cap_bytes=200 * MIB,
    rung=6,
    rungs=6,
    speed=0.4,
    message="waits for 209715200 bytes, of which 0 are free",
)


def device(name: str, *jobs: JobUseView, free_bytes: int | None = 0) -> DeviceUseView:
    return DeviceUseView(node="n1", device=name, bytes=2**30, free_bytes=free_bytes, jobs=jobs)


def history(name: str = "cpu:0") -> DeviceHistoryView:
    def held(job: str, size: int) -> HeldView:
        return HeldView(job=job, name=job, lease_bytes=size * MIB, resident_bytes=size * MIB // 2)

    return DeviceHistoryView(
        node="n1",
        device=name,
        bytes=2**30,
        samples=(
            DeviceSampleView(at=NOON, jobs=(held("a", 600),)),
            DeviceSampleView(at=NOON + timedelta(seconds=4), jobs=(held("a", 500), held("b", 400))),
        ),
        until=NOON + timedelta(seconds=9),
    )


def test_devices_shows_a_line_for_each_job_and_for_each_free_device(
    dovetail: Run, service: FakeService
) -> None:
    alone = JobUseView(job="p4x8cd", name="alone", attempt=2, state="RUNNING")
    service.device_uses = [
        device("cpu:0", SWIN, WAITING),
        device("cpu:1", alone, free_bytes=None),
        device("cpu:2", free_bytes=2**30),
    ]
    code, out, _ = dovetail("devices")
    lines = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    assert code == 0
    assert lines == [
        ["NODE", "DEVICE", "MEMORY", "FREE", "JOB", "NAME", "LEASE", "RESIDENT", "CAP", "RUNG",
         "SPEED", "SWAPPED", "FENCE", "STATE"],
        ["n1", "cpu:0", "1GiB", "0B", "k3f9qz", "swin", "300MiB", "240MiB", "320MiB", "2 of 6",
         "80%", "7MiB", "watched", "running"],
        ["n1", "cpu:0", "1GiB", "0B", "m7w2ab", "gpt", "0B", "-", "200MiB", "6 of 6", "40%", "-",
         "-",
         "starting: waits for 209715200 bytes, of which 0 are free"],
        ["n1", "cpu:1", "1GiB", "-", "p4x8cd", "alone", *["-"] * 7, "running"],
        ["n1", "cpu:2", "1GiB", "1GiB", *["-"] * 10],
    ]  # fmt: skip


def test_status_and_node_list_name_every_job_of_a_device() -> None:
    assert holders({"job": "a", "jobs": ["a", "b"]}) == "a, b"
    assert holders({"job": "a"}) == "a"
    assert holders({"job": None, "jobs": []}) == ""


def test_devices_and_top_say_the_contract_as_json(dovetail: Run, service: FakeService) -> None:
    service.device_uses = [device("cpu:0", SWIN)]
    expected = f"[{service.device_uses[0].model_dump_json()}]"
    for command in ("devices", "top"):
        code, out, _ = dovetail(command, "--json")
        assert (code, "".join(out.split())) == (0, "".join(expected.split()))


def test_one_device_can_be_asked_for(dovetail: Run, service: FakeService) -> None:
    service.device_uses = [device("cpu:0", SWIN), device("cpu:1")]
    for name in ("cpu:1", "n1/cpu:1"):
        assert "k3f9qz" not in dovetail("devices", "--device", name)[1]
    code, _, err = dovetail("devices", "--device", "cuda:0")
    assert code == 3
    assert "--device cuda:0  is not one of n1/cpu:0, n1/cpu:1" in err


def test_top_prints_once_where_there_is_no_terminal(dovetail: Run, service: FakeService) -> None:
    service.device_uses = [device("cpu:0", SWIN)]
    assert dovetail("top") == dovetail("devices")


def test_top_follows_on_a_terminal_and_ends_with_ctrl_c(service: FakeService) -> None:
    service.device_uses = [device("cpu:0", SWIN)]
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from dovetail.cli.main import main; sys.exit(main())",
         "top"],
        env={**os.environ, "DOVETAIL_URL": service.url, "DOVETAIL_TOKEN": TOKEN, "COLUMNS": "200"},
        stdin=its, stdout=its, stderr=its,
    )  # fmt: skip
    os.close(its)
    try:
        read_until(ours, "300MiB")
        faster = SWIN.model_copy(update={"lease_bytes": 512 * MIB})
        service.device_uses = [device("cpu:0", faster)]
        read_until(ours, "512MiB")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(descriptor: int, word: str) -> None:
    """Read what a terminal was sent until `word` is in it."""
    text, end = "", time.monotonic() + 20
    while word not in text:
        ready, _, _ = select.select([descriptor], [], [], end - time.monotonic())
        assert ready, text
        text += os.read(descriptor, 65536).decode(errors="replace")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture_of_a_device_is_drawn_from_its_history(
    dovetail: Run, service: FakeService, tmp_path: Path, suffix: str
) -> None:
    service.histories = [history()]
    file = tmp_path / f"memory{suffix}"
    code, out, err = dovetail("devices", "--picture", str(file))
    assert (code, out, err) == (0, f"{file}\n", "drew n1/cpu:0\n")
    assert file.stat().st_size > 1000


def test_a_picture_that_cannot_be_drawn_is_refused_with_the_way_out(
    dovetail: Run, service: FakeService, tmp_path: Path
) -> None:
    file = str(tmp_path / "memory.png")
    assert "no job has shared a device" in dovetail("devices", "--picture", file)[2]
    service.histories = [history("cpu:0"), history("cpu:1")]
    code, _, err = dovetail("devices", "--picture", file)
    assert (code, "add --device with one of n1/cpu:0, n1/cpu:1" in err) == (2, True)
    code, _, err = dovetail("devices", "--picture", str(tmp_path / "memory.txt"))
    assert (code, "must end in .png, .svg, .pdf" in err) == (2, True)
    absent = str(tmp_path / "absent" / "memory.png")
    code, _, err = dovetail("devices", "--device", "cpu:1", "--picture", absent)
    assert (code, "No such file or directory" in err) == (2, True)
    assert not Path(file).exists()


def test_neither_command_loads_matplotlib_before_it_is_needed() -> None:
    loaded = "import sys; import dovetail.cli.main; print('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
