"""The budget that counts now: what the user asked for, or less since memory failed under it, or
less since other jobs are on the device.
"""

from __future__ import annotations

from tensile.adoption import Adoption
from tensile.budget import Budget, BudgetError, budget_bytes, share_of
from tensile.cpu_device import CpuDevice
from tensile.lower_tier import TierError
from tensile.peaks import Peaks
from tensile.rungs import SHARES, rung_below
from tensile.stats import Counters
from tensile.tenancy import Tenancy


class BudgetInForce:
    """Raises BudgetError for a budget that is no size. `tenancy` is None on a device of its own."""

    def __init__(
        self,
        budget: Budget,
        *,
        adoption: Adoption,
        device: CpuDevice,
        peaks: Peaks,
        counters: Counters,
        tenancy: Tenancy | None,
    ) -> None:
        self._asked = budget
        self._ceiling_bytes: int | None = None
        self._adoption = adoption
        self._device = device
        self._peaks = peaks
        self._counters = counters
        self._tenancy = tenancy

    def limit_bytes(self) -> int | None:
        """None for no limit. Raises BudgetError for a share of a peak that was not forecast."""
        own = self.own_bytes()
        if self._tenancy is None:
            return own
        return self._tenancy.limit_bytes if own is None else min(own, self._tenancy.limit_bytes)

    def own_bytes(self) -> int | None:
        """The same, if the device were the job's alone."""
        forecast = self._adoption.forecast
        limit = budget_bytes(self._asked, None if forecast is None else forecast.peak_bytes)
        if limit is None or self._ceiling_bytes is None:
            return limit
        return min(limit, self._ceiling_bytes)

    def do_without_forecast(self, why: str) -> None:
        """Raises BudgetError where only a forecast would say what the budget is."""
        if share_of(self._asked) is not None and self._adoption.forecast is None:
            raise BudgetError(
                f"budget {self._asked} is a share of the forecast peak, and the peak of this step "
                f"cannot be foreseen ({why}); give bytes"
            )

    def plan(self) -> None:
        """Plan every kind of step that is known, and tell the other jobs' broker of it, where there
        is one. Raises PlanError below a floor, TierError, and LeaseRefused.
        """
        own, floor = self.own_bytes(), self._adoption.floor_bytes
        planned = own
        if self._tenancy is not None:
            if own is None or own >= floor:
                self._tenancy.tell(own)
            # a share is below the floor only where that was mistaken: its plan is the best there is
            share = max(self._tenancy.limit_bytes, floor)
            planned = share if own is None else min(own, share)
        if planned is not None:
            self.give_back_freed_memory()
        self._adoption.plan(planned)

    def follow(self, what: str) -> int | None:
        """Between two passes: the limit of the next one. Another share of the device is planned
        for, and what is over is given back. A job that is not on the device yet joins it, and a
        step waits for its turn.
        """
        tenancy = self._tenancy
        if tenancy is not None:
            before = self.limit_bytes()
            if what != "staging" and not tenancy.is_joined:
                tenancy.tell(self.own_bytes())
            tenancy.follow()
            if self.limit_bytes() != before:
                self._plan_again()
            tenancy.vacate()
            if self.limit_bytes() != before:
                self._peaks.begin_again()
            tenancy.tell_base()
            if what == "step":
                tenancy.begin_step()
        return self.limit_bytes()

    def look_back(self, limit: int | None, *, watched: bool) -> int:
        """After a pass; by how much it exceeded its limit. The broker of a device that is shared
        hears of the first that needs so much more than was foreseen.
        """
        before_bytes = self._peaks.highest_bytes
        over_bytes = self._peaks.look_back(limit, watched=watched)
        if self._tenancy is not None and limit is not None:
            is_first = over_bytes > 0 and limit + over_bytes > before_bytes
            self._tenancy.passed(limit + over_bytes if is_first else 0, self.own_bytes())
        return over_bytes

    def change(self, budget: Budget) -> None:
        """Another one from here on; the old one stays where this raises."""
        before = self._asked, self._ceiling_bytes
        self._asked, self._ceiling_bytes = budget, None
        try:
            self._plan_again()
        except ValueError:
            self._asked, self._ceiling_bytes = before
            raise

    def step_down(self) -> int | None:
        """One rung of the ladder lower; its bytes, or None where there is none."""
        limit, before = self.limit_bytes(), self._ceiling_bytes
        lower = None if limit is None else rung_below(limit, *self._ladder())
        if lower is None:
            return None
        self._ceiling_bytes = lower
        try:
            self._plan_again()
        except TierError:  # the disk has no room for a plan that moves more
            self._ceiling_bytes = before
            return None
        self._counters.note(f"memory failed under {limit} bytes, so the budget is {lower} since")
        return lower

    def give_back_freed_memory(self) -> None:
        """From here on freed memory can be given back; what that costs is noted."""
        slow = self._device.return_freed()
        if slow is not None:
            self._counters.note(slow)

    def _plan_again(self) -> None:
        self.limit_bytes()
        if self._adoption.is_planned:
            self.plan()
            self._counters.replans += 1

    def _ladder(self) -> tuple[int, int]:
        """Peak and floor: foreseen, or without a forecast the measured peak and its least rung."""
        forecast = self._adoption.forecast
        if forecast is not None:
            return forecast.peak_bytes, self._adoption.floor_bytes
        self._peaks.note()
        return self._counters.peak_bytes, int(SHARES[-1] * self._counters.peak_bytes)
