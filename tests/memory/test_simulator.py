"""The simulator says what a plan costs, and refuses what runs an operator without its operand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.synthetic_trace import COSTS, MIB, costs, stack, traces
from tensile.actions import Plan, Recompute, Swap
from tensile.costs import Costs
from tensile.floor import floor_bytes, required_bytes
from tensile.gaps import gaps
from tensile.planner import plan
from tensile.sequence import Kind, Moment, Trace
from tensile.simulator import simulate
from tensile.tape import Tape


def of(trace: Trace, *actions: Swap | Recompute, budget_bytes: int = 2**60) -> Plan:
    return Plan(
        signature=trace.signature,
        budget_bytes=budget_bytes,
        share=1.0,
        peak_bytes=0,
        stall_s=0.0,
        step_s=0.0,
        actions=actions,
    )


def swap_of(trace: Trace, slot: int, **changes: int | str | bool) -> Swap:
    """The slot's longest possible absence."""
    gap = next(gap for gap in gaps(Tape(trace, COSTS)) if gap.slot == slot)
    swap = Swap(
        storage=f"activation:{slot}",
        bytes=gap.bytes,
        out_event=gap.out_event,
        in_event=gap.in_event,
        needed_position=gap.need,
    )
    return replace(swap, **changes)  # type: ignore[arg-type]


def test_without_actions_a_step_takes_what_its_operators_take_and_keeps_everything() -> None:
    trace = stack(3, activation_bytes=MIB, parameter_bytes=MIB)
    timeline = simulate(trace, of(trace), COSTS)
    assert timeline.stall_s == 0
    assert timeline.step_s == pytest.approx(sum(COSTS.durations_s(trace)))
    for position, live in enumerate(timeline.live_bytes):
        there = sum(s.bytes for s in trace.storages if s.birth <= position < s.death)
        assert live == there + trace.operators[position].workspace_bytes


def test_what_is_away_does_not_count_once_its_copy_has_ended() -> None:
    trace = stack(6)
    swap = swap_of(trace, 0)
    fast = replace(COSTS, out_bytes_per_s=1e15, in_bytes_per_s=1e15, copy_latency_s=0.0)
    plain, away = (simulate(trace, p, fast).live_bytes for p in (of(trace), of(trace, swap)))
    begin = trace.events[swap.out_event].position
    saved = [a - b for a, b in zip(plain, away, strict=True)]
    for position, bytes_saved in enumerate(saved):
        if begin < position < swap.needed_position:  # at the first one the copy is in flight
            assert bytes_saved == swap.bytes
    assert saved[: begin - 1] == [0] * (begin - 1)
    assert saved[swap.needed_position] == 0


def test_a_copy_asked_for_at_its_need_stalls_for_as_long_as_it_takes() -> None:
    trace = stack(6)
    swap = swap_of(trace, 0)
    timeline = simulate(trace, of(trace, swap), COSTS)
    assert timeline.stall_s == pytest.approx(COSTS.in_s(swap.bytes))


def test_a_copy_asked_for_early_enough_does_not_stall() -> None:
    trace = stack(6)
    swap = swap_of(trace, 0)
    early = replace(swap, in_event=swap.in_event - 6)
    assert simulate(trace, of(trace, early), COSTS).stall_s == 0


def test_copies_in_wait_for_each_other_but_not_for_copies_out() -> None:
    trace = stack(8)
    both = [swap_of(trace, 1), swap_of(trace, 0)]
    at_once = [replace(swap, in_event=both[0].in_event) for swap in both]
    in_s = [COSTS.in_s(swap.bytes) for swap in both]
    timeline = simulate(trace, of(trace, *at_once), COSTS)
    first, second = both[0].needed_position, both[1].needed_position
    between_s = sum(COSTS.durations_s(trace)[first:second])
    assert timeline.stall_s == pytest.approx(in_s[0] + max(0.0, in_s[1] - between_s))


def test_an_operator_waits_for_copies_out_where_the_budget_leaves_no_room() -> None:
    trace = stack(6)
    slow = replace(COSTS, out_bytes_per_s=1e8)
    swap = replace(swap_of(trace, 0), in_event=swap_of(trace, 0).in_event)
    peak = Tape(trace, COSTS).peak_bytes
    tight = simulate(trace, of(trace, swap, budget_bytes=peak - swap.bytes), slow)
    loose = simulate(trace, of(trace, swap), slow)
    assert tight.peak_bytes == peak - swap.bytes
    assert tight.stall_s > loose.stall_s


def test_a_budget_that_the_actions_do_not_keep_shows_in_the_peak() -> None:
    trace = stack(4)
    assert simulate(trace, of(trace, budget_bytes=1), COSTS).peak_bytes == (
        Tape(trace, COSTS).peak_bytes
    )


def test_a_state_that_is_away_between_two_steps_is_away_at_the_beginning_too() -> None:
    trace = stack(6, parameter_bytes=2 * MIB)
    gap = next(
        gap for gap in gaps(Tape(trace, COSTS)) if trace.storages[gap.storage].kind is Kind.STATE
    )
    events = len(trace.events)
    assert gap.in_event >= events
    swap = Swap(
        storage=trace.storages[gap.storage].name,
        bytes=gap.bytes,
        out_event=gap.out_event,
        in_event=gap.in_event - events,
        needed_position=gap.need % len(trace.operators),
    )
    plain, away = simulate(trace, of(trace), COSTS), simulate(trace, of(trace, swap), COSTS)
    assert plain.live_bytes[0] - away.live_bytes[0] == gap.bytes
    assert away.live_bytes[swap.needed_position] == plain.live_bytes[swap.needed_position]


