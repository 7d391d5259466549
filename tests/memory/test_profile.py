"""A job's ladder of plans, cut to a limit and put together from several kinds of steps."""

from __future__ import annotations

from tensile.coordinator import Profile, together
from tensile.coordinator.profile import Rung


def profile(*sizes: int) -> Profile:
    return Profile(rungs=tuple(Rung.flat(size, 1000 / size) for size in sizes))


def test_a_profile_within_a_limit_keeps_its_lower_rungs_and_gets_one_at_the_limit() -> None:
    whole = profile(900, 600, 300)
    assert [rung.bytes for rung in whole.within(700).rungs] == [700, 600, 300]
    assert [rung.bytes for rung in whole.within(600).rungs] == [600, 300]
    assert whole.within(900) == whole.within(10**6) == whole
    assert [rung.bytes for rung in whole.within(100).rungs] == [300]


def test_a_profile_of_several_kinds_of_steps_has_room_for_each() -> None:
    both = together([profile(900, 300), profile(500, 400)])
    assert [rung.bytes for rung in both.rungs] == [900, 500, 400]
    assert both.rungs[0].step_s < both.rungs[-1].step_s
    assert together([profile(900, 300)]) == profile(900, 300)
    assert [rung.bytes for rung in both.times(1.5).rungs] == [1350, 750, 600]
