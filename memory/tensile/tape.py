"""A trace in arrays, with the time of every operator: what planner and simulator both walk over.

The step is cyclic, so places in it are *linear*: with N operators and E events, `p + N` is position
`p` of the next step, and `e + E` is event `e` of the next step.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tensile.costs import Costs
from tensile.floor import MOVABLE_KINDS
from tensile.sequence import Moment, Slot, Storage, Trace

if TYPE_CHECKING:
    from tensile.spans import Span

Integers = NDArray[np.int64]


class Tape:
    """`natural_bytes[p]` lives while operator `p` runs when nothing ever moves; `born_bytes[p]` of
    it (workspace included) only since `p`, and `died_bytes[p]` no more since `p`. `times_s[p]` is
    when position `p` comes, without stalls.
    """

    def __init__(self, trace: Trace, costs: Costs) -> None:
        self.trace = trace
        self.costs = costs
        self.length = len(trace.operators)
        self.durations_s = costs.durations_s(trace)
        self.times_s: list[float] = np.concatenate(([0.0], np.cumsum(self.durations_s))).tolist()
        self.step_s: float = self.times_s[-1]
        self._bytes_over_time()
        positions = [event.position for event in trace.events]
        self._cyclic_events = [*positions, *(position + self.length for position in positions)]
        self._event_times_s = [self.time_s(position) for position in self._cyclic_events]
        self.spans: dict[str, list[Span]] = {}  # by name, as they are asked for
        self._slots_of: dict[int, list[Slot]] = {}
        for slot in trace.slots:
            self._slots_of.setdefault(slot.storage, []).append(slot)
        self.slots = {slot.number: slot for slot in trace.slots}
        self.recipes = {recipe.slot: recipe for recipe in trace.recipes}
        self.unpack_events: dict[int, list[int]] = {}
        self.gradient_events: dict[str, list[int]] = {}
        self.pack_events: dict[int, int] = {}
        for index, event in enumerate(trace.events):
            if event.moment is Moment.UNPACK:
                self.unpack_events.setdefault(event.number, []).append(index)
            elif event.moment is Moment.PACK:
                self.pack_events[event.number] = index
            elif event.moment is Moment.GRADIENT:
                self.gradient_events.setdefault(event.name, []).append(index)
        self.named: dict[str, list[int]] = {}
        for index, storage in enumerate(trace.storages):
            if storage.kind in MOVABLE_KINDS or index in self._slots_of:
                self.named.setdefault(storage.name, []).append(index)
        self._sort_accesses()

    def _bytes_over_time(self) -> None:
        storages, n = self.trace.storages, self.length
        sizes = np.array([s.bytes for s in storages], np.int64)
        births = np.array([s.birth for s in storages], np.int64)
        deaths = np.minimum(np.array([s.death for s in storages], np.int64), n + 1)
        change = np.zeros(n + 2, np.int64)
        np.add.at(change, births, sizes)
        np.add.at(change, deaths, -sizes)
        self.workspace_bytes = [o.workspace_bytes for o in self.trace.operators]
        workspace = np.array(self.workspace_bytes, np.int64)
        self.alive_bytes: Integers = np.cumsum(change)[:n]
        self.natural_bytes: Integers = self.alive_bytes + workspace
        born = np.zeros(n + 2, np.int64)
        later = births > 0  # what the step finds was there before its first operator
        np.add.at(born, births[later], sizes[later])
        self.died_bytes: Integers = born[:n] - np.diff(self.alive_bytes, prepend=0)
        self.born_bytes: Integers = born[:n] + workspace

    def _sort_accesses(self) -> None:
        accesses = self.trace.accesses
        storages = np.array([a.storage for a in accesses], np.int64)
        order = np.argsort(storages, kind="stable")
        self._access_order: list[int] = order.tolist()
        places = np.arange(len(self.trace.storages) + 1)
        self._access_bounds: list[int] = np.searchsorted(storages[order], places).tolist()

    @property
    def peak_bytes(self) -> int:
        """The natural peak."""
        return int(self.natural_bytes.max()) if self.length else 0

    def accesses(self, storage: int) -> list[int]:
        """The operators that touch it, in order."""
        begin, end = self._access_bounds[storage], self._access_bounds[storage + 1]
        found = self.trace.accesses
        return [found[index].operator for index in self._access_order[begin:end]]

    def writes(self, storage: int) -> list[int]:
        """The operators that write it, in order."""
        begin, end = self._access_bounds[storage], self._access_bounds[storage + 1]
        found = [self.trace.accesses[index] for index in self._access_order[begin:end]]
        return [access.operator for access in found if access.writes]

    def slots_of(self, storage: int) -> list[Slot]:
        """Several where it was saved in several versions."""
        return self._slots_of.get(storage, [])

    def outlives(self, storage: Storage) -> bool:
        return storage.death > self.length

    def first_event(self, position: int) -> int:
        """The first event (linear) at or after a linear position."""
        return bisect_left(self._cyclic_events, position)

    def last_event(self, position: int) -> int:
        """The last event (linear) at or before a linear position; -1 if there is none."""
        return bisect_right(self._cyclic_events, position) - 1

    def last_event_by(self, time_s: float) -> int:
        """The last event (linear) until then, without stalls; -1 if there is none."""
        return bisect_right(self._event_times_s, time_s) - 1

    def event_position(self, event: int) -> int:
        """The linear position of a linear event."""
        return self._cyclic_events[event]

    def time_s(self, position: int) -> float:
        """When a linear position comes, without stalls."""
        if position <= self.length:
            return float(self.times_s[position])
        turns, place = divmod(position, self.length)
        return self.times_s[place] + turns * self.step_s

    def recompute_s(self, slot: int) -> float:
        return sum(self.durations_s[operator] for operator in self.recipes[slot].operators)

    def recompute_workspace_bytes(self, slot: int) -> int:
        operators = self.trace.operators
        return max((operators[o].workspace_bytes for o in self.recipes[slot].operators), default=0)
