"""Which nodes the cluster had of late and may have again: only with them it is known that no device
can hold a job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import groupby

from dovetail.scheduler.view import DeviceView, NodeView
from dovetail.store.records import DeviceRecord
from dovetail.store.store import Store

SETTLED_S = 30.0  # the nodes of a cluster come one by one
NOTED_EVERY_S = 3600.0


class KnownDevices:
    """Keeps the store's record of devices. Only the daemon's thread calls it."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._nodes: tuple[NodeView, ...] | None = None
        self._since_s = self._noted_s = 0.0
        self._known: tuple[DeviceRecord, ...] = ()

    def absent(
        self, store: Store, nodes: tuple[NodeView, ...] | None, now: datetime
    ) -> tuple[NodeView, ...] | None:
        """Nodes that are not among `nodes`, those of now; None while more may still come."""
        counted_s = self._monotonic()
        if not nodes:
            self._nodes = None
            return None
        if nodes != self._nodes or counted_s - self._noted_s >= NOTED_EVERY_S:
            self._since_s = self._since_s if nodes == self._nodes else counted_s
            store.saw_devices(_records(nodes), now)
            self._nodes, self._noted_s, self._known = nodes, counted_s, store.devices()
        if counted_s - self._since_s < SETTLED_S:
            return None
        return absent(self._known, nodes)


def absent(known: Sequence[DeviceRecord], nodes: Sequence[NodeView]) -> tuple[NodeView, ...]:
    """Of what is known, in the order of names, the nodes that are not among `nodes`."""
    here = {node.name for node in nodes}
    return tuple(
        NodeView(
            id="",
            name=name,
            cpus=0.0,
            devices=tuple(DeviceView(name=each.device, bytes=each.bytes) for each in devices),
        )
        for name, devices in groupby(known, key=lambda each: each.node)
        if name not in here
    )


def _records(nodes: Sequence[NodeView]) -> list[DeviceRecord]:
    return [
        DeviceRecord(node=node.name, device=device.name, bytes=device.bytes)
        for node in nodes
        for device in node.devices
    ]
