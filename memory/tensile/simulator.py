"""The referee of every plan: one steady step, executed in virtual time.

Operators run in order. Each waits for its operands (copies in flight) and for memory (copies out in
flight), and acts when an executor would, at events. Two copy channels, one out and one in, serve in
order of request, both at once. A copy out holds its bytes until it has ended, a copy in from its
start, which waits for room.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence
from math import inf

from tensile.absence import Absence, absences
from tensile.actions import Plan, Timeline
from tensile.costs import Costs
from tensile.sequence import Trace
from tensile.tape import Tape

_TURNS = 4  # steps after which what is carried from one to the next has settled
_NOTHING = Timeline(
    peak_bytes=0, stall_s=0.0, step_s=0.0, copied_bytes=0, copy_s=0.0, live_bytes=(), start_s=()
)


def simulate(trace: Trace, plan: Plan, costs: Costs) -> Timeline:
    """What a step under `plan` takes, in bytes and seconds, when it is one of many.

    An operator that finds no room although nothing is left to wait for runs all the same, and the
    peak says so. Raises ValueError for a plan that would let an operator run without an operand.
    """
    tape = Tape(trace, costs)
    return execute(tape, absences(tape, plan.actions), plan.budget_bytes)[0]


def execute(
    tape: Tape, found: Sequence[Absence], budget_bytes: int
) -> tuple[Timeline, list[float]]:
    """The same for actions that are resolved already, and the seconds waited for each of them."""
    if not tape.length:
        return _NOTHING, []
    execution = _Execution(tape, found, budget_bytes)
    timeline = execution.step()
    for _ in range(_TURNS - 1):
        if execution.is_settled():
            break
        before_s, timeline = timeline.step_s, execution.step()
        if abs(timeline.step_s - before_s) <= 1e-9 * timeline.step_s:
            break
    return timeline, execution.waited_s


class _Execution:
    def __init__(self, tape: Tape, found: Sequence[Absence], budget_bytes: int) -> None:
        n, events = tape.length, len(tape.trace.events)
        self.tape, self.found, self.budget_bytes = tape, found, budget_bytes
        # At each position: event, index, and whether it leaves then.
        self.moves: dict[int, list[tuple[int, int, bool]]] = defaultdict(list)
        self.computes: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.needs: dict[int, list[int]] = defaultdict(list)
        self.deaths: dict[int, list[int]] = defaultdict(list)
        self.absent = [a.in_event >= events if not a.dies else a.stop > n for a in found]
        for index, absence in enumerate(found):
            event = absence.in_event % events
            place = tape.event_position(event)
            self.moves[absence.start].append((absence.out_event, index, True))
            if absence.dies:
                self.deaths[absence.stop - n if absence.stop > n else absence.stop].append(index)
            elif absence.recompute_s is not None:
                self.computes[place].append((event, index))
            else:
                self.moves[place].append((event, index, False))
                if absence.first_need is not None:
                    self.needs[absence.first_need % n].append(index)
        for moves in self.moves.values():
            # Of one event: what leaves first, then what is asked back, each in the plan's order.
            moves.sort(key=lambda move: (move[0], not move[2], move[1]))
        for computes in self.computes.values():
            computes.sort()
        self.places = {*self.moves, *self.computes, *self.needs, *self.deaths}
        costs = tape.costs
        self.out_s = [costs.out_s(a.bytes) if a.writes else 0.0 for a in found]
        self.in_s = [costs.in_s(a.bytes) for a in found]
        outwards = [i for i, a in enumerate(found) if a.writes]
        inwards = [i for i, a in enumerate(found) if not a.dies and a.recompute_s is None]
        self.copied_bytes = sum(found[i].bytes for i in (*outwards, *inwards))
        self.copy_s = max(sum(self.out_s[i] for i in outwards), sum(self.in_s[i] for i in inwards))
        self.left_s = [0.0] * len(found)  # when the copy out of each has ended
        self.arrival_s: list[float | None] = [None] * len(found)  # … the copy in; None: not begun
        self.leaving: list[tuple[float, int]] = []  # a heap
        self.queue: deque[int] = deque()
        self.out_free_s = self.in_free_s = self.now_s = 0.0
        self.held = self.top = 0
        self.waited_s = [0.0] * len(found)

    def is_settled(self) -> bool:
        """Nothing is carried into the next step, so that it would be equal."""
        return not self.leaving and not self.queue and self.in_free_s <= self.now_s

    def step(self) -> Timeline:
        tape, n = self.tape, self.tape.length
        alive = tape.alive_bytes.tolist()
        born, died = tape.born_bytes.tolist(), tape.died_bytes.tolist()
        begin_s = self.now_s
        self.waited_s = [0.0] * len(self.found)
        absent = sum(a.bytes for a, away in zip(self.found, self.absent, strict=True) if away)
        self.held = alive[0] - absent
        live, starts = [0] * n, [0.0] * n
        durations_s, workspaces, places = tape.durations_s, tape.workspace_bytes, self.places
        for position in range(n):
            if position:
                self.held -= died[position]
            self.top = self.held
            if position in places:
                self._pass(position)
            if self.leaving:
                self._wait_for_room(born[position])
            self.held += born[position]
            self.top = max(self.top, self.held)
            starts[position] = self.now_s - begin_s
            self._run_for(durations_s[position])
            live[position] = self.top
            self.held -= workspaces[position]
        self._moments(n)
        live[-1] = max(live[-1], self.top)
        step_s = self.now_s - begin_s
        return Timeline(
            peak_bytes=max(live),
            stall_s=max(0.0, step_s - tape.step_s) if self.found else 0.0,
            step_s=step_s,
            copied_bytes=self.copied_bytes,
            copy_s=self.copy_s,
            live_bytes=tuple(live),
            start_s=tuple(starts),
        )

    def _pass(self, position: int) -> None:
        """What the plan wants between the operator before `position` and the one at it."""
        self._moments(position)
        for index in self.needs.get(position, ()):
            arrival_s = self.arrival_s[index]
            if arrival_s is None or arrival_s > self.now_s:
                self._wait_for(index)
        for _, index in self.computes.get(position, ()):
            absence = self.found[index]
            self._wait_for_room(absence.bytes + absence.workspace_bytes)
            self.held += absence.bytes
            self.top = max(self.top, self.held + absence.workspace_bytes)
            self.absent[index] = False
            self.waited_s[index] += absence.recompute_s or 0.0
            self._run_for(absence.recompute_s or 0.0)

    def _moments(self, position: int) -> None:
        for index in self.deaths.get(position, ()):
            if self.absent[index]:
                self.held += self.found[index].bytes  # it was not there to be freed
                self.absent[index] = False
            if self.left_s[index] > self.now_s:
                self.leaving = [entry for entry in self.leaving if entry[1] != index]
                heapq.heapify(self.leaving)
        for _, index, is_out in self.moves.get(position, ()):
            if is_out:
                self._leave(index)
            else:
                self.queue.append(index)
        self._settle(self.now_s)

    def _leave(self, index: int) -> None:
        if index in self.queue:  # asked back by nobody but its plan, and not begun
            self.queue.remove(index)
            return
        here_s = max(self.now_s, self.arrival_s[index] or 0.0)
        ended_s = here_s
        if self.found[index].writes:
            ended_s = self.out_free_s = max(here_s, self.out_free_s) + self.out_s[index]
        self.left_s[index], self.arrival_s[index] = ended_s, None
        heapq.heappush(self.leaving, (ended_s, index))

    def _settle(self, until_s: float, admit: bool = True) -> None:
        """Let the channels work until then. Copies in begin only where `admit`."""
        while self.leaving or (admit and self.queue):
            next_out_s = self.leaving[0][0] if self.leaving else inf
            if admit and self.queue:
                head = self.queue[0]
                ready_s = max(self.now_s, self.in_free_s, self.left_s[head])
                room = self.held + self.found[head].bytes <= self.budget_bytes
                if ready_s <= until_s and ready_s < next_out_s and room:
                    self._begin_copy_in(ready_s)
                    continue
            if next_out_s > until_s:
                break
            self.now_s = max(self.now_s, next_out_s)
            _, index = heapq.heappop(self.leaving)
            self.held -= self.found[index].bytes
            self.absent[index] = True
        self.now_s = max(self.now_s, until_s)

    def _begin_copy_in(self, start_s: float) -> None:
        index = self.queue.popleft()
        self.now_s = max(self.now_s, start_s)
        self.held += self.found[index].bytes
        self.top = max(self.top, self.held)
        self.absent[index] = False
        self.in_free_s = start_s + self.in_s[index]
        self.arrival_s[index] = self.in_free_s

    def _wait_for(self, index: int) -> None:
        begin_s = self.now_s
        while index in self.queue:
            ahead = [self.in_free_s, self.left_s[self.queue[0]]]
            if self.leaving:
                ahead.append(self.leaving[0][0])
            later = [time_s for time_s in ahead if time_s > self.now_s]
            if later:
                self._settle(min(later))
            else:  # no room, and none to come: the peak will say it
                self._begin_copy_in(self.now_s)
        arrival_s = self.arrival_s[index]
        if arrival_s is not None and arrival_s > self.now_s:
            self._settle(arrival_s)
        self.waited_s[index] += self.now_s - begin_s

    def _wait_for_room(self, wanted_bytes: int) -> None:
        while self.leaving and self.held + wanted_bytes > self.budget_bytes:
            ended_s, index = self.leaving[0]
            self.waited_s[index] += max(0.0, ended_s - self.now_s)
            self._settle(ended_s, admit=False)

    def _run_for(self, duration_s: float) -> None:
        until_s = self.now_s + duration_s
        if self.queue or (self.leaving and self.leaving[0][0] <= until_s):
            self._settle(until_s)
        else:
            self.now_s = until_s
