"""An attempt that takes more memory than it may is ended, and nobody beside it notices."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail_jobs.load import load_file
from dovetail_workers import cuda_fence
from dovetail_workers.held_memory import held_bytes, shared_fairly_bytes
from dovetail_workers.launch import Launch
from dovetail_workers.library_memory import BARE_BYTES, MOST_BYTES
from dovetail_workers.memory_fence import LOOKS, MemoryFence
from dovetail_workers.memory_limit import (
    LEAST_BYTES,
    MemoryLimit,
    fixed_limit,
    limit_of,
    slack_bytes,
)
from dovetail_workers.program import environment
from dovetail_workers.reports import MemoryUsed
from helpers.attempts import ended, entries, log_text, run, script_launch, start, wait_for
from helpers.installation import EXAMPLE
from tensile import resident
from tensile.coordinator import Member, declared
from tensile.coordinator.broker import Broker
from tensile.coordinator.lease import Lease

GIB, MIB = 2**30, 2**20
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
    assert end.message.startswith("out of memory: it held ")
    assert (
        "MiB beside its libraries, and might hold 20MiB of the device (resources.memory); wri"
        in (end.message)
    )
    first, last = used(hungry)
    assert (first.budget_bytes, first.fence) == (20 * MIB, "watched")
    assert last.peak_bytes is not None
    assert 480 * MIB < last.peak_bytes < 510 * MIB
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
    assert last.peak_bytes > MIB + slack_bytes(launch, MIB)


OVER = 64 * MIB  # more than the pages that come and go


def looks(fence: MemoryFence, times: int = LOOKS) -> None:
    for _ in range(times):
        fence.look([os.getpid()])


def fence_of(limit_bytes: int, said: list[str], *, awaits_base: bool = False) -> MemoryFence:
    limit = MemoryLimit(bytes=limit_bytes, rule="its lease", way_out="write {needed}")
    limit = replace(limit, slack_bytes=8 * MIB)
    return MemoryFence(lambda: limit, said.append, awaits_base=awaits_base)


def test_who_is_over_its_limit_at_several_looks_in_a_row_is_told_once() -> None:
    said: list[str] = []
    fence = fence_of(1, said)
    fence.know_base(0)
    held = bytearray(b"x") * OVER
    looks(fence, LOOKS - 1)
    assert said == []
    looks(fence, 2)
    assert held
    (sentence,) = said
    # all of this process, however much that is by now
    assert re.search(r"[MG]iB, and might hold 1B of the device \(its lease\); write ", sentence)
    assert fence.is_broken


def test_what_the_limit_brings_of_the_bare_process_is_no_growth_and_is_heard_once() -> None:
    """A script's session tells the broker; the script itself need not say it."""
    said: list[str] = []
    heard: list[int] = []
    held = bytearray(b"x") * (MOST_BYTES + OVER)
    found = resident.measure()
    assert found is not None
    limit = MemoryLimit(bytes=MIB, rule="its lease", way_out="", slack_bytes=OVER)

    fence = MemoryFence(lambda: limit, said.append, awaits_base=False, on_base=heard.append)
    looks(fence, LOOKS - 1)
    limit = replace(limit, base_bytes=found.total_bytes)
    looks(fence)
    assert held
    assert said == []
    assert fence.peak_bytes < OVER
    assert heard == [found.total_bytes]
    fence.know_base(0)  # what the script says later counts, until the limit brings news
    looks(fence)
    assert len(said) == 1


def test_a_peak_that_is_over_at_the_next_look_ends_nobody() -> None:
    said: list[str] = []
    limit_bytes = 0

    def limit() -> MemoryLimit:
        return MemoryLimit(bytes=limit_bytes, rule="its lease", way_out="")

    fence = MemoryFence(limit, said.append, awaits_base=False)
    held = bytearray(b"x") * (MOST_BYTES + OVER)
    for _ in range(5):
        limit_bytes = 0
        looks(fence, LOOKS - 1)
        limit_bytes = 2**40
        looks(fence, 1)
    assert said == []
    assert fence.peak_bytes >= OVER
    assert held


