"""Waits within a step, bounded, for bytes that a neighbour is about to return: what the coordinator
grants meanwhile, how long a lease waits, and that a session lets nothing leave instead.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.attempts import wait_for
from helpers.budgeted_process import medium
from helpers.invented_costs import COSTS
from helpers.member_sessions import member_of
from helpers.random_profiles import triangle
from helpers.small_trainings import Training
from tensile import Session, trace
from tensile.coordinator import Coordinator, Member, Profile, Share, traced
from tensile.coordinator.broker import Broker
from tensile.coordinator.lease import Lease
from tensile.coordinator.messages import Beginning, Granted, Joined, Returned, Wanted

DEVICE = 1000
SLOW = replace(  # of a device on which a step takes so long that it may wait for seconds
    COSTS,
    **{name: getattr(COSTS, name) / 1e4 for name in COSTS.__slots__ if name.endswith("per_s")},
    overhead_s=1e4 * COSTS.overhead_s,
    copy_latency_s=1e4 * COSTS.copy_latency_s,
)


def rising(name: str, step_s: float = 1.0) -> Member:
    """Of two such jobs the peaks do not fit on the device at once; interlocked, they do."""
    rungs = (triangle(700, 150, step_s), triangle(250, 150, 3 * step_s))
    return Member(job=name, profile=Profile(rungs=rungs))


def test_who_waits_within_a_step_gets_what_becomes_free_until_its_next_word() -> None:
    coordinator = Coordinator(DEVICE)
    for name in ("a", "b"):
        coordinator.handle(Joined(member=rising(name)), now_s=0)
    coordinator.handle(Returned(job="a", lease_bytes=350), 0)
    coordinator.handle(Wanted(job="a", lease_bytes=600), 1)
    short = Granted(job="b", lease_bytes=400)
    assert coordinator.handle(Wanted(job="b", lease_bytes=600, waits=True), 1) == (short,)
    assert coordinator.handle(Returned(job="a", lease_bytes=500), 1) == (
        Granted(job="b", lease_bytes=500),
    )
    # it goes on with that
    assert coordinator.handle(Wanted(job="b", lease_bytes=500), 1) == (
        Granted(job="b", lease_bytes=500),
    )
    assert coordinator.handle(Returned(job="a", lease_bytes=400), 1) == ()
    assert coordinator.handle(Wanted(job="b", lease_bytes=700, waits=True), 1) == (
        Granted(job="b", lease_bytes=600),
    )
    assert coordinator.handle(Returned(job="b", lease_bytes=450), 1) == ()  # it is over that too
    assert coordinator.handle(Returned(job="a", lease_bytes=350), 1) == ()
    coordinator.handle(Wanted(job="a", lease_bytes=550), 1)
    coordinator.handle(Wanted(job="b", lease_bytes=600, waits=True), 1)
    coordinator.handle(Beginning(job="b"), 2)  # whatever became of that step
    assert coordinator.handle(Returned(job="a", lease_bytes=350), 2) == ()


@contextlib.contextmanager
def interlocked(place: Path, step_s: float) -> Iterator[tuple[Lease, Lease]]:
    """Two equal jobs whose peaks do not fit at once; the first one has 600 of the bytes."""
    with Lease(place, rising("a", step_s)) as first:
        assert first.join(10)
        with Lease(place, rising("b", step_s)) as second:
            wait_for("interlocked steps", lambda: first.keeps_bytes is not None)
            first.give_back(350)
            assert second.join(10)
            assert first.want(600) == 600
            yield first, second


def test_within_a_step_a_job_waits_until_another_returns_what_it_needs(place: Path) -> None:
    with Broker(place, DEVICE), interlocked(place, step_s=800) as (first, second):
        assert second.want(600, least_bytes=600) == 400  # it is in no step
        assert second.begin_step() == 0
        second.give_back(350)
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(second.want(600, least_bytes=500)))
        asking.start()
        wait_for("what is free", lambda: second.lease_bytes == 400)
        first.give_back(550)
        wait_for("a part", lambda: second.lease_bytes == 450)
        first.give_back(480)
        asking.join()
        assert answers == [520]


def test_nobody_waits_within_its_step_for_longer_than_it_was_told(place: Path) -> None:
    with Broker(place, DEVICE), interlocked(place, step_s=0.8) as (_, second):
        assert second.begin_step() == 0
        assert second.patience_s == pytest.approx(0.1)
        assert second.want(600, least_bytes=500) == 400
        assert second.patience_s <= 0
        assert second.want(600, least_bytes=500) == 400


def run_step(session: Session, training: Training) -> None:
    with session.step():
        training.step(training.batches[0])


def test_bytes_that_a_neighbour_returns_in_time_are_waited_for_before_any_leave(
    place: Path, tmp_path: Path
) -> None:
    training = medium(width=256, depth=6)
    training.batches = [torch.randn(2048, 256)]
    step = trace(training.step, training.model, training.optimizer, training.batches[0])
    other = Member(job="other", profile=traced(step, SLOW))
    natural = other.profile.peak_bytes
    asks: list[int] = []

    def give_way(shares: tuple[Share, ...]) -> None:
        """When the session has got all that is free, and then asks for more."""
        leases = {share.job: share.lease_bytes for share in shares}
        if "mine" not in leases or leases["other"] <= natural // 2:
            return
        if sum(leases.values()) == natural * 3 // 2:
            asks.append(leases["mine"])
            if asks.count(leases["mine"]) > 1:
                neighbour.give_back(natural // 2)

    with (
        Broker(place, natural * 3 // 2, on_change=give_way),
        Lease(place, other) as neighbour,
        member_of(training, place, tmp_path) as session,
    ):
        assert neighbour.join(10)
        neighbour.give_back(0)
        session.prepare(training.step, training.batches[0], costs=SLOW)
        run_step(session, training)
        run_step(session, training)
        before = session.stats()
        for _ in range(3):
            asks.clear()
            neighbour.want(natural * 4 // 5)
            run_step(session, training)
            assert neighbour.lease_bytes == natural // 2
        after = session.stats()
    assert after.swapped_out_bytes == before.swapped_out_bytes
    assert after.stall_s > before.stall_s
