"""Jobs at a coordinator or a broker: how they come, how they stand, and the wait until they do."""

from __future__ import annotations

from collections.abc import Callable

from helpers.attempts import wait_for
from tensile.coordinator import Coordinator, Member, Profile, Rung, Share
from tensile.coordinator.messages import Command, Joined


def member(name: str, peak: int = 900, minimum: int = 300) -> Member:
    rungs = (Rung.flat(peak, 1.0), Rung.flat(minimum, 2.0))
    return Member(job=name, profile=Profile(rungs=rungs))


def joins(coordinator: Coordinator, name: str, profile: Profile, now_s: float = 0) -> None:
    coordinator.handle(Joined(member=Member(job=name, profile=profile)), now_s)


def comes_back(
    coordinator: Coordinator, name: str, profile: Profile, holds_bytes: int, now_s: float = 5
) -> tuple[Command, ...]:
    member = Member(job=name, profile=profile)
    return coordinator.handle(Joined(member=member, holds_bytes=holds_bytes), now_s)


def share_of(coordinator: Coordinator, name: str, now_s: float = 0) -> Share:
    return next(share for share in coordinator.shares(now_s) if share.job == name)


def until(what: str, is_so: Callable[[], bool]) -> None:
    wait_for(what, lambda: is_so() or None)
