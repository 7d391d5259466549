"""How long tensile plans, and how far its plans are from the best possible. No model is run: the
steps are invented (`tests/helpers/synthetic_trace.py`), so that their size can be chosen. Goals:
0.2 s for 1.4 k operators, 2 s for 10 k, on steps where the plan has hundreds of actions to take.

python benchmarks/memory_planner.py [times | distance | optimum] [runs]
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

from environment import describe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from helpers.all_choices import best_of_all_choices_s
from helpers.fluid_bound import least_stall_s
from helpers.synthetic_trace import COSTS, KIB, MIB, stack
from helpers.whole_optimum import least_whole_stall_s
from tensile.costs import Costs
from tensile.floor import floor_bytes
from tensile.gaps import gaps
from tensile.planner import plan
from tensile.rungs import SHARES
from tensile.search import improve
from tensile.sequence import Trace
from tensile.simulator import simulate
from tensile.tape import Tape

MOST_GAPS = 13  # of which all choices are tried
PATIENCE_S = 10.0  # with an integer program


def budgets(trace: Trace) -> list[int]:
    peak_bytes, floor = Tape(trace, COSTS).peak_bytes, floor_bytes(trace)
    below = [int(peak_bytes * share) for share in SHARES[1:]]
    return [*(budget for budget in below if budget > floor), floor]


def cpu_s(call: object, runs: int) -> str:
    assert callable(call)
    found = []
    for _ in range(runs):
        begin_s = time.process_time()
        call()
        found.append(time.process_time() - begin_s)
    return f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def times(runs: int) -> None:
    print("\n| operators | budget | actions | stall | plan, CPU s | simulate, CPU s |")
    print("|---|---|---|---|---|---|")
    for depth in (127, 909):
        trace = stack(depth, steps=3, seed=1)
        tape = Tape(trace, COSTS)
        for budget in budgets(trace):
            found = plan(trace, budget, COSTS)
            planned_s = cpu_s(lambda t=trace, b=budget: plan(t, b, COSTS), runs)
            simulated_s = cpu_s(lambda t=trace, p=found: simulate(t, p, COSTS), runs)
            print(
                f"| {tape.length} | {found.share:.0%} | {len(found.actions)} | "
                f"{found.stall_s / tape.step_s:.1%} | {planned_s} | {simulated_s} |",
                flush=True,
            )


def distance() -> None:
    """Steps of a realistic number of storages, beside a bound for storages that move like water."""
    print("\n| step | budget | fluid bound | plan | improved | plan, CPU s | improve, CPU s |")
    print("|---|---|---|---|---|---|---|")
    fast = replace(COSTS, out_bytes_per_s=3e9, in_bytes_per_s=3e9)
    slow = replace(COSTS, out_bytes_per_s=3e8, in_bytes_per_s=3e8)
    fine = stack(24, seed=3, parameter_bytes=64 * KIB)
    steps: list[tuple[str, Trace, Costs]] = [
        ("activations, swap only", replace(stack(10, seed=3), recipes=()), COSTS),
        ("activations", stack(10, seed=3), COSTS),
        ("activations, slow channels", stack(10, seed=3), slow),
        ("optimizer states, fast channels", stack(8, seed=2, parameter_bytes=4 * MIB), fast),
        ("fine activations, swap only", replace(fine, recipes=()), COSTS),
    ]
    for name, trace, costs in steps:
        step_s = Tape(trace, costs).step_s
        for budget in budgets(trace):
            bound_s = least_stall_s(trace, budget, costs)
            begin_s = time.process_time()
            quick = plan(trace, budget, costs)
            planned_s = time.process_time()
            better = improve(trace, quick, costs, rounds=400)
            improved_s = time.process_time()
            print(
                f"| {name}, {len(trace.operators)} operators | {quick.share:.0%} | "
                f"{bound_s / step_s:.1%} | {quick.stall_s / step_s:.1%} | "
                f"{better.stall_s / step_s:.1%} | {planned_s - begin_s:.3f} | "
                f"{improved_s - planned_s:.3f} |",
                flush=True,
            )


def optimum() -> None:
    """Steps so small that an integer program ends, and all choices of gaps can be tried."""
    print("\n| step | gaps | budget | fluid bound | whole bound | best choice | plan | improved |")
    print("|---|---|---|---|---|---|---|---|")
    steps: list[tuple[str, Trace]] = []
    for depth in (2, 3, 4):
        steps += [
            (f"{depth} layers, swap only", replace(stack(depth, seed=3), recipes=())),
            (f"{depth} layers", stack(depth, seed=3)),
        ]
    for name, trace in steps:
        tape = Tape(trace, COSTS)
        count = len(gaps(tape))
        for budget in budgets(trace):
            fluid_s = least_stall_s(trace, budget, COSTS)
            whole = least_whole_stall_s(trace, budget, COSTS, PATIENCE_S)
            proved = whole.objective - whole.bound <= 1e-4 * tape.step_s
            quick = plan(trace, budget, COSTS)
            better = improve(trace, quick, COSTS, rounds=400)
            best = "too many"
            if count <= MOST_GAPS:
                best = f"{best_of_all_choices_s(trace, budget, COSTS) / tape.step_s:.1%}"
            print(
                f"| {name} | {count} | {quick.share:.0%} | {fluid_s / tape.step_s:.1%} | "
                f"{'' if proved else '≥ '}{whole.bound / tape.step_s:.1%} | {best} | "
                f"{quick.stall_s / tape.step_s:.1%} | {better.stall_s / tape.step_s:.1%} |",
                flush=True,
            )


def main() -> None:
    what = sys.argv[1] if len(sys.argv) > 1 else "all"
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    print(describe())
    if what in ("times", "all"):
        times(runs)
    if what in ("distance", "all"):
        distance()
    if what in ("optimum", "all"):
        optimum()


if __name__ == "__main__":
    main()
