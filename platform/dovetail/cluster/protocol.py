"""What the daemon asks of a cluster, and what a cluster tells it: commands in, events out.

Two implementations: `ray_cluster.RayCluster` (a child process that is the Ray driver) and
`fake.FakeCluster` (scripted, for tests). Events are only news; the truth is the store for decisions
and the journal in storage for what a job did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dovetail.scheduler.view import NodeView
from dovetail_workers.launch import Launch
from dovetail_workers.shared_device import DeviceShares


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterUp:
    """Connected. `live` are the attempts (`<job>.<n>`) whose workers exist, whoever started
    them.
    """

    address: str
    dashboard_url: str | None
    live: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLost:
    """Not connected now; commands wait until the next ClusterUp."""

    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesSeen:
    nodes: tuple[NodeView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesSeen:
    """How the devices of a node are shared now: told when that changed, at most once a second."""

    node_id: str
    devices: tuple[DeviceShares, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFailed:
    """The worker of this attempt could not be made; nothing of it runs."""

    attempt_id: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGone:
    """The worker of this attempt is no more; its journal says whether it ended or was lost."""

    attempt_id: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Woken:
    """The attempt has written something to storage."""

    attempt_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """Checked: no process of the attempt is left and its resources are back. `killed` counts what
    had to be killed.
    """

    attempt_id: str
    killed: int


ClusterEvent = (
    ClusterUp | ClusterLost | NodesSeen | DevicesSeen | LaunchFailed | WorkerGone | Woken | Released
)
Deliver = Callable[[ClusterEvent], None]


class Cluster(Protocol):
    """Commands return at once and are idempotent by attempt; their outcome arrives as an event."""

    def start(self) -> None:
        """Begin to connect; ClusterUp or ClusterLost follows."""

    def launch(self, launch: Launch, node_id: str, cpus: float) -> None:
        """Start the worker of an attempt on that node and device."""

    def release(self, attempt_id: str, grace_s: float) -> None:
        """Stop what runs (flag, grace, kill), check that nothing is left, then say Released."""

    def close(self) -> None:
        """Let go of the cluster; workers go on."""

    def stop(self) -> None:
        """End a cluster that we started ourselves, with everything in it."""
