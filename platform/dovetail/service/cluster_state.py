"""What the server knows of the cluster right now: written by the daemon from events, read by the
use cases. Never stored.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Literal

from dovetail.scheduler.view import NodeView
from dovetail.service.shared_devices import SharedDevices


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts:
    """`nodes` is None until the cluster has answered once, and again while it is lost."""

    state: Literal["starting", "up", "lost"] = "starting"
    address: str | None = None
    dashboard_url: str | None = None
    message: str | None = None
    nodes: tuple[NodeView, ...] | None = None


class ClusterState:
    """A box with one frozen value in it, and another for what changes each second: `devices`."""

    def __init__(self) -> None:
        self.devices = SharedDevices()
        self._lock = threading.Lock()
        self._facts = ClusterFacts()

    @property
    def facts(self) -> ClusterFacts:
        with self._lock:
            return self._facts

    def up(self, address: str, dashboard_url: str | None) -> None:
        self._set(
            replace(
                self.facts, state="up", address=address, dashboard_url=dashboard_url, message=None
            )
        )

    def lost(self, cause: str) -> None:
        self._set(replace(self.facts, state="lost", message=cause, nodes=None))
        self.devices.lost()

    def nodes(self, nodes: tuple[NodeView, ...]) -> None:
        self._set(replace(self.facts, nodes=nodes))

    def _set(self, facts: ClusterFacts) -> None:
        with self._lock:
            self._facts = facts
