"""A job's profile from the trace of its step."""

from __future__ import annotations

from tensile.allowance import with_allowance
from tensile.coordinator.profile import Profile, Rung
from tensile.costs import Costs
from tensile.forecasting import forecast
from tensile.rungs import ladder
from tensile.sequence import Trace
from tensile.simulator import simulate


def traced(trace: Trace, costs: Costs) -> Profile:
    """The ladder's plans, each with its curve over time and with what a process takes beside. The
    highest is eager training, whose optimizer takes what no plan would let it (`forecasting.py`).
    """
    natural_bytes = forecast(trace).peak_bytes
    rungs: list[Rung] = []
    for plan in ladder(trace, costs):
        timeline = simulate(trace, plan, costs)
        most_bytes = plan.peak_bytes if rungs else max(plan.peak_bytes, natural_bytes)
        lease_bytes = with_allowance(most_bytes)
        if rungs and (lease_bytes >= rungs[-1].bytes or timeline.step_s < rungs[-1].step_s):
            continue  # no cheaper than the one above
        rungs.append(
            Rung.sampled(
                lease_bytes=lease_bytes,
                step_s=timeline.step_s,
                start_s=timeline.start_s,
                live_bytes=timeline.live_bytes,
                beside_bytes=lease_bytes - most_bytes,
                copied_bytes=timeline.copied_bytes,
                copy_s=timeline.copy_s,
            )
        )
    return Profile(rungs=tuple(rungs))
