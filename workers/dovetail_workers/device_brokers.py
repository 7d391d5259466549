"""The brokers of a node's devices, hosted by the node's agent.

An agent that died leaves its jobs with what they hold; the brokers of the next one learn it from
them. While the old one still dies, the new one tries again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dovetail_workers.devices import Device
from dovetail_workers.process_tree import pids_by_attempt
from dovetail_workers.shared_device import DeviceShares, JobShare, socket_path
from tensile import resident
from tensile.coordinator.broker import Broker, BrokerError
from tensile.coordinator.coordinator import Share

AGAIN_S = 0.5


class DeviceBrokers:
    """Serves from `start` to `stop`, or until the process ends: then the sockets close too."""

    def __init__(self, node_id: str, devices: Sequence[Device]) -> None:
        self._devices = {socket_path(node_id, device.name): device for device in devices}
        self._brokers: dict[Path, Broker] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._start_rest, name="brokers", daemon=True)

    def start(self) -> None:
        """Raises nothing: what cannot be served yet is said, and tried again."""
        for complaint in self._start_missing():
            print(complaint, file=sys.stderr, flush=True)
        if len(self._brokers) < len(self._devices):
            self._thread.start()

    def devices(self) -> tuple[DeviceShares, ...]:
        """How each device stands now. One that has no broker yet has no jobs."""
        found = {path: broker.shares() for path, broker in list(self._brokers.items())}
        pids = pids_by_attempt() if any(found.values()) else {}
        return tuple(
            DeviceShares(
                device=device.name,
                bytes=device.bytes,
                jobs=tuple(_job_share(share, pids) for share in found.get(path, ())),
            )
            for path, device in self._devices.items()
        )

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        while self._brokers:
            self._brokers.popitem()[1].stop()

    def _start_rest(self) -> None:
        while len(self._brokers) < len(self._devices) and not self._stopping.wait(AGAIN_S):
            self._start_missing()

    def _start_missing(self) -> list[str]:
        complaints = []
        for path, device in self._devices.items():
            if path not in self._brokers:
                try:
                    _own_folder(path.parent)
                    _clear_dead(path.parent, keep=self._devices)
                    self._brokers[path] = Broker(path, device.bytes, resumes=True).start()
                except (BrokerError, OSError) as error:
                    complaints.append(f"no broker for {device.name} yet: {error}")
        return complaints


def _job_share(share: Share, pids: Mapping[str, Iterable[int]]) -> JobShare:
    pages = [found for pid in pids.get(share.job, ()) if (found := resident.measure(pid))]
    return JobShare(
        job=share.job,
        admitted=share.admitted,
        lease_bytes=share.lease_bytes,
        cap_bytes=share.cap_bytes,
        minimum_bytes=share.minimum_bytes,
        rung=share.rung,
        rungs=share.rungs,
        speed=share.speed,
        message=share.message,
        resident_bytes=sum(each.total_bytes for each in pages) if pages else None,
        file_bytes=sum(each.file_bytes for each in pages) if pages else None,
    )


def _own_folder(folder: Path) -> None:
    """Make it for this user alone. Raises PermissionError where it is somebody else's."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; remove it, or set TMPDIR")
    folder.chmod(0o700)


def _clear_dead(folder: Path, keep: Iterable[Path]) -> None:
    """Remove what brokers of nodes that are gone left behind: nobody holds their lock."""
    kept = {path.with_suffix(".lock") for path in keep}
    for lock in set(folder.glob("*.lock")) - kept:
        with contextlib.suppress(OSError), lock.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.with_suffix(".socket").unlink(missing_ok=True)
            lock.unlink()
