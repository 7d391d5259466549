"""Whether a job may have a device, alone or beside others: what memory and computing leave of each
one's speed, predicted from their profiles. Pure.

Memory: `apportion` divides the device's bytes; a job on a lower rung stalls and computes again, and
goes at speed s, at most 1. Computing: alone and without a stall a job keeps the share b of its
device busy, so at speed s it wants s b of it. Jobs that want more than there is take turns:

    rate_i = s_i * min(1, 1 / sum_j(s_j b_j))        throughput = sum_i(rate_i)

in units of what each job does alone. Two jobs of b = 1 come to 1, which is what they do one after
the other, and finish later; two of b = 0.5 come to 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from dovetail.scheduler.view import DeviceView, Holding, NodeView, QueuedJob, Sharing
from dovetail.scheduler.words import listed, who
from dovetail_jobs.units import format_bytes
from tensile.coordinator import Member, Profile, apportion

GAIN = 0.05  # of what a job does alone, for `auto`: being together may cost as much, unpredicted
_SAME = 1e-9  # speeds closer than that are one speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The job may go there. `slowdown` is what it adds to the sum of all jobs' slowdowns, each by
    its weight: its own, 1 for none, and what it costs those who are there.
    """

    slowdown: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """The job may not; `cause` goes on from the device's name."""

    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    job: str
    cpus: float
    sharing: Sharing


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """What jobs on one device will do, in their order: `speeds` by memory, `rates` in all. `busy`
    is how much of its computing they want; above 1 they take turns.
    """

    speeds: tuple[float, ...]
    rates: tuple[float, ...]
    busy: float

    @property
    def throughput(self) -> float:
        return sum(self.rates)


def alone(job: QueuedJob, node: NodeView, device: DeviceView) -> Fit | Misfit:
    """What comes of `job` on a device that nobody else holds, and that its least fits. One that ran
    out of memory takes what it can get, however slow it is there.
    """
    found = predict([Tenant(job=job.id, cpus=job.cpus, sharing=job.sharing)], node, device)
    if found is None:  # no profile: it goes as it goes
        return Fit(slowdown=job.sharing.weight)
    (speed,) = found.speeds
    if speed < job.sharing.min_speed and job.terms is None:
        return Misfit(
            cause=f"has {format_bytes(device.bytes)}, with which this job would go at {speed:.0%} "
            "of its speed for want of memory, below its resources.min_speed of "
            f"{job.sharing.min_speed:.0%}"
        )
    return Fit(slowdown=job.sharing.weight / speed)


def speed_alone(job: QueuedJob, device: DeviceView) -> float:
    """What the memory of a device leaves of the job's speed there; 1 where that is not known."""
    profile = job.sharing.profile
    return 1.0 if profile is None else profile.speed_with(device.bytes)


def join(
    job: QueuedJob, holders: Sequence[Holding], node: NodeView, device: DeviceView
) -> Fit | Misfit:
    """What comes of `job` beside `holders`, at least one.

    `share: true` joins wherever all keep their `min_speed`, `auto` only where it adds to the
    throughput.
    """
    held = f"is held by {listed(who(holder) for holder in holders)}"
    if job.sharing.share is False or job.sharing.profile is None:
        return Misfit(cause=held)
    for holder in holders:
        if holder.sharing.share is False or holder.sharing.profile is None:
            why = f", which cannot share it: {holder.sharing.alone}" if holder.sharing.alone else ""
            return Misfit(cause=f"is held by {who(holder)}{why}")
    there = [
        Tenant(job=holder.job_id, cpus=holder.cpus, sharing=holder.sharing) for holder in holders
    ]
    newcomer = Tenant(job=job.id, cpus=job.cpus, sharing=job.sharing)
    before = predict(there, node, device)
    after = predict([*there, newcomer], node, device)
    if before is None or after is None:
        return Misfit(cause=f"{held}; {_short(there, newcomer, device)}")
    names = [*(who(holder) for holder in holders), "this job"]
    for name, tenant, speed in zip(names, (*there, newcomer), after.speeds, strict=True):
        if speed < tenant.sharing.min_speed:
            return Misfit(
                cause=f"{held}; together, {name} would go at {speed:.0%} of its speed for want of "
                f"memory, below its resources.min_speed of {tenant.sharing.min_speed:.0%}"
            )
    if job.sharing.share == "auto" and after.throughput < before.throughput + GAIN:
        return Misfit(
            cause=f"{held}; with this job too it would do {after.throughput:.2f} jobs' work at a "
            f"time instead of {before.throughput:.2f}, since they {_loss(before, after)}; "
            "resources.share: true joins it all the same"
        )
    tenants = (*there, newcomer)
    return Fit(slowdown=_slowdowns(tenants, after) - _slowdowns(there, before))


def _slowdowns(tenants: Sequence[Tenant], together: Together) -> float:
    """Of all of them, by weight."""
    rates = zip(tenants, together.rates, strict=True)
    return sum(tenant.sharing.weight / rate for tenant, rate in rates)


def _loss(before: Together, after: Together) -> str:
    """What a newcomer, the last, costs: computing, memory, or both."""
    were = (*before.speeds, 1.0)
    slower = any(now < was - _SAME for now, was in zip(after.speeds, were, strict=True))
    causes = [
        *(["keep it busy"] if after.busy > 1 else []),
        *(["would wait for memory"] if slower else []),
    ]
    return " and ".join(causes)


def predict(tenants: Sequence[Tenant], node: NodeView, device: DeviceView) -> Together | None:
    """None where one has no profile, or not even their minima fit."""
    members = []
    for number, tenant in enumerate(tenants):
        sharing = tenant.sharing
        if sharing.profile is None:
            return None
        members.append(
            Member(
                job=str(number),
                profile=sharing.profile,
                weight=sharing.weight,
                priority=sharing.priority,
            )
        )
    speeds = _speeds(tuple(members), device.bytes)
    if speeds is None:
        return None
    wanted = sum(
        speed * _busy(tenant, node, device) for speed, tenant in zip(speeds, tenants, strict=True)
    )
    turns = min(1.0, 1.0 / wanted) if wanted else 1.0
    return Together(speeds=speeds, rates=tuple(speed * turns for speed in speeds), busy=wanted)


@lru_cache(maxsize=4096)
def _speeds(members: tuple[Member, ...], device_bytes: int) -> tuple[float, ...] | None:
    """Remembered: the same jobs are looked at in every cycle until something changes."""
    division = apportion(members, device_bytes)
    return None if division is None else tuple(portion.speed for portion in division.portions)


def _busy(tenant: Tenant, node: NodeView, device: DeviceView) -> float:
    """The share of a device that a job keeps busy alone. A CPU device's part of its node's cpus is
    kept busy only as far as the job has threads, one at least.
    """
    if device.kind != "cpu":
        return tenant.sharing.busy
    devices = sum(other.kind == "cpu" for other in node.devices)
    threads = max(1, int(tenant.cpus))
    return tenant.sharing.busy * min(1.0, threads * devices / node.cpus)


def _short(there: Sequence[Tenant], newcomer: Tenant, device: DeviceView) -> str:
    owned = sum(_minimum(tenant.sharing.profile) for tenant in there)
    free = max(device.bytes - owned, 0)
    return (
        f"of its {format_bytes(device.bytes)} they own {format_bytes(owned)} as their least, which "
        f"leaves {format_bytes(free)}, and this job needs "
        f"{format_bytes(_minimum(newcomer.sharing.profile))} at least; it waits until one ends"
    )


def _minimum(profile: Profile | None) -> int:
    return 0 if profile is None else profile.minimum_bytes
