"""Which steps are observed, and what becomes of it: a plan for the steps that follow.

Where a step has no plan (it was not prepared, or cannot be traced), the one after the first is: by
then the optimizer's states exist. Where steps leave their plans one after the other, the next one
is, after more of them each time, so that steps of which no two are alike are not slowed down.
"""

from __future__ import annotations

from tensile.adoption import Adoption
from tensile.contents import Contents
from tensile.costs import Costs
from tensile.execution import Execution
from tensile.gauge import Gauge
from tensile.lower_tier import TierError
from tensile.observation import Observation
from tensile.observed import observed_trace
from tensile.planning import Planning
from tensile.residency import Residency
from tensile.stats import Counters

# of a step that was observed only the copies are foreseen; a plan learns what they really take
USUAL_COSTS = Costs(
    device="cpu",
    flops_per_s=5e10,
    moved_bytes_per_s=5e9,
    overhead_s=1e-5,
    out_bytes_per_s=5e8,
    in_bytes_per_s=5e8,
    copy_latency_s=2e-4,
)
_STRAYED = 3  # steps in a row that left their plan, at first


class Observer:
    """`costs` are those of this device, where they are known."""

    def __init__(
        self,
        *,
        execution: Execution,
        contents: Contents,
        residency: Residency,
        gauge: Gauge,
        adoption: Adoption,
        counters: Counters,
    ) -> None:
        self.costs: Costs | None = None
        self._execution = execution
        self._contents = contents
        self._residency = residency
        self._gauge = gauge
        self._adoption = adoption
        self._counters = counters
        self._strayed = 0
        self._patience = _STRAYED

    def begin(self) -> bool:
        """Before a step; True if it is observed, and so follows no plan."""
        is_due = self._strayed >= (self._patience if self._adoption.schedules else 1)
        if is_due:
            self._execution.observation = Observation(
                contents=self._contents,
                residency=self._residency,
                gauge=self._gauge,
                counters=self._counters,
                slots=self._execution.saved.slots,
            )
        return is_due

    def end(self, limit_bytes: int, *, completed: bool) -> None:
        """After a step, which may have raised."""
        observation, self._execution.observation = self._execution.observation, None
        if not completed:
            return
        if observation is None:
            self._strayed = 0 if self._execution.is_followed else self._strayed + 1
        elif observation.is_steady():
            self._strayed = 0
            if self._adoption.schedules:
                self._patience *= 2
            self._adopt(observation, limit_bytes)

    def _adopt(self, observation: Observation, limit_bytes: int) -> None:
        try:
            with self._adoption.aside():
                planning = Planning(
                    observed_trace(observation), self.costs or USUAL_COSTS, is_observed=True
                )
            self._adoption.adopt(planning, limit_bytes)
        except (TierError, ValueError) as error:
            self._patience *= 2
            self._counters.note(f"the step that was observed gave no plan: {error}")
            return
        self._counters.replans += 1
        self._counters.note("steps follow a plan that was made of one that was observed")
