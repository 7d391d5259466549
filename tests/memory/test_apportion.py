"""A device's bytes among several jobs: fair, and to the most speed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import synthetic_trace
from helpers.random_profiles import any_profile, triangle
from helpers.shares import jain
from tensile.allowance import with_allowance
from tensile.coordinator import (
    Member,
    Profile,
    Rung,
    apportion,
    traced,
)
from tensile.coordinator.interlock import interlock, wait_s
from tensile.coordinator.profile import SAMPLES
from tensile.costs import Costs
from tensile.floor import floor_bytes
from tensile.forecasting import forecast
from tensile.rungs import ladder as ladder_of
from tensile.sequence import Trace

DEVICE = 1000


def ladder(peak: int, *, base: int | None = None, minimum: int | None = None) -> Profile:
    """Ever fewer bytes for ever longer steps."""
    base = peak // 4 if base is None else base
    minimum = peak // 4 if minimum is None else minimum
    sizes = sorted({peak, *(s for s in (peak * 3 // 4, peak // 2) if s > minimum), minimum})
    rungs = [triangle(size, min(base, size), 1 + (peak - size) / peak) for size in reversed(sizes)]
    return Profile(rungs=tuple(rungs))


def flat_ladder(peak: int, minimum: int) -> Profile:
    return Profile(rungs=(Rung.flat(peak, 1.0), Rung.flat(minimum, 2.0)))


def test_two_equal_steps_that_interlock_need_three_quarters_of_the_sum_of_their_peaks() -> None:
    rung = triangle(400, 100)
    assert interlock([rung, rung]).peak_bytes <= 0.75 * 800
    assert abs(interlock([rung, rung]).offsets[1] - SAMPLES // 2) <= 1


def test_steps_of_unlike_length_count_with_the_sum_of_their_peaks() -> None:
    assert interlock([triangle(400, 100, 1.0), triangle(400, 100, 1.5)]).peak_bytes == 800


def test_a_step_waits_until_the_other_ones_peak_has_passed_and_not_longer() -> None:
    rung = triangle(400, 100)
    assert wait_s(rung, [(rung, 0.0)], 800) == 0.0
    assert wait_s(rung, [(rung, 0.0)], 600) == pytest.approx(0.4, abs=0.15)
    assert wait_s(rung, [(rung, 0.5)], 600) == 0.0
    assert wait_s(rung, [(rung, 0.0)], 100) == 0.0  # no wait would help


def test_where_there_is_room_a_step_may_drift_and_its_peak_still_does_not_meet_the_others() -> None:
    rung = triangle(400, 100)

    def sum_bytes(ahead_s: float) -> int:
        ahead = round(ahead_s * SAMPLES)
        return max(rung.curve[i] + rung.curve[(i + ahead) % SAMPLES] for i in range(SAMPLES))

    ahead_s = wait_s(rung, [(rung, 0.0)], 640)
    assert all(sum_bytes(ahead_s + drift_s) <= 640 for drift_s in (-0.1, 0, 0.1))
    assert sum_bytes(ahead_s - 0.25) > 640


@pytest.mark.parametrize(("minimum", "interlocks"), [(150, True), (250, True), (350, False)])
def test_what_a_job_owns_for_good_does_not_fill_the_gap_between_two_peaks(
    minimum: int, interlocks: bool
) -> None:
    """A minimum of 350 is there while the other one peaks at 700, however little of it is used."""
    profile = Profile(rungs=(triangle(700, 150), triangle(minimum, 150, 3.0)))
    assert interlock([profile.rungs[0]] * 2).peak_bytes < 0.9 * DEVICE
    division = apportion([Member(job=name, profile=profile) for name in "ab"], DEVICE)
    assert division is not None
    assert division.interlocked == interlocks


def test_bytes_go_where_they_make_most_speed_and_none_is_left_unused() -> None:
    thrifty = Profile(rungs=(Rung.flat(600, 1.0), Rung.flat(300, 1.01)))
    hungry = Profile(rungs=(Rung.flat(600, 1.0), Rung.flat(300, 2.0)))
    division = apportion(
        [Member(job="thrifty", profile=thrifty), Member(job="hungry", profile=hungry)], DEVICE
    )
    assert division is not None
    assert [p.rung for p in division.portions] == [1, 0]
    assert sum(p.cap_bytes for p in division.portions) == DEVICE


def test_a_high_priority_is_served_before_the_others_get_more_than_their_minimum() -> None:
    members = [Member(job=str(i), profile=ladder(600), priority=int(i == 1)) for i in range(3)]
    division = apportion(members, DEVICE)
    assert division is not None
    assert division.portions[1].speed == 1.0


@given(
    peaks=st.lists(st.integers(40, 900), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.25, 4), min_size=4, max_size=4),
)
def test_a_division_fits_and_nobody_is_below_the_minimum(
    peaks: list[int], weights: list[float]
) -> None:
    members = [
        Member(job=str(i), profile=ladder(peak), weight=weights[i]) for i, peak in enumerate(peaks)
    ]
    division = apportion(members, DEVICE)
    minima = sum(member.profile.minimum_bytes for member in members)
    assert (division is None) == (minima > DEVICE)
    if division is None:
        return
    for member, portion in zip(members, division.portions, strict=True):
        profile = member.profile
        assert profile.minimum_bytes <= portion.cap_bytes <= profile.peak_bytes
        assert profile.rungs[portion.rung].bytes <= portion.cap_bytes
    if division.interlocked:
        portions = zip(members, division.portions, strict=True)
        rungs = [member.profile.leased(portion.rung) for member, portion in portions]
        assert interlock(rungs).peak_bytes <= DEVICE
    else:
        assert sum(portion.cap_bytes for portion in division.portions) <= DEVICE


members = st.builds(
    Member,
    job=st.just("any"),
    profile=any_profile(),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
    priority=st.integers(0, 1),
)


@given(profile=any_profile(), count=st.integers(2, 5), device=st.integers(100, 4000))
def test_equal_jobs_are_equally_slow(profile: Profile, count: int, device: int) -> None:
    equals = [Member(job=str(i), profile=profile) for i in range(count)]
    division = apportion(equals, device)
    assert (division is None) == (count * profile.minimum_bytes > device)
    if division is not None:
        assert len({portion.cap_bytes for portion in division.portions}) == 1
        assert jain([1 / portion.speed for portion in division.portions]) >= 0.95


@given(
    peak=st.integers(300, 900),
    others=st.lists(st.floats(0.97, 1.03), min_size=2, max_size=2),
    room=st.floats(0.3, 1),
)
def test_alike_jobs_are_almost_equally_slow(peak: int, others: list[float], room: float) -> None:
    peaks = [peak, *(int(peak * ratio) for ratio in others)]
    alike = [Member(job=str(size), profile=ladder(size)) for size in peaks]
    division = apportion(alike, int(room * sum(peaks)))
    assert division is not None
    assert jain([1 / portion.speed for portion in division.portions]) >= 0.95


@given(several=st.lists(members, min_size=1, max_size=5), data=st.data())
def test_neither_order_nor_name_changes_what_anybody_gets(
    several: list[Member], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(several))))
    first = apportion([replace(m, job=str(i)) for i, m in enumerate(several)], 2 * DEVICE)
    shuffled = [replace(several[i], job=f"other {place}") for place, i in enumerate(order)]
    second = apportion(shuffled, 2 * DEVICE)
    if first is None or second is None:
        assert first is second
        return
    assert first.interlocked == second.interlocked
    for place, i in enumerate(order):
        assert replace(second.portions[place], job=str(i)) == first.portions[i]


@given(several=st.lists(members, min_size=1, max_size=5))
def test_a_higher_priority_is_as_fast_as_if_the_others_had_their_minima_only(
    several: list[Member],
) -> None:
    division = apportion(several, 2 * DEVICE)
    if division is None:
        return
    high = [member for member in several if member.priority == 1]
    left = 2 * DEVICE - sum(m.profile.minimum_bytes for m in several if m.priority == 0)
    fixed = apportion(high, left)
    assert fixed is not None
    if not fixed.interlocked:
        found = [p for m, p in zip(several, division.portions, strict=True) if m.priority == 1]
        for portion, expected in zip(found, fixed.portions, strict=True):
            assert portion.speed >= expected.speed


def test_three_equal_jobs_get_the_same_bytes_where_rungs_would_give_one_of_them_half() -> None:
    equals = [Member(job=name, profile=flat_ladder(900, 300)) for name in "abc"]
    division = apportion(equals, 1700)
    assert division is not None
    assert [portion.cap_bytes for portion in division.portions] == [566, 566, 566]
    assert division.portions[0].speed == pytest.approx(1 / (2 - 266 / 600))


@settings(max_examples=30, deadline=None)
@given(trace=synthetic_trace.traces, costs=synthetic_trace.costs)
def test_a_traced_job_is_a_ladder_whose_curves_reach_what_their_plans_hold(
    trace: Trace, costs: Costs
) -> None:
    profile = traced(trace, costs)
    plans = [with_allowance(plan.peak_bytes) for plan in ladder_of(trace, costs)]
    assert profile.minimum_bytes >= min(floor_bytes(trace), profile.peak_bytes)
    natural_bytes = max(plans[0], with_allowance(forecast(trace).peak_bytes))
    assert profile.peak_bytes == natural_bytes  # eager training's, whose optimizer is not chunked
    assert max(profile.rungs[0].curve) <= natural_bytes
    for rung in profile.rungs[1:]:
        assert max(rung.curve) == rung.bytes
        assert rung.bytes in plans
