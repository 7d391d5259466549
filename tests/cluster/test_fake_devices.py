"""Jobs of a fake cluster that share a device have leases from the real state machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.cluster.fake_devices import FakeDevices
from dovetail.cluster.protocol import DevicesSeen
from dovetail_workers.launch import Launch
from dovetail_workers.shared_device import JobShare
from helpers.build import MIB, profile, spec_json
from tensile.coordinator import Profile

LADDER = profile((600 * MIB, 1.0), (300 * MIB, 1.2), (200 * MIB, 2.0))
DEVICE_BYTES = 1000 * MIB


def launch(job: str, priority: int = 50, **changes: object) -> Launch:
    made = Launch(
        job_id=job,
        job_name=job,
        attempt=1,
        spec=spec_json(),
        node="n1",
        device="cpu:0",
        device_bytes=DEVICE_BYTES,
        storage_uri="",
        share=True,
        priority=priority,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def shares(seen: DevicesSeen | None) -> dict[str, JobShare]:
    assert seen is not None
    (device,) = seen.devices
    return {share.job.partition(".")[0]: share for share in device.jobs}


@pytest.fixture
def devices() -> FakeDevices:
    return FakeDevices(lambda _: LADDER, now_s=lambda: 0.0)


def test_a_newcomer_gets_its_part_and_who_leaves_gives_it_back(devices: FakeDevices) -> None:
    assert shares(devices.join(launch("a"), "n"))["a"].lease_bytes == 600 * MIB
    both = shares(devices.join(launch("b"), "n"))
    assert [both[job].lease_bytes for job in "ab"] == [500 * MIB] * 2
    assert [both[job].admitted for job in "ab"] == [True, True]
    assert shares(devices.leave("a.1"))["b"].lease_bytes == 600 * MIB
    assert devices.leave("a.1") is None


def test_who_finds_no_room_waits_and_is_let_in_when_somebody_ends(devices: FakeDevices) -> None:
    for job in "abcde":
        devices.join(launch(job), "n")
    waiting = shares(devices.join(launch("f"), "n"))["f"]
    assert (waiting.admitted, waiting.lease_bytes) == (False, 0)
    assert waiting.message.startswith("waits for 200")
    assert shares(devices.leave("a.1"))["f"].admitted


def test_only_who_shares_and_is_foreseen_is_there_and_within_its_cap(devices: FakeDevices) -> None:
    assert devices.join(launch("alone", share=False), "n") is None
    assert shares(devices.join(launch("a", cap_bytes=300 * MIB), "n"))["a"].lease_bytes == 300 * MIB
    assert devices.join(launch("a"), "n") is None  # again
    unknown = FakeDevices()
    assert unknown.join(launch("a"), "n") is None
    declared = launch("b", spec=spec_json(resources={"memory": 100 * MIB}))
    assert shares(unknown.join(declared, "n"))["b"].lease_bytes == 100 * MIB
    unknown.forget_all()
    assert unknown.seen("n").devices == ()


def test_who_can_never_be_there_is_not(devices: FakeDevices) -> None:
    huge = FakeDevices(lambda _: profile((2 * DEVICE_BYTES, 1.0)))
    assert shares(huge.join(launch("a"), "n")) == {}
    assert huge.leave("a.1") is None


@st.composite
def ladders(draw: st.DrawFn) -> Profile:
    peak, least = draw(st.integers(100, 900)), draw(st.integers(1, 99))
    return profile((peak * MIB, 1.0), (least * MIB, draw(st.sampled_from([1.0, 1.5, 3.0]))))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(ladders(), st.sampled_from([0, 50]), st.booleans()), max_size=12))
def test_leases_never_sum_to_more_than_the_device_and_hold_each_minimum(
    comings: list[tuple[Profile, int, bool]],
) -> None:
    known = {f"j{number}": ladder for number, (ladder, _, _) in enumerate(comings)}
    devices = FakeDevices(lambda each: known[each.job_id], now_s=lambda: 0.0)
    for number, (_, priority, first_leaves) in enumerate(comings):
        found = shares(devices.join(launch(f"j{number}", priority), "n"))
        if first_leaves:
            found = shares(devices.leave(f"{next(iter(found))}.1"))
        inside = [share for share in found.values() if share.admitted]
        assert sum(share.lease_bytes for share in inside) <= DEVICE_BYTES
        assert all(share.minimum_bytes <= share.lease_bytes for share in inside)
