"""How fair a shared device is, simulated: equal jobs, and one that comes before the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import synthetic_trace
from helpers.random_profiles import any_profile
from helpers.shares import jain
from tensile.coordinator import Member, Profile, Rung, simulate_together, traced
from tensile.costs import Costs
from tensile.sequence import Trace


def swapping(peak: int, copy_share: float) -> Profile:
    """A tenth slower on its lowest rung, where copies keep so much of a channel busy."""
    rungs = []
    for part, step_s in ((1.0, 1.0), (0.75, 1.02), (0.5, 1.1)):
        missing = (1 - part) * 2
        flat = Rung.flat(int(peak * part), step_s)
        copied_bytes = int(missing * peak)
        rungs.append(replace(flat, copied_bytes=copied_bytes, copy_s=missing * copy_share * step_s))
    return Profile(rungs=tuple(rungs))


def three(profile: Profile, *, high: int = 0) -> list[Member]:
    return [Member(job=name, profile=profile, priority=high * (name == "b")) for name in "abc"]


def test_a_job_alone_is_as_fast_as_its_plan_says() -> None:
    profile = swapping(1000, 0.8)
    (free,) = simulate_together([Member(job="a", profile=profile)], 1000)
    assert free.slowdown == pytest.approx(1)
    assert free.copy_share == 0
    (small,) = simulate_together([Member(job="a", profile=profile)], 500)
    assert small.slowdown == pytest.approx(1.1)
    assert small.copy_share == pytest.approx(0.8)


def test_three_who_want_more_than_the_channel_can_do_go_at_its_pace() -> None:
    outcomes = simulate_together(three(swapping(1000, 0.8)), 1500)
    assert sum(outcome.copy_share for outcome in outcomes) == pytest.approx(1, abs=0.02)
    for outcome in outcomes:
        assert outcome.slowdown == pytest.approx(1.1 * 3 * 0.8, rel=0.02)


def test_a_high_priority_beside_two_low_ones_keeps_its_speed_and_its_copies() -> None:
    profile = swapping(1000, 0.9)
    least = profile.minimum_bytes
    (alone,) = simulate_together([Member(job="b", profile=profile)], least)
    for device_bytes in (3 * least, 3 * least + 100):
        high = simulate_together(three(profile, high=1), device_bytes)[1]
        assert alone.step_s / high.step_s >= 0.95
    low, high, _ = simulate_together(three(profile, high=1), 3 * least)
    assert high.copy_share >= 0.95 * alone.copy_share
    assert 0 < low.copy_share < 0.1
    equal = simulate_together(three(profile), 3 * least)[1]
    assert equal.copy_share < 0.5 * alone.copy_share  # which is what priority is for


def check(profile: Profile, room: float) -> None:
    """Three equal jobs are equally slow; one that comes first is as fast as the others' minima let
    it be.
    """
    least, most = 3 * profile.minimum_bytes, 3 * profile.peak_bytes
    device_bytes = least + int(room * (most - least))
    outcomes = simulate_together(three(profile), device_bytes, steps=3)
    assert jain([outcome.slowdown for outcome in outcomes]) >= 0.95
    high = simulate_together(three(profile, high=1), device_bytes, steps=3)[1]
    left = min(device_bytes - 2 * profile.minimum_bytes, profile.peak_bytes)
    (alone,) = simulate_together([Member(job="alone", profile=profile)], left, steps=3)
    assert alone.step_s / high.step_s >= 0.95


@settings(max_examples=30, deadline=None)
@given(profile=any_profile(), room=st.floats(0, 1))
def test_three_equal_jobs_are_equally_slow_and_a_high_priority_keeps_its_speed(
    profile: Profile, room: float
) -> None:
    check(profile, room)


@pytest.mark.long
@settings(max_examples=30, deadline=None)
@given(trace=synthetic_trace.traces, costs=synthetic_trace.costs, room=st.floats(0, 1))
def test_so_it_is_with_profiles_of_traces(trace: Trace, costs: Costs, room: float) -> None:
    check(traced(trace, costs), room)


def test_who_is_never_let_in_is_named() -> None:
    profile = Profile(rungs=(Rung.flat(600),))
    with pytest.raises(ValueError, match="c: not let in beside 2 others"):
        simulate_together(three(profile), 1300)
    with pytest.raises(ValueError, match="the device has 500 bytes"):
        simulate_together(three(profile), 500)
