"""A plan keeps its budget, at any budget from the floor to the natural peak."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.synthetic_trace import COSTS, MIB, Layer, costs, network, stack, traces
from tensile.actions import PlanError, Recompute, Swap
from tensile.costs import Costs
from tensile.floor import floor_bytes
from tensile.planner import plan
from tensile.sequence import Trace
from tensile.simulator import simulate
from tensile.tape import Tape


def natural_bytes(trace: Trace) -> int:
    return Tape(trace, COSTS).peak_bytes


@settings(max_examples=100)
@given(traces, costs, st.integers(0, 100))
def test_the_simulated_peak_stays_under_every_budget_from_the_floor_on(
    trace: Trace, device: Costs, percent: int
) -> None:
    floor, natural = floor_bytes(trace), natural_bytes(trace)
    budget_bytes = floor + (natural - floor) * percent // 100
    found = plan(trace, budget_bytes, device)
    timeline = simulate(trace, found, device)
    assert found.peak_bytes <= budget_bytes
    assert (timeline.peak_bytes, timeline.stall_s) == (found.peak_bytes, found.stall_s)


@settings(max_examples=40)
@given(traces, costs)
def test_the_natural_peak_needs_no_action(trace: Trace, device: Costs) -> None:
    found = plan(trace, natural_bytes(trace), device)
    assert found.actions == ()
    assert found.stall_s == 0
    assert found.peak_bytes == natural_bytes(trace)


def test_what_has_to_be_mapped_anew_stays_where_copies_of_activations_hide_as_well() -> None:
    trace = stack(12)
    budget_bytes = natural_bytes(trace) * 3 // 4
    quick = replace(COSTS, out_bytes_per_s=1e12, in_bytes_per_s=1e12, copy_latency_s=0.0)
    moved = [
        {action.storage.partition(":")[0] for action in plan(trace, budget_bytes, device).actions}
        for device in (quick, replace(quick, remap_s_per_byte=4e-10))
    ]
    assert "optimizer_state" in moved[0]
    assert moved[1] == {"activation"}


@settings(max_examples=20)
@given(traces, costs, st.integers(0, 100))
def test_the_same_question_has_the_same_answer(trace: Trace, device: Costs, percent: int) -> None:
    floor, natural = floor_bytes(trace), natural_bytes(trace)
    budget_bytes = floor + (natural - floor) * percent // 100
    assert plan(trace, budget_bytes, device) == plan(trace, budget_bytes, device)


@settings(max_examples=40)
@given(traces)
def test_every_action_leaves_before_it_is_asked_back_and_comes_back_by_its_need(
    trace: Trace,
) -> None:
    found = plan(trace, floor_bytes(trace), COSTS)
    for action in found.actions:
        slots = {slot.storage: slot for slot in trace.slots}
        if isinstance(action, Recompute):
            assert trace.slots[action.slot].alone is not None
            continue
        index = next(i for i, s in enumerate(trace.storages) if s.name == action.storage)
        if index in slots:
            alone = slots[index].alone
            assert alone is not None
            assert alone <= trace.events[action.out_event].position
            assert action.out_event < action.in_event
            assert trace.events[action.in_event].position <= action.needed_position
        assert action.bytes >= 64 * 1024


def test_below_the_floor_the_error_says_the_floor_and_what_would_lower_it() -> None:
    trace = stack(5, parameter_bytes=MIB // 2, activation_bytes=4 * MIB)
    floor = floor_bytes(trace)
    with pytest.raises(PlanError) as raised:
        plan(trace, floor - 1, COSTS)
    message = str(raised.value)
    assert f"{floor - 1} bytes are below the floor of {floor} bytes" in message
    assert "smaller batch" in message
    assert f"{8 * MIB} of temporary" in message


def test_the_optimizer_s_floor_does_not_ask_for_a_smaller_batch() -> None:
    with pytest.raises(PlanError, match="fewer states") as raised:
        plan(stack(5, parameter_bytes=4 * MIB), MIB, COSTS)
    assert "batch" not in str(raised.value)


def test_budgets_are_named_or_not() -> None:
    trace = stack(3)
    budget_bytes = floor_bytes(trace)
    assert plan(trace, budget_bytes, COSTS) == plan(trace, budget_bytes=budget_bytes, costs=COSTS)


def test_what_fast_channels_can_hide_costs_nothing() -> None:
    trace = stack(20)
    fast = replace(COSTS, out_bytes_per_s=1e11, in_bytes_per_s=1e11, copy_latency_s=0.0)
    found = plan(trace, natural_bytes(trace) // 2, fast)
    assert found.actions
    assert found.stall_s == 0


def test_what_is_cheap_to_compute_is_computed_where_channels_are_slow() -> None:
    trace = stack(20)
    slow = replace(COSTS, out_bytes_per_s=5e7, in_bytes_per_s=5e7)
    found = plan(trace, natural_bytes(trace) * 7 // 10, slow)
    assert any(isinstance(action, Recompute) for action in found.actions)
    without = plan(replace(trace, recipes=()), natural_bytes(trace) * 7 // 10, slow)
    assert found.stall_s < without.stall_s


def test_states_are_away_from_one_step_to_the_next_where_they_are_most_of_the_memory() -> None:
    trace = stack(12, parameter_bytes=4 * MIB, activation_bytes=64 * 1024)
    found = plan(trace, natural_bytes(trace) // 2, COSTS)
    across = [a for a in found.actions if isinstance(a, Swap) and a.in_event < a.out_event]
    assert any(action.storage.startswith("optimizer_state:") for action in across)


def test_a_parameter_that_leaves_twice_is_written_once() -> None:
    trace = stack(12, parameter_bytes=4 * MIB, activation_bytes=64 * 1024)
    found = plan(trace, floor_bytes(trace), COSTS)
    of_first = [a for a in found.actions if a.storage == "parameter:0.weight"]
    assert len(of_first) > 1
    assert sum(isinstance(a, Swap) and a.dirty for a in of_first) == 1


@pytest.mark.parametrize("gradients_die", ["end", "begin", "never"])
def test_gradients_leave_however_they_are_zeroed(gradients_die: str) -> None:
    layers = [Layer(parameter_bytes=4 * MIB, activation_bytes=128 * 1024) for _ in range(8)]
    trace = network(layers, gradients_die=gradients_die)
    found = plan(trace, floor_bytes(trace), COSTS)
    assert any(action.storage.startswith("gradient:") for action in found.actions)
    assert found.peak_bytes <= floor_bytes(trace)


def test_planning_needs_no_torch() -> None:
    names = "tensile.planner, tensile.search, tensile.simulator, tensile.rungs"
    program = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
