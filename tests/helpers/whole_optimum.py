"""The least stall of whole storages: an integer program, between the fluid bound and any plan.

When an operator begins and when it ends, a storage is away or it is not. It is away only when all
of it has been copied out (or is clean: unchanged since an earlier return), it takes its place from
the moment at which its copy back begins, a copy takes the channel its latency too, and what is
computed again needs its source. What is left out, so that no plan of these gaps is better: between
two such moments room may be given and taken in any order, copies take turns on a channel and begin
at any moment instead of at events, and computing again needs no workspace.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from helpers.linear_program import LinearProgram, Solution, Terms
from tensile.costs import Costs
from tensile.floor import MOVABLE_KINDS
from tensile.gaps import gaps
from tensile.sequence import Trace
from tensile.spans import is_written, span_of
from tensile.tape import Tape


def least_whole_stall_s(
    trace: Trace, budget_bytes: int, costs: Costs, seconds: float = np.inf
) -> Solution:
    """No plan stalls less than its `bound`, which is the optimum where there was time to prove it:
    seconds for a dozen gaps. Raises ValueError where nothing was found in time.
    """
    return _Problem(Tape(trace, costs), budget_bytes).program.solve(seconds)


class _Problem:
    """Time is 2N slots: `2p` the wait before operator `p`, `2p + 1` its run; linear ones go on."""

    def __init__(self, tape: Tape, budget_bytes: int) -> None:
        self.tape, self.n = tape, tape.length
        self.gaps = gaps(tape)
        self.program = LinearProgram()
        self.crowded = [int(b) > budget_bytes for b in tape.natural_bytes]
        self.waits = [self.program.variable(cost=1.0) for _ in range(self.n)]
        self.used = [self.program.variable(upper=1.0) for _ in self.gaps]
        self.again = {
            number: self.program.variable(upper=1.0, whole=True, cost=tape.recompute_s(gap.slot))
            for number, gap in enumerate(self.gaps)
            if gap.slot in tape.recipes and not gap.final
        }
        # When operator `p` begins (`2p`) and when it ends (`2p + 1`), where too much would live.
        self.away: list[dict[int, int]] = [{} for _ in self.gaps]
        self.outs: list[Terms] = [[] for _ in range(2 * self.n)]  # seconds of each slot
        self.ins: list[Terms] = [[] for _ in range(2 * self.n)]
        for number in range(len(self.gaps)):
            self._moves(number)
        for number in self.again:
            self._needs_its_source(number)
        self._fits(budget_bytes)
        self._takes_time()

    def _moves(self, number: int) -> None:
        gap, program = self.gaps[number], self.program
        out_s = self.tape.costs.out_s(gap.bytes)
        in_s = self.tape.costs.in_s(gap.bytes)
        ready = [*self._unwritten(number)]  # what makes it ready to be away, so far
        back: Terms = []
        if number in self.again:
            ready.append((self.again[number], 1.0))
            back.append((self.again[number], 1.0))
        for position in range(gap.start, gap.need):
            for slot in (2 * position, 2 * position + 1):
                out, copied = program.variable(upper=1.0), program.variable(upper=1.0)
                self.outs[slot % (2 * self.n)].append((out, out_s))
                self.ins[slot % (2 * self.n)].append((copied, in_s))
                ready.append((out, 1.0))
                back.append((copied, 1.0))
                if self.crowded[position % self.n]:
                    away = program.variable(upper=1.0, whole=True)
                    self.away[number][slot] = away
                    program.at_most([(away, 1.0), *_negative(ready)], 0.0)
                    program.at_most([(away, 1.0), (self.used[number], -1.0)], 0.0)
                    begun = [term for term in back if term[0] != self.again.get(number)]
                    program.at_most([(away, 1.0), *begun], 1.0)
        program.at_most([(self.used[number], 1.0), *_negative(ready)], 0.0)
        if not gap.final:
            last = program.variable(upper=1.0)
            self.ins[2 * gap.need % (2 * self.n)].append((last, in_s))
            back.append((last, 1.0))
            program.at_most([(self.used[number], 1.0), *_negative(back)], 0.0)

    def _unwritten(self, number: int) -> Terms:
        """It may leave unwritten if one of these gaps is used: the earlier ones of its storage
        since it was last written, itself in the step before included.
        """
        gap = self.gaps[number]
        if self.tape.trace.storages[gap.storage].kind not in MOVABLE_KINDS:
            return []
        span = span_of(self.tape, gap.storage)
        own = [i for i, other in enumerate(self.gaps) if other.storage == gap.storage]
        own.sort(key=lambda i: self.gaps[i].start)
        place = own.index(number)
        earlier = [(i, 0) for i in own[:place]]
        if span.end is None:
            earlier = [(i, -self.n) for i in own[place:]] + earlier
        found: Terms = []
        chain = [*earlier, (number, 0)]
        for (before, turn), (after, later) in reversed([*pairwise(chain)]):
            left, right = self.gaps[before].stop + turn, self.gaps[after].start + later
            if is_written(self.tape, span, left, right):
                break
            found.append((self.used[before], 1.0))
        return found

    def _needs_its_source(self, number: int) -> None:
        gap, again = self.gaps[number], self.again[number]
        source = self.tape.slots[self.tape.recipes[gap.slot or 0].source].storage
        if self.tape.trace.storages[source].death <= gap.need:
            self.program.upper[again] = 0.0
        for other, described in enumerate(self.gaps):
            if described.storage == source and 2 * gap.need in self.away[other]:
                self.program.at_most([(again, 1.0), (self.away[other][2 * gap.need], 1.0)], 1.0)

    def _fits(self, budget_bytes: int) -> None:
        gone: list[Terms] = [[] for _ in range(2 * self.n)]
        for gap, away in zip(self.gaps, self.away, strict=True):
            for slot, variable in away.items():
                gone[slot % (2 * self.n)].append((variable, -float(gap.bytes)))
        for slot in range(2 * self.n):
            if self.crowded[slot // 2]:
                excess = int(self.tape.natural_bytes[slot // 2]) - budget_bytes
                self.program.at_most(gone[slot], -float(excess))

    def _takes_time(self) -> None:
        longer: list[Terms] = [[] for _ in range(self.n)]
        for number, again in self.again.items():
            gap = self.gaps[number]
            longer[gap.need % self.n].append((again, -self.tape.recompute_s(gap.slot or 0)))
        for position in range(self.n):
            wait = [(self.waits[position], -1.0), *longer[position]]
            for copies in (self.outs, self.ins):
                self.program.at_most([*copies[2 * position], *wait], 0.0)
                self.program.at_most(copies[2 * position + 1], self.tape.durations_s[position])


def _negative(terms: Terms) -> Terms:
    return [(variable, -value) for variable, value in terms]
