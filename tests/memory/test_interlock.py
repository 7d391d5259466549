"""How long a step waits for its neighbours' peaks, against a look at every moment."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.random_profiles import triangle
from tensile.coordinator.interlock import PATIENCE, wait_s
from tensile.coordinator.profile import SAMPLES, Rung

_LONGEST = 5 / 8  # of a step
_LOOKS = 400  # at waits in that time


def fits(mine: Rung, others: list[tuple[Rung, float]], delay_s: float, device_bytes: int) -> bool:
    """Whether everything does in every moment of a step that begins then."""
    part_s = mine.step_s / SAMPLES
    borders = {delay_s + number * part_s for number in range(SAMPLES + 1)}
    for rung, ran_s in others:
        its_part_s = rung.step_s / SAMPLES
        first = math.floor((ran_s + delay_s) / its_part_s)
        last = math.ceil((ran_s + delay_s + mine.step_s) / its_part_s)
        borders |= {number * its_part_s - ran_s for number in range(first, last + 1)}
    inside = sorted(at_s for at_s in borders if delay_s <= at_s <= delay_s + mine.step_s)
    for begin_s, end_s in pairwise(inside):
        if end_s - begin_s < 1e-9:
            continue
        at_s = (begin_s + end_s) / 2
        held = mine.curve[min(int((at_s - delay_s) / part_s), SAMPLES - 1)]
        for rung, ran_s in others:
            number = math.floor((at_s + ran_s) / rung.step_s * SAMPLES)
            held += rung.curve[max(number, -1) % SAMPLES]
        if held > device_bytes:
            return False
    return True


rungs = st.builds(
    triangle, st.integers(200, 900), st.integers(50, 200), st.sampled_from([0.9, 1.0, 1.04, 3.0])
)
steps = st.lists(st.tuples(rungs, st.floats(-1, 5)), max_size=2)


@given(mine=rungs, others=steps, device_bytes=st.integers(300, 2500))
def test_after_the_wait_all_fit_and_nobody_waits_where_they_do_already_or_never_will(
    mine: Rung, others: list[tuple[Rung, float]], device_bytes: int
) -> None:
    after_s = wait_s(mine, others, device_bytes)
    assert 0 <= after_s <= _LONGEST * mine.step_s
    if after_s > 0:
        assert fits(mine, others, after_s, device_bytes)
        assert not fits(mine, others, 0.0, device_bytes)
    elif not fits(mine, others, 0.0, device_bytes):
        waits = [_LONGEST * mine.step_s * look / _LOOKS for look in range(_LOOKS + 1)]
        assert not any(fits(mine, others, wait, device_bytes) for wait in waits[1:-1])


@given(ran=st.floats(0.02, 0.98), device_bytes=st.integers(600, 790))
def test_who_waits_does_so_no_longer_than_to_be_a_little_on_the_safe_side(
    ran: float, device_bytes: int
) -> None:
    rung = triangle(400, 100)
    after_s = wait_s(rung, [(rung, ran)], device_bytes)
    sooner = [after_s - 0.01 * look for look in range(1, int(after_s * 100))]
    early = [wait for wait in sooner if fits(rung, [(rung, ran)], wait, device_bytes)]
    assert len(early) <= PATIENCE * 100 + 1


def test_a_step_of_another_that_is_over_in_no_time_counts_with_its_peak() -> None:
    mine, other = triangle(400, 100), triangle(400, 100, 1e-9)
    assert wait_s(mine, [(other, 0.0)], 799) == 0.0  # which no wait brings down
    assert wait_s(mine, [(other, 1e6)], 800) == 0.0


def test_who_waited_does_not_wait_again_for_being_a_little_late() -> None:
    rung = triangle(400, 100)
    after_s = wait_s(rung, [(rung, 0.2)], 620)
    assert after_s > 0
    assert wait_s(rung, [(rung, 0.2 + after_s)], 620) == 0.0
    assert wait_s(rung, [(rung, 0.2 + after_s + 0.01)], 620) == 0.0
    assert wait_s(rung, [(rung, 0.2 + after_s - 0.01)], 620) == 0.0


def test_who_is_still_to_begin_counts_from_when_it_will() -> None:
    rung = triangle(400, 100)
    assert wait_s(rung, [(rung, -0.5)], 620) == 0.0  # when this step's peak has passed
    assert wait_s(rung, [(rung, 0.0)], 620) > 0.3


@pytest.mark.parametrize("others", [1, 2, 3])
def test_others_that_never_change_are_waited_for_by_nobody(others: int) -> None:
    flat = Rung.flat(100)
    assert wait_s(triangle(400, 100), [(flat, 0.3)] * others, 700) == 0.0
