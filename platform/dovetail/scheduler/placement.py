"""Which device a job gets, or what stands in its way.

`Books` is the scratch page of one scheduling cycle: what the nodes have, less what attempts hold.
Of the devices that are free and of those whose holders share them, `colocation` says where the job
may go, and what that costs. The cpus held on a node never exceed what it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from dovetail.scheduler.colocation import Fit, Misfit, alone, join, speed_alone
from dovetail.scheduler.view import DeviceView, Holding, NodeView, QueuedJob
from dovetail.scheduler.words import listed, who
from dovetail_jobs.lifecycle import Reason
from dovetail_jobs.units import format_bytes

_SLACK_CPUS = 1e-9  # 0.1 + 0.2 cpus fit into 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """`beside` are those who hold it already."""

    node: NodeView
    device: DeviceView
    beside: tuple[Holding, ...] = ()

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
    holders: dict[tuple[str, str], list[Holding]] = field(default_factory=dict)
    kept_for: dict[tuple[str, str], str] = field(default_factory=dict)
    held_cpus: dict[str, float] = field(default_factory=dict)

    def hold(self, holding: Holding) -> None:
        self.holders.setdefault((holding.node_id, holding.device), []).append(holding)
        self.held_cpus[holding.node_id] = self.held_cpus.get(holding.node_id, 0) + holding.cpus

    def holdings(self) -> Iterator[Holding]:
        return chain.from_iterable(self.holders.values())

    def keep(self, job: QueuedJob) -> None:
        """Let nobody else join the device that becomes free first, so that a job that needs one of
        its own is not overtaken for ever: that with the fewest holders.
        """
        open_ = [
            place
            for place in self.places()
            if _least_bytes(job) <= place.device.bytes
            and _enough(job, place.node.cpus)
            and (place.node.id, place.device.name) not in self.kept_for
            and isinstance(alone(job, place.node, place.device), Fit)
        ]
        if open_:
            best = min(open_, key=lambda place: (len(place.beside), *_name(place)))
            self.kept_for[best.node.id, best.device.name] = job.id

    def free_cpus(self, node: NodeView) -> float:
        return node.cpus - self.held_cpus.get(node.id, 0.0)

    def places(self) -> Iterator[Place]:
        for node in self.nodes:
            for device in node.devices:
                beside = self.holders.get((node.id, device.name), ())
                yield Place(node=node, device=device, beside=tuple(beside))


def find(job: QueuedJob, books: Books) -> Place | Obstacle:
    """The best place for one attempt of `job`, or the nearest thing that stands in its way.

    Best is where it adds least to the slowdowns of all jobs, its own and its neighbours'. Of equals
    a free device comes before a shared one, then the smallest, so that larger ones stay free for
    jobs that need them, then the node with the most free cpus; names break ties. A job that ran out
    of memory takes another device before the one where it did.
    """
    places = list(books.places())
    large_enough = [place for place in places if _least_bytes(job) <= place.device.bytes]
    suited = [place for place in large_enough if _enough(job, place.node.cpus)]
    if job.devices > 1 or not suited:
        return _never(job, places, large_enough)
    if all(isinstance(alone(job, place.node, place.device), Misfit) for place in suited):
        return Obstacle(reason=Reason.DOES_NOT_FIT, message=_too_slow(job, suited))
    fitting: list[tuple[float, Place]] = []
    causes: list[str] = []
    for place in suited:
        found = _look(job, place, books)
        if isinstance(found, Fit):
            fitting.append((found.slowdown, place))
        else:
            causes.append(f"{place} {found.cause}")
    if ready := [item for item in fitting if _enough(job, books.free_cpus(item[1].node))]:
        _, best = min(
            ready,
            key=lambda item: (
                _ran_out(job, item[1]),
                round(item[0], 9),
                bool(item[1].beside),
                item[1].device.bytes,
                -books.free_cpus(item[1].node),
                *_name(item[1]),
            ),
        )
        return best
    if fitting:
        message = _waits_for_cpus(job, [place for _, place in fitting], books)
        return Obstacle(reason=Reason.WAITING_FOR_CPUS, message=message)
    return Obstacle(reason=Reason.WAITING_FOR_DEVICE, message=_waits_for_device(job, causes))


def _look(job: QueuedJob, place: Place, books: Books) -> Fit | Misfit:
    """What comes of the job there, but for its cpus."""
    if not place.beside:
        return alone(job, place.node, place.device)
    found = join(job, place.beside, place.node, place.device)
    if isinstance(found, Misfit):
        return found
    if (refused := _refusal(job, place)) is not None:
        return Misfit(cause=refused)
    if (waits := books.kept_for.get((place.node.id, place.device.name))) is not None:
        return Misfit(cause=f"is kept for {waits}, which needs a device of its own")
    return found


def _ran_out(job: QueuedJob, place: Place) -> bool:
    return job.terms is not None and job.terms.on(place.node.id, place.device.name) is not None


def _refusal(job: QueuedJob, place: Place) -> str | None:
    """Why a job that ran out of memory does not join those who hold this place."""
    if job.terms is None:
        return None
    return job.terms.refusal(place.node.id, place.device.name, len(place.beside))


def _least_bytes(job: QueuedJob) -> int:
    """What its device must have: the least of its plans, or all of it where nothing plans it."""
    profile = job.sharing.profile
    needed_bytes = (job.peak_bytes or 0) if profile is None else profile.minimum_bytes
    return max(job.memory_bytes or 0, needed_bytes)


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
        message = _too_large(job, places)
    else:
        widest = max(large_enough, key=lambda place: (place.node.cpus, *_name(place)))
        message = (
            f"resources.cpus: {job.cpus:g} does not fit, the most that a suitable node has is "
            f"{widest.node.cpus:g} ({widest.node.name}); ask for at most that, or add a node"
        )
    return Obstacle(reason=Reason.DOES_NOT_FIT, message=message)


def never_fits(job: QueuedJob, nodes: tuple[NodeView, ...]) -> str | None:
    """Why no device of these nodes can hold what the job needs at least; None where one can, where
    that is not known, and where there are no devices.
    """
    places = list(Books(nodes=nodes).places())
    if not places or any(_least_bytes(job) <= place.device.bytes for place in places):
        return None
    return _too_large(job, places)


def _too_large(job: QueuedJob, places: Sequence[Place]) -> str:
    largest = max(places, key=lambda place: (place.device.bytes, *_name(place)))
    has = f"the largest device is {largest} with {format_bytes(largest.device.bytes)}"
    if (job.memory_bytes or 0) > largest.device.bytes:
        return (
            f"resources.memory: {format_bytes(job.memory_bytes or 0)} does not fit, {has}; ask for "
            "at most that, or offer a larger device"
        )
    least = format_bytes(_least_bytes(job))
    batch = _smaller_batch(job, largest.device.bytes / _least_bytes(job))
    again = "compute activations again in the model (torch.utils.checkpoint)"
    if job.sharing.profile is None:
        return (
            f"does not fit: its step takes {least}, and {has}; use memory.policy: tensile, which "
            f"makes do with less, {batch}, or {again}"
        )
    return (
        f"does not fit: no plan of its step keeps less than {least}, and {has}; use {batch}, "
        f"{again}, or shard it over several devices (not here yet)"
    )


def _smaller_batch(job: QueuedJob, part: float) -> str:
    """In proportion, so at most that: what does not depend on the batch stays."""
    if job.batch_size is None:
        return "a smaller params.batch_size"
    if (most := int(job.batch_size * part)) < 1:
        return f"a smaller model (params.batch_size: {job.batch_size} cannot be cut enough)"
    return f"a smaller params.batch_size (at most {most} instead of {job.batch_size})"


def _too_slow(job: QueuedJob, places: Sequence[Place]) -> str:
    """Its least fits, and not the speed that it asks for."""
    best = max(places, key=lambda place: (speed_alone(job, place.device), *_name(place)))
    speed = _down(speed_alone(job, best.device))
    batch = "a smaller params.batch_size" if job.batch_size is not None else "a smaller step"
    return (
        f"resources.min_speed: {job.sharing.min_speed:g} cannot be reached: alone on the best "
        f"device, {best} with {format_bytes(best.device.bytes)}, it would go at {speed:.0%} of its "
        f"speed for want of memory; lower it to {speed:g}, use {batch}, or offer a larger "
        "device"
    )


def _down(speed: float) -> float:
    """With two digits that count."""
    scale: float = 10.0 ** (1 - math.floor(math.log10(speed)))
    return math.floor(speed * scale) / scale


def _waits_for_device(job: QueuedJob, causes: list[str]) -> str:
    alone = f" of its own, since {job.sharing.alone}" if job.sharing.alone else ""
    return f"waits for a device{alone}: {listed(causes)}"


def _waits_for_cpus(job: QueuedJob, fitting: list[Place], books: Books) -> str:
    node = max(
        (place.node for place in fitting), key=lambda node: (books.free_cpus(node), node.name)
    )
    holders = [item for item in books.holdings() if item.node_id == node.id]
    told = listed(f"{who(item)} holds {item.cpus:g}" for item in holders)
    free = max(books.free_cpus(node), 0.0)
    return f"waits for {job.cpus:g} cpus: {node.name} has {free:g} of {node.cpus:g} free, {told}"


def _name(place: Place) -> tuple[str, str, int, str]:
    """Orders places by name, with cuda:10 after cuda:9."""
    return (place.node.name, place.node.id, len(place.device.name), place.device.name)
