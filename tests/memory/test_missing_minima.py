"""A job whose minimum has risen over what it has gets the rest before anybody grows."""

from __future__ import annotations

from helpers.random_profiles import triangle
from tensile.coordinator import Coordinator, Member, Profile, Rung, Share, declared
from tensile.coordinator.messages import (
    Drifted,
    Joined,
    Refused,
    Renewed,
    Returned,
    Ticked,
)

DEVICE = 1000


def ladder(peak: int, minimum: int) -> Profile:
    return Profile(rungs=(Rung.flat(peak, 1.0), Rung.flat(minimum, 2.0)))


def share_of(coordinator: Coordinator, job: str, now_s: float = 0) -> Share:
    return next(share for share in coordinator.shares(now_s) if share.job == job)


def a_silent_job_that_misses_some() -> Coordinator:
    """It has 100, and owns 300 since it drifted; its neighbour has not given back yet."""
    coordinator = Coordinator(DEVICE)
    coordinator.handle(Joined(member=Member(job="mute", profile=declared(100))), 0)
    coordinator.handle(Joined(member=Member(job="next", profile=ladder(900, 200))), 0)
    coordinator.handle(Drifted(member=Member(job="mute", profile=declared(300))), 0)
    coordinator.handle(Ticked(), 11)
    coordinator.handle(Renewed(job="next"), 11)
    coordinator.handle(Ticked(), 31)
    mute = share_of(coordinator, "mute", 31)
    assert mute.message.startswith("SILENT")
    assert (mute.lease_bytes, mute.minimum_bytes) == (100, 300)
    return coordinator


def test_a_silent_job_that_misses_some_of_its_minimum_is_left_room_for_it() -> None:
    coordinator = a_silent_job_that_misses_some()
    assert share_of(coordinator, "next", 31).cap_bytes == 700
    coordinator.handle(Returned(job="next", lease_bytes=700), 32)
    assert share_of(coordinator, "mute", 32).lease_bytes == 300
    assert sum(share.cap_bytes for share in coordinator.shares(32)) == DEVICE


def test_nobody_is_let_in_on_what_a_silent_job_misses_of_its_minimum_nor_grows_its_own() -> None:
    coordinator = a_silent_job_that_misses_some()
    coordinator.handle(Joined(member=Member(job="third", profile=declared(600))), 32)
    assert not share_of(coordinator, "third", 32).admitted
    (refused,) = coordinator.handle(Drifted(member=Member(job="next", profile=declared(800))), 32)
    assert isinstance(refused, Refused)


def test_where_steps_are_interlocked_what_is_missing_comes_as_the_others_curves_come_down() -> None:
    coordinator = Coordinator(DEVICE)
    for job in ("a", "b"):
        profile = Profile(rungs=(triangle(450, 100), Rung.flat(200, 2.0)))
        coordinator.handle(Joined(member=Member(job=job, profile=profile)), 0)
    coordinator.handle(Joined(member=Member(job="c", profile=declared(100))), 0)
    risen = Profile(rungs=(triangle(250, 100), Rung.flat(249, 2.0)))
    coordinator.handle(Drifted(member=Member(job="c", profile=risen)), 0)
    assert sum(share.cap_bytes for share in coordinator.shares(0)) > DEVICE
    assert share_of(coordinator, "c").lease_bytes < 249
    for job in ("a", "b"):
        coordinator.handle(Returned(job=job, lease_bytes=300), 0)
    assert share_of(coordinator, "c").lease_bytes == 249
