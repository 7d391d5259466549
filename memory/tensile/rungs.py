"""A ladder of plans, from all the memory a step would take down to the least it can.

An executor changes rung between two steps, when the memory that it may use changes.
"""

from __future__ import annotations

from tensile.actions import Plan
from tensile.costs import Costs
from tensile.draft import judged
from tensile.floor import floor_bytes
from tensile.planner import quick_plan
from tensile.sequence import Trace
from tensile.tape import Tape

SHARES = (1.0, 0.8, 0.6, 0.45, 0.35, 0.25)


def ladder(trace: Trace, costs: Costs) -> tuple[Plan, ...]:
    """Plans at `SHARES` of the natural peak, largest first; the floor's plan is the last one.

    A lower budget never promises a shorter step: where a search from below found the better plan,
    it stands on the rung above too.
    """
    tape = Tape(trace, costs)
    floor = floor_bytes(trace)
    budgets = [int(tape.peak_bytes * share) for share in SHARES]
    budgets = [budget for budget in budgets if budget > floor]
    rungs: list[Plan] = []
    for budget_bytes in (floor, *reversed(budgets)):
        rung = quick_plan(tape, budget_bytes)
        if rungs and rungs[-1].stall_s < rung.stall_s:
            rung = judged(tape, rungs[-1].actions, budget_bytes)
        rungs.append(rung)
    return tuple(reversed(rungs))


def rung_below(limit_bytes: int, peak_bytes: int, floor_bytes: int) -> int | None:
    """The budget one rung lower on the ladder of a step; None where there is none."""
    below = min(limit_bytes, peak_bytes)
    budgets = [int(peak_bytes * share) for share in SHARES]
    rungs = [budget for budget in (*budgets, floor_bytes) if floor_bytes <= budget < below]
    return max(rungs, default=None)
