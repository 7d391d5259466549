"""The slow planner only ever makes a plan better, and both stay near what is possible."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fluid_bound import least_stall_s
from helpers.synthetic_trace import COSTS, MIB, Layer, costs, network, stack, traces
from tensile.actions import Plan, Swap
from tensile.costs import Costs
from tensile.cover import lowered
from tensile.draft import Draft
from tensile.floor import floor_bytes
from tensile.gaps import gaps
from tensile.planner import plan
from tensile.search import improve
from tensile.sequence import Trace
from tensile.simulator import simulate
from tensile.tape import Tape

pytestmark = pytest.mark.long


def worth(found: Plan) -> tuple[float, int]:
    moved = sum(action.bytes for action in found.actions if isinstance(action, Swap))
    return round(found.stall_s, 9), moved


def between(trace: Trace, percent: int) -> int:
    floor = floor_bytes(trace)
    return floor + (Tape(trace, COSTS).peak_bytes - floor) * percent // 100


def best_of_all_subsets_s(trace: Trace, budget_bytes: int) -> float:
    """The least stall over every choice of gaps, with the planner's own returns."""
    tape = Tape(trace, COSTS)
    found = gaps(tape)
    stalls_s = []
    for choice in range(2 ** len(found)):
        used = [index for index in range(len(found)) if choice >> index & 1]
        curve = lowered(tape, found, used)
        if curve.live_bytes.max() > budget_bytes:
            continue
        draft = Draft(
            tape=tape,
            gaps=found,
            used=used,
            curve=curve,
            budget_bytes=budget_bytes,
            wished_bytes=budget_bytes,
        )
        stalls_s.append(draft.rated().stall_s)
    return min(stalls_s)


@settings(max_examples=40)
@given(traces, costs, st.integers(0, 90))
def test_improving_never_makes_a_plan_worse(trace: Trace, device: Costs, percent: int) -> None:
    before = plan(trace, between(trace, percent), device)
    after = improve(trace, before, device, rounds=8)
    timeline = simulate(trace, after, device)
    assert worth(after) <= worth(before)
    assert after.budget_bytes == before.budget_bytes
    assert after.peak_bytes <= after.budget_bytes
    assert (timeline.peak_bytes, timeline.stall_s) == (after.peak_bytes, after.stall_s)


def test_some_plans_do_get_better() -> None:
    trace = stack(16, seed=1)
    before = plan(trace, between(trace, 40), COSTS)
    after = improve(trace, before, COSTS, rounds=100)
    assert after.stall_s < before.stall_s


def test_equal_rounds_give_equal_plans() -> None:
    trace = stack(12, seed=2)
    before = plan(trace, between(trace, 30), COSTS)
    assert improve(trace, before, COSTS, rounds=30) == improve(trace, before, COSTS, rounds=30)


def test_no_time_leaves_the_plan_as_it_is() -> None:
    trace = stack(12, seed=2)
    before = plan(trace, between(trace, 30), COSTS)
    assert improve(trace, before, COSTS, seconds=0.0) == before


def test_a_plan_without_actions_stays_without() -> None:
    trace = stack(4)
    before = plan(trace, Tape(trace, COSTS).peak_bytes, COSTS)
    assert improve(trace, before, COSTS) == before


def test_a_plan_of_another_trace_is_refused() -> None:
    before = plan(stack(12), between(stack(12), 30), COSTS)
    with pytest.raises(ValueError, match="plan: "):
        improve(stack(3), before, COSTS)


@pytest.mark.parametrize("percent", [0, 30, 60, 90])
@pytest.mark.parametrize("parameters_mib", [(2, 4), (1, 1), (4, 1)])
def test_on_tiny_steps_it_comes_close_to_the_best_of_all_choices(
    percent: int, parameters_mib: tuple[int, int]
) -> None:
    layers = [
        Layer(parameter_bytes=size * MIB, activation_bytes=2 * MIB, pointwise=0)
        for size in parameters_mib
    ]
    trace = replace(network(layers, states=1), recipes=())
    budget_bytes = between(trace, percent)
    best_s = best_of_all_subsets_s(trace, budget_bytes)
    quick = plan(trace, budget_bytes, COSTS)
    better = improve(trace, quick, COSTS)
    step_s = Tape(trace, COSTS).step_s
    assert quick.stall_s <= best_s + 0.25 * step_s
    assert better.stall_s <= best_s + 0.2 * step_s


@settings(max_examples=25)
@given(traces.filter(lambda trace: len(trace.operators) <= 50), costs, st.integers(0, 90))
def test_no_plan_beats_the_lower_bound(trace: Trace, device: Costs, percent: int) -> None:
    budget_bytes = between(trace, percent)
    best = improve(trace, plan(trace, budget_bytes, device), device, rounds=10)
    bound_s = least_stall_s(trace, budget_bytes, device)
    assert best.stall_s >= bound_s - 1e-6 * (bound_s + Tape(trace, device).step_s)
