"""What the processes of an attempt hold by the system's count (Linux `/proc`; see proc(5))."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from dovetail_workers.library_memory import library_bytes
from tensile import resident

_PROC = Path("/proc")


def held_bytes(pids: Collection[int], base_bytes: int | None) -> int:
    """Over the bare process, which held `base_bytes` with its libraries, and at most what is no
    page of a file; of a program that did not say how much that is, what is over its libraries.
    Pages that several of them share, as after a fork, are counted for each.
    """
    found = {pid: each for pid in pids if (each := resident.measure(pid)) is not None}
    if base_bytes is None:
        return sum(
            max(0, each.anonymous_bytes - library_bytes(pid)) + each.shared_bytes
            for pid, each in found.items()
        )
    own_bytes = sum(each.anonymous_bytes + each.shared_bytes for each in found.values())
    total_bytes = sum(each.total_bytes for each in found.values())
    return min(own_bytes, max(0, total_bytes - base_bytes))


def shared_fairly_bytes(pids: Collection[int], base_bytes: int | None) -> int:
    """The same with each page that several processes share counted once; the kernel walks all
    their pages for it, a few milliseconds for each GiB.
    """
    found = {pid: sizes for pid in pids if (sizes := _rollup(pid))}
    if base_bytes is None:
        return sum(_over_libraries(pid, sizes) for pid, sizes in found.items())
    own_bytes = sum(sizes["Pss_Anon"] + sizes["Pss_Shmem"] for sizes in found.values())
    total_bytes = sum(sizes["Pss"] for sizes in found.values())
    return min(own_bytes, max(0, total_bytes - base_bytes))


def _over_libraries(pid: int, sizes: Mapping[str, int]) -> int:
    """Those that share their pages share what their libraries take, too."""
    own_part = sizes["Pss_Anon"] / sizes["Anonymous"] if sizes["Anonymous"] else 1.0
    over_bytes = sizes["Pss_Anon"] - int(own_part * library_bytes(pid))
    return max(0, over_bytes) + sizes["Pss_Shmem"]


def _rollup(pid: int) -> dict[str, int]:
    """Bytes by field of `smaps_rollup`; nothing of a process that is gone or not ours to see."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in fields}
