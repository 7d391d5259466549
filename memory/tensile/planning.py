"""Plans for one traced step: the first one at once, better ones in the background."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Executor, Future
from dataclasses import replace
from statistics import median
from threading import Event

from tensile.actions import Plan, PlanError
from tensile.allowance import allowance_bytes
from tensile.coordinator.profile import Profile
from tensile.coordinator.traced import traced as profiled
from tensile.costs import Costs
from tensile.floor import floor_bytes
from tensile.forecasting import Forecast, forecast
from tensile.planner import below_the_floor, plan
from tensile.schedule import Schedule
from tensile.search import improve
from tensile.sequence import Trace
from tensile.tape import Tape

_DRIFT = 0.3  # of the step's time, as in TENSILE (arXiv 2105.13336, §4.4)
_PASSIVE = 0.01  # of the contents that came back
_LATER = 1.5  # contents that came too late are asked back as if the channel were that much slower
_WINDOW = 5  # steps that must agree before anything is planned again


class Planning:
    """A trace, its forecast, and the costs of this device as far as they are known. `is_observed`:
    the trace is of a real step, whose operators were measured, so they do not drift with the costs.
    """

    def __init__(self, traced: Trace, costs: Costs, *, is_observed: bool = False) -> None:
        self.trace = traced
        self.is_observed = is_observed
        self.calibrated = costs  # whatever a step showed since
        self.forecast: Forecast = forecast(traced)
        self._costs = costs
        self._own_bytes = 0  # what the process was seen to take beside what the trace knows
        self._floor_bytes = floor_bytes(traced)
        self._budget_bytes: int | None = None
        self._made: Plan | None = None
        self._better: Future[Schedule | None] | None = None
        self._stop = Event()
        self._improved = False
        self._predicted_s = 0.0
        self._recent_s: deque[float] = deque(maxlen=_WINDOW)
        self._profile: Profile | None = None

    @property
    def has_profile(self) -> bool:
        return self._profile is not None

    def profile(self) -> Profile:
        """What the step asks of a device that is shared. The first time it takes as long as several
        plans.
        """
        if self._profile is None:
            self._profile = profiled(self.trace, self._costs)
        return self._profile

    def schedule(self, budget_bytes: int) -> Schedule:
        """The quick plan for a budget. Raises PlanError below the floor."""
        if budget_bytes < self.forecast.floor_bytes:
            raise PlanError(self.refusal(budget_bytes))
        self.close()
        self._budget_bytes = budget_bytes
        schedule = self._planned(budget_bytes)
        self._take(schedule)
        self._improved = False
        return schedule

    def refusal(self, budget_bytes: int) -> str:
        """Why a budget below the floor has no plan, and what lowers the floor."""
        beside_bytes = self.forecast.floor_bytes - self._floor_bytes
        return below_the_floor(Tape(self.trace, self._costs), budget_bytes, beside_bytes)

    def observe(
        self,
        step_s: float,
        passive_share: float,
        missing_bytes: int,
        shortfall_bytes: int,
        background: Executor,
    ) -> None:
        """A followed step took so long, waits taken off; so many of the contents that came back had
        not been asked for in time; for so much, more had to leave than was planned; and so much
        found no room. What was wrong is planned again in the background; what was right is improved
        there, once.
        """
        if self._better is not None or self._budget_bytes is None:
            return
        self._recent_s.append(step_s)
        late = passive_share > _PASSIVE
        crowded = late and missing_bytes > 0 and self._has_room(1)
        ratio = median(self._recent_s) / max(self._predicted_s, 1e-9)
        drifted = len(self._recent_s) == _WINDOW and abs(ratio - 1) > _DRIFT
        drifted = drifted and not self.is_observed
        if shortfall_bytes > 0 and self._has_room(shortfall_bytes):
            self._own_bytes = self._spared_bytes(self._budget_bytes) + shortfall_bytes
        elif crowded:
            self._own_bytes = self._spared_bytes(self._budget_bytes) + missing_bytes
        elif drifted:
            self._costs = replace(
                self._costs,
                flops_per_s=self._costs.flops_per_s / ratio,
                moved_bytes_per_s=self._costs.moved_bytes_per_s / ratio,
                overhead_s=self._costs.overhead_s * ratio,
            )
        elif late and len(self._recent_s) == _WINDOW:
            slower = self._costs.in_bytes_per_s / _LATER
            self._costs = replace(self._costs, in_bytes_per_s=slower)
        elif not self._improved and self._made is not None and self._made.stall_s > 0:
            self._improved = True
            self._better = background.submit(self._better_than, self._made, self._stop)
            return
        else:
            return
        self._recent_s.clear()
        self._better = background.submit(self._planned, self._budget_bytes)

    def better(self) -> Schedule | None:
        """A plan that was made in the background since, once; it is the one from here on."""
        if self._better is None or not self._better.done():
            return None
        future, self._better = self._better, None
        better = future.result()
        if better is not None:
            self._take(better)
        return better

    def close(self) -> None:
        """What is being planned ends early, and nobody hears of it."""
        self._stop.set()
        self._stop = Event()
        if self._better is not None:
            self._better.cancel()
            self._better = None

    def _planned(self, budget_bytes: int) -> Schedule:
        wanted = budget_bytes
        if budget_bytes < self.forecast.peak_bytes:
            wanted = max(budget_bytes - self._spared_bytes(budget_bytes), self._floor_bytes)
        return self._scheduled(plan(self.trace, wanted, self._costs))

    def _better_than(self, made: Plan, stop: Event) -> Schedule | None:
        found = improve(self.trace, made, self._costs, stopped=stop.is_set)
        return None if found == made or stop.is_set() else self._scheduled(found)

    def _scheduled(self, made: Plan) -> Schedule:
        return Schedule(self.trace, made)

    def _take(self, schedule: Schedule) -> None:
        self._made = schedule.plan
        self._predicted_s = schedule.plan.step_s - schedule.plan.stall_s

    def _spared_bytes(self, budget_bytes: int) -> int:
        return max(self._own_bytes, allowance_bytes(budget_bytes))

    def _has_room(self, more_bytes: int) -> bool:
        """Whether a plan could leave so much more free."""
        assert self._budget_bytes is not None
        left = self._budget_bytes - self._spared_bytes(self._budget_bytes)
        return left - more_bytes >= self._floor_bytes
