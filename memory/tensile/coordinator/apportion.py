"""How the bytes of a device are divided among jobs: rungs that make the most of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tensile.coordinator.interlock import interlock
from tensile.coordinator.profile import Profile

_SLACK = 0.03  # of the device that interlocked curves leave free: they are predictions


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A job on the device. Those of a higher priority are served first; `weight` counts among
    equals.
    """

    job: str
    profile: Profile
    weight: float = 1.0
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """`job` may hold up to `cap_bytes` and plans for `rung`. Caps of a division that is interlocked
    sum to more than the device: then they are asked for and given back within a step.
    """

    job: str
    rung: int
    cap_bytes: int
    speed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    portions: tuple[Portion, ...]
    interlocked: bool


def apportion(members: Sequence[Member], device_bytes: int) -> Division | None:
    """Rungs with the greatest sum of weight times predicted speed, so that the highest sum of the
    curves over time fits. None where not even the minima do.

    From all minima on, the best step up per byte is taken for as long as there is one; members of
    the highest priority are through before the next get anything. Among equal steps up the slowest
    job goes first. What is left over is divided by weight, up to each one's peak.
    """
    rungs = [len(member.profile.rungs) - 1 for member in members]
    if not _fits(members, rungs, device_bytes):
        return None
    for priority in sorted({member.priority for member in members}, reverse=True):
        mine = [i for i, member in enumerate(members) if member.priority == priority]
        while (higher := _best_step(members, rungs, mine, device_bytes)) is not None:
            rungs = higher
    sizes = [member.profile.rungs[rung].bytes for member, rung in zip(members, rungs, strict=True)]
    interlocked = sum(sizes) > device_bytes
    if not interlocked:
        sizes = _topped_up(members, sizes, device_bytes)
    return Division(
        portions=tuple(
            Portion(job=m.job, rung=rung, cap_bytes=size, speed=m.profile.speed(rung))
            for m, rung, size in zip(members, rungs, sizes, strict=True)
        ),
        interlocked=interlocked,
    )


def _best_step(
    members: Sequence[Member], rungs: list[int], mine: Sequence[int], device_bytes: int
) -> list[int] | None:
    """The rungs after the best step up: of one of `mine`, or of all of them together, since curves
    of equal steps interlock where those of unlike ones do not. A rung that is no faster is no step
    up.
    """
    best: tuple[tuple[float, float, int], list[int]] | None = None
    longest = max((len(members[i].profile.rungs) for i in mine), default=0)
    moves = [{i: rung} for i in mine for rung in range(rungs[i])]
    moves += [{i: min(rung, rungs[i]) for i in mine} for rung in range(longest)]
    for move in moves:
        after = [move.get(i, rung) for i, rung in enumerate(rungs)]
        gain = sum(
            m.weight * _more(m, *steps) for m, *steps in zip(members, rungs, after, strict=True)
        )
        if gain <= 0 or not _fits(members, after, device_bytes):
            continue
        more_bytes = _bytes(members, after) - _bytes(members, rungs)
        slowest = min(members[i].profile.speed(rungs[i]) / members[i].weight for i in move)
        rank = (round(gain / more_bytes * device_bytes, 9), -slowest, -min(move))
        if best is None or rank > best[0]:
            best = (rank, after)
    return None if best is None else best[1]


def _more(member: Member, before: int, after: int) -> float:
    return member.profile.speed(after) - member.profile.speed(before)


def _bytes(members: Sequence[Member], rungs: Sequence[int]) -> int:
    return sum(m.profile.rungs[rung].bytes for m, rung in zip(members, rungs, strict=True))


def _fits(members: Sequence[Member], rungs: Sequence[int], device_bytes: int) -> bool:
    """By their caps, or else interlocked. The minima themselves never count on interlocking: each
    job owns its own, whatever the others do.
    """
    chosen = [member.profile.rungs[rung] for member, rung in zip(members, rungs, strict=True)]
    if sum(rung.bytes for rung in chosen) <= device_bytes:
        return True
    if sum(member.profile.minimum_bytes for member in members) > device_bytes:
        return False
    return interlock(chosen).peak_bytes <= (1 - _SLACK) * device_bytes


def _topped_up(members: Sequence[Member], sizes: list[int], device_bytes: int) -> list[int]:
    """A plan between two rungs is better than the lower one, so nothing is left unused."""
    sizes = list(sizes)
    for priority in sorted({member.priority for member in members}, reverse=True):
        hungry = [i for i, member in enumerate(members) if member.priority == priority]
        while hungry and (free := device_bytes - sum(sizes)) > 0:
            total = sum(members[i].weight for i in hungry)
            still = []
            for i in hungry:
                share = int(free * members[i].weight / total)
                missing = members[i].profile.peak_bytes - sizes[i]
                sizes[i] += min(share, missing)
                if missing > share > 0:
                    still.append(i)
            if len(still) == len(hungry):
                break  # all took their share: what is left is less than a byte for each
            hungry = still
    return sizes
