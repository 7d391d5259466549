"""Which device a job gets, or what stands in its way.

`Books` is the scratch page of one scheduling cycle: what the nodes have, less what attempts hold.
A device holds one attempt at a time, and the cpus held on a node never exceed what it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dovetail.scheduler.view import DeviceView, Holding, NodeView, QueuedJob
from dovetail_jobs.lifecycle import Reason
from dovetail_jobs.units import format_bytes

_SLACK_CPUS = 1e-9  # 0.1 + 0.2 cpus fit into 0.3
_NAMED = 3  # so many holders are named in a sentence, the rest are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    node: NodeView
    device: DeviceView

    def __str__(self) -> str:
        return f"{self.device.name} on {self.node.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a job cannot start now; `message` says what would unblock it."""

    reason: Reason
    message: str


@dataclass(slots=True)
class Books:
    """What is held, by (node id, device) and by node. An attempt on an unknown node is kept too."""

    nodes: tuple[NodeView, ...]
    holder: dict[tuple[str, str], Holding] = field(default_factory=dict)
    held_cpus: dict[str, float] = field(default_factory=dict)

    def hold(self, holding: Holding) -> None:
        self.holder[holding.node_id, holding.device] = holding
        self.held_cpus[holding.node_id] = self.held_cpus.get(holding.node_id, 0) + holding.cpus

    def free_cpus(self, node: NodeView) -> float:
        return node.cpus - self.held_cpus.get(node.id, 0.0)

    def places(self) -> Iterator[Place]:
        for node in self.nodes:
            for device in node.devices:
                yield Place(node=node, device=device)

    def holder_of(self, place: Place) -> Holding | None:
        return self.holder.get((place.node.id, place.device.name))


def find(job: QueuedJob, books: Books) -> Place | Obstacle:
    """The best free place for one attempt of `job`, or the nearest thing that stands in its way.

    Best is the smallest device that the declared memory fits, so that larger ones stay free for
    jobs that need them, then the node with the most free cpus; names break ties.
    """
    large_enough = [
        place for place in books.places() if (job.memory_bytes or 0) <= place.device.bytes
    ]
    suited = [place for place in large_enough if _enough(job, place.node.cpus)]
    if job.devices > 1 or not suited:
        return _never(job, list(books.places()), large_enough)
    idle = [place for place in suited if books.holder_of(place) is None]
    if not idle:
        held = [holding for place in suited if (holding := books.holder_of(place))]
        return Obstacle(
            reason=Reason.WAITING_FOR_DEVICE, message=_waits_for_device(held, books.nodes)
        )
    ready = [place for place in idle if _enough(job, books.free_cpus(place.node))]
    if not ready:
        return Obstacle(reason=Reason.WAITING_FOR_CPUS, message=_waits_for_cpus(job, idle, books))
    return min(
        ready, key=lambda place: (place.device.bytes, -books.free_cpus(place.node), *_name(place))
    )


def _enough(job: QueuedJob, cpus: float) -> bool:
    return job.cpus <= cpus + _SLACK_CPUS


def _never(job: QueuedJob, places: list[Place], large_enough: list[Place]) -> Obstacle:
    """Waiting for others would not help: the job asks for more than any place has when empty."""
    if not places:
        return Obstacle(
            reason=Reason.WAITING_FOR_DEVICE,
            message="waits for a device: no node of the cluster offers one now",
        )
    if job.devices > 1:
        message = (
            f"resources.devices: {job.devices} does not fit, an attempt runs on one device; use 1"
        )
    elif not large_enough:
        largest = max(places, key=lambda place: (place.device.bytes, *_name(place)))
        message = (
            f"resources.memory: {format_bytes(job.memory_bytes or 0)} does not fit, the largest "
            f"device is {largest} with {format_bytes(largest.device.bytes)}; ask for at most that, "
            "or offer a larger device"
        )
    else:
        widest = max(large_enough, key=lambda place: (place.node.cpus, *_name(place)))
        message = (
            f"resources.cpus: {job.cpus:g} does not fit, the most that a suitable node has is "
            f"{widest.node.cpus:g} ({widest.node.name}); ask for at most that, or add a node"
        )
    return Obstacle(reason=Reason.DOES_NOT_FIT, message=message)


def _waits_for_device(held: list[Holding], nodes: tuple[NodeView, ...]) -> str:
    names = {node.id: node.name for node in nodes}
    told = _list(f"{item.device} on {names[item.node_id]} is held by {_who(item)}" for item in held)
    return f"waits for a device: {told}"


def _waits_for_cpus(job: QueuedJob, idle: list[Place], books: Books) -> str:
    node = max((place.node for place in idle), key=lambda node: (books.free_cpus(node), node.name))
    holders = [item for item in books.holder.values() if item.node_id == node.id]
    told = _list(f"{_who(item)} holds {item.cpus:g}" for item in holders)
    free = max(books.free_cpus(node), 0.0)
    return f"waits for {job.cpus:g} cpus: {node.name} has {free:g} of {node.cpus:g} free, {told}"


def _who(holding: Holding) -> str:
    return f"{holding.job_id} ({holding.job_name})" if holding.job_name else holding.job_id


def _list(sentences: Iterable[str]) -> str:
    told = list(sentences)
    more = [f"and {len(told) - _NAMED} more"] if len(told) > _NAMED else []
    return ", ".join(told[:_NAMED] + more)


def _name(place: Place) -> tuple[str, str, int, str]:
    """Orders places by name, with cuda:10 after cuda:9."""
    return (place.node.name, place.node.id, len(place.device.name), place.device.name)
