"""Speeds are over the last seconds, and are told about five times a second."""

from __future__ import annotations

import pytest

from dovetail_workers.speed import Speedometer


def test_nothing_is_known_before_the_first_step() -> None:
    assert Speedometer(100.0).per_s() == (None, None)


def test_the_first_step_is_told_and_then_five_per_second() -> None:
    speed = Speedometer(0.0)
    told = [speed.stepped(0.01 * step, 4) for step in range(1, 501)]
    assert told[0]
    assert sum(told) == pytest.approx(25, abs=2)


def test_a_steady_run_has_its_speed() -> None:
    speed = Speedometer(0.0)
    for step in range(1, 401):
        speed.stepped(step / 20, 8)
    assert speed.per_s() == pytest.approx((20, 160))


def test_what_was_long_ago_no_longer_counts() -> None:
    speed = Speedometer(0.0)
    for second in range(1, 101):
        speed.stepped(float(second), 1)
    for tenth in range(1, 151):
        speed.stepped(100 + tenth / 10, 1)
    steps_per_s, _ = speed.per_s()
    assert steps_per_s == pytest.approx(10, rel=0.05)
