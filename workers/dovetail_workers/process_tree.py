"""End every process of an attempt, also those that left its process group, and know that none is
left.

Two nets. The supervisor is a *subreaper* (prctl(2)): a descendant whose parent ends becomes its
child, whatever sessions or groups it made for itself, so its tree holds them all. And every process
of an attempt inherits `DOVETAIL_ATTEMPT_ID=<job>.<n>`, so that the node's agent finds them when the
supervisor itself is gone. A tree that cleared its environment *and* lost its supervisor is out of
reach.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

ATTEMPT_VARIABLE = "DOVETAIL_ATTEMPT_ID"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def become_subreaper() -> None:
    """Orphaned descendants become children of this process from now on."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent_pid: int) -> None:
    """This process gets SIGKILL when its parent ends; it ends at once when that has happened
    already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def kill_descendants(deadline_s: float = 5.0) -> int:
    """Kill all descendants of this process and wait until none is left; how many there were.

    Loops because a tree can grow while it is walked. Raises TimeoutError naming what is left (a
    process in uninterruptible sleep).
    """
    me = psutil.Process()
    return _kill_until_none(lambda: me.children(recursive=True), deadline_s)


def kill_attempt(attempt_id: str, deadline_s: float = 5.0) -> int:
    """Kill every process on this machine that carries the attempt's id, as
    `kill_descendants` does.
    """
    return _kill_until_none(lambda: list(processes_with(ATTEMPT_VARIABLE, attempt_id)), deadline_s)


def processes_with(variable: str, value: str) -> Iterable[psutil.Process]:
    """Processes other than this one that were started with `variable=value` in their
    environment. One that set itself a title may have overwritten it.
    """
    mark = f"{variable}={value}".encode()
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            carries = mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if carries and process.pid != os.getpid() and is_alive(process):
                yield process


def pids_by_attempt() -> dict[str, list[int]]:
    """The processes on this machine of every attempt that has any, found in one pass."""
    found: dict[str, list[int]] = {}
    mark = f"{ATTEMPT_VARIABLE}=".encode()
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            for value in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if value.startswith(mark):
                    found.setdefault(value[len(mark) :].decode(errors="replace"), []).append(pid)
    return found


def processes_writing(folder: Path) -> Iterable[psutil.Process]:
    """Processes other than this one that have a file below `folder` open to write, removed or not;
    whoever only reads there is left out.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if process.pid != os.getpid() and _writes(process.pid, folder) and is_alive(process):
                yield process


def _writes(pid: int, folder: Path) -> bool:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(descriptor).startswith(f"{folder}/"):
            info = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
            flags = next(line for line in info.splitlines() if line.startswith("flags:"))
            if int(flags.split()[1], 8) & (os.O_WRONLY | os.O_RDWR):
                return True
    return False


def wait_gone(pids: Iterable[int], timeout_s: float) -> None:
    """Until all of these processes have ended or the time is over. Collects no exit status: that is
    their parent's to read.
    """
    end = time.monotonic() + timeout_s
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        finally:
            os.close(descriptor)


def _kill_until_none(find: Callable[[], list[psutil.Process]], deadline_s: float) -> int:
    end = time.monotonic() + deadline_s
    killed: set[int] = set()
    while found := [process for process in find() if is_alive(process)]:
        if time.monotonic() > end:
            left = ", ".join(str(process.pid) for process in found)
            raise TimeoutError(f"processes {left} did not end {deadline_s:g} s after SIGKILL")
        for process in found:
            try:
                process.kill()
                killed.add(process.pid)
            except psutil.NoSuchProcess:
                continue
        wait_gone([process.pid for process in found], timeout_s=0.5)
    return len(killed)


def is_alive(process: psutil.Process) -> bool:
    """Neither gone nor a zombie."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
