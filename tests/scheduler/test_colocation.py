"""Which jobs meet on one device, and what the others are told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dovetail.scheduler.cycle import schedule
from dovetail.scheduler.decisions import Start, Wait
from dovetail.scheduler.policies import POLICIES
from dovetail.scheduler.view import ClusterView, DeviceView, Sharing
from dovetail_jobs.lifecycle import Reason
from dovetail_jobs.spec import Share
from helpers.build import GIB, MIB, at, holding, node, queued, sharing, view

SMALL = DeviceView(name="cpu:0", bytes=GIB)
GPU = DeviceView(name="cuda:0", bytes=4 * GIB)
GPU_1 = DeviceView(name="cuda:0", bytes=GIB)


def outcome(picture: ClusterView) -> dict[str, str]:
    """Per queued job the device it starts on, or the sentence it waits with."""
    return {
        decision.job_id: decision.device if isinstance(decision, Start) else decision.message
        for decision in schedule(picture, POLICIES["priority"], at())
    }


def beside(
    newcomer: Sharing, *there: Sharing, device: DeviceView = SMALL, cpus: float = 4.0
) -> str:
    held = tuple(
        holding(name, device=device.name, job_name=None, sharing=each)
        for name, each in zip("abc", there, strict=False)
    )
    job = queued("new", sharing=newcomer)
    return outcome(view(job, nodes=(node(devices=(device,), cpus=cpus),), holdings=held))["new"]


def test_three_jobs_that_share_start_on_one_device_in_one_cycle() -> None:
    jobs = [queued(name, seq=seq, sharing=sharing()) for seq, name in enumerate("abc")]
    picture = view(*jobs, nodes=(node(devices=(DeviceView(name="cpu:0", bytes=2 * GIB),)),))
    decisions = schedule(picture, POLICIES["priority"], at())
    assert [decision.reason for decision in decisions] == [
        "cpu:0 on n1 is free and fits; priority 50",
        "cpu:0 on n1 is shared with a (name-a); priority 50",
        "cpu:0 on n1 is shared with a (name-a), b (name-b); priority 50",
    ]


def test_a_free_device_comes_before_a_shared_one() -> None:
    picture = view(
        queued("new", sharing=sharing()),
        nodes=(node(devices=2),),
        holdings=(holding(sharing=sharing()),),
    )
    assert outcome(picture) == {"new": "cpu:1"}


def test_of_two_shared_devices_the_one_where_all_are_slowed_down_least_is_taken() -> None:
    devices = (SMALL, DeviceView(name="cpu:1", bytes=2 * GIB))
    held = tuple(holding(name, device=name, sharing=sharing()) for name in ("cpu:0", "cpu:1"))
    job = queued("new", sharing=sharing())
    assert outcome(view(job, nodes=(node(devices=devices),), holdings=held)) == {"new": "cpu:1"}


def test_minima_that_do_not_fit_are_told_in_bytes() -> None:
    large = sharing(True, (2 * GIB, 0.8), (900 * MIB, 1.0))
    assert beside(sharing(), large) == (
        "waits for a device: cpu:0 on n1 is held by a; of its 1GiB they own 900MiB as their least, "
        "which leaves 124MiB, and this job needs 256MiB at least; it waits until one ends"
    )


@pytest.mark.parametrize(
    ("mine", "theirs", "who"),
    [({"min_speed": 0.81}, {}, "this job"), ({}, {"min_speed": 0.81}, "a")],
)
def test_nobody_is_slowed_below_the_speed_it_asks_for(
    mine: dict[str, Any], theirs: dict[str, Any], who: str
) -> None:
    assert beside(sharing(**mine), sharing(**theirs)) == (
        f"waits for a device: cpu:0 on n1 is held by a; together, {who} would go at 80% of its "
        "speed for want of memory, below its resources.min_speed of 81%"
    )
    assert beside(sharing(min_speed=0.8), sharing(min_speed=0.8)) == "cpu:0"


@pytest.mark.parametrize("share", ["auto", True])
def test_two_busy_jobs_meet_only_if_the_newcomer_asks_for_it(share: Share) -> None:
    told = beside(sharing(share), sharing(), device=GPU)
    if share is True:
        assert told == "cuda:0"
    else:
        assert told == (
            "waits for a device: cuda:0 on n1 is held by a; with this job too it would do 1.00 "
            "jobs' work at a time instead of 1.00, since they keep it busy; resources.share: true "
            "joins it all the same"
        )


def test_jobs_that_leave_a_gpu_idle_meet_by_themselves_until_it_is_busy() -> None:
    idle = sharing("auto", busy=0.4)
    assert beside(idle, idle, device=GPU) == "cuda:0"
    told = beside(idle, idle, idle, idle, device=GPU)
    assert "would do 2.50 jobs' work at a time instead of 2.50, since they keep it busy" in told


def test_a_cpu_device_is_busy_only_as_far_as_its_jobs_have_threads() -> None:
    """Each has one cpu: on two there is room for both, on one they would only take turns."""
    job = sharing("auto", (256 * MIB, 1.0))
    assert beside(job, job, cpus=2.0) == "cpu:0"
    half = {"cpus": 0.5}  # one thread all the same
    picture = view(
        queued("new", sharing=job, **half),
        nodes=(node(devices=(SMALL,), cpus=1.0),),
        holdings=(holding(sharing=job, **half),),
    )
    assert "since they keep it busy" in outcome(picture)["new"]


def test_stalls_that_cost_more_than_the_company_is_worth_keep_jobs_apart() -> None:
    """Both would fit, at a quarter of their speed: together half of what one does alone."""
    slow = sharing("auto", (900 * MIB, 1.0), (512 * MIB, 4.0), min_speed=0.2)
    assert (
        "would do 0.50 jobs' work at a time instead of 1.00, since they would wait for memory"
    ) in beside(slow, slow)


@pytest.mark.parametrize(
    ("newcomer", "there", "told"),
    [
        (Sharing(), sharing(), "waits for a device: cpu:0 on n1 is held by a"),
        (sharing(), Sharing(), "waits for a device: cpu:0 on n1 is held by a"),
        (sharing(False), sharing(), "waits for a device: cpu:0 on n1 is held by a"),
        (sharing(), sharing(False), "waits for a device: cpu:0 on n1 is held by a"),
        (
            Sharing(share="auto", alone="its memory cannot be foreseen (no step)"),
            sharing(),
            "waits for a device of its own, since its memory cannot be foreseen (no step): cpu:0 "
            "on n1 is held by a",
        ),
        (
            sharing(),
            Sharing(share="auto", alone="its memory is not foreseen yet"),
            "waits for a device: cpu:0 on n1 is held by a, which cannot share it: its memory is "
            "not foreseen yet",
        ),
    ],
)
def test_a_job_meets_nobody_who_does_not_share_or_is_not_foreseen(
    newcomer: Sharing, there: Sharing, told: str
) -> None:
    assert beside(newcomer, there) == told


def test_a_job_without_a_forecast_starts_on_a_free_device() -> None:
    unknown = Sharing(share="auto", alone="its memory is not foreseen yet")
    assert outcome(view(queued("a", sharing=unknown))) == {"a": "cpu:0"}


def test_a_device_is_kept_for_an_earlier_job_that_needs_one_of_its_own() -> None:
    devices = (DeviceView(name="cpu:0", bytes=2 * GIB), DeviceView(name="cpu:1", bytes=2 * GIB))
    held = (
        holding("a", device="cpu:0", sharing=sharing()),
        holding("b", device="cpu:0", sharing=sharing()),
        holding("c", device="cpu:1", sharing=sharing()),
    )
    whole, newcomer = queued("whole", seq=1), queued("new", seq=2, sharing=sharing())
    nodes = (node(devices=devices, cpus=8.0),)
    assert outcome(view(newcomer, nodes=nodes, holdings=held)) == {"new": "cpu:1"}
    assert outcome(view(whole, newcomer, nodes=nodes, holdings=held))["new"] == "cpu:0"
    one = (node(devices=devices[1:], cpus=8.0),)
    assert outcome(view(whole, newcomer, nodes=one, holdings=held[2:]))["new"] == (
        "waits for a device: cpu:1 on n1 is kept for whole, which needs a device of its own"
    )


def test_cpus_bound_those_who_share_too() -> None:
    picture = view(
        queued("new", cpus=2.0, sharing=sharing()),
        holdings=(holding(cpus=3.0, sharing=sharing()),),
    )
    (decision,) = schedule(picture, POLICIES["priority"], at())
    assert isinstance(decision, Wait)
    assert (decision.reason, decision.message) == (
        Reason.WAITING_FOR_CPUS,
        "waits for 2 cpus: n1 has 1 of 4 free, k3f9qz (swin-digits) holds 3",
    )


def test_what_no_device_can_hold_is_told_the_ways_out() -> None:
    huge = sharing("auto", (20 * GIB, 0.8), (6 * GIB, 1.0))
    (decision,) = schedule(view(queued("a", sharing=huge)), POLICIES["priority"], at())
    assert isinstance(decision, Wait)
    assert (decision.reason, decision.message) == (
        Reason.DOES_NOT_FIT,
        "does not fit: no plan of its step keeps less than 6GiB, and the largest device is cpu:0 "
        "on n1 with 4GiB; use a smaller params.batch_size, compute activations again in the model "
        "(torch.utils.checkpoint), or shard it over several devices (not here yet)",
    )


@pytest.mark.parametrize(
    ("batch_size", "told"),
    [
        (96, "use a smaller params.batch_size (at most 64 instead of 96), compute"),
        (1, "use a smaller model (params.batch_size: 1 cannot be cut enough), compute"),
    ],
)
def test_how_small_a_batch_would_have_to_be_is_told(batch_size: int, told: str) -> None:
    huge = sharing("auto", (20 * GIB, 0.8), (6 * GIB, 1.0))
    assert told in outcome(view(queued("a", sharing=huge, batch_size=batch_size)))["a"]
    unmanaged = outcome(view(queued("a", peak_bytes=6 * GIB, batch_size=batch_size)))["a"]
    assert "its step takes 6GiB, and the largest device is cpu:0 on n1 with 4GiB" in unmanaged
    assert "use memory.policy: tensile, which makes do with less" in unmanaged


TINY = DeviceView(name="cpu:0", bytes=256 * MIB)
LARGER = DeviceView(name="cpu:1", bytes=GIB)
STEEP = sharing(True, (600 * MIB, 1.0), (200 * MIB, 4.0))  # 28 % of its speed with 256 MiB


def test_a_free_device_that_leaves_too_little_of_the_speed_is_not_taken() -> None:
    nodes = (node(devices=(TINY, LARGER), cpus=8.0),)
    small = sharing(True, (100 * MIB, 1.0))
    job = queued("new", sharing=STEEP)
    assert outcome(view(job, nodes=nodes)) == {"new": "cpu:1"}
    joined = view(job, nodes=nodes, holdings=(holding(device="cpu:1", sharing=small),))
    assert outcome(joined) == {"new": "cpu:1"}
    taken = view(job, nodes=nodes, holdings=(holding(device="cpu:1", job_name=None),))
    assert outcome(taken)["new"] == (
        "waits for a device: cpu:0 on n1 has 256MiB, with which this job would go at 28% of its "
        "speed for want of memory, below its resources.min_speed of 50%, cpu:1 on n1 is held by "
        "k3f9qz"
    )


def test_the_least_slowdown_decides_between_free_and_shared_devices() -> None:
    """Two thirds of its speed alone on the small one, all of it beside somebody small."""
    job = sharing(True, (600 * MIB, 1.0), (200 * MIB, 1.5))
    devices = (DeviceView(name="cpu:0", bytes=200 * MIB), LARGER)
    nodes = (node(devices=devices, cpus=8.0),)
    held = (holding(device="cpu:1", sharing=sharing(True, (100 * MIB, 1.0))),)
    assert outcome(view(queued("new", sharing=job), nodes=nodes)) == {"new": "cpu:1"}
    there = view(queued("new", sharing=job), nodes=nodes, holdings=held)
    assert outcome(there) == {"new": "cpu:1"}
    modest = view(queued("new", sharing=held[0].sharing), nodes=nodes, holdings=held)
    assert outcome(modest) == {"new": "cpu:0"}  # as fast on both


def test_a_speed_that_no_device_allows_is_told_with_the_ways_out() -> None:
    picture = view(queued("new", sharing=STEEP), nodes=(node(devices=(TINY,)),))
    (decision,) = schedule(picture, POLICIES["priority"], at())
    assert isinstance(decision, Wait)
    assert (decision.reason, decision.message) == (
        Reason.DOES_NOT_FIT,
        "resources.min_speed: 0.5 cannot be reached: alone on the best device, cpu:0 on n1 with "
        "256MiB, it would go at 27% of its speed for want of memory; lower it to 0.27, use a "
        "smaller step, or offer a larger device",
    )
    lower = sharing(True, (600 * MIB, 1.0), (200 * MIB, 4.0), min_speed=0.27)
    assert outcome(view(queued("new", sharing=lower), nodes=picture.nodes)) == {"new": "cpu:0"}


def test_what_nobody_plans_needs_a_device_for_its_whole_peak() -> None:
    nodes = (node(devices=(TINY, LARGER), cpus=8.0),)
    assert outcome(view(queued("a"), nodes=nodes)) == {"a": "cpu:0"}
    assert outcome(view(queued("a", peak_bytes=300 * MIB), nodes=nodes)) == {"a": "cpu:1"}


def test_each_newcomer_has_to_add_its_part_and_no_more() -> None:
    """However many are there: what counts is what one more adds."""
    idle = sharing("auto", (10 * MIB, 1.0), busy=0.02)
    device = DeviceView(name="cuda:0", bytes=80 * GIB)
    nodes = (node(devices=(device,), cpus=64.0),)
    held = tuple(holding(f"j{i}", device="cuda:0", cpus=0.1, sharing=idle) for i in range(49))
    job = queued("new", cpus=0.1, sharing=idle)
    assert outcome(view(job, nodes=nodes, holdings=held)) == {"new": "cuda:0"}
    told = outcome(view(job, nodes=nodes, holdings=(*held, replace(held[0], job_id="last"))))["new"]
    assert "jobs' work at a time instead of 50.00, since they keep it busy;" in told


def test_memory_is_named_only_where_a_speed_falls_for_it() -> None:
    """Three busy ones that also stall: both are the cause."""
    slow = sharing("auto", (600 * MIB, 1.0), (200 * MIB, 1.2))
    assert "since they keep it busy and would wait for memory;" in beside(slow, slow, device=GPU_1)
    flat = sharing("auto", (300 * MIB, 1.0))
    assert "since they keep it busy;" in beside(flat, flat, device=GPU_1)


def test_a_view_with_profiles_goes_through_json() -> None:
    picture = view(queued("a", sharing=sharing("auto")), holdings=(holding(sharing=sharing()),))
    replayed = ClusterView.from_json(json.loads(json.dumps(picture.to_json())))
    assert replayed == picture
    assert outcome(replayed) == outcome(picture)
