"""A lower bound for the stall of any plan: a linear program in which storages move like water.

Fractions of a storage leave and return at any moment of its gap, copies have no latency, a copy in
holds only what has arrived, and what may leave unwritten always does. So no plan is better, and
what a plan is above it is the price of whole storages, of events, and of the planner (the optimum
of whole storages lies between). Slots of time: the wait before each operator, then its run.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from tensile.costs import Costs
from tensile.floor import MOVABLE_KINDS
from tensile.gaps import Gap, gaps
from tensile.sequence import Trace
from tensile.spans import is_written, span_of
from tensile.tape import Tape


class _Program:
    """Rows `coefficients · x <= limit`, and the cost of each variable."""

    def __init__(self) -> None:
        self.costs: list[float] = []
        self.upper: list[float] = []
        self.entries: list[tuple[int, int, float]] = []
        self.limits: list[float] = []

    def variable(self, cost: float = 0.0, upper: float = np.inf) -> int:
        self.costs.append(cost)
        self.upper.append(upper)
        return len(self.costs) - 1

    def at_most(self, terms: list[tuple[int, float]], limit: float) -> None:
        row = len(self.limits)
        self.entries += [(row, column, value) for column, value in terms]
        self.limits.append(limit)

    def solve(self) -> float:
        rows, columns, values = zip(*self.entries, strict=True)
        matrix = coo_matrix((values, (rows, columns)), (len(self.limits), len(self.costs)))
        result = linprog(
            self.costs,
            A_ub=matrix.tocsr(),
            b_ub=self.limits,
            bounds=list(zip([0.0] * len(self.upper), self.upper, strict=True)),
            method="highs",
        )
        if result.status != 0:
            raise ValueError(f"the linear program has no optimum: {result.message}")
        return float(result.fun)


def least_stall_s(trace: Trace, budget_bytes: int, costs: Costs) -> float:
    """No plan of this budget stalls less."""
    tape = Tape(trace, costs)
    n = tape.length
    program = _Program()
    waits = [program.variable(cost=1.0) for _ in range(n)]
    found = gaps(tape)
    away: list[list[tuple[int, float]]] = [[] for _ in range(n)]
    outs: list[list[tuple[int, float]]] = [[] for _ in range(2 * n)]  # 2p: wait, 2p + 1: run
    ins: list[list[tuple[int, float]]] = [[] for _ in range(2 * n)]
    away_of: dict[int, dict[int, list[tuple[int, float]]]] = {}
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
    longer: list[list[tuple[int, float]]] = [[] for _ in range(n)]
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
    return program.solve()


def _flow(
    program: _Program,
    tape: Tape,
    found: list[Gap],
    gap: Gap,
    again: int | None,
    here: dict[int, list[tuple[int, float]]],
    outs: list[list[tuple[int, float]]],
    ins: list[list[tuple[int, float]]],
) -> None:
    """The variables of one gap: how much leaves and returns in each slot of time."""
    n = tape.length
    weight = 0.0 if _may_leave_unwritten(tape, found, gap) else float(gap.bytes)
    level: list[tuple[int, float]] = [] if again is None else [(again, 1.0)]
    left: list[tuple[int, float]] = list(level)
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
