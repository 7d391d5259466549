"""Who stands in for a process: what it holds is the job's own, whether or not that is there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.leases import comes_back, joins, member, share_of, until
from tensile.coordinator import Coordinator, Member, declared
from tensile.coordinator.broker import Broker
from tensile.coordinator.lease import Lease, LeaseRefused, look
from tensile.coordinator.messages import Admitted, Granted, Joined, Left

DEVICE = 1000
NEVER_S = 0.2


@pytest.fixture
def broker(place: Path) -> Iterator[Broker]:
    with Broker(place, DEVICE) as broker:
        yield broker


def test_what_is_held_for_a_job_stays_until_there_is_room_for_all_that_it_needs() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "other", declared(500))
    held = Member(job="script", profile=declared(160))
    coordinator.handle(Joined(member=held, stands_in=True), 0)
    joins(coordinator, "script", declared(700))
    share = share_of(coordinator, "script")
    assert (share.admitted, share.lease_bytes) == (True, 160)
    assert "waits for 540 bytes, of which 340 bytes are free" in share.message
    joins(coordinator, "new", declared(160))
    assert share_of(coordinator, "new").admitted
    coordinator.handle(Left(job="new"), 1)
    told = coordinator.handle(Left(job="other"), 1)
    assert Admitted(job="script", minimum_bytes=700) in told
    assert [(s.job, s.lease_bytes) for s in coordinator.shares(1)] == [("script", 700)]
    told = coordinator.handle(Left(job="script", stand_in=held), 2)
    assert told[0] == Granted(job="script", lease_bytes=160)
    assert share_of(coordinator, "script", 2).message == ""


def test_who_stands_in_for_a_job_that_waits_is_counted_when_it_comes_back() -> None:
    coordinator = Coordinator(DEVICE, opens_at_s=1)
    comes_back(coordinator, "other", declared(700), 700, 0)
    joins(coordinator, "script", declared(400))
    held = Joined(member=Member(job="script", profile=declared(160)), holds_bytes=160)
    told = coordinator.handle(replace(held, stands_in=True), 0.5)
    assert not any(isinstance(command, Admitted | Granted) for command in told)
    assert share_of(coordinator, "script", 2).lease_bytes == 160
    assert Admitted(job="script", minimum_bytes=400) in coordinator.handle(Left(job="other"), 2)


def test_a_place_is_held_until_the_job_itself_comes_and_again_after_it_has_left(
    broker: Broker, place: Path
) -> None:
    with Lease(place, Member(job="a", profile=declared(300)), stands_in=True) as stand_in:
        assert stand_in.join(10)
        with Lease(place, member("b")) as other:
            assert other.join(10)
            until("the rest", lambda: other.lease_bytes == DEVICE - 300)
            with Lease(place, member("a")) as itself:
                assert itself.join(10)
                until("the place", lambda: itself.lease_bytes == 300)
                until("a fair cap", lambda: other.cap_bytes == itself.cap_bytes == DEVICE // 2)
                other.give_back(other.cap_bytes)
                until("its half", lambda: itself.lease_bytes == DEVICE // 2)
            until("the place again", lambda: other.cap_bytes == DEVICE - 300)
            until("the rest again", lambda: other.lease_bytes == DEVICE - 300)
            stand_in.close()
            until("all that it wants", lambda: other.lease_bytes == 900)


@contextlib.contextmanager
def beside_a_stand_in(place: Path) -> Iterator[Lease]:
    """A job of 600 bytes, and after it who holds 300 for another."""
    with Lease(place, Member(job="b", profile=declared(600))) as other:
        assert other.join(10)
        with Lease(place, Member(job="a", profile=declared(300)), stands_in=True) as stand_in:
            assert stand_in.join(10)
            yield other


def test_a_job_that_needs_more_than_was_held_for_it_waits_with_what_is(
    broker: Broker, place: Path
) -> None:
    with beside_a_stand_in(place) as other:
        with Lease(place, member("a", minimum=500)) as itself:
            assert not itself.join(NEVER_S)
            assert [(s.job, s.lease_bytes) for s in look(place)] == [("b", 600), ("a", 300)]
            other.close()
            assert itself.join(10)
            until("all that it wants", lambda: itself.lease_bytes == 900)
        until("its end", lambda: [s.lease_bytes for s in look(place)] == [300])


def test_a_job_that_gives_up_waiting_leaves_what_is_held_for_it(
    broker: Broker, place: Path
) -> None:
    with beside_a_stand_in(place):
        for needed in (500, 1200):  # which waits, which is refused
            itself = Lease(place, Member(job="a", profile=declared(needed)))
            with itself, contextlib.suppress(LeaseRefused):
                assert not itself.join(NEVER_S)
            until("its end", lambda: [s.message for s in look(place)] == ["", ""])
            assert [s.lease_bytes for s in look(place)] == [600, 300]


def test_nobody_stands_in_for_a_job_twice_nor_takes_its_place(broker: Broker, place: Path) -> None:
    held = Member(job="a", profile=declared(300))
    with Lease(place, held, stands_in=True) as first:
        assert first.join(10)
        with Lease(place, held, stands_in=True) as second, pytest.raises(LeaseRefused):
            second.join(10)
        with Lease(place, held) as itself:
            assert itself.join(10)
            with Lease(place, held) as double, pytest.raises(LeaseRefused):
                double.join(10)
            assert [share.lease_bytes for share in look(place)] == [300]


@pytest.mark.parametrize("first", ["the job", "who stands in"])
def test_a_new_broker_learns_of_both_in_any_order(first: str, place: Path) -> None:
    job = Member(job="a", profile=member("a").profile)
    held = Member(job="a", profile=declared(300))
    with Broker(place, DEVICE, resumes=True) as broker:
        leases = {
            "the job": lambda: Lease(place, job, holds_bytes=700),
            "who stands in": lambda: Lease(place, held, holds_bytes=300, stands_in=True),
        }
        second = next(name for name in leases if name != first)
        with leases[first]():
            until("the first", lambda: len(broker.shares()) == 1)
            with leases[second]() as later:
                until("the connection", lambda: later.is_connected)
                until("what the job holds", lambda: broker.shares()[0].lease_bytes == 700)
                assert len(broker.shares()) == 1
