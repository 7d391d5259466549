"""The pipe between server and bridge: one JSON object per line; commands go down, cluster events
come up.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dovetail.cluster import protocol
from dovetail.cluster.protocol import ClusterEvent, DevicesSeen, NodesSeen
from dovetail.scheduler.view import DeviceView, NodeView
from dovetail_workers.shared_device import DeviceShares, JobShare

_EVENTS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        protocol.ClusterUp,
        protocol.ClusterLost,
        protocol.NodesSeen,
        protocol.DevicesSeen,
        protocol.LaunchFailed,
        protocol.WorkerGone,
        protocol.Woken,
        protocol.Released,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeSettings:
    """What the bridge is told at its start, as one JSON argument. `address` None means: a local Ray
    of our own.
    """

    namespace: str
    address: str | None
    cpu_devices: int | None
    device_bytes: int | None
    ray_record: str
    ray_token: str
    ray_log: str


def event_line(event: ClusterEvent) -> bytes:
    return json.dumps({"event": type(event).__name__, **asdict(event)}).encode() + b"\n"


def read_event(line: bytes) -> ClusterEvent:
    value = json.loads(line)
    kind = _EVENTS[value.pop("event")]
    if kind is NodesSeen:
        return NodesSeen(nodes=tuple(_node(node) for node in value["nodes"]))
    if kind is DevicesSeen:
        devices = tuple(_shares(device) for device in value["devices"])
        return DevicesSeen(node_id=value["node_id"], devices=devices)
    event: ClusterEvent = kind(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    )
    return event


def _node(value: dict[str, Any]) -> NodeView:
    devices = tuple(DeviceView(**device) for device in value["devices"])
    return NodeView(**{**value, "devices": devices})


def _shares(value: dict[str, Any]) -> DeviceShares:
    return DeviceShares(**{**value, "jobs": tuple(JobShare(**job) for job in value["jobs"])})
