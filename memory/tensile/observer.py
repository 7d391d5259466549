"""Which steps are observed, and what becomes of it: a plan for the steps that follow.

Where a step has no plan (it was not prepared, or cannot be traced), the one after the first is: by
then the optimizer's states exist. A kind of step that leaves all plans for the third time, at the
same moment, is observed when it is due again, after as many steps as last time. Where what came of
that was of no use, more of them are waited for, so that steps of which no two are alike are not
slowed down.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from tensile.schedule import Fork, fork_of, keys_of
from tensile.sequence import Trace
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
_STRAYED = 3  # steps of a kind that left their plan, at first
_KINDS = 64  # that are remembered; the one that was not met for the longest time goes


@dataclass(slots=True)
class Stray:
    """A kind of step without a plan: how often it was met, when last, and how long after the time
    before that.
    """

    count: int
    last: int
    interval: int = 1

    def met(self, number: int) -> None:
        self.count += 1
        self.last, self.interval = number, number - self.last

    def is_due(self, number: int, patience: int) -> bool:
        return self.count >= patience and number == self.last + self.interval


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
        self._number = 0  # of the step
        self._unplanned = 0  # steps since there was a plan
        self._strays: dict[Fork, Stray] = {}  # the one that was met last comes last
        self._patience = _STRAYED
        self._unproven: str | None = None  # a plan from here that no step has followed yet

    def begin(self) -> bool:
        """Before a step; True if it is observed, and so follows no plan."""
        self._number += 1
        is_due = self._is_due()
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
            self._note_followed()
        elif observation.is_steady():
            self._learn(observation, limit_bytes)

    def _is_due(self) -> bool:
        if not self._adoption.schedules:
            return self._unplanned > 0
        return any(s.is_due(self._number, self._patience) for s in self._strays.values())

    def _note_followed(self) -> None:
        schedule, fork = self._execution.schedule, self._execution.fork
        if schedule is None:
            self._unplanned += 1
        elif fork is not None:
            stray = self._strays.pop(fork, None)
            if stray is None:
                stray = Stray(count=1, last=self._number)
            else:
                stray.met(self._number)
            self._strays[fork] = stray
            while len(self._strays) > _KINDS:
                del self._strays[next(iter(self._strays))]
        elif schedule.trace.signature == self._unproven:
            self._unproven = None

    def _learn(self, observation: Observation, limit_bytes: int) -> None:
        """A plan for its kind of step, if that had none and was met before."""
        with self._adoption.aside():
            traced = observed_trace(observation)
            schedules = self._adoption.schedules
            fork = fork_of(keys_of(traced), schedules)
        if schedules and (fork is None or self._strays.pop(fork, None) is None):
            return
        if self._unproven is not None:
            self._patience *= 2
        self._adopt(traced, limit_bytes)

    def _adopt(self, traced: Trace, limit_bytes: int) -> None:
        try:
            with self._adoption.aside():
                planning = Planning(traced, self.costs or USUAL_COSTS, is_observed=True)
            self._adoption.adopt(planning, limit_bytes)
        except (TierError, ValueError) as error:
            self._patience *= 2
            self._counters.note(f"the step that was observed gave no plan: {error}")
            return
        self._unplanned = 0
        self._unproven = traced.signature
        self._counters.replans += 1
        self._counters.note("steps follow a plan that was made of one that was observed")
