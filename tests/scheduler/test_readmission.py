"""On what terms a job comes back that ran out of memory, and where it is let on."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dovetail.scheduler.cycle import schedule
from dovetail.scheduler.decisions import Start, Wait
from dovetail.scheduler.policies import POLICIES
from dovetail.scheduler.readmission import Shortage, Terms, terms
from dovetail.scheduler.view import ClusterView
from dovetail.service.outlooks import Foreseen, corrected
from dovetail_jobs.lifecycle import MEMORY_TRIES
from helpers.build import GIB, MIB, at, holding, node, profile, queued, sharing, view
from tensile.coordinator import declared

LADDER = profile((600 * MIB, 1.0), (450 * MIB, 1.1), (300 * MIB, 1.5), (200 * MIB, 2.0))
ENDS = tuple(
    Shortage(
        attempt=number,
        node_id="id-n1",
        device="cpu:0",
        neighbours=2,
        limit_bytes=limit_bytes,
        peak_bytes=limit_bytes + MIB,
    )
    for number, limit_bytes in enumerate((500 * MIB, 450 * MIB, 300 * MIB), start=1)
)


def decide(picture: ClusterView) -> Start | Wait:
    (decision,) = schedule(picture, POLICIES["priority"], at())
    return decision


def test_each_try_goes_further_than_the_one_before() -> None:
    tries = [terms(ENDS[:count], LADDER, shares=True) for count in range(1, MEMORY_TRIES + 1)]
    assert [(each.cap_bytes, each.fewer, each.alone) for each in tries] == [
        (450 * MIB, False, False),
        (300 * MIB, True, False),
        (None, False, True),
    ]
    assert [each.sentence for each in tries] == [
        "attempt 1 ran out of memory on cpu:0 beside 2 other jobs, where it might hold 500MiB and "
        "held 501MiB at most; it is kept to 450MiB now, one rung lower",
        "attempt 2 ran out of memory on cpu:0 beside 2 other jobs, where it might hold 450MiB and "
        "held 451MiB at most; it is kept to 300MiB now, one rung lower, beside fewer jobs or on "
        "another device",
        "attempt 3 ran out of memory on cpu:0 beside 2 other jobs, where it might hold 300MiB and "
        "held 301MiB at most; it ran out 3 times, so it has a device of its own, and all of it",
    ]


def test_one_that_has_a_device_alone_goes_down_its_ladder_and_to_other_devices() -> None:
    alone = tuple(replace(end, neighbours=0) for end in ENDS)
    tries = [terms(alone[:count], LADDER, shares=False) for count in (1, 2, 3)]
    assert [each.cap_bytes for each in tries] == [450 * MIB, 300 * MIB, 200 * MIB]
    assert not any(each.fewer or each.alone for each in tries)
    assert tries[0].sentence.endswith("one rung lower, on another device where one is free")


def test_one_with_a_limit_above_its_peak_goes_below_its_peak() -> None:
    end = replace(ENDS[0], limit_bytes=4 * GIB)
    assert terms((end,), LADDER, shares=False).cap_bytes == 450 * MIB
    unknown = replace(ENDS[0], limit_bytes=None, peak_bytes=None)
    agreed = terms((unknown,), LADDER, shares=True)
    assert agreed.cap_bytes == 450 * MIB
    assert "cpu:0 beside 2 other jobs; it is kept to 450MiB" in agreed.sentence


def test_one_without_a_lower_rung_has_a_whole_device_at_once() -> None:
    for ladder, why in (
        (declared(500 * MIB), "it has no lower rung"),
        (profile((600 * MIB, 1.0), (500 * MIB, 1.2)), "it has no lower rung"),
        (None, "its memory is not foreseen"),
    ):
        agreed = terms(ENDS[:1], ladder, shares=True)
        assert (agreed.alone, agreed.cap_bytes) == (True, None)
        assert agreed.sentence.endswith(f"{why}, so it has a device of its own, and all of it")


FENCED = replace(ENDS[0], limit_bytes=300 * MIB, peak_bytes=430 * MIB, overrun=430 / 300)


def test_one_that_held_more_than_it_might_comes_back_to_a_limit_that_has_room_for_it() -> None:
    raised = LADDER.times(430 / 300)
    first = terms((FENCED,), raised, shares=True)
    assert first.cap_bytes == 430 * MIB  # the rung it was on, as it is now known
    assert first.sentence.endswith(
        "held 430MiB at most; its plans are taken to hold 1.43 times what was foreseen of them, "
        "and it is kept to 430MiB now"
    )
    lowest = replace(FENCED, limit_bytes=200 * MIB, peak_bytes=290 * MIB, overrun=1.45)
    agreed = terms((lowest,), LADDER.times(1.45), shares=True)
    assert (agreed.cap_bytes, agreed.alone) == (290 * MIB, False)
    again = replace(FENCED, attempt=2, limit_bytes=430 * MIB, peak_bytes=516 * MIB, overrun=1.72)
    second = terms((FENCED, again), LADDER.times(1.72), shares=True)
    assert (second.cap_bytes, second.fewer) == (516 * MIB, True)
    assert terms((FENCED, again, again), LADDER.times(1.72), shares=True).alone


@given(
    steps=st.lists(st.integers(1, 400), min_size=2, max_size=6),
    part=st.floats(0.05, 1.5),
    ratio=st.floats(1.001, 4.0),
)
def test_who_held_more_than_it_might_never_comes_back_to_less_than_it_held(
    steps: list[int], part: float, ratio: float
) -> None:
    sizes = [sum(steps[:count]) * MIB for count in range(len(steps), 0, -1)]
    ladder = profile(*((size, 1.0 + number) for number, size in enumerate(sizes)))
    limit_bytes = max(ladder.minimum_bytes, int(part * ladder.peak_bytes))
    held_bytes = int(limit_bytes * ratio)
    end = replace(FENCED, limit_bytes=limit_bytes, peak_bytes=held_bytes, overrun=ratio)
    found = Foreseen(job_id="a", peak_bytes=ladder.peak_bytes, profile=ladder)
    known = corrected(found, held_bytes, ratio).profile
    assert known is not None
    agreed = terms((end,), known, shares=True)
    assert agreed.alone or (agreed.cap_bytes or 0) >= held_bytes


def test_one_that_nobody_manages_hears_what_would_run_it_under_less() -> None:
    agreed = terms((replace(FENCED, overrun=None),), None, shares=False, unmanaged=True)
    assert (agreed.alone, agreed.cap_bytes) == (True, None)
    assert agreed.sentence.endswith(
        "nobody moves its memory (with memory: {policy: tensile} it would run under less), so it "
        "has a device of its own, and all of it"
    )


def back(agreed: Terms, neighbours: int, devices: int = 1) -> Start | Wait:
    """Of a job that shares and ran out on cpu:0, which so many others hold now."""
    held = tuple(holding(f"job{n}", job_name=None, sharing=sharing()) for n in range(neighbours))
    job = queued("a", sharing=sharing(), terms=agreed)
    return decide(view(job, nodes=(node(devices=devices, cpus=8.0),), holdings=held))


def test_the_second_try_joins_fewer_others_than_there_were() -> None:
    second = terms(ENDS[:2], LADDER, shares=True)
    assert isinstance(back(second, neighbours=1), Start)
    waits = back(second, neighbours=2)
    assert isinstance(waits, Wait)
    assert waits.message == (
        "waits for a device: cpu:0 on n1 is where attempt 2 ran out of memory on cpu:0 beside 2 "
        "other jobs, where it might hold 450MiB and held 451MiB at most; it joins fewer than 2 "
        "there, and 2 are there now"
    )
    assert isinstance(back(terms(ENDS[:1], LADDER, shares=True), neighbours=2), Start)


def test_of_free_devices_another_comes_before_the_one_where_it_ran_out() -> None:
    for device, expected in (("cpu:0", "cpu:1"), ("cpu:1", "cpu:0")):
        agreed = terms((replace(ENDS[0], device=device),), LADDER, shares=False)
        start = back(agreed, neighbours=0, devices=2)
        assert isinstance(start, Start)
        assert start.device == expected
        assert (start.cap_bytes, start.readmission) == (450 * MIB, agreed.sentence)
    only = back(terms(ENDS[:1], LADDER, shares=False), neighbours=0)
    assert isinstance(only, Start)


def test_one_that_is_alone_at_last_may_hold_all_of_its_device() -> None:
    start = back(terms(ENDS, LADDER, shares=True), neighbours=0)
    assert isinstance(start, Start)
    assert start.cap_bytes == 4 * GIB


def test_a_view_with_terms_goes_through_json() -> None:
    picture = view(queued("a", sharing=sharing(), terms=terms(ENDS, LADDER, shares=True)))
    assert ClusterView.from_json(picture.to_json()) == picture
