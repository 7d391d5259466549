"""What steps are measured to take corrects the plan, in the background, where it was wrong.

Measured times are given here, and what runs in the background runs at once: nothing depends on how
fast this machine is.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, TypeVar

import pytest

from helpers.invented_costs import COSTS as SMALL_COSTS
from helpers.small_trainings import contents, differences, perceptron
from helpers.synthetic_trace import COSTS, stack
from tensile import Session
from tensile.actions import Swap
from tensile.planning import Planning
from tensile.schedule import Schedule

T = TypeVar("T")
WINDOW = 5


class AtOnce(Executor):
    """The background, without waiting for it; counts what was asked of it."""

    def __init__(self) -> None:
        self.asked = 0

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        self.asked += 1
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def planned(share: float, *, is_observed: bool = False) -> tuple[Planning, Schedule]:
    planning = Planning(stack(12), COSTS, is_observed=is_observed)
    floor, peak = planning.forecast.floor_bytes, planning.forecast.peak_bytes
    return planning, planning.schedule(floor + int(share * (peak - floor)))


def computing_s(schedule: Schedule) -> float:
    return schedule.plan.step_s - schedule.plan.stall_s


def told(
    planning: Planning, background: AtOnce, step_s: float, *, times: int, passive: float = 0.0
) -> Schedule | None:
    """What comes of so many steps that took so long each."""
    found = None
    for _ in range(times):
        planning.observe(step_s, passive, 0, 0, background)
        found = planning.better() or found
    return found


@pytest.mark.parametrize("ratio", [0.5, 0.69, 1.31, 4.0])
def test_steps_that_drift_by_more_than_30_percent_are_planned_again_once(ratio: float) -> None:
    planning, first = planned(0.9)
    assert first.plan.stall_s == 0
    background, measured_s = AtOnce(), ratio * computing_s(first)
    assert told(planning, background, measured_s, times=WINDOW - 1) is None
    again = told(planning, background, measured_s, times=1)
    assert again is not None
    assert computing_s(again) == pytest.approx(measured_s, rel=0.05)
    better = told(planning, background, measured_s, times=3 * WINDOW) or again
    assert computing_s(better) == pytest.approx(measured_s, rel=0.05)
    assert background.asked <= 2  # planned again once, and improved once where that waits


@pytest.mark.parametrize("ratio", [0.71, 1.0, 1.29])
def test_steps_that_drift_by_less_stay_with_their_plan(ratio: float) -> None:
    planning, first = planned(0.9)
    background = AtOnce()
    assert told(planning, background, ratio * computing_s(first), times=3 * WINDOW) is None
    assert background.asked == 0


def test_one_slow_step_among_others_is_no_drift() -> None:
    planning, first = planned(0.9)
    background, usual_s = AtOnce(), computing_s(first)
    for number in range(4 * WINDOW):
        step_s = 50 * usual_s if number % WINDOW == 0 else usual_s
        assert told(planning, background, step_s, times=1) is None
    assert background.asked == 0


def test_a_step_that_was_observed_has_measured_times_and_does_not_drift() -> None:
    planning, first = planned(0.9, is_observed=True)
    background = AtOnce()
    assert told(planning, background, 10 * computing_s(first), times=2 * WINDOW) is None
    assert background.asked == 0


def returns(schedule: Schedule) -> dict[str, int]:
    """The event at which each activation is asked back."""
    return {
        action.storage: action.in_event
        for action in schedule.plan.actions
        if isinstance(action, Swap) and action.storage.startswith("activation:")
    }


def test_more_than_one_percent_of_passive_fetches_ask_earlier() -> None:
    planning, first = planned(0.7)
    background, usual_s = AtOnce(), computing_s(first)
    first = told(planning, background, usual_s, times=1) or first  # improved, which happens once
    assert told(planning, background, usual_s, times=WINDOW - 2, passive=0.011) is None
    again = told(planning, background, usual_s, times=1, passive=0.011)
    assert again is not None
    before, after = returns(first), returns(again)
    both = before.keys() & after.keys()
    assert both
    assert all(after[name] <= before[name] for name in both)
    assert any(after[name] < before[name] for name in both)


def test_one_percent_of_passive_fetches_is_as_good_as_planned() -> None:
    planning, first = planned(0.9)
    background = AtOnce()
    assert told(planning, background, computing_s(first), times=3 * WINDOW, passive=0.01) is None
    assert background.asked == 0


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
        usual_s = computing_s(adoption.schedules[0])
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
