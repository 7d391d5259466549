"""A scripted cluster without Ray, for tests and for trying the control plane: it runs nothing, it
only says what it is told to say.

Commands are remembered in `launched` and `released`. A test then plays the worker: `report` writes
into the attempt's journal as a real one would and wakes the daemon, `lose` takes the worker away,
`finish` ends it well. Attempts that share a device have the leases that the coordinator of a real
broker gives them (`fake_devices.py`), from their launch or their begin to their end.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from dovetail.cluster.fake_devices import FakeDevices, ProfileOf, declared_profile
from dovetail.cluster.protocol import (
    ClusterEvent,
    ClusterLost,
    ClusterUp,
    Deliver,
    DevicesSeen,
    LaunchFailed,
    NodesSeen,
    Released,
    Woken,
    WorkerGone,
)
from dovetail.scheduler.view import DeviceView, NodeView
from dovetail_workers.journal import Entry, write_segment
from dovetail_workers.launch import Launch
from dovetail_workers.reports import Ended, Report, Started
from dovetail_workers.shared_device import DeviceShares, JobShare
from dovetail_workers.storage.protocol import Storage


def one_node(
    devices: int = 1, device_bytes: int = 2**30, cpus: float = 2.0
) -> tuple[NodeView, ...]:
    """A node `n1` with CPU devices."""
    names = (f"cpu:{index}" for index in range(devices))
    found = tuple(DeviceView(name=name, bytes=device_bytes) for name in names)
    return (NodeView(id="node-1", name="n1", cpus=cpus, devices=found),)


class FakeCluster:
    """Implements `Cluster`. With `auto_release` (default) a release is answered at once, as by
    workers that obey.
    """

    def __init__(
        self,
        deliver: Deliver,
        storage: Storage,
        nodes: Iterable[NodeView] | None = None,
        *,
        auto_release: bool = True,
        profile_of: ProfileOf = declared_profile,
    ) -> None:
        self._deliver, self._storage = deliver, storage
        self._nodes = tuple(nodes) if nodes is not None else one_node()
        self._auto_release = auto_release
        self._devices = FakeDevices(profile_of)
        self._placed: dict[str, str] = {}
        self._segments: dict[str, int] = {}
        self._entries: dict[str, int] = {}
        self.launched: dict[str, Launch] = {}
        self.live: set[str] = set()
        self.released: list[str] = []
        self.refuse_launches: str | None = None

    def start(self) -> None:
        self.tell(ClusterUp(address="fake", dashboard_url=None, live=tuple(sorted(self.live))))
        self.tell(NodesSeen(nodes=self._nodes))

    def launch(self, launch: Launch, node_id: str, cpus: float) -> None:
        if self.refuse_launches is not None:
            self.tell(LaunchFailed(attempt_id=launch.attempt_id, cause=self.refuse_launches))
            return
        if launch.attempt_id in self.live:
            return
        self.launched[launch.attempt_id] = launch
        self.live.add(launch.attempt_id)
        self._placed[launch.attempt_id] = node_id
        self._join(launch.attempt_id)

    def release(self, attempt_id: str, grace_s: float) -> None:
        self.released.append(attempt_id)
        if self._auto_release:
            self.confirm_release(attempt_id)

    def close(self) -> None:
        """Nothing to let go of."""

    def stop(self) -> None:
        self.live.clear()
        self._devices.forget_all()

    def tell(self, event: ClusterEvent) -> None:
        self._deliver(event)

    def confirm_release(self, attempt_id: str) -> None:
        self._gone(attempt_id)
        self.tell(Released(attempt_id=attempt_id, killed=0))

    def report(self, attempt_id: str, *reports: Report, wake: bool = True) -> None:
        """Write one journal segment, as the attempt's worker."""
        job_id, _, attempt = attempt_id.partition(".")
        number = self._segments[attempt_id] = self._segments.get(attempt_id, 0) + 1
        entries = []
        for report in reports:
            count = self._entries[attempt_id] = self._entries.get(attempt_id, 0) + 1
            entries.append(Entry(number=count, at=datetime.now(UTC), report=report))
        write_segment(self._storage, job_id, int(attempt), number, entries)
        if wake:
            self.tell(Woken(attempt_id=attempt_id))

    def share(self, device: str, *jobs: JobShare) -> None:
        """A broker of the first node says that its device is divided so, whatever is true."""
        node = self._nodes[0]
        found = tuple(
            DeviceShares(
                device=each.name, bytes=each.bytes, jobs=jobs if each.name == device else ()
            )
            for each in node.devices
        )
        self.tell(DevicesSeen(node_id=node.id, devices=found))

    def begin(self, attempt_id: str, pid: int = 4242) -> None:
        launch = self.launched[attempt_id]
        self._join(attempt_id)
        self.report(attempt_id, Started(pid=pid, node=launch.node, device=launch.device))

    def end(self, attempt_id: str, ended: Ended) -> None:
        self.report(attempt_id, ended)
        self._gone(attempt_id)
        self.tell(WorkerGone(attempt_id=attempt_id, cause="the attempt is over"))

    def finish(self, attempt_id: str) -> None:
        self.end(attempt_id, Ended(outcome="succeeded", exit_code=0, message="ran to its end"))

    def lose(self, attempt_id: str, cause: str = "its worker died: killed") -> None:
        """The worker is gone and had no time to say anything."""
        self._gone(attempt_id)
        self.tell(WorkerGone(attempt_id=attempt_id, cause=cause))

    def lose_ray(self, cause: str = "the head is gone") -> None:
        self.live.clear()
        self._devices.forget_all()
        self.tell(ClusterLost(cause=cause))

    def _join(self, attempt_id: str) -> None:
        """Unless somebody else launched it: then it has joined there."""
        node_id = self._placed.get(attempt_id)
        if node_id is None:
            return
        if (seen := self._devices.join(self.launched[attempt_id], node_id)) is not None:
            self.tell(seen)

    def _gone(self, attempt_id: str) -> None:
        self.live.discard(attempt_id)
        if (seen := self._devices.leave(attempt_id)) is not None:
            self.tell(seen)
