"""The brokers of a node's devices, hosted by the node's agent.

An agent that died leaves its jobs with what they hold; the brokers of the next one learn it from
them. While the old one still dies, the new one tries again.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dovetail_workers.devices import Device
from dovetail_workers.process_tree import pids_by_attempt
from dovetail_workers.shared_device import DeviceShares, JobShare, remove_dead_sockets, socket_path
from tensile import resident
from tensile.coordinator.broker import Broker, BrokerError
from tensile.coordinator.coordinator import Share


class DeviceBrokers:
    """Serves from the first look to `stop`, or until the process ends: then the sockets close too.
    Any thread may call.
    """

    def __init__(
        self,
        node_id: str,
        devices: Sequence[Device],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = {device.name: socket_path(node_id, device.name) for device in devices}
        self._sizes = {device.name: device.bytes for device in devices}
        self._brokers: dict[str, Broker] = {}
        self._said: set[str] = set()
        self._guard, self._clock = threading.Lock(), clock

    def look(self, sizes: Mapping[str, int] | None = None) -> tuple[DeviceShares, ...]:
        """How each device stands now. One that cannot be served yet has no jobs; it is tried again
        at the next look. A device whose size is another in `sizes` (bytes by name) gets a new
        broker, to which its jobs come back with what they hold; so does one whose broker failed.
        """
        with self._guard:
            for name in [name for name, each in self._brokers.items() if not each.is_alive]:
                print(f"the broker of {name} failed; its jobs go to a new one", file=sys.stderr)
                self._brokers.pop(name).stop()
            for name, size_bytes in (sizes or {}).items():
                if self._sizes.get(name, size_bytes) != size_bytes:
                    self._sizes[name] = size_bytes
                    if name in self._brokers:
                        self._brokers.pop(name).stop()
            self._serve()
            found = {name: broker.shares() for name, broker in self._brokers.items()}
        # What processes hold resident is a CPU device's memory, and says nothing of a GPU's.
        pids = pids_by_attempt() if any(found.values()) else {}
        return tuple(
            DeviceShares(
                device=name,
                bytes=size_bytes,
                jobs=tuple(
                    _job_share(share, pids if name.startswith("cpu:") else {})
                    for share in found.get(name, ())
                ),
            )
            for name, size_bytes in self._sizes.items()
        )

    def stop(self) -> None:
        with self._guard:
            while self._brokers:
                self._brokers.popitem()[1].stop()

    def _serve(self) -> None:
        """Every device that is not served yet, where that can be; what is in the way is said
        once.
        """
        for name in self._sizes.keys() - self._brokers.keys():
            path = self._paths[name]
            try:
                _own_folder(path.parent)
                remove_dead_sockets(keep=self._paths.values())
                broker = Broker(path, self._sizes[name], resumes=True, clock=self._clock)
                self._brokers[name] = broker.start()
            except (BrokerError, OSError) as error:
                complaint = f"no broker for {name} yet: {error}"
                if complaint not in self._said:
                    self._said.add(complaint)
                    print(complaint, file=sys.stderr, flush=True)


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
