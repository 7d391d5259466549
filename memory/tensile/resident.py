"""Resident memory of a process by the operating system's own count (Linux `/proc`; see proc(5)).

On a machine without a GPU the device tier is resident memory, so this is the ruler of every budget
and every peak there. What the system does not say is None, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_PROC = Path("/proc")
_RESET_PEAK = "5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Pages in memory now, in bytes, by what stands behind them.

    `anonymous_bytes` (RssAnon) is heap and stack, `shared_bytes` (RssShmem) shared memory,
    `file_bytes` (RssFile) mapped files, libraries included. `peak_bytes` (VmHWM) is the highest
    total since the process began or `reset_peak` was called.
    """

    anonymous_bytes: int
    shared_bytes: int
    file_bytes: int
    peak_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.anonymous_bytes + self.shared_bytes + self.file_bytes


def measure(pid: int | Literal["self"] = "self") -> Resident | None:
    """What process `pid` holds; None for a process that is gone or a system that does not say."""
    try:
        text = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        return Resident(
            anonymous_bytes=_bytes(fields["RssAnon"]),
            shared_bytes=_bytes(fields["RssShmem"]),
            file_bytes=_bytes(fields["RssFile"]),
            peak_bytes=_bytes(fields["VmHWM"]),
        )
    except KeyError:  # a zombie, a kernel thread, or a kernel before 4.5
        return None


def reset_peak(pid: int | Literal["self"] = "self") -> bool:
    """Let the peak start again from what is resident now; False where the system refuses."""
    try:
        (_PROC / str(pid) / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def peak_growth_bytes(base: Resident, pid: int | Literal["self"] = "self") -> int | None:
    """How far the peak rose over `base`, at least 0; None where the system does not say."""
    now = measure(pid)
    return None if now is None else max(0, now.peak_bytes - base.total_bytes)


def _bytes(field: str) -> int:
    """`   1234 kB` as the kernel prints it; its kB are 1024 bytes."""
    return int(field.split()[0]) * 1024
