"""What the scheduler looks at: one frozen picture of nodes, devices and jobs. No I/O, no rows.

A picture goes to JSON and back, so that a decision seen in the field can be replayed in a test.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """`name` is `cpu:0` or `cuda:1`; `bytes` is what jobs may use of it."""

    name: str
    bytes: int

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """`id` is Ray's node id, `name` what a person calls it; `cpus` are logical."""

    id: str
    name: str
    cpus: float
    devices: tuple[DeviceView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What an attempt holds, from its placement until its processes are checked to be gone."""

    job_id: str
    attempt: int
    node_id: str
    device: str
    cpus: float
    job_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedJob:
    """A job that waits. `seq` is the order of submission, `after` the earliest time to start."""

    id: str
    name: str
    seq: int
    priority: int
    devices: int
    cpus: float
    memory_bytes: int | None
    waits_for_release: bool = False
    after: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """`nodes` is None until the cluster has answered once."""

    nodes: tuple[NodeView, ...] | None
    holdings: tuple[Holding, ...]
    queued: tuple[QueuedJob, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back to an equal view."""
        value = asdict(self)
        for job in value["queued"]:
            job["after"] = job["after"].isoformat() if job["after"] else None
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ClusterView:
        nodes = value["nodes"]
        return cls(
            nodes=None if nodes is None else tuple(_node(node) for node in nodes),
            holdings=tuple(Holding(**holding) for holding in value["holdings"]),
            queued=tuple(_queued(job) for job in value["queued"]),
        )


def _node(value: dict[str, Any]) -> NodeView:
    return NodeView(**{**value, "devices": tuple(DeviceView(**item) for item in value["devices"])})


def _queued(value: dict[str, Any]) -> QueuedJob:
    after = value["after"]
    return QueuedJob(**{**value, "after": datetime.fromisoformat(after) if after else None})