def test_nothing_is_judged_before_the_bare_process_is_known() -> None:
    said: list[str] = []
    fence = fence_of(0, said, awaits_base=True)
    held = bytearray(b"x") * OVER
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
        assert 96 * MIB < held_bytes(pids, None) < 128 * MIB
        assert 48 * MIB < shared_fairly_bytes(pids, None) < 64 * MIB
        said: list[str] = []
        fence = fence_of(80 * MIB, said)
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


@contextmanager
def loaded(folder: Path, library: str, mib: int) -> Iterator[int]:
    """A process that holds so much and has loaded a file of that name."""
    (folder / library).write_bytes(bytes(4096))
    code = (
        "import mmap, os, sys\n"
        f"file = open({str(folder / library)!r}, 'rb')\n"
        "kept = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        f"held = bytearray(b'x') * ({mib} << 20)\n"
        "print(os.getpid(), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.communicate()


def test_what_a_programs_libraries_take_is_left_out_by_what_it_has_loaded(tmp_path: Path) -> None:
    with loaded(tmp_path, "libsmall.so", 240) as pid:
        assert 224 * MIB < held_bytes([pid], None) < 240 * MIB
        assert 224 * MIB < shared_fairly_bytes([pid], None) < 240 * MIB
    with loaded(tmp_path, "libtorch_cpu.so", 240) as pid:
        assert 16 * MIB < held_bytes([pid], None) < 32 * MIB
        assert 16 * MIB < shared_fairly_bytes([pid], None) < 32 * MIB


@pytest.mark.long
def test_the_bare_figures_are_those_of_this_pytorch() -> None:
    code = (
        "import sys, os\n"
        "import torch\n"
        "model = torch.nn.Linear(64, 64); optimizer = torch.optim.AdamW(model.parameters())\n"
        "for _ in range(3): model(torch.ones(8, 64)).sum().backward(); optimizer.step()\n"
        "print(os.getpid(), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        measured = resident.measure(int(process.stdout.readline()))
    finally:
        process.communicate()
    assert measured is not None
    assert MOST_BYTES / 2 < measured.anonymous_bytes < MOST_BYTES
    with forked(0) as (pid, _):
        bare = resident.measure(pid)
    assert bare is not None
    assert bare.anonymous_bytes < BARE_BYTES


@given(
    parts=st.lists(st.integers(1, 1000), min_size=1, max_size=6),
    device_bytes=st.integers(GIB, 100 * GIB),
)
def test_all_who_share_a_device_are_over_it_by_a_tenth_at_most(
    parts: list[int], device_bytes: int
) -> None:
    launch = replace(script_launch(Path("/s"), "true"), share=True, device_bytes=device_bytes)
    leases = [device_bytes * part // sum(parts) for part in parts]
    slacks = [slack_bytes(launch, lease) for lease in leases]
    beside = [slack for slack in slacks if slack > LEAST_BYTES]
    assert sum(beside) <= device_bytes // 10
    assert max(slacks) <= max(LEAST_BYTES, device_bytes // 20)


def test_who_is_alone_has_room_for_what_its_steps_load(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, "true")
    assert slack_bytes(launch, 100 * MIB) == 74 * MIB
    assert slack_bytes(replace(launch, share=True), 100 * MIB) == 10 * MIB
    assert slack_bytes(replace(launch, share=True), 10 * MIB) == LEAST_BYTES


def test_a_suspicion_ends_with_the_peak_or_with_the_attempt() -> None:
    said: list[str] = []
    fence = fence_of(1, said)
    fence.know_base(0)
    held = bytearray(b"x") * OVER
    assert not fence.suspects
    looks(fence, 1)
    assert fence.suspects
    looks(fence)
    assert not fence.suspects
    assert len(said) == 1
    assert held


def test_while_there_is_no_broker_the_last_lease_stands(tmp_path: Path) -> None:
    launch = family(script_launch(tmp_path, "true"), memory="auto", policy="tensile")
    broker = tmp_path / "b.socket"
    limit = limit_of(launch, {"TENSILE_BROKER": str(broker)})
    member = Member(job=launch.attempt_id, profile=declared(700))
    with Broker(broker, 1000):
        with Lease(broker, member) as lease:
            assert lease.join(10)
            assert limit().bytes == 700
        assert limit().bytes == 700  # it answers, and has not heard of the job
    assert limit().bytes == 700
    with Broker(broker, 1000), Lease(broker, replace(member, profile=declared(300))) as lease:
        assert lease.join(10)
        assert limit().bytes == 300


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
