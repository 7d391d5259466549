"""What one scheduling cycle decides, case by case; the sentences are what users read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dovetail.scheduler.cycle import schedule
from dovetail.scheduler.decisions import Decision, Start, Wait
from dovetail.scheduler.policies import POLICIES
from dovetail.scheduler.view import ClusterView, DeviceView
from dovetail_jobs.lifecycle import Reason
from helpers.build import GIB, at, holding, node, queued, view


def decide(picture: ClusterView) -> list[Decision]:
    return schedule(picture, POLICIES["priority"], at())


def starts(picture: ClusterView) -> list[tuple[str, str, str]]:
    return [(d.job_id, d.node, d.device) for d in decide(picture) if isinstance(d, Start)]


def only_wait(picture: ClusterView) -> tuple[Reason, str]:
    waits = [decision for decision in decide(picture) if isinstance(decision, Wait)]
    assert len(waits) == 1
    return waits[0].reason, waits[0].message


def test_a_job_starts_on_a_free_device() -> None:
    assert decide(view(queued("a"))) == [
        Start(
            job_id="a",
            node_id="id-n1",
            node="n1",
            device="cpu:0",
            reason="cpu:0 on n1 is free and fits; priority 50",
        )
    ]


def test_a_higher_priority_goes_first_and_then_the_earlier_submission() -> None:
    jobs = (queued("late", seq=3), queued("early", seq=2), queued("urgent", seq=4, priority=90))
    assert [job_id for job_id, *_ in starts(view(*jobs, nodes=(node(devices=3),)))] == [
        "urgent",
        "early",
        "late",
    ]


def test_without_an_answer_from_the_cluster_every_job_waits_for_it() -> None:
    assert only_wait(view(queued("a"), nodes=None)) == (
        Reason.WAITING_FOR_CLUSTER,
        "waits for the cluster, which has not answered yet; see `dovetail status`",
    )


def test_a_cluster_without_devices_is_waited_for_and_refuses_nobody() -> None:
    reason, message = only_wait(view(queued("a", devices=2), nodes=()))
    assert (reason, message) == (
        Reason.WAITING_FOR_DEVICE,
        "waits for a device: no node of the cluster offers one now",
    )


def test_a_held_device_is_named_with_the_job_that_holds_it() -> None:
    assert only_wait(view(queued("a"), holdings=(holding(),))) == (
        Reason.WAITING_FOR_DEVICE,
        "waits for a device: cpu:0 on n1 is held by k3f9qz (swin-digits)",
    )


def test_a_device_given_away_in_this_cycle_is_held_too() -> None:
    picture = view(queued("a"), queued("b", seq=2))
    assert starts(picture) == [("a", "n1", "cpu:0")]
    assert only_wait(picture)[1] == "waits for a device: cpu:0 on n1 is held by a (name-a)"


def test_many_holders_are_counted_after_the_third() -> None:
    held = tuple(holding(f"job{i}", device=f"cpu:{i}", job_name=None, cpus=0.5) for i in range(5))
    _, message = only_wait(view(queued("a"), nodes=(node(devices=5),), holdings=held))
    assert message == (
        "waits for a device: cpu:0 on n1 is held by job0, cpu:1 on n1 is held by job1, "
        "cpu:2 on n1 is held by job2, and 2 more"
    )


def test_a_free_device_without_enough_cpus_beside_it_is_not_enough() -> None:
    picture = view(queued("a", cpus=2.0), nodes=(node(devices=2),), holdings=(holding(cpus=3.0),))
    assert only_wait(picture) == (
        Reason.WAITING_FOR_CPUS,
        "waits for 2 cpus: n1 has 1 of 4 free, k3f9qz (swin-digits) holds 3",
    )


def test_a_later_job_that_fits_overtakes_one_that_does_not() -> None:
    picture = view(
        queued("wide", seq=1, cpus=4.0),
        queued("slim", seq=2),
        nodes=(node(devices=2),),
        holdings=(holding(),),
    )
    assert starts(picture) == [("slim", "n1", "cpu:1")]


def test_a_job_waits_for_its_last_attempt_to_be_gone_even_beside_a_free_device() -> None:
    picture = view(
        queued("a", waits_for_release=True), nodes=(node(devices=2),), holdings=(holding("a"),)
    )
    assert only_wait(picture) == (
        Reason.WAITING_FOR_RELEASE,
        "waits until its last attempt is checked to be gone from cpu:0 on n1",
    )


def test_a_job_starts_again_at_its_earliest_time_and_not_before() -> None:
    assert only_wait(view(queued("a", after=at(1)))) == (
        Reason.BACKING_OFF,
        "waits until 2026-01-05 12:00:01 UTC to start again",
    )
    assert starts(view(queued("a", after=at(0)))) == [("a", "n1", "cpu:0")]


@pytest.mark.parametrize(
    ("asks", "message"),
    [
        (
            {"devices": 2},
            "resources.devices: 2 does not fit, an attempt runs on one device; use 1",
        ),
        (
            {"memory_bytes": 8 * GIB},
            "resources.memory: 8GiB does not fit, the largest device is cpu:0 on n1 with 4GiB; "
            "ask for at most that, or offer a larger device",
        ),
        (
            {"cpus": 6.0},
            "resources.cpus: 6 does not fit, the most that a suitable node has is 4 (n1); "
            "ask for at most that, or add a node",
        ),
    ],
)
def test_a_job_larger_than_the_empty_cluster_is_told_the_numbers(
    asks: dict[str, Any], message: str
) -> None:
    assert only_wait(view(queued("a", **asks), holdings=(holding(),))) == (
        Reason.DOES_NOT_FIT,
        message,
    )


def test_a_job_takes_the_smallest_device_that_its_memory_fits() -> None:
    devices = (
        DeviceView(name="cuda:0", bytes=80 * GIB),
        DeviceView(name="cuda:1", bytes=24 * GIB),
        DeviceView(name="cuda:2", bytes=16 * GIB),
    )
    picture = view(queued("a", memory_bytes=20 * GIB), nodes=(node(devices=devices),))
    assert starts(picture) == [("a", "n1", "cuda:1")]


def test_equal_devices_are_taken_on_the_node_with_more_free_cpus_and_in_order_of_number() -> None:
    ten = tuple(DeviceView(name=f"cuda:{i}", bytes=GIB) for i in reversed(range(11)))
    jobs = [queued(f"j{i:02}", seq=i) for i in range(11)]
    assert [
        device for *_, device in starts(view(*jobs, nodes=(node(devices=ten, cpus=11.0),)))
    ] == [f"cuda:{i}" for i in range(11)]
    busy, calm = node("n1", devices=2), node("n2")
    assert starts(view(queued("a"), nodes=(busy, calm), holdings=(holding(),))) == [
        ("a", "n2", "cpu:0")
    ]


def test_a_holding_on_a_node_that_is_gone_blocks_nobody() -> None:
    assert starts(view(queued("a"), holdings=(holding(on="gone"),))) == [("a", "n1", "cpu:0")]


def test_a_recorded_view_is_replayed_from_json_and_decides_alike() -> None:
    picture = view(
        queued("a", after=at(5)), queued("b", seq=2, memory_bytes=GIB), holdings=(holding(),)
    )
    replayed = ClusterView.from_json(json.loads(json.dumps(picture.to_json())))
    assert replayed == picture
    assert decide(replayed) == decide(picture)
    unanswered = view(nodes=None)
    assert ClusterView.from_json(json.loads(json.dumps(unanswered.to_json()))) == unanswered
