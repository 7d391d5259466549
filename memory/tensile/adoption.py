"""The plans of a session, one for each kind of step that was prepared, and which one is followed.

A step does not say of which kind it is. It begins with the plan of the last one, and changes over
at the first moment that is another's (`Execution`). Better plans are taken between two steps only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from torch import nn

from tensile import freed_memory
from tensile.coordinator.profile import Profile, together
from tensile.costs import Costs
from tensile.execution import Execution
from tensile.forecasting import Forecast
from tensile.gauge import Gauge
from tensile.lower_tier import LowerTier, TierError
from tensile.planning import Planning
from tensile.recorded_calls import RecordedCalls
from tensile.residency import Residency
from tensile.schedule import Schedule
from tensile.stats import Counters

_KEPT = 8  # kinds of steps; the one that was not met for the longest time goes
_NICE = 10  # training comes first


class Adoption:
    """Plans are in the order in which steps met them last, so the last one is tried first."""

    def __init__(
        self,
        *,
        modules: Iterable[tuple[str, nn.Module]],
        tier: LowerTier,
        residency: Residency,
        execution: Execution,
        gauge: Gauge,
        counters: Counters,
    ) -> None:
        self._modules = tuple(modules)
        self._tier = tier
        self._residency = residency
        self._execution = execution
        self._gauge = gauge
        self._counters = counters
        self._plannings: dict[str, Planning] = {}  # by signature
        self._schedules: dict[str, Schedule] = {}
        self._background = ThreadPoolExecutor(
            1, thread_name_prefix="tensile planner", initializer=_be_nice
        )

    @property
    def forecast(self) -> Forecast | None:
        """Of the kind of step with the highest peak; None where none was prepared."""
        found = [p.forecast for p in self._plannings.values() if not p.is_observed]
        return max(found, key=lambda forecast: forecast.peak_bytes, default=None)

    @property
    def floor_bytes(self) -> int:
        """The least budget that every kind of step has a plan for."""
        floors = (p.forecast.floor_bytes for p in self._plannings.values() if not p.is_observed)
        return max(floors, default=0)

    @property
    def known_floor_bytes(self) -> int:
        """The same, of those that were only observed too."""
        return max((p.forecast.floor_bytes for p in self._plannings.values()), default=0)

    @property
    def costs(self) -> Costs | None:
        """Of this device, as calibrated; None where no step is known yet."""
        return next((p.calibrated for p in reversed(self._plannings.values())), None)

    def profile(self) -> Profile | None:
        """What the job asks of a device that is shared; None where no step is known yet."""
        plannings = tuple(self._plannings.values())
        if not all(planning.has_profile for planning in plannings):
            with self.aside(leaves_cycles=False):
                for planning in plannings:
                    planning.profile()
        return together([planning.profile() for planning in plannings]) if plannings else None

    @property
    def is_planned(self) -> bool:
        """Whether there is anything to plan."""
        return bool(self._plannings)

    @property
    def schedules(self) -> Sequence[Schedule]:
        """The one that the next step begins with comes first."""
        return tuple(reversed(self._schedules.values()))

    @property
    def is_idle(self) -> bool:
        """Whether every kind of step was prepared and fits without any action. One that was only
        observed may be followed by others.
        """
        if any(planning.is_observed for planning in self._plannings.values()):
            return False
        return bool(self._schedules) and all(s.is_idle for s in self._schedules.values())

    @property
    def lower_bytes(self) -> int:
        """What the lower tier will hold, at most."""
        return max((s.lower_bytes for s in self._schedules.values()), default=0)

    @contextmanager
    def aside(self, *, leaves_cycles: bool = True) -> Iterator[None]:
        """What is still held afterwards belongs to the process (`Gauge.aside`), but for what was on
        its way back from below. Plans leave no cycles behind.
        """
        self._residency.arrive()
        with self._gauge.aside(leaves_cycles=leaves_cycles):
            yield

    def add(self, planning: Planning) -> None:
        """From here on its kind of step is known; `plan` has to follow."""
        self._drop(planning.trace.signature)
        while len(self._plannings) >= _KEPT:
            self._drop(next(iter(self._plannings)))
        self._plannings[planning.trace.signature] = planning

    def plan(self, limit_bytes: int | None) -> None:
        """Quick plans for a budget. Raises PlanError below a floor and TierError without room on
        the disk; what was followed before stays then.
        """
        schedules: dict[str, Schedule] = {}
        if limit_bytes is not None:
            with self.aside(leaves_cycles=False):
                for signature, planning in self._plannings.items():
                    schedules[signature] = self._scheduled(planning, limit_bytes)
            for schedule in schedules.values():
                self._tier.require_room(schedule.lower_bytes)
        self._schedules = schedules
        self._execution.limit(limit_bytes)
        for schedule in schedules.values():
            self._place(schedule)
        self._record_calls()

    def adopt(self, planning: Planning, limit_bytes: int) -> None:
        """Its kind of step is known, planned and followed from here on. Raises TierError."""
        with self.aside(leaves_cycles=False):
            schedule = self._scheduled(planning, limit_bytes)
        self.add(planning)
        self.follow(schedule)

    def observe(self, step_s: float, passive_share: float) -> None:
        """After a step that followed one of the plans to its end."""
        followed = self._execution.schedule
        for signature, schedule in self._schedules.items():
            if schedule is followed:
                planning = self._plannings.pop(signature)
                self._plannings[signature] = planning
                self._schedules[signature] = self._schedules.pop(signature)
                planning.observe(
                    step_s,
                    passive_share,
                    self._execution.missing_bytes,
                    self._execution.shortfall_bytes,
                    self._background,
                )
                return

    def take_better(self) -> None:
        """Between two steps: what was planned in the background since."""
        for signature, planning in self._plannings.items():
            better = planning.better()
            if better is None or signature not in self._schedules:
                continue
            try:
                self.follow(better)
            except TierError as error:  # the one that is followed has its room
                self._counters.note(f"a better plan was not followed: {error}")
                continue
            self._counters.replans += 1

    def follow(self, schedule: Schedule) -> None:
        """This one from the next step on, for its kind of step. Raises TierError without room."""
        self._tier.require_room(schedule.lower_bytes)
        self._schedules[schedule.trace.signature] = schedule
        self._place(schedule)
        self._record_calls()

    def close(self) -> None:
        """Waits for what is being planned, which ends early."""
        if self._execution.calls is not None:
            self._execution.calls.remove()
        for planning in self._plannings.values():
            planning.close()
        self._background.shutdown(wait=True, cancel_futures=True)

    def _drop(self, signature: str) -> None:
        planning = self._plannings.pop(signature, None)
        self._schedules.pop(signature, None)
        if planning is not None:
            planning.close()

    def _scheduled(self, planning: Planning, limit_bytes: int) -> Schedule:
        """A step in the middle of training is not refused: below its floor it has the floor's plan,
        and what that leaves over the budget finds room as without a plan. It is said.
        """
        floor_bytes = planning.forecast.floor_bytes
        if planning.is_observed and limit_bytes < floor_bytes:
            self._counters.note(f"the budget is not kept. {planning.refusal(limit_bytes)}")
            limit_bytes = floor_bytes
        return planning.schedule(limit_bytes)

    def _record_calls(self) -> None:
        if self._execution.calls is not None:
            self._execution.calls.remove()
            self._execution.calls = None
        wanted: set[tuple[str, int]] = set()
        for schedule in self._schedules.values():
            wanted |= schedule.computed_calls()
        if wanted:
            self._execution.calls = RecordedCalls(self._modules, wanted)

    def _place(self, schedule: Schedule) -> None:
        """What will leave in a step is placed now, while no graph looks at it; and what is away
        between two steps leaves already. The rest comes back as far as there is room.
        """
        away = {action.storage for action in schedule.away_at_begin()}
        names = dict.fromkeys(action.storage for action in schedule.plan.actions)
        for name in names:
            if not name.startswith("activation:"):
                self._residency.evict(name)
        freed_memory.trim()  # they were in the heap
        self._execution.bring_back(n for n in sorted(self._residency.away()) if n not in away)


def _be_nice() -> None:
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
