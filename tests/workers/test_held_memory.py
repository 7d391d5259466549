"""What an attempt's processes hold by the system's count, and how much of it is no tensor's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dovetail_workers.held_memory import held_bytes, shared_fairly_bytes
from dovetail_workers.library_memory import BARE_BYTES, MOST_BYTES
from dovetail_workers.memory_fence import LOOKS, MemoryFence
from dovetail_workers.memory_limit import MemoryLimit
from helpers.attempts import wait_for
from tensile import resident

MIB = 2**20


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
        limit = MemoryLimit(bytes=80 * MIB, rule="its lease", way_out="", slack_bytes=8 * MIB)
        fence = MemoryFence(lambda: limit, said.append, awaits_base=False)
        fence.know_base(0)
        for _ in range(LOOKS):
            fence.look(pids)
    assert said == []


def test_a_process_that_is_gone_holds_nothing() -> None:
    with forked(1) as pids:
        pass
    wait_for("both to end", lambda: held_bytes(pids, None) == 0)
    assert shared_fairly_bytes(pids, None) == 0


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
