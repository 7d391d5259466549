"""How the bytes of a device are divided among jobs: fairly, and to the most speed.

Priorities first: those of a higher one are served before the next get more than their minima. Among
equals of priority the parts are proportionally fair (`static_split.py`). Where the curves interlock
the jobs go up from there as long as the peak of their sum fits, equal jobs always together; that is
chosen only where nobody is slower for it, and never across priorities: who interlocks waits for
others' peaks, and a job waits for none that comes after it. So of equal jobs none is ever slower
than another, and no order of the members changes what any of them gets; what is left over is theirs
in equal parts, but for bytes that cannot be halved, which nobody gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log

from tensile.coordinator.interlock import interlock
from tensile.coordinator.profile import Profile
from tensile.coordinator.static_split import fair_parts

_SLACK = 0.03  # of the device that interlocked curves leave free: they are predictions


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A job on the device. Those of a higher priority are served first; `weight` counts among
    equals. Raises ValueError for what is none.
    """

    job: str
    profile: Profile
    weight: float = 1.0
    priority: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.job, str) or not self.job:
            raise ValueError(f"job: {self.job!r} is no name; give it one that is there once")
        if not is_weight(self.weight):
            raise ValueError(
                f"weight of {self.job}: {self.weight!r} is no number above 0; "
                "write 1 for an equal share"
            )
        if type(self.priority) is not int:
            raise ValueError(
                f"priority of {self.job}: {self.priority!r} is no whole number; 0 is the usual"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """`job` may hold up to `cap_bytes`, which is enough for `rung`, and is predicted to go at
    `speed`. Caps of a division that is interlocked sum to more than the device: then they are asked
    for and given back within a step.
    """

    job: str
    rung: int
    cap_bytes: int
    speed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    portions: tuple[Portion, ...]
    interlocked: bool


def is_weight(value: object) -> bool:
    """Whether parts can be measured by it."""
    return type(value) in (int, float) and 0 < value < inf  # type: ignore[operator]


def apportion(members: Sequence[Member], device_bytes: int) -> Division | None:
    """In the order of `members`. None where not even the minima fit."""
    if sum(member.profile.minimum_bytes for member in members) > device_bytes:
        return None
    order = sorted(range(len(members)), key=lambda i: _nature(members[i]))
    ranked = [members[i] for i in order]
    caps = _fixed(ranked, device_bytes)
    rungs = _interlocked(ranked, caps, device_bytes)
    if rungs is not None:
        caps = [m.profile.rungs[rung].bytes for m, rung in zip(ranked, rungs, strict=True)]
    interlocked = sum(caps) > device_bytes
    if not interlocked:
        _top_up(ranked, caps, device_bytes)
    portions = {
        i: Portion(
            job=members[i].job,
            rung=members[i].profile.rung_for(cap_bytes),
            cap_bytes=cap_bytes,
            speed=members[i].profile.speed_with(cap_bytes),
        )
        for i, cap_bytes in zip(order, caps, strict=True)
    }
    return Division(
        portions=tuple(portions[i] for i in range(len(members))), interlocked=interlocked
    )


def _nature(member: Member) -> tuple[object, ...]:
    """All that counts of a member: an order that no name or arrival changes."""
    rungs = tuple((r.bytes, r.step_s, r.copy_s, r.curve) for r in member.profile.rungs)
    return -member.priority, -member.weight, rungs


def _levels(members: Sequence[Member]) -> list[list[int]]:
    """Places of the members of each priority, the highest first."""
    priorities = sorted({member.priority for member in members}, reverse=True)
    return [[i for i, m in enumerate(members) if m.priority == priority] for priority in priorities]


# parts that nobody exceeds


def _fixed(members: Sequence[Member], device_bytes: int) -> list[int]:
    caps = [member.profile.minimum_bytes for member in members]
    for level in _levels(members):
        room_bytes = device_bytes - sum(caps) + sum(caps[i] for i in level)
        parts = fair_parts([(members[i].profile, members[i].weight) for i in level], room_bytes)
        for i, part_bytes in zip(level, parts, strict=True):
            caps[i] = part_bytes
    return caps


def _top_up(members: Sequence[Member], caps: list[int], device_bytes: int) -> None:
    """What makes nobody faster is slack against wrong predictions: by priority, then by weight, up
    to each one's peak.
    """
    for level in _levels(members):
        hungry = [i for i in level if caps[i] < members[i].profile.peak_bytes]
        while hungry and (free_bytes := device_bytes - sum(caps)) > 0:
            total = sum(members[i].weight for i in hungry)
            still = []
            for i in hungry:
                share = int(free_bytes * members[i].weight / total)
                missing = members[i].profile.peak_bytes - caps[i]
                caps[i] += min(share, missing)
                if missing > share > 0:
                    still.append(i)
            if len(still) == len(hungry):
                break  # all took their share: what is left is less than a byte for each
            hungry = still


# peaks that do not meet


def _interlocked(
    members: Sequence[Member], caps: Sequence[int], device_bytes: int
) -> list[int] | None:
    """Rungs on which nobody is slower than with `caps` and somebody is faster; None without any.

    From the rungs that the caps are enough for, the best step up is taken for as long as there is
    one.
    """
    fixed = [m.profile.speed_with(cap) for m, cap in zip(members, caps, strict=True)]
    if all(speed == 1 for speed in fixed) or len({m.priority for m in members}) > 1:
        return None
    rungs = [m.profile.rung_for(cap) for m, cap in zip(members, caps, strict=True)]
    groups = _equals(members)
    for group in groups:  # a byte more or less makes no difference between equals
        for i in group:
            rungs[i] = max(rungs[j] for j in group)
    while (higher := _best_step(members, rungs, groups, device_bytes)) is not None:
        rungs = higher
    speeds = [m.profile.speed(rung) for m, rung in zip(members, rungs, strict=True)]
    if speeds == fixed or any(s < f for s, f in zip(speeds, fixed, strict=True)):
        return None
    return rungs


def _equals(members: Sequence[Member]) -> list[list[int]]:
    """Places of those that differ by name only; they stand side by side."""
    groups: list[list[int]] = []
    for i, member in enumerate(members):
        if groups and _nature(members[groups[-1][0]]) == _nature(member):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _best_step(
    members: Sequence[Member],
    rungs: list[int],
    groups: Sequence[Sequence[int]],
    device_bytes: int,
) -> list[int] | None:
    """The rungs after the step up with the largest weighted relative gain per byte: of a group of
    equals, or of all, since curves of equal steps interlock where those of unlike ones do not.
    A rung that is no faster is no step up.
    """
    best: tuple[float, list[int]] | None = None
    longest = max(len(member.profile.rungs) for member in members)
    moves = [dict.fromkeys(group, rung) for group in groups for rung in range(rungs[group[0]])]
    moves += [{i: min(rung, rungs[i]) for i in range(len(rungs))} for rung in range(longest)]
    for move in moves:
        after = [move.get(i, rung) for i, rung in enumerate(rungs)]
        gain = sum(
            m.weight * log(m.profile.speed(higher) / m.profile.speed(rung))
            for m, rung, higher in zip(members, rungs, after, strict=True)
        )
        if gain <= 0 or not _fits(members, after, device_bytes):
            continue
        rank = gain / (_bytes(members, after) - _bytes(members, rungs)) * device_bytes
        if best is None or rank > best[0]:
            best = rank, after
    return None if best is None else best[1]


def _bytes(members: Sequence[Member], rungs: Sequence[int]) -> int:
    return sum(m.profile.rungs[rung].bytes for m, rung in zip(members, rungs, strict=True))


def _fits(members: Sequence[Member], rungs: Sequence[int], device_bytes: int) -> bool:
    """By their caps, or else interlocked. The minima themselves never count on interlocking: each
    job owns its own at any time, whatever the others do. Nor do jobs that would wait for each
    other's copies: their steps do not stay as long as they are foreseen.
    """
    chosen = [member.profile.rungs[rung] for member, rung in zip(members, rungs, strict=True)]
    if sum(rung.bytes for rung in chosen) <= device_bytes:
        return True
    if sum(rung.copy_share for rung in chosen) > 1:
        return False
    leased = [member.profile.leased(rung) for member, rung in zip(members, rungs, strict=True)]
    return interlock(leased).peak_bytes <= (1 - _SLACK) * device_bytes
