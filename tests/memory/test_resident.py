"""Resident bytes are those that the operating system counts."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile

import psutil
import pytest

from tensile import resident

MIB = 2**20
SLACK_BYTES = 4 * MIB
PIECE = b"x" * MIB  # a longer one would come from the heap, and what is freed there may stay


def touch(area: mmap.mmap, size_bytes: int) -> None:
    for _ in range(size_bytes // MIB):
        area.write(PIECE)


def test_the_total_is_what_psutil_reads() -> None:
    measured = resident.measure()
    assert measured is not None
    assert abs(measured.total_bytes - psutil.Process().memory_info().rss) < SLACK_BYTES
    assert measured.peak_bytes >= measured.total_bytes - SLACK_BYTES


def test_touched_anonymous_memory_counts_and_untouched_does_not() -> None:
    before = resident.measure()
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        untouched = resident.measure()
        touch(area, 32 * MIB)
        touched = resident.measure()
    assert before is not None
    assert untouched is not None
    assert touched is not None
    assert untouched.anonymous_bytes - before.anonymous_bytes < SLACK_BYTES
    assert abs(touched.anonymous_bytes - before.anonymous_bytes - 32 * MIB) < SLACK_BYTES


def test_pages_of_a_file_are_counted_apart_from_anonymous_ones() -> None:
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.truncate(16 * MIB)
        with mmap.mmap(file.fileno(), 16 * MIB) as area:
            before = resident.measure()
            touch(area, 16 * MIB)
            after = resident.measure()
    assert before is not None
    assert after is not None
    mapped = after.file_bytes + after.shared_bytes - before.file_bytes - before.shared_bytes
    assert abs(mapped - 16 * MIB) < SLACK_BYTES
    assert abs(after.anonymous_bytes - before.anonymous_bytes) < SLACK_BYTES


def test_the_peak_outlives_the_memory_until_it_is_reset() -> None:
    base = resident.measure()
    assert base is not None
    if not resident.reset_peak():
        pytest.skip("this system does not let a process reset its peak")
    with mmap.mmap(-1, 48 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        touch(area, 48 * MIB)
    growth = resident.peak_growth_bytes(base)
    assert growth is not None
    assert abs(growth - 48 * MIB) < SLACK_BYTES
    assert resident.reset_peak()
    after = resident.peak_growth_bytes(base)
    assert after is not None
    assert after < SLACK_BYTES


def test_another_process_can_be_measured_and_a_gone_one_is_none() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "print('ready', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        measured = resident.measure(child.pid)
        child.communicate(b"\n")
    assert measured is not None
    assert MIB < measured.total_bytes < 1000 * MIB
    assert resident.measure(child.pid) is None
    assert not resident.reset_peak(child.pid)
    assert resident.peak_growth_bytes(measured, child.pid) is None


def test_a_zombie_has_no_memory_to_speak_of() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert resident.measure(pid) is None
    finally:
        os.waitpid(pid, 0)
