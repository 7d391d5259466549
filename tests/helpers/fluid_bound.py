"""A lower bound for the stall of any plan: a linear program in which storages move like water.

Fractions of a storage leave and return at any moment of its gap, copies have no latency, a copy in
holds only what has arrived, and what may leave unwritten always does. So no plan is better, and
what a plan is above it is the price of whole storages, of events, and of the planner (the optimum
of whole storages lies between). Slots of time: the wait before each operator, then its run.
"""

from __future__ import annotations

from helpers.linear_program import LinearProgram, Terms
from tensile.costs import Costs
from tensile.floor import MOVABLE_KINDS
from tensile.gaps import Gap, gaps
from tensile.sequence import Trace
from tensile.spans import is_written, span_of
from tensile.tape import Tape


def least_stall_s(trace: Trace, budget_bytes: int, costs: Costs) -> float:
    """No plan of this budget stalls less."""
    tape = Tape(trace, costs)
    n = tape.length
    program = LinearProgram()
    waits = [program.variable(cost=1.0) for _ in range(n)]
    found = gaps(tape)
    away: list[Terms] = [[] for _ in range(n)]
    outs: list[Terms] = [[] for _ in range(2 * n)]  # 2p: wait, 2p + 1: run
    ins: list[Terms] = [[] for _ in range(2 * n)]
    away_of: dict[int, dict[int, Terms]] = {}
    computed: list[tuple[Gap, int]] = []
    for number, gap in enumerate(found):
        here = away_of.setdefault(number, {})
        again = None
        if gap.slot in tape.recipes and not gap.final:
            again = program.variable(upper=1.0)
            computed.append((gap, again))
        _flow(program, tape, found, gap, again, here, outs, ins)
        for position, terms in here.items():
            away[position] += [(column, value * gap.bytes) for column, value in terms]
    longer: list[Terms] = [[] for _ in range(n)]
    for gap, again in computed:
        again_s = tape.recompute_s(gap.slot)
        program.costs[again] = again_s
        longer[gap.need % n].append((again, again_s))
        source = tape.slots[tape.recipes[gap.slot].source].storage
        if trace.storages[source].death <= gap.need:
            program.upper[again] = 0.0
        for other, described in enumerate(found):
            if described.storage == source and described.start < gap.need < described.need:
                there = away_of[other][gap.need]  # what is away of it cannot be computed from
                program.at_most([(again, 1.0), *there], 1.0)
    for position in range(n):
        natural = int(tape.natural_bytes[position])
        program.at_most([(c, -v) for c, v in away[position]], budget_bytes - natural)
        for flows, rate in ((outs, costs.out_bytes_per_s), (ins, costs.in_bytes_per_s)):
            time = [(waits[position], -rate)]
            time += [(column, -rate * value) for column, value in longer[position]]
            program.at_most([*flows[2 * position], *time], 0.0)
            program.at_most(flows[2 * position + 1], rate * tape.durations_s[position])
    return program.solve().bound


def _flow(
    program: LinearProgram,
    tape: Tape,
    found: list[Gap],
    gap: Gap,
    again: int | None,
    here: dict[int, Terms],
    outs: list[Terms],
    ins: list[Terms],
) -> None:
    """The variables of one gap: how much leaves and returns in each slot of time."""
    n = tape.length
    weight = 0.0 if _may_leave_unwritten(tape, found, gap) else float(gap.bytes)
    level: Terms = [] if again is None else [(again, 1.0)]
    left: Terms = list(level)
    for position in range(gap.start, gap.need):  # asked back, it may still wait for its turn
        for slot in (2 * position, 2 * position + 1):
            if slot % 2:
                here[position % n] = list(level)
            out, back = program.variable(), program.variable()
            outs[slot % (2 * n)].append((out, weight))
            ins[slot % (2 * n)].append((back, float(gap.bytes)))
            level = [*level, (out, 1.0), (back, -1.0)]
            left.append((out, 1.0))
            program.at_most([(c, -v) for c, v in level if c != again], 0.0)
    program.at_most(left, 1.0)
    if not gap.final:
        last = program.variable()  # the wait before the operator that needs it
        ins[2 * gap.need % (2 * n)].append((last, float(gap.bytes)))
        program.at_most([(c, v) for c, v in level if c != again] + [(last, -1.0)], 0.0)


def _may_leave_unwritten(tape: Tape, found: list[Gap], gap: Gap) -> bool:
    if tape.trace.storages[gap.storage].kind not in MOVABLE_KINDS:
        return False
    span = span_of(tape, gap.storage)
    own = sorted((g for g in found if g.storage == gap.storage), key=lambda g: g.start)
    place = own.index(gap)
    if place == 0 and span.end is not None:
        return False
    before = own[place - 1].stop - (0 if place else tape.length)
    return not is_written(tape, span, before, gap.start)
