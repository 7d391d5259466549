"""A plan in the order in which a step meets its events: what leaves and what is asked back when.

An executor counts the moments that it sees. While they are those of the trace, the plan is
followed; the first one that is not ends it for the rest of the step.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise, takewhile

from tensile.actions import Action, Plan, Recompute, Swap
from tensile.sequence import Kind, Moment, Trace

_SMALL_BYTES = 8 * 2**10


Key = tuple[Moment, int, str, int]  # a moment, by what steps are told apart
Fork = tuple[int, Key]  # where a step leaves all plans: what it had met until then, and what it met


class Schedule:
    """`leaving[e]` and `asked[e]` are the actions due at event `e`, where `busy` has it;
    `rise_bytes[e]` is how far what lives will rise, at most, between event `e` and the next one.
    `scratch_bytes[e]` of that, at most, are the scratch memory of an operator.
    """

    def __init__(self, trace: Trace, plan: Plan) -> None:
        self.trace = trace
        self.plan = plan
        self.leaving: dict[int, list[Action]] = defaultdict(list)
        self.asked: dict[int, list[Swap]] = defaultdict(list)
        # what dies away is not asked back, though it lives still when the last event comes
        deaths = {(s.name, s.death) for s in trace.storages if s.kind is Kind.GRADIENT}
        for action in plan.actions:
            self.leaving[action.out_event].append(action)
            dies = (action.storage, action.needed_position) in deaths
            if isinstance(action, Swap) and not dies:
                self.asked[action.in_event].append(action)
        self.busy = frozenset((*self.leaving, *self.asked))
        self.rise_bytes = _rises(trace)
        self.scratch_bytes = _scratch(trace)
        self.lower_bytes = sum(action.bytes for action in plan.actions if isinstance(action, Swap))
        self.state_bytes: dict[str, int] = defaultdict(int)  # by parameter
        for storage in trace.storages:
            if storage.kind is Kind.STATE:
                owner, _, _ = storage.name.removeprefix("optimizer_state:").rpartition(":")
                self.state_bytes[owner] += storage.bytes
        self._keys = keys_of(trace)
        self._uses = _uses(trace)
        self._next = 0
        self._met: Key | None = None
        self.followed = False

    @property
    def is_idle(self) -> bool:
        return not self.plan.actions

    def computed_calls(self) -> set[tuple[str, int]]:
        """Module calls whose result the plan computes again."""
        return {(a.module, a.call) for a in self.plan.actions if isinstance(a, Recompute)}

    def away_at_begin(self) -> list[Swap]:
        """What is away across the border of two steps, so is not there when a step begins."""
        return [
            action
            for action in self.plan.actions
            if isinstance(action, Swap) and action.in_event <= action.out_event
        ]

    def begin(self) -> None:
        self._next = 0
        self.followed = True

    def see(self, moment: Moment, number: int, name: str, size_bytes: int) -> int | None:
        """The index of this event; None once the step is not the traced one."""
        if not self.followed:
            return None
        index = self._next
        key = (moment, number, name, _told(size_bytes) if moment is Moment.PACK else 0)
        if index >= len(self._keys) or self._keys[index] != key:
            self.followed = False
            self._met = key
            return None
        self._next = index + 1
        return index

    def take_over(self, left: Schedule) -> None:
        """Go on where `left` ended, if all that was seen until then is in this plan too."""
        self._next = left._next
        self.followed = self._keys[: self._next] == left._keys[: self._next]

    @property
    def fork(self) -> Fork | None:
        """Where a step left this plan, and all others; None while it has not."""
        if self.followed or self._met is None:
            return None
        return hash(tuple(self._keys[: self._next])), self._met

    def common(self, keys: Sequence[Key]) -> int:
        """How many of the moments, from the first one on, this plan has too."""
        pairs = zip(self._keys, keys, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def events_until(self, name: str) -> int:
        """How many events it is until that parameter, gradient or state is used again, in the next
        step if it is no more in this one.
        """
        uses = self._uses.get(name, ())
        if not uses:
            return len(self._keys)
        now = self._next - 1
        place = bisect_left(uses, now)
        use = uses[place] if place < len(uses) else uses[0] + len(self._keys)
        return use - now

    def away_at(self, index: int) -> list[Action]:
        """What is away at event `index`, or leaves across it."""
        away: list[Action] = []
        for action in self.plan.actions:
            out, back = action.out_event, len(self._keys)
            if isinstance(action, Swap):
                back = action.in_event
            if out < index < back or (back <= out and not back <= index <= out):
                away.append(action)
        return away

    def expected(self) -> str:
        """The event that should have come, in words."""
        if self._next >= len(self._keys):
            return "the end"
        moment, number, name, _ = self._keys[self._next]
        return f"{moment} {name or number}"


def fork_of(keys: Sequence[Key], schedules: Iterable[Schedule]) -> Fork | None:
    """Where a step of these moments would leave all of them; None where one has it to its end."""
    count = max((schedule.common(keys) for schedule in schedules), default=0)
    return None if count == len(keys) else (hash(tuple(keys[:count])), keys[count])


def keys_of(trace: Trace) -> list[Key]:
    """What a step shows of itself, in the order of its moments."""
    sizes = [
        trace.storages[slot.storage].bytes if slot.shown_bytes is None else slot.shown_bytes
        for slot in trace.slots
    ]
    return [
        (e.moment, e.number, e.name, _told(sizes[e.number]) if e.moment is Moment.PACK else 0)
        for e in trace.events
    ]


def _told(size_bytes: int) -> int:
    """The size by which a step is told from another: the tensor's own, since a batch may be a slice
    of whatever was read. Kernels keep small statistics in another type
    than their fakes say (batch norm of bfloat16), which does not make it another step.
    """
    return size_bytes if size_bytes > _SMALL_BYTES else 0


def _uses(trace: Trace) -> dict[str, list[int]]:
    """For each name of what lasts: the events after which an operator uses it, in order."""
    positions = [event.position for event in trace.events]
    found: dict[str, list[int]] = defaultdict(list)
    for access in trace.accesses:
        storage = trace.storages[access.storage]
        if storage.kind in (Kind.PARAMETER, Kind.GRADIENT, Kind.STATE):
            event = bisect_right(positions, access.operator) - 1
            if found[storage.name][-1:] != [event]:
                found[storage.name].append(event)
    return dict(found)


def _scratch(trace: Trace) -> list[int]:
    """For each event: the most that an operator takes beside tensors until the next one."""
    scratch = [operator.workspace_bytes for operator in trace.operators]
    positions = [event.position for event in trace.events] + [len(scratch)]
    return [max(scratch[start:stop], default=0) for start, stop in pairwise(positions)]


def _rises(trace: Trace) -> list[int]:
    """For each event: the most that lives until the next one, over what lives at it."""
    count = len(trace.operators)
    running, standing = [0] * (count + 2), [0] * (count + 2)
    for storage in trace.storages:
        death = min(storage.death, count + 1)
        running[storage.birth] += storage.bytes
        running[death] -= storage.bytes
        # at position p lives what an earlier operator made and what is not dead by then
        born = storage.birth + 1 if storage.birth > 0 else 0
        if born < death:
            standing[born] += storage.bytes
            standing[death] -= storage.bytes
    while_running = list(accumulate(running))
    at_position = list(accumulate(standing))
    for position, operator in enumerate(trace.operators):
        while_running[position] += operator.workspace_bytes
    positions = [event.position for event in trace.events] + [count]
    rises = []
    for start, stop in pairwise(positions):
        most = max(while_running[start:stop], default=0)
        rises.append(max(0, most - at_position[start]))
    return rises


def movable_bytes(trace: Trace) -> int:
    """Bytes of all that a plan could bring below at once: the most that the lower tier may hold."""
    kinds = (Kind.PARAMETER, Kind.GRADIENT, Kind.STATE, Kind.ACTIVATION)
    return sum(storage.bytes for storage in trace.storages if storage.kind in kinds)
