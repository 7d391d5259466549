"""How often the kernel ended a process for want of memory: of this machine, and of the control
group around us (Linux: proc_vmstat, admin-guide/cgroup-v2 and cgroup-v1/memory).

The kernel tells nobody whom it ended. A process that got a SIGKILL nobody asked for, while one of
these rose, is taken to be one of those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

_KEY = "oom_kill"
ROOT = Path("/")


def counts(root: Path = ROOT) -> dict[str, int]:
    """By the name of each counter that can be read here."""
    found: dict[str, int] = {}
    for file in (root / "proc/vmstat", *_of_our_groups(root)):
        with contextlib.suppress(OSError, ValueError):
            for line in file.read_text().splitlines():
                key, _, count = line.partition(" ")
                if key == _KEY:
                    found[f"{_KEY} of /{file.relative_to(root)}"] = int(count)
    return found


def risen(before: Mapping[str, int], now: Mapping[str, int]) -> str | None:
    """The name of a counter that has risen; None if none has."""
    rose = (name for name, count in now.items() if count > before.get(name, count))
    return next(rose, None)


def _of_our_groups(root: Path) -> list[Path]:
    """Ours in either version, and as a container sees it: at the top of its own hierarchy."""
    groups = root / "sys/fs/cgroup"
    ours = ["/"]
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                ours.append(path)
    folders = dict.fromkeys(path.strip("/") for path in ours)
    return [
        file
        for path in folders
        for file in (
            groups / path / "memory.events",
            groups / "memory" / path / "memory.oom_control",
        )
    ]
