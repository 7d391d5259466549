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
