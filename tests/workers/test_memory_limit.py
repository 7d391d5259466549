"""How much an attempt may hold, by what it declares, its lease, or what it comes back with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail_workers.memory_limit import (
    LEAST_BYTES,
    MemoryLimit,
    fixed_limit,
    limit_of,
    slack_bytes,
)
from helpers.attempts import as_family, script_launch
from tensile.coordinator import Member, declared
from tensile.coordinator.broker import Broker
from tensile.coordinator.lease import Lease

GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    ("declared_memory", "policy", "cap_bytes", "limit_bytes", "rule"),
    [
        (100, "none", None, 100, "resources.memory"),
        ("auto", "none", None, None, ""),
        ("auto", "tensile", None, None, ""),
        ("auto", "tensile", 80, 80, "resources.memory"),
        (100, "tensile", 80, 80, "resources.memory"),
        (100, "tensile", 1000, 100, "resources.memory"),
        (100, "none", 1000, 1000, "what one like it took"),
        (100, "none", 2**30, 2**30, "all of its device"),
        (100, "tensile", 2**30, 2**30, "all of its device"),
    ],
)
def test_the_limit_is_what_is_declared_or_what_the_attempt_comes_back_with(
    declared_memory: str | int,
    policy: str,
    cap_bytes: int | None,
    limit_bytes: int | None,
    rule: str,
    tmp_path: Path,
) -> None:
    launch = as_family(script_launch(tmp_path, "true"), memory=declared_memory, policy=policy)
    limit = fixed_limit(replace(launch, cap_bytes=cap_bytes))
    assert (limit.bytes, limit.rule) == (limit_bytes, rule)


def test_a_managed_job_on_a_shared_device_is_kept_to_its_lease(tmp_path: Path) -> None:
    launch = as_family(script_launch(tmp_path, "true"), memory="auto", policy="tensile")
    broker = tmp_path / "b.socket"
    limit: Callable[[], MemoryLimit] = limit_of(launch, {"TENSILE_BROKER": str(broker)})
    assert limit().bytes is None  # nobody answers: nothing is known of it
    member = Member(job=launch.attempt_id, profile=declared(700))
    with Broker(broker, 1000), Lease(broker, member) as lease:
        assert lease.join(10)
        assert (limit().bytes, limit().rule) == (700, "its lease")
        waiting = replace(launch, attempt=2)
        with Lease(broker, Member(job=waiting.attempt_id, profile=declared(600))) as other:
            assert not other.join(0.1)
            assert limit_of(waiting, {"TENSILE_BROKER": str(broker)})().bytes is None


def test_a_script_has_what_it_declares_and_what_the_broker_leases_it_beyond(
    tmp_path: Path,
) -> None:
    launch = script_launch(tmp_path, "true", resources={"memory": 300})
    broker = tmp_path / "b.socket"
    limit = limit_of(launch, {"TENSILE_BROKER": str(broker)})
    assert (limit().bytes, limit().rule) == (300, "resources.memory")
    for size, found in ((200, (300, "resources.memory")), (700, (700, "its lease"))):
        member = Member(job=launch.attempt_id, profile=declared(size))
        with Broker(broker, 1000), Lease(broker, member) as lease:
            assert lease.join(10)
            assert (limit().bytes, limit().rule) == found


@given(
    parts=st.lists(st.integers(1, 1000), min_size=1, max_size=6),
    device_bytes=st.integers(GIB, 100 * GIB),
)
def test_all_who_share_a_device_are_over_it_by_a_tenth_at_most(
    parts: list[int], device_bytes: int
) -> None:
    launch = replace(script_launch(Path("/s"), "true"), share=True, device_bytes=device_bytes)
    leases = [device_bytes * part // sum(parts) for part in parts]
    slacks = [slack_bytes(launch, lease) for lease in leases]
    beside = [slack for slack in slacks if slack > LEAST_BYTES]
    assert sum(beside) <= device_bytes // 10
    assert max(slacks) <= max(LEAST_BYTES, device_bytes // 20)


def test_who_is_alone_has_room_for_what_its_steps_load(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, "true")
    assert slack_bytes(launch, 100 * MIB) == 74 * MIB
    assert slack_bytes(replace(launch, share=True), 100 * MIB) == 10 * MIB
    assert slack_bytes(replace(launch, share=True), 10 * MIB) == LEAST_BYTES


def test_while_there_is_no_broker_the_last_lease_stands(tmp_path: Path) -> None:
    launch = as_family(script_launch(tmp_path, "true"), memory="auto", policy="tensile")
    broker = tmp_path / "b.socket"
    limit = limit_of(launch, {"TENSILE_BROKER": str(broker)})
    member = Member(job=launch.attempt_id, profile=declared(700))
    with Broker(broker, 1000):
        with Lease(broker, member) as lease:
            assert lease.join(10)
            assert limit().bytes == 700
        assert limit().bytes == 700  # it answers, and has not heard of the job
    assert limit().bytes == 700
    with Broker(broker, 1000), Lease(broker, replace(member, profile=declared(300))) as lease:
        assert lease.join(10)
        assert limit().bytes == 300
