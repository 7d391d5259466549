"""A ladder goes from the natural peak down to the floor, and each rung costs no less."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings

from helpers.synthetic_trace import COSTS, costs, stack, traces
from tensile.costs import Costs
from tensile.floor import floor_bytes
from tensile.rungs import SHARES, ladder
from tensile.sequence import Trace
from tensile.simulator import simulate
from tensile.tape import Tape


def test_a_deep_network_has_a_rung_for_every_share_and_the_floor() -> None:
    trace = stack(30)
    rungs = ladder(trace, COSTS)
    peak = Tape(trace, COSTS).peak_bytes
    assert [rung.budget_bytes for rung in rungs] == [
        *(int(peak * share) for share in SHARES),
        floor_bytes(trace),
    ]
    assert rungs[0].actions == ()
    assert rungs[0].stall_s == 0


def test_rungs_below_the_floor_are_the_floor_once() -> None:
    trace = stack(2)
    rungs = ladder(trace, COSTS)
    assert rungs[-1].budget_bytes == floor_bytes(trace)
    assert len({rung.budget_bytes for rung in rungs}) == len(rungs) < len(SHARES) + 1


@settings(max_examples=30)
@given(traces, costs)
def test_less_memory_never_promises_a_shorter_step(trace: Trace, device: Costs) -> None:
    rungs = ladder(trace, device)
    for above, below in pairwise(rungs):
        assert above.budget_bytes > below.budget_bytes
        assert above.share > below.share
        assert above.stall_s <= below.stall_s
    for rung in rungs:
        assert rung.peak_bytes <= rung.budget_bytes
        timeline = simulate(trace, rung, device)
        assert timeline.peak_bytes <= rung.budget_bytes
        assert timeline.stall_s == rung.stall_s
