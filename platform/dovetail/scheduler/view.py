"""What the scheduler looks at: one frozen picture of nodes, devices and jobs. No I/O, no rows.

A picture goes to JSON and back, so that a decision seen in the field can be replayed in a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Self

from dovetail.scheduler.readmission import Shortage, Terms
from dovetail_jobs.spec import Share
from tensile.coordinator import Profile


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
class Sharing:
    """What a job asks of a device that it has not for itself. By default it wants no other there.

    `profile` is None where its memory is not foreseen; `alone` then says why, as in "waits for a
    device of its own, since …". `min_speed` is the least that memory may leave of its speed, `busy`
    the share of its cpus, or of its GPU, that it keeps computing when nobody else is there.
    """

    share: Share = False
    profile: Profile | None = None
    alone: str | None = None
    min_speed: float = 0.5
    weight: float = 1.0
    priority: int = 0
    busy: float = 1.0

    def to_json(self) -> dict[str, Any]:
        profile = None if self.profile is None else self.profile.to_json()
        return {**asdict(replace(self, profile=None)), "profile": profile}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        profile = value["profile"]
        return cls(**{**value, "profile": None if profile is None else Profile.from_json(profile)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What an attempt holds, from its placement until its processes are checked to be gone."""

    job_id: str
    attempt: int
    node_id: str
    device: str
    cpus: float
    job_name: str | None = None
    sharing: Sharing = Sharing()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedJob:
    """A job that waits. `seq` is the order of submission, `after` the earliest time to start,
    `terms` what it comes back on after it ran out of memory. `peak_bytes` is what a job takes that
    nobody plans and that declares nothing, as far as that is foreseen; `batch_size` is its
    family's.
    """

    id: str
    name: str
    seq: int
    priority: int
    devices: int
    cpus: float
    memory_bytes: int | None
    peak_bytes: int | None = None
    batch_size: int | None = None
    waits_for_release: bool = False
    after: datetime | None = None
    sharing: Sharing = Sharing()
    terms: Terms | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """`nodes` is None until the cluster has answered once. `absent` are nodes that were here and
    may come back, with no cpus; None while nobody can say that all nodes have come.
    """

    nodes: tuple[NodeView, ...] | None
    holdings: tuple[Holding, ...]
    queued: tuple[QueuedJob, ...]
    absent: tuple[NodeView, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back to an equal view."""
        value = asdict(self)
        for job in value["queued"]:
            job["after"] = job["after"].isoformat() if job["after"] else None
        known = [item.sharing for item in self.holdings] + [item.sharing for item in self.queued]
        told = (*value["holdings"], *value["queued"])
        for item, sharing in zip(told, known, strict=True):
            item["sharing"] = sharing.to_json()
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ClusterView:
        return cls(
            nodes=_nodes(value["nodes"]),
            absent=_nodes(value["absent"]),
            holdings=tuple(_holding(holding) for holding in value["holdings"]),
            queued=tuple(_queued(job) for job in value["queued"]),
        )


def _nodes(value: list[dict[str, Any]] | None) -> tuple[NodeView, ...] | None:
    return None if value is None else tuple(_node(node) for node in value)


def _node(value: dict[str, Any]) -> NodeView:
    return NodeView(**{**value, "devices": tuple(DeviceView(**item) for item in value["devices"])})


def _holding(value: dict[str, Any]) -> Holding:
    return Holding(**{**value, "sharing": Sharing.from_json(value["sharing"])})


def _queued(value: dict[str, Any]) -> QueuedJob:
    after = datetime.fromisoformat(value["after"]) if value["after"] else None
    sharing = Sharing.from_json(value["sharing"])
    terms = _terms(value["terms"]) if value["terms"] else None
    return QueuedJob(**{**value, "after": after, "sharing": sharing, "terms": terms})


def _terms(value: dict[str, Any]) -> Terms:
    return Terms(**{**value, "ran_out": tuple(Shortage(**item) for item in value["ran_out"])})
