"""An attempt that takes more memory than it may is ended, and nobody beside it notices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dovetail_jobs.load import load_file
from dovetail_workers import cuda_fence
from dovetail_workers.held_memory import held_bytes, shared_fairly_bytes
from dovetail_workers.launch import Launch
from dovetail_workers.memory_fence import LOOKS, MemoryFence
from dovetail_workers.memory_limit import MemoryLimit, fenced_bytes, fixed_limit, limit_of
from dovetail_workers.program import environment
from dovetail_workers.reports import MemoryUsed
from helpers.attempts import ended, entries, log_text, run, script_launch, start, wait_for
from helpers.installation import EXAMPLE
from tensile.coordinator import Member, declared
from tensile.coordinator.broker import Broker
from tensile.coordinator.lease import Lease

MIB = 2**20
HOLD = """
import os, sys, time
held = bytearray(b"x") * (int(sys.argv[1]) << 20)
print("holds", flush=True)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
"""


def holder(folder: Path, mib: int, declared: str) -> Launch:
    """Of a script that holds so much until there is a file `go-on` in `folder`."""
    (folder / "hold.py").write_text(HOLD)
    script = f"{sys.executable} {folder / 'hold.py'} {mib} {folder / 'go-on'}"
    return script_launch(folder / f"of-{mib}", script, resources={"memory": declared})


def used(launch: Launch) -> list[MemoryUsed]:
    reports = [entry.report for entry in entries(launch)]
    return [report for report in reports if isinstance(report, MemoryUsed)]


@pytest.mark.long
def test_a_script_that_takes_more_than_it_declares_is_ended_and_its_neighbour_goes_on(
    tmp_path: Path,
) -> None:
    neighbour = replace(holder(tmp_path, 40, "64MiB"), job_id="neighbour")
    hungry = holder(tmp_path, 500, "20MiB")
    beside = start(neighbour, tmp_path / "beside")
    wait_for("the neighbour's memory", lambda: "holds" in log_text(neighbour))
    end = run(hungry, tmp_path)
    assert end.outcome == "out_of_memory"
    assert end.message.startswith("out of memory: it held 5")
    assert "MiB with its libraries, and might hold 20MiB of the device (resources.memory); wri" in (
        end.message
    )
    first, last = used(hungry)
    assert (first.budget_bytes, first.fence) == (20 * MIB, "watched")
    assert last.peak_bytes is not None
    assert 500 * MIB < last.peak_bytes < 560 * MIB
    assert beside.poll() is None
    (tmp_path / "go-on").touch()
    beside.wait(30)
    assert ended(neighbour).outcome == "succeeded"


@pytest.mark.long
def test_a_family_without_a_manager_is_ended_when_it_grows_over_what_it_declares(
    tmp_path: Path,
) -> None:
    wanted = ["params.batch_size=512", "resources.memory=1MiB", "train.steps=1000"]
    spec = load_file(EXAMPLE, wanted).to_json()
    launch = replace(script_launch(tmp_path, "true"), spec=spec)
    end = run(launch, tmp_path)
    assert end.outcome == "out_of_memory"
    assert "MiB, and might hold 1MiB of the device (resources.memory)" in end.message
    first, *_, last = used(launch)
    assert (first.fence, last.budget_bytes) == ("watched", MIB)
    assert last.peak_bytes is not None
    assert last.peak_bytes > fenced_bytes(MIB, 0)


def looks(fence: MemoryFence, times: int = LOOKS) -> None:
    for _ in range(times):
        fence.look([os.getpid()])


def fence_of(limit_bytes: int, said: list[str], *, awaits_base: bool = False) -> MemoryFence:
    limit = MemoryLimit(bytes=limit_bytes, rule="its lease", way_out="write {needed}")
    return MemoryFence(lambda: limit, said.append, awaits_base=awaits_base)


def test_who_is_over_its_limit_at_several_looks_in_a_row_is_told_once() -> None:
    said: list[str] = []
    fence = fence_of(1, said)
    fence.know_base(0)
    held = bytearray(b"x") * (2 * fenced_bytes(1, 0))
    looks(fence, LOOKS - 1)
    assert said == []
    looks(fence, 2)
    assert held
    (sentence,) = said
    assert "MiB, and might hold 1B of the device (its lease); write " in sentence
    assert fence.is_broken


def test_a_peak_that_is_over_at_the_next_look_ends_nobody() -> None:
    said: list[str] = []
    limit_bytes = 0

    def limit() -> MemoryLimit:
        return MemoryLimit(bytes=limit_bytes, rule="its lease", way_out="")

    fence = MemoryFence(limit, said.append, awaits_base=False)
    held = bytearray(b"x") * fenced_bytes(0, None)
    for _ in range(5):
        limit_bytes = 0
        looks(fence, LOOKS - 1)
        limit_bytes = 2**40
        looks(fence, 1)
    assert said == []
    assert fence.peak_bytes >= len(held)


def test_nothing_is_judged_before_the_bare_process_is_known() -> None:
    said: list[str] = []
    fence = fence_of(0, said, awaits_base=True)
    held = bytearray(b"x") * (2 * fenced_bytes(0, 0))
    looks(fence)
    fence.know_base(held_bytes([os.getpid()], None) * 100)
    looks(fence)
    assert said == []
    fence.know_base(0)
    looks(fence)
    assert len(said) == 1
    assert held


@contextmanager
def forked(mib: int) -> Iterator[list[int]]:
    """A process and its child, which share what the first had before the fork."""
    code = (
        f"import os, sys; held = bytearray(b'x') * ({mib} << 20); child = os.fork()\n"
        "if child: print(os.getpid(), child, flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield [int(pid) for pid in process.stdout.readline().split()]
    finally:
        process.communicate()


def test_what_processes_share_is_counted_once_where_it_matters() -> None:
    with forked(64) as pids:
        assert held_bytes(pids, None) > 128 * MIB
        assert 64 * MIB < shared_fairly_bytes(pids, None) < 100 * MIB
        said: list[str] = []
        fence = fence_of(20 * MIB, said)
        fence.know_base(0)
        for _ in range(LOOKS):
            fence.look(pids)
    assert said == []


def test_a_process_that_is_gone_holds_nothing() -> None:
    with forked(1) as pids:
        pass
    wait_for("both to end", lambda: held_bytes(pids, None) == 0)
    assert shared_fairly_bytes(pids, None) == 0


def family(launch: Launch, *, memory: str | int, policy: str) -> Launch:
    spec = {**launch.spec, "script": None, "family": "swin", "memory": {"policy": policy}}
    return replace(launch, spec={**spec, "resources": {**spec["resources"], "memory": memory}})


@pytest.mark.parametrize(
    ("declared_memory", "policy", "cap_bytes", "limit_bytes", "rule"),
    [
        (100, "none", None, 100, "resources.memory"),
        ("auto", "none", None, None, ""),
        ("auto", "tensile", None, None, ""),
        ("auto", "tensile", 80, 80, "resources.memory"),
        (100, "tensile", 80, 80, "resources.memory"),
        (100, "tensile", 1000, 100, "resources.memory"),
        (100, "none", 1000, 1000, "what one like it took"),
        (100, "none", 2**30, 2**30, "all of its device"),
        (100, "tensile", 2**30, 2**30, "all of its device"),
    ],
)
def test_the_limit_is_what_is_declared_or_what_the_attempt_comes_back_with(
    declared_memory: str | int,
    policy: str,
    cap_bytes: int | None,
    limit_bytes: int | None,
    rule: str,
    tmp_path: Path,
) -> None:
    launch = family(script_launch(tmp_path, "true"), memory=declared_memory, policy=policy)
    limit = fixed_limit(replace(launch, cap_bytes=cap_bytes))
    assert (limit.bytes, limit.rule) == (limit_bytes, rule)


def test_a_managed_job_on_a_shared_device_is_kept_to_its_lease(tmp_path: Path) -> None:
    launch = family(script_launch(tmp_path, "true"), memory="auto", policy="tensile")
    broker = tmp_path / "b.socket"
    limit: Callable[[], MemoryLimit] = limit_of(launch, {"TENSILE_BROKER": str(broker)})
    assert limit().bytes is None  # nobody answers: nothing is known of it
    member = Member(job=launch.attempt_id, profile=declared(700))
    with Broker(broker, 1000), Lease(broker, member) as lease:
        assert lease.join(10)
        assert (limit().bytes, limit().rule) == (700, "its lease")
        waiting = replace(launch, attempt=2)
        with Lease(broker, Member(job=waiting.attempt_id, profile=declared(600))) as other:
            assert not other.join(0.1)
            assert limit_of(waiting, {"TENSILE_BROKER": str(broker)})().bytes is None


def test_a_script_has_what_it_declares_and_what_the_broker_leases_it_beyond(
    tmp_path: Path,
) -> None:
    launch = script_launch(tmp_path, "true", resources={"memory": 300})
    broker = tmp_path / "b.socket"
    limit = limit_of(launch, {"TENSILE_BROKER": str(broker)})
    assert (limit().bytes, limit().rule) == (300, "resources.memory")
    for size, found in ((200, (300, "resources.memory")), (700, (700, "its lease"))):
        member = Member(job=launch.attempt_id, profile=declared(size))
        with Broker(broker, 1000), Lease(broker, member) as lease:
            assert lease.join(10)
            assert (limit().bytes, limit().rule) == found


def test_a_program_has_room_for_its_libraries_until_it_says_what_they_take() -> None:
    said: list[str] = []
    fence = fence_of(0, said)
    with forked(128) as (pid, _):
        for _ in range(LOOKS):
            fence.look([pid])
        assert said == []
        fence.know_base(0)
        for _ in range(LOOKS):
            fence.look([pid])
    assert len(said) == 1


def test_a_gpu_is_fenced_by_a_fraction_of_it(tmp_path: Path) -> None:
    script = replace(
        script_launch(tmp_path, "true", resources={"memory": "256MiB"}), device="cuda:1"
    )
    assert cuda_fence.fraction(script) == 0.25
    given = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    told = environment(script, tmp_path, tmp_path, given, {}, None, {})
    assert told["PYTORCH_CUDA_ALLOC_CONF"] == (
        "expandable_segments:True,per_process_memory_fraction:0.250000"
    )
    for whole in (
        replace(script, device="cpu:0"),
        family(script, memory="auto", policy="none"),
        family(script, memory=256 * MIB, policy="none"),  # which asks for it itself
    ):
        assert cuda_fence.environment(whole, None) == {}
