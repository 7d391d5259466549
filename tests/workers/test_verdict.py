"""What the end of a process is taken for: pure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dovetail_workers import oom_kills
from dovetail_workers.verdict import Traces, verdict

TRACES = Traces(
    exit_code=-9,
    stopping=False,
    hung_s=None,
    refusal=None,
    failure=None,
    tail="",
    kind="script",
)
ROSE = "oom_kill of /proc/vmstat"


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "lost"),
        ({"oom_kills": ROSE}, "out_of_memory"),
        ({"oom_kills": ROSE, "exit_code": 137}, "out_of_memory"),
        ({"oom_kills": ROSE, "exit_code": 137, "kind": "training process"}, "failed"),
        ({"oom_kills": ROSE, "stopping": True}, "stopped"),
        ({"oom_kills": ROSE, "hung_s": 3.0}, "lost"),
        ({"oom_kills": ROSE, "exit_code": 0}, "succeeded"),
        ({"oom_kills": ROSE, "exit_code": 1}, "failed"),
    ],
)
def test_a_kill_is_for_want_of_memory_where_the_kernel_counted_one(
    changes: dict[str, object], outcome: str
) -> None:
    ended = verdict(replace(TRACES, **changes))
    assert ended.outcome == outcome
    if outcome == "out_of_memory":
        assert ended.message == (
            "out of memory: the kernel ended the script, since the machine, or the group it runs "
            "in, had no memory left (oom_kill of /proc/vmstat rose)"
        )


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        ("MemoryError", "out_of_memory"),
        ("MemoryError: Unable to allocate 4.00 TiB for an array", "out_of_memory"),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 4.00 TiB", "out_of_memory"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "out_of_memory"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory.", "out_of_memory"),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: "
            "can't allocate memory: you tried to allocate 4398046511104 bytes.",
            "out_of_memory",
        ),
        ("OSError: [Errno 12] Cannot allocate memory", "out_of_memory"),
        ("ValueError: MemoryError is no size", "failed"),
        ("a MemoryError was expected here", "failed"),
        ("RuntimeError: shapes differ", "failed"),
    ],
)
def test_a_script_that_found_no_memory_says_so_in_its_last_line(last: str, outcome: str) -> None:
    ended = verdict(replace(TRACES, exit_code=1, tail=f"Traceback …\n{last}\n"))
    assert ended.outcome == outcome
    family = replace(TRACES, exit_code=1, tail=last, kind="training process")
    assert verdict(family).outcome == "failed"  # which says it itself


def test_the_kernels_counters_are_found_in_either_version_of_its_groups(tmp_path: Path) -> None:
    assert oom_kills.counts(tmp_path) == {}
    for name, text in {
        "proc/vmstat": "pgfault 5\noom_kill 3\n",
        "proc/self/cgroup": "4:cpu,memory:/box/a\n1:name=systemd:/\n0::/v2\n",
        "sys/fs/cgroup/memory/box/a/memory.oom_control": "under_oom 0\noom_kill 1\n",
        "sys/fs/cgroup/v2/memory.events": "oom 9\noom_kill 2\noom_group_kill 0\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = oom_kills.counts(tmp_path)
    in_group = "oom_kill of /sys/fs/cgroup/memory/box/a/memory.oom_control"
    assert before == {
        ROSE: 3,
        in_group: 1,
        "oom_kill of /sys/fs/cgroup/v2/memory.events": 2,
    }
    assert oom_kills.risen(before, before) is None
    assert oom_kills.risen(before, {**before, in_group: 2}) == in_group
    assert oom_kills.risen({}, before) is None  # a counter that could not be read before
