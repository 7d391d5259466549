"""A control group of an attempt's own, with a hard limit of memory (Linux cgroup v2).

Where the memory controller is delegated to this user: below the nearest group above our own that
hands it to its children and lets us make some. `man 7 cgroups`; kernel: admin-guide/cgroup-v2.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Self

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
_GONE_S = 2.0  # a group is empty a moment after its last process was collected


class Cgroup:
    """`folder` is the group's, which exists."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def make(cls, attempt_id: str, root: Path = ROOT, own: Path = OWN) -> Self | None:
        """None where there is no such controller for us to use."""
        parent = delegated(root, own)
        if parent is None:
            return None
        folder = parent / name_of(attempt_id)
        try:
            folder.mkdir()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # an attempt that lost a part of itself is none
            (folder / "memory.oom.group").write_text("1")
        return cls(folder)

    def limit(self, limit_bytes: int) -> bool:
        """Its processes together hold no more from now on; False where the kernel refuses."""
        try:
            (self._folder / "memory.max").write_text(str(limit_bytes))
        except OSError:
            return False
        return True

    def take(self, pid: int) -> bool:
        """This process, and whatever it starts from now on; False where it is gone or not ours."""
        try:
            (self._folder / "cgroup.procs").write_text(str(pid))
        except OSError:
            return False
        return True

    def kills(self) -> int:
        """How often the kernel ended a process of it for its limit."""
        with contextlib.suppress(OSError, ValueError):
            for line in (self._folder / "memory.events").read_text().splitlines():
                key, _, count = line.partition(" ")
                if key == "oom_kill":
                    return int(count)
        return 0

    def peak_bytes(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self._folder / "memory.peak").read_text())
        return None

    def remove(self) -> None:
        """When its processes have ended; what is left then is not ours to see."""
        end_s = time.monotonic() + _GONE_S
        while time.monotonic() < end_s:
            try:
                os.rmdir(self._folder)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    time.sleep(0.01)  # the kernel tells nobody when the last process is out
                    continue
            return


def name_of(attempt_id: str) -> str:
    return f"dovetail-{attempt_id}"


def remove(attempt_id: str, root: Path = ROOT, own: Path = OWN) -> None:
    """What a supervisor that was killed left behind."""
    parent = delegated(root, own)
    if parent is not None and (parent / name_of(attempt_id)).is_dir():
        Cgroup(parent / name_of(attempt_id)).remove()


def delegated(root: Path = ROOT, own: Path = OWN) -> Path | None:
    """The nearest group, from our own up, whose children have the memory controller and can be made
    and filled by us.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    ours = next((line[3:] for line in lines if line.startswith("0::")), None)
    if ours is None:
        return None
    start = root / ours.lstrip("/")
    for folder in (start, *start.parents):
        if not folder.is_relative_to(root):
            return None
        with contextlib.suppress(OSError):
            given = (folder / "cgroup.subtree_control").read_text().split()
            if "memory" in given and _writable(folder):
                return folder
    return None


def _writable(folder: Path) -> bool:
    """A process moves only where the group above both its places is ours too."""
    return os.access(folder, os.W_OK | os.X_OK) and os.access(folder / "cgroup.procs", os.W_OK)
