"""A session plans again when its steps are not what was planned for, and only then."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from helpers.invented_costs import COSTS as SMALL_COSTS
from helpers.small_trainings import contents, differences, perceptron
from helpers.synthetic_trace import COSTS, MIB, stack
from tensile import Session
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


@pytest.mark.parametrize(("slower", "passive"), [(20.0, 0.0), (1.0, 0.5)])
def test_a_session_takes_the_corrected_plan_between_two_steps_with_the_same_bits(
    slower: float, passive: float, tmp_path: Path
) -> None:
    training, expected = perceptron(), perceptron()
    for number in range(5):
        expected.step(expected.batches[number % 4])
    with Session(training.model, training.optimizer, 0.6, folder=tmp_path) as session:
        adoption = session._adoption

        def measured(step_s: float, passive: float, times: int) -> None:
            session._execution.schedule = adoption.schedules[0]  # as if a step had followed it
            for _ in range(times):
                adoption.observe(step_s, passive)
            adoption._background.submit(lambda: None).result()  # what was asked before has ended

        session.prepare(training.step, training.batches[0], costs=SMALL_COSTS)
        training.losses.clear()  # what a step does to objects, a trace does twice
        training.start()
        made = adoption.schedules[0].plan
        usual_s = made.step_s - made.stall_s
        measured(usual_s, 0.0, times=1)
        adoption.take_better()  # improved, which happens once
        followed, before = adoption.schedules[0], session.stats().replans
        measured(slower * usual_s, passive, times=WINDOW)
        assert adoption.schedules[0] is followed
        for number in range(5):
            with session.step():
                if number == 0:
                    assert session.stats().replans == before + 1
                    assert adoption.schedules[0] is not followed
                training.step(training.batches[number % 4])
        assert session.stats().deviations == 0
    assert differences(contents(training), contents(expected)) == []
