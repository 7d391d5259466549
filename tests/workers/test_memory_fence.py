"""An attempt that takes more memory than it may is ended, and nobody beside it notices."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dovetail_jobs.load import load_file
from dovetail_workers import cuda_fence
from dovetail_workers.held_memory import held_bytes
from dovetail_workers.launch import Launch
from dovetail_workers.library_memory import MOST_BYTES
from dovetail_workers.memory_fence import LOOKS, MemoryFence
from dovetail_workers.memory_limit import (
    MemoryLimit,
    slack_bytes,
)
from dovetail_workers.program import environment
from helpers.attempts import (
    as_family,
    ended,
    log_text,
    run,
    script_launch,
    start,
    used,
    wait_for,
)
from helpers.installation import EXAMPLE
from tensile import resident

GIB, MIB = 2**30, 2**20
HOLD = """
import sys
held = bytearray(b"x") * (int(sys.argv[1]) << 20)
print("holds", flush=True)
open(sys.argv[2]).read()
"""


def holder(folder: Path, mib: int, declared: str) -> Launch:
    """Of a script that holds so much until something is written to the pipe `go-on` in `folder`."""
    (folder / "hold.py").write_text(HOLD)
    if not (folder / "go-on").exists():
        os.mkfifo(folder / "go-on")
    script = f"{sys.executable} {folder / 'hold.py'} {mib} {folder / 'go-on'}"
    return script_launch(folder / f"of-{mib}", script, resources={"memory": declared})


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
    (tmp_path / "go-on").write_text("go on")
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
        as_family(script, memory="auto", policy="none"),
        as_family(script, memory=256 * MIB, policy="none"),  # which asks for it itself
    ):
        assert cuda_fence.environment(whole, None) == {}
