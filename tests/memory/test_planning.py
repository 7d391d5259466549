"""A session plans again when its steps are not what was planned for, and only then."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from helpers.synthetic_trace import COSTS, MIB, stack
from tensile.planning import Planning

WINDOW = 5


class AtOnce(Executor):
    """The background of a session, without a thread: what is submitted is done."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def planned(*, is_observed: bool = False) -> tuple[Planning, float]:
    """At 60 % of the peak, with nothing left to improve; and how long a step should take."""
    trace = stack(8, parameter_bytes=MIB // 2, activation_bytes=4 * MIB)
    planning = Planning(trace, COSTS, is_observed=is_observed)
    made = planning.schedule(int(0.6 * planning.forecast.peak_bytes)).plan
    step_s = made.step_s - made.stall_s
    planning.observe(step_s, 0.0, 0, 0, AtOnce())
    planning.better()
    return planning, step_s


def observed(planning: Planning, *steps_s: float, passive_share: float = 0.0) -> float | None:
    """After these steps: how long one should take by the new plan, None where there is none."""
    for step_s in steps_s:
        planning.observe(step_s, passive_share, 0, 0, AtOnce())
    better = planning.better()
    return None if better is None else better.plan.step_s - better.plan.stall_s


@pytest.mark.parametrize("ratio", [0.6, 1.4, 3.0])
def test_steps_that_take_another_time_by_more_than_30_percent_are_planned_for_anew(
    ratio: float,
) -> None:
    planning, step_s = planned()
    assert observed(planning, *[step_s * ratio] * WINDOW) == pytest.approx(step_s * ratio, rel=0.05)
    assert observed(planning, *[step_s * ratio] * WINDOW) is None  # as is planned for by now


@pytest.mark.parametrize("ratio", [0.75, 1.0, 1.25])
def test_steps_within_30_percent_keep_their_plan(ratio: float) -> None:
    planning, step_s = planned()
    assert observed(planning, *[step_s * ratio] * 4 * WINDOW) is None


def test_a_few_slow_steps_are_no_drift() -> None:
    planning, step_s = planned()
    assert observed(planning, *[step_s, 9 * step_s, step_s, 9 * step_s, step_s] * 4) is None


def test_a_step_that_was_observed_does_not_drift_with_the_costs() -> None:
    planning, step_s = planned(is_observed=True)
    assert observed(planning, *[3 * step_s] * WINDOW) is None


def test_contents_that_come_too_late_are_asked_back_earlier() -> None:
    planning, step_s = planned()
    assert observed(planning, *[step_s] * WINDOW, passive_share=0.009) is None
    again = observed(planning, *[step_s] * WINDOW, passive_share=0.011)
    assert again == pytest.approx(step_s, rel=0.05)  # computing is as fast as before


def test_another_budget_ends_what_was_being_planned_for_the_old_one() -> None:
    planning, step_s = planned()
    for _ in range(WINDOW):
        planning.observe(3 * step_s, 0.0, 0, 0, AtOnce())
    planning.schedule(int(0.8 * planning.forecast.peak_bytes))
    assert planning.better() is None
