"""The budget that counts now: what the user asked for, or less since memory failed under it."""

from __future__ import annotations

from tensile.adoption import Adoption
from tensile.budget import Budget, BudgetError, budget_bytes
from tensile.cpu_device import CpuDevice
from tensile.lower_tier import TierError
from tensile.peaks import Peaks
from tensile.rungs import SHARES, rung_below
from tensile.stats import Counters


class BudgetInForce:
    """Raises BudgetError for a budget that is no size."""

    def __init__(
        self,
        budget: Budget,
        *,
        adoption: Adoption,
        device: CpuDevice,
        peaks: Peaks,
        counters: Counters,
    ) -> None:
        self._asked = budget
        self._ceiling_bytes: int | None = None
        self._adoption = adoption
        self._device = device
        self._peaks = peaks
        self._counters = counters

    def limit_bytes(self) -> int | None:
        """None for no limit. Raises BudgetError for a share of a peak that was not forecast."""
        forecast = self._adoption.forecast
        limit = budget_bytes(self._asked, None if forecast is None else forecast.peak_bytes)
        if limit is None or self._ceiling_bytes is None:
            return limit
        return min(limit, self._ceiling_bytes)

    def do_without_forecast(self, why: str) -> None:
        """Raises BudgetError where only a forecast would say what the budget is."""
        if isinstance(self._asked, float) and self._adoption.forecast is None:
            raise BudgetError(
                f"budget {self._asked} is a share of the forecast peak, and the peak of this step "
                f"cannot be foreseen ({why}); give bytes"
            )

    def plan(self) -> None:
        """Plan every kind of step that is known. Raises PlanError below a floor, and TierError."""
        limit = self.limit_bytes()
        if limit is not None:
            self.give_back_freed_memory()
        self._adoption.plan(limit)

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
