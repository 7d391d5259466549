"""A device that several attempts share: where its broker listens, what a training process is told
of it, and how those who share it stand.

The broker itself is `device_brokers.py`'s; nothing here needs it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dovetail_workers.launch import Launch

LONGEST_PATH_BYTES = 107  # of a Unix socket, without the zero at its end
VARIABLES = (
    "TENSILE_BROKER", "TENSILE_JOB", "TENSILE_WEIGHT", "TENSILE_PRIORITY", "TENSILE_OVERRUN"
)  # fmt: skip
_NODE_DIGITS = 12  # of a node's id: enough to tell apart those of one machine


@dataclass(frozen=True, slots=True, kw_only=True)
class JobShare:
    """How an attempt stands with its device's broker (`tensile.coordinator.Share`), and what its
    processes hold by the system's count: `resident_bytes` in all, of which `file_bytes` are pages
    of files, libraries included. None where the system does not say.
    """

    job: str
    admitted: bool
    lease_bytes: int
    cap_bytes: int
    minimum_bytes: int
    rung: int
    rungs: int
    speed: float
    message: str
    resident_bytes: int | None = None
    file_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShares:
    """What the broker of `device` divides, and among whom."""

    device: str
    bytes: int
    jobs: tuple[JobShare, ...] = ()


def socket_path(node_id: str, device: str) -> Path:
    """Of the broker of that node's device. Every process of a user on a machine finds the same."""
    name = f"{node_id[:_NODE_DIGITS]}-{device.replace(':', '-')}.socket"
    path, short = (folder / name for folder in _folders())
    return path if len(os.fsencode(path)) <= LONGEST_PATH_BYTES else short


def remove_dead_sockets(keep: Iterable[Path] = ()) -> None:
    """Remove what brokers of nodes that are gone left behind: nobody holds their lock."""
    kept = {path.with_suffix(".lock") for path in keep}
    for lock in {found for folder in _folders() for found in folder.glob("*.lock")} - kept:
        with contextlib.suppress(OSError), lock.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.with_suffix(".socket").unlink(missing_ok=True)
            lock.unlink()


def _folders() -> tuple[Path, Path]:
    """Where the sockets of this user are, and where those whose path would be too long."""
    name = f"dovetail-brokers-{os.getuid()}"
    return Path(tempfile.gettempdir(), name), Path("/tmp", name)


def inherited(given: Mapping[str, str]) -> dict[str, str]:
    """The same for an attempt that is started by hand, from the environment of whoever does."""
    return {name: given[name] for name in VARIABLES if name in given}


def environment(launch: Launch, node_id: str) -> dict[str, str]:
    """By which the training process joins the broker; nothing for one that has a device alone."""
    if not launch.share:
        return {}
    broker = str(socket_path(node_id, launch.device))
    values = (
        broker, launch.attempt_id, str(launch.weight), str(launch.priority), str(launch.overrun)
    )  # fmt: skip
    return dict(zip(VARIABLES, values, strict=True))
