"""What the processes of an attempt hold by the system's count (Linux `/proc`; see proc(5))."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tensile import resident

_PROC = Path("/proc")


def held_bytes(pids: Collection[int], base_bytes: int | None) -> int:
    """Over the bare process, which held `base_bytes` with its libraries; of a program that did not
    say how much that is, and at most in any case, what is no page of a file. Pages that several of
    them share, as after a fork, are counted for each.
    """
    found = [each for pid in pids if (each := resident.measure(pid)) is not None]
    own_bytes = sum(each.anonymous_bytes + each.shared_bytes for each in found)
    return _over_base(sum(each.total_bytes for each in found), own_bytes, base_bytes)


def shared_fairly_bytes(pids: Collection[int], base_bytes: int | None) -> int:
    """The same with each page that several processes share counted once; the kernel walks all
    their pages for it, a few milliseconds for each GiB.
    """
    found = [sizes for pid in pids if (sizes := _rollup(pid))]
    own_bytes = sum(sizes["Pss_Anon"] + sizes["Pss_Shmem"] for sizes in found)
    return _over_base(sum(sizes["Pss"] for sizes in found), own_bytes, base_bytes)


def _over_base(total_bytes: int, own_bytes: int, base_bytes: int | None) -> int:
    return own_bytes if base_bytes is None else min(own_bytes, max(0, total_bytes - base_bytes))


def _rollup(pid: int) -> dict[str, int]:
    """Bytes by field of `smaps_rollup`; nothing of a process that is gone or not ours to see."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in fields}
