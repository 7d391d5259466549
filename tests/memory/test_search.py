"""The slow planner only ever makes a plan better, and both stay near what is possible."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.all_choices import best_of_all_choices_s
from helpers.fluid_bound import least_stall_s
from helpers.synthetic_trace import COSTS, MIB, Layer, costs, network, stack, traces
from helpers.whole_optimum import least_whole_stall_s
from tensile.actions import Plan, Swap
from tensile.costs import Costs
from tensile.floor import floor_bytes
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
    best_s = best_of_all_choices_s(trace, budget_bytes, COSTS)
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


@settings(max_examples=12)
@given(traces.filter(lambda trace: len(trace.operators) <= 20), costs, st.integers(0, 90))
def test_whole_storages_lie_between_water_and_any_plan(
    trace: Trace, device: Costs, percent: int
) -> None:
    budget_bytes = between(trace, percent)
    best = improve(trace, plan(trace, budget_bytes, device), device)
    whole = least_whole_stall_s(trace, budget_bytes, device, seconds=2)
    fluid_s = least_stall_s(trace, budget_bytes, device)
    tolerance_s = 1e-5 * (fluid_s + Tape(trace, device).step_s)
    assert whole.objective >= fluid_s - tolerance_s
    assert best.stall_s >= whole.bound - tolerance_s


def test_plans_of_small_steps_stay_near_the_bound_for_whole_storages() -> None:
    distances = []
    for depth, percent in [(2, 60), (2, 30), (2, 0), (3, 60), (3, 30)]:
        trace = stack(depth, seed=3)
        budget_bytes = between(trace, percent)
        best = improve(trace, plan(trace, budget_bytes, COSTS), COSTS, rounds=400)
        bound_s = least_whole_stall_s(trace, budget_bytes, COSTS, seconds=3).bound
        distances.append((best.stall_s - bound_s) / Tape(trace, COSTS).step_s)
    assert min(distances) > -1e-5
    assert sum(distances) / len(distances) < 0.15


def test_moving_returns_makes_tight_plans_better() -> None:
    trace = stack(10, seed=3)
    before = plan(trace, between(trace, 10), COSTS)
    after = improve(trace, before, COSTS, rounds=400)
    assert after.stall_s < before.stall_s - 0.03 * before.step_s


def test_a_search_begins_with_the_returns_of_the_plan() -> None:
    trace = stack(10, seed=3)
    budget_bytes = between(trace, 10)
    once = improve(trace, plan(trace, budget_bytes, COSTS), COSTS, rounds=200)
    twice = improve(trace, once, COSTS, rounds=600)
    assert twice.stall_s < once.stall_s
