"""Channel and processors, shared: who may copy how much, who yields, and sessions that do so."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.attempts import wait_for
from helpers.invented_costs import COSTS
from helpers.member_sessions import member_of
from helpers.small_trainings import perceptron, recurrent
from tensile import ladder, simulate, trace
from tensile.actions import Recompute, Swap
from tensile.coordinator import Coordinator, Member, Profile, declared, traced
from tensile.coordinator.broker import Broker
from tensile.coordinator.channel import LEAST, Claim, copy_limits
from tensile.coordinator.lease import Lease
from tensile.coordinator.messages import Joined, Left, Returned, Target
from tensile.coordinator.profile import Rung
from tensile.copy_pace import Bucket, CopyPace
from tensile.lower_tier import LowerTier
from tensile.scheduling_class import Yielding, can_return
from tensile.swap_file import SwapFile

# the division


def test_where_there_is_enough_for_all_nobody_is_limited() -> None:
    assert copy_limits([Claim(share=0.5), Claim(share=0.3, priority=1), Claim(share=0.2)]) == (
        (None,) * 3
    )
    assert copy_limits([Claim(share=1.0)]) == (None,)
    assert copy_limits([]) == ()


def test_a_high_priority_keeps_its_part_and_the_others_go_on_with_a_little() -> None:
    low = Claim(share=0.6)
    assert copy_limits([low, Claim(share=0.8, priority=1), low]) == (
        pytest.approx(0.1),
        None,
        pytest.approx(0.1),
    )
    first, high, second = copy_limits([low, Claim(share=1.0, priority=1), low])
    assert high == pytest.approx(1 - LEAST)
    assert first == second == pytest.approx(LEAST / 2)


def test_among_equals_of_priority_the_modest_have_what_they_want_and_weight_counts() -> None:
    modest, *others = copy_limits(
        [Claim(share=0.1), Claim(share=0.9), Claim(share=0.9, weight=2.0)]
    )
    assert modest is None
    assert others == [pytest.approx(0.3), pytest.approx(0.6)]


@given(
    st.lists(
        st.builds(
            Claim,
            share=st.one_of(st.just(0.0), st.floats(0.01, 1.0)),
            weight=st.sampled_from([0.5, 1.0, 2.0]),
            priority=st.integers(0, 3),
        ),
        max_size=6,
    )
)
def test_the_channel_is_never_promised_twice_and_nobody_stands_still(claims: list[Claim]) -> None:
    limits = copy_limits(claims)
    used = [c.share if part is None else part for c, part in zip(claims, limits, strict=True)]
    assert sum(used) <= 1 + 1e-9
    top = max((claim.priority for claim in claims if claim.share), default=0)
    for claim, part in zip(claims, used, strict=True):
        assert part <= claim.share or part == pytest.approx(claim.share)
        assert part > 0 or claim.share == 0
    for one, other in itertools.permutations(range(len(claims)), 2):
        if claims[one].priority == claims[other].priority and used[one] < claims[one].share:
            each = used[one] / claims[one].weight
            assert used[other] / claims[other].weight <= each + 1e-9  # max-min
    highest = [i for i, claim in enumerate(claims) if claim.priority == top]
    if len(highest) == 1:
        assert used[highest[0]] >= 0.95 * claims[highest[0]].share - 1e-9


# what a job will copy


def test_a_rung_knows_what_its_plan_copies_and_for_how_long() -> None:
    training = recurrent()
    training.start()
    step = trace(training.step, training.model, training.optimizer, training.batches[0])
    profile = traced(step, COSTS)
    assert profile.rungs[0].copied_bytes == 0 < profile.rungs[-1].copied_bytes
    lowest = ladder(step, COSTS)[-1]
    timeline = simulate(step, lowest, COSTS)
    swaps = [action for action in lowest.actions if isinstance(action, Swap)]
    assert any(swap.dirty for swap in swaps)
    assert not any(isinstance(action, Recompute) for action in lowest.actions[: len(swaps) - 1])
    out_bytes = sum(swap.bytes for swap in swaps if swap.dirty)
    assert out_bytes < timeline.copied_bytes <= 2 * sum(swap.bytes for swap in swaps)
    assert timeline.copy_s >= out_bytes / COSTS.out_bytes_per_s
    assert profile.rungs[-1].copied_bytes == timeline.copied_bytes
    assert 0 < profile.rungs[-1].copy_share <= 1


def test_a_profile_that_was_kept_before_there_was_a_word_for_copies_is_still_read() -> None:
    profile = Profile(rungs=(Rung.flat(900), Rung.flat(300, 2.0)))
    kept = profile.to_json()
    for rung in kept:
        del rung["copied_bytes"], rung["copy_s"]
    assert Profile.from_json(kept) == profile
    with pytest.raises(TypeError):
        Profile.from_json([{"bytes": 900, "curve": [900] * 32}])


def copying(share: float, size_bytes: int = 300) -> Profile:
    """Of a job that is as fast on its lower rung, if it has that much of the channel."""
    flat = Rung.flat(size_bytes)
    return Profile(
        rungs=(
            Rung.flat(3 * size_bytes),
            Rung(bytes=flat.bytes, step_s=1.0, curve=flat.curve, copied_bytes=90, copy_s=share),
        )
    )


# who is told what


def test_jobs_hear_what_they_may_copy_when_one_comes_and_when_it_goes() -> None:
    coordinator = Coordinator(600)

    def told(*commands: object) -> dict[str, tuple[float | None, bool]]:
        return {c.job: (c.copy_share, c.yields) for c in commands if isinstance(c, Target)}

    low = Member(job="low", profile=copying(0.9))
    assert told(*coordinator.handle(Joined(member=low), 0)) == {"low": (None, False)}
    high = Member(job="high", profile=copying(0.9), priority=1)
    coordinator.handle(Joined(member=high), 1)
    heard = told(*coordinator.handle(Returned(job="low", lease_bytes=300), 2))
    assert heard == {"low": (pytest.approx(0.1), True), "high": (None, False)}
    assert told(*coordinator.handle(Left(job="high"), 3)) == {"low": (None, False)}


# sessions that keep to it


def test_a_bucket_lets_through_what_its_rate_says_whatever_the_pieces() -> None:
    for piece_bytes in (1, 10, 250):
        bucket, now_s, copied_bytes = Bucket(bytes_per_s=100.0), 0.0, 0
        while copied_bytes < 1000:
            now_s += bucket.wait_s(now_s)
            bucket.take(piece_bytes, now_s)
            copied_bytes += piece_bytes
        assert bucket.paid_at_s == pytest.approx(10.0)  # a second for each hundred bytes
        assert bucket.wait_s(20.0) == 0
        bucket.take(100, 20.0)
        assert bucket.paid_at_s == pytest.approx(21.0)  # nothing is saved up


def test_who_waits_for_a_turn_goes_on_when_the_limit_is_lifted() -> None:
    pace, done = CopyPace(), threading.Event()
    pace.limit(1.0)
    pace.take(1000)

    def copy() -> None:
        pace.take(1000)
        done.set()

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    assert not done.wait(0.05)
    pace.limit(None)
    assert done.wait(10)
    thread.join()


def test_a_file_copies_no_faster_than_it_may_and_gives_the_same_bytes_back(tmp_path: Path) -> None:
    file = SwapFile(LowerTier(tmp_path))
    numbers = [torch.arange(2**18, dtype=torch.int32) for _ in range(3)]  # a MiB each
    contents = [each.untyped_storage() for each in numbers]
    extents = [file.extents.take(2**20) for _ in contents]
    file.limit(8 * 2**20, 16 * 2**20)
    begin_s = time.monotonic()
    for written in [file.write(c, e) for c, e in zip(contents, extents, strict=True)]:
        written.wait()
    assert time.monotonic() - begin_s > 0.2  # two of three MiB were paid for: a quarter second
    begin_s = time.monotonic()
    for content, extent in zip(contents, extents, strict=True):
        file.read_now(content, extent, 2**20)
    assert time.monotonic() - begin_s > 0.1
    assert all(torch.equal(each, torch.arange(2**18, dtype=torch.int32)) for each in numbers)
    file.close()


@pytest.mark.long
def test_a_session_copies_no_faster_than_its_part_of_the_channel(tmp_path: Path) -> None:
    training = perceptron()
    costs = replace(COSTS, out_bytes_per_s=800e6, in_bytes_per_s=800e6)
    rung = copying(1.0, 5 * 2**20).rungs[-1]
    greedy = Member(job="greedy", profile=Profile(rungs=(rung,)), weight=19.0)
    with (
        broker(8 * 2**20) as place,
        Lease(place, greedy) as lease,
        member_of(training, place, tmp_path, "other", budget="3MiB") as session,
    ):
        assert lease.join(10)
        session.prepare(training.step, training.batches[0], costs=costs)
        with session.step():
            training.step(training.batches[0])
        before = session.stats()
        begin_s = time.monotonic()
        with session.step():
            training.step(training.batches[1])
        elapsed_s = time.monotonic() - begin_s
        moved_bytes = session.stats().swapped_in_bytes - before.swapped_in_bytes
        part_bytes_per_s = 800e6 / 20
        assert moved_bytes > 0.05 * part_bytes_per_s
        assert elapsed_s > 0.8 * moved_bytes / part_bytes_per_s


@contextmanager
def broker(device_bytes: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dt-") as folder:
        place = Path(folder, "broker.sock")  # a socket's path has 107 bytes
        with Broker(place, device_bytes):
            yield place


def test_a_session_beside_a_job_of_a_higher_priority_computes_where_that_leaves_room(
    tmp_path: Path,
) -> None:
    training = perceptron()
    high = Member(job="high", profile=declared(2**20), priority=1)
    with (
        broker(40 * 2**20) as place,
        Lease(place, high) as lease,
        member_of(training, place, tmp_path, "low") as session,
    ):
        assert lease.join(10)
        session.prepare(training.step, training.batches[0], costs=COSTS)
        with session.step():
            found = os.sched_getscheduler(0)
            training.step(training.batches[0])
        if can_return():
            assert found == os.SCHED_IDLE
        else:
            assert found == os.SCHED_OTHER
            assert any("RLIMIT_NICE" in note for note in session.stats().notes)
        lease.close()

        def is_usual() -> bool:
            with session.step():
                return os.sched_getscheduler(0) == os.SCHED_OTHER

        wait_for("its end, which is heard a moment later", is_usual)


def test_a_process_that_may_not_come_back_does_not_go() -> None:
    program = (
        "import os, resource; from tensile.scheduling_class import Yielding; "
        "resource.setrlimit(resource.RLIMIT_NICE, (0, 0)); "
        "os.getuid() or (os.setgid(65534), os.setuid(65534)); "  # who is not root cannot
        "said = Yielding().be(True); print(os.sched_getscheduler(0), said)"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.startswith(f"{os.SCHED_OTHER} ")
    assert "would not let it leave the idle class again" in found


def test_all_threads_of_a_process_go_and_come_back_and_what_others_chose_stays() -> None:
    if not can_return():
        pytest.skip("this user may not leave the idle class")
    over = threading.Event()
    thread = threading.Thread(target=over.wait, daemon=True)
    thread.start()
    assert thread.native_id is not None
    yielding = Yielding()
    try:
        assert yielding.be(True) is None
        assert os.sched_getscheduler(thread.native_id) == os.SCHED_IDLE
    finally:
        yielding.be(False)
    assert os.sched_getscheduler(thread.native_id) == os.SCHED_OTHER
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yielding.be(True)
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
        yielding.be(False)
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        over.set()
