"""What the scheduler looks at: one frozen picture of nodes, devices and jobs. No I/O, no Ray, no rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


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
    """An attempt that holds a device and cpus, from its placement until its processes are checked to be gone."""

    job_id: str
    attempt: int
    node_id: str
    device: str
    cpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedJob:
    """A job that waits. `seq` is the order of submission; `after` is the earliest time of its next attempt."""

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