def test_computing_again_takes_its_operators_time_and_no_channel() -> None:
    trace = stack(4)
    recipe = trace.recipes[0]
    gap = next(gap for gap in gaps(Tape(trace, COSTS)) if gap.slot == recipe.slot)
    action = Recompute(
        storage=f"activation:{recipe.slot}",
        bytes=gap.bytes,
        slot=recipe.slot,
        source=recipe.source,
        module=recipe.module,
        call=recipe.call,
        out_event=gap.out_event,
        needed_position=gap.need,
    )
    timeline = simulate(trace, of(trace, action), COSTS)
    again_s = sum(COSTS.durations_s(trace)[operator] for operator in recipe.operators)
    assert timeline.stall_s == pytest.approx(again_s)
    away_source = swap_of(trace, recipe.source)
    with pytest.raises(ValueError, match="is computed from"):
        simulate(trace, of(trace, action, away_source), COSTS)
    back_in_time = swap_of(trace, recipe.source, in_event=gap.in_event, needed_position=gap.need)
    assert simulate(trace, of(trace, action, back_in_time), COSTS).stall_s == pytest.approx(
        again_s + COSTS.in_s(back_in_time.bytes)
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"storage": "activation:99"}, "no storage of this name"),
        ({"out_event": 10_000}, "is not one of"),
        ({"bytes": 1}, "its size is"),
        ({"out_event": 0}, "not there at position 0"),
        ({"needed_position": 10_000}, "next access"),
    ],
)
def test_an_action_that_the_trace_does_not_know_is_refused(
    changes: dict[str, int | str], reason: str
) -> None:
    trace = stack(3)
    with pytest.raises(ValueError, match=reason):
        simulate(trace, of(trace, swap_of(trace, 0, **changes)), COSTS)


def test_an_action_that_returns_after_the_need_is_refused() -> None:
    trace = stack(3)
    swap = swap_of(trace, 0)
    with pytest.raises(ValueError, match="before it is back"):
        simulate(trace, of(trace, replace(swap, in_event=swap.in_event + 1)), COSTS)


def test_an_action_while_python_holds_the_storage_is_refused() -> None:
    trace = stack(3)
    pack = next(i for i, e in enumerate(trace.events) if e.moment is Moment.PACK and e.number == 0)
    with pytest.raises(ValueError, match="not only autograd"):
        simulate(trace, of(trace, replace(swap_of(trace, 0), out_event=pack)), COSTS)


def test_a_parameter_that_an_operator_reads_meanwhile_is_refused() -> None:
    trace = stack(3)
    weight = next(s for s in trace.storages if s.kind is Kind.PARAMETER)
    last = len(trace.events) - 1
    swap = Swap(
        storage=weight.name, bytes=weight.bytes, out_event=0, in_event=last, needed_position=0
    )
    with pytest.raises(ValueError, match="would run without it"):
        simulate(trace, of(trace, swap), COSTS)


def test_leaving_twice_without_coming_back_is_refused() -> None:
    trace = stack(3)
    swap = swap_of(trace, 0)
    with pytest.raises(ValueError, match="still away"):
        simulate(trace, of(trace, swap, swap), COSTS)


def test_leaving_unwritten_after_a_change_is_refused() -> None:
    trace = stack(3)
    found = plan(trace, floor_bytes(trace), COSTS)
    changed = next(a for a in found.actions if isinstance(a, Swap) and a.dirty)
    kept = tuple(replace(a, dirty=False) if a is changed else a for a in found.actions)
    with pytest.raises(ValueError, match="say dirty"):
        simulate(trace, replace(found, actions=kept), COSTS)


@settings(max_examples=60)
@given(traces, costs)
def test_the_gaps_together_leave_exactly_what_the_floor_counts(trace: Trace, device: Costs) -> None:
    tape = Tape(trace, device)
    left = [0] * tape.length
    found = gaps(tape)
    for position in range(tape.length):
        left[position] = int(tape.natural_bytes[position]) - sum(
            gap.bytes
            for gap in found
            if gap.start <= position < gap.stop or gap.start <= position + tape.length < gap.stop
        )
    assert left == required_bytes(trace).tolist()


@settings(max_examples=40)
@given(traces, costs, st.integers(0, 100))
def test_operators_run_in_order_and_never_take_less_than_their_operands_and_their_time(
    trace: Trace, device: Costs, percent: int
) -> None:
    floor, natural = floor_bytes(trace), Tape(trace, device).peak_bytes
    budget_bytes = floor + (natural - floor) * percent // 100
    found = plan(trace, budget_bytes, device)
    timeline = simulate(trace, found, device)
    assert timeline.stall_s >= 0
    assert len(timeline.live_bytes) == len(timeline.start_s) == len(trace.operators)
    durations_s = device.durations_s(trace)
    for position, start_s in enumerate(timeline.start_s[:-1]):
        ended_s = start_s + durations_s[position]
        assert timeline.start_s[position + 1] >= ended_s - 1e-9
    for position, live in enumerate(timeline.live_bytes):
        operands = {a.storage for a in trace.accesses if a.operator == position}
        assert live >= sum(trace.storages[storage].bytes for storage in operands)
