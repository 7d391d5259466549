"""One step after the other: every moment that hooks see is counted here, and answered.

While the moments are those of the plan, the plan says what leaves and what is asked back. Otherwise
the reactive policy does: the oldest leaves when the budget is near, the newest comes back first.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tensile import freed_memory
from tensile.actions import Action, Recompute, Swap
from tensile.contents import Content, Contents, Slot
from tensile.observation import Observation
from tensile.pressure import Pressure
from tensile.recorded_calls import Again, RecordedCalls
from tensile.residency import GRADIENT, STATE, Residency
from tensile.saved_tensors import SavedTensors
from tensile.schedule import Fork, Schedule
from tensile.sequence import Moment
from tensile.stats import Counters

_USUAL_STATES = 2  # of an optimizer that no trace knows, each as large as its parameter
_AHEAD = 4  # contents on their way back at once, where no plan says when to ask
_SOON = 8  # events before its use at which what no plan sent away is asked back


class Execution:
    """`schedule` is followed if there is one. Moments count between `begin` and `end` only."""

    def __init__(
        self,
        *,
        contents: Contents,
        residency: Residency,
        pressure: Pressure,
        counters: Counters,
        smallest_bytes: int,
    ) -> None:
        self.schedule: Schedule | None = None
        self.calls: RecordedCalls | None = None
        self.observation: Observation | None = None  # of this step, which has no schedule then
        self.saved = SavedTensors(
            packed=self._packed,
            unpacked=self._unpacked,
            touched=self._touched,
            present=self._present,
            retired=contents.retire,
            smallest_bytes=smallest_bytes,
        )
        self._contents = contents
        self._residency = residency
        self._pressure = pressure
        self._counters = counters
        self._others: tuple[Schedule, ...] = ()
        self._waiting: list[Action] = []
        self._in_use: list[frozenset[str]] = []
        self._running = False
        self._relieving = False
        self._thread = 0  # that runs the step
        self._rise_bytes = 0  # until the next moment, at most
        self.missing_bytes = 0  # for which more had to leave than the plan says, in this step

    # the step

    def begin(self, *schedules: Schedule) -> None:
        """The first one is followed until a moment is another's."""
        schedule = schedules[0] if schedules else None
        self._others = schedules[1:]
        self._running = True
        self._thread = threading.get_ident()
        self._contents.get_ready()
        freed_memory.on_full(self._relieve)
        self.schedule = schedule
        self.missing_bytes = 0
        self.saved.begin_step()
        self._waiting.clear()
        self._in_use.clear()
        self._pressure.begin_step()
        if self.calls is not None:
            self.calls.begin_step()
            self.calls.active = schedule is not None
        self._pressure.distance = None if schedule is None else self._events_until
        if schedule is None:
            limit = self._pressure.limit_bytes or 0
            # no graph holds the parameters now, so they can be placed: half of the budget is free
            self._pressure.relieve(max(self._pressure.rise_bytes, limit // 2), frozenset())
        else:
            schedule.begin()
        self.moment(Moment.BEGIN)

    def end(self) -> None:
        self.moment(Moment.END)
        self.stop()

    def stop(self) -> None:
        """Also after an exception: what is saved stays valid for as long as its graph lives."""
        if self._running:
            freed_memory.on_full(None)
        self._running = False
        self._pressure.distance = None
        self._waiting.clear()
        self._in_use.clear()
        if self.calls is not None:
            self.calls.active = False
        self.saved.reap()

    def limit(self, limit_bytes: int | None) -> None:
        """From here on; None for no limit."""
        self._pressure.limit_bytes = limit_bytes

    def bring_back(self, names: Iterable[str]) -> None:
        """Between two steps: ask for what has left of `names`, as far as there is room."""
        self._pressure.bring_back(names)

    @property
    def shortfall_bytes(self) -> int:
        """What found no room in this step, at most."""
        return self._pressure.shortfall_bytes

    @property
    def is_running(self) -> bool:
        return self._running

    @property
    def is_followed(self) -> bool:
        return self.schedule is not None and self.schedule.followed

    @property
    def fork(self) -> Fork | None:
        """Where this step left its plan and all others; None where it did not."""
        return None if self.schedule is None else self.schedule.fork

    # moments

    def moment(
        self,
        moment: Moment,
        number: int = 0,
        name: str = "",
        size_bytes: int = 0,
        shown_bytes: int = 0,
        *,
        needed: Iterable[str] = (),
        unmade_bytes: int = 0,
    ) -> None:
        """Do what is due now, then make room for what comes until the next moment: for `needed`,
        which nobody may have asked back, and for `unmade_bytes`, which will be there from here on.
        """
        if self.observation is not None:
            self._contents.settle()
            self.observation.see(moment, number, name)
        index = self._index(moment, number, name, shown_bytes)
        if index is None:
            self._contents.settle()
            unplanned_bytes = unmade_bytes + self._residency.away_bytes(needed)
            self._pressure.relieve_unplanned(size_bytes, self._used(), unplanned_bytes)
            self._rise_bytes = self._pressure.rise_bytes
            if self.observation is not None:
                self.observation.go_on(self._used())
            return
        assert self.schedule is not None
        self._rise_bytes = rise = self.schedule.rise_bytes[index]
        sent_away = self._pressure.sent_away
        busy = self._waiting or unmade_bytes or sent_away or index in self.schedule.busy
        scratch = self.schedule.scratch_bytes[index]
        still = not busy and not self._residency.is_away(needed)
        if still and (rise == 0 or self._pressure.is_roomy(rise, scratch)):
            return
        self._contents.settle()
        due = [*self._waiting, *self.schedule.leaving.get(index, ())]
        self._waiting = [action for action in due if not self._left(action)]
        asked = self.schedule.asked.get(index, ())
        self._waiting = [action for action in self._waiting if action not in asked]
        coming_bytes, paged_bytes = self._coming_bytes(asked, needed)
        missing_bytes = self._pressure.relieve(
            rise + unmade_bytes, self._used(), coming_bytes, paged_bytes, scratch
        )
        self.missing_bytes = max(self.missing_bytes, missing_bytes)
        for action in asked:  # only now, so that nothing comes before there is room
            self._ask(action)
        if sent_away:
            self._ask_again(self.schedule, rise)

    def enter(self, name: str, used: frozenset[str]) -> None:
        self._in_use.append(used)
        self.moment(Moment.ENTER, name=name, needed=used)
        for parameter in used:
            self._residency.need(parameter)

    def leave(self, name: str) -> None:
        if self._in_use:
            self._in_use.pop()
        self.moment(Moment.EXIT, name=name)

    def gradient(self, name: str) -> None:
        self._residency.made(GRADIENT + name)
        self.moment(Moment.GRADIENT, name=name)

    def begin_chunk(self, number: int, parameters: Sequence[Tensor]) -> None:
        names = [self._residency.name_of(parameter) for parameter in parameters]
        needed = [part for name in names for part in self._residency.of_parameter(name)]
        self._in_use.append(frozenset(needed))
        unmade_bytes = sum(
            self._state_bytes(name, parameter)
            for name, parameter in zip(names, parameters, strict=True)
            if not self._residency.has_states(name)
        )
        self.moment(Moment.CHUNK, number, needed=needed, unmade_bytes=unmade_bytes)
        for part in needed:
            self._residency.need(part)
        self._reserve(sum(parameter.nbytes for parameter in parameters))

    def end_chunk(self, number: int, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            for part in self._residency.of_parameter(self._residency.name_of(parameter)):
                if part.startswith(STATE):
                    self._residency.made(part)
        if self._in_use:
            self._in_use.pop()
        self.moment(Moment.CHUNK_END, number)

    def _state_bytes(self, name: str, parameter: Tensor) -> int:
        """What the optimizer will keep of a parameter that it has not seen yet."""
        if self.schedule is not None:
            return self.schedule.state_bytes.get(name, 0)
        return _USUAL_STATES * parameter.nbytes

    # what a plan wants

    def _index(self, moment: Moment, number: int, name: str, shown_bytes: int) -> int | None:
        if not self.is_followed:
            return None
        assert self.schedule is not None
        index = self.schedule.see(moment, number, name, shown_bytes)
        if index is None:
            expected = self.schedule.expected()
            index = self._changed_over(self.schedule, moment, number, name, shown_bytes)
            if index is None:
                self._pressure.distance = None
                self._counters.deviations += 1
                self._counters.note(
                    f"a step met {moment} {name or number} where its plan expects {expected}; the "
                    "rest of such a step keeps the budget without a plan"
                )
        return index

    def _changed_over(
        self, left: Schedule, moment: Moment, number: int, name: str, shown_bytes: int
    ) -> int | None:
        """Follow another plan that had the same moments so far, and has this one too."""
        for other in self._others:
            other.take_over(left)
            index = other.see(moment, number, name, shown_bytes)
            if index is not None:
                self.schedule = other
                self._waiting = other.away_at(index)
                away = {action.storage for action in self._waiting}
                self._pressure.bring_back(n for n in self._residency.away() if n not in away)
                return index
        return None

    def _left(self, action: Action) -> bool:
        """Whether it has left, or never will."""
        slot = self._slot(action)
        if isinstance(action, Recompute):
            source = self.saved.slots.get(action.source)
            return slot is None or source is None or self._forgotten(action, slot, source)
        if slot is not None:
            return self._contents.leave(slot.content) or not slot.content.slots
        if not action.storage.startswith("activation:"):
            self._residency.evict(action.storage, dirty=action.dirty)
        return True

    def _forgotten(self, action: Recompute, slot: Slot, source: Slot) -> bool:
        call = self.calls.find(action.module, action.call) if self.calls is not None else None
        if call is None or call.result is None:
            return True  # it was no call that gives the same again: it stays
        if not (call.result.is_of(slot) and call.source.is_of(source)):
            return True
        return self._contents.forget(slot.content, Again(call, source, self._present))

    def _coming_bytes(self, asked: Iterable[Swap], needed: Iterable[str]) -> tuple[int, int]:
        """Of what is needed or will be asked back now, what is not on the device yet: contents,
        and pages of what lasts.
        """
        lasting = dict.fromkeys(needed)
        coming_bytes = 0
        for action in asked:
            slot = self._slot(action)
            if slot is not None:
                coming_bytes += slot.content.bytes if slot.content.is_away() else 0
            else:
                lasting[action.storage] = None
        return coming_bytes, self._residency.away_bytes(lasting)

    def _ask(self, action: Swap) -> None:
        slot = self._slot(action)
        if slot is not None:
            self._contents.ask(slot.content)
        elif not action.storage.startswith("activation:"):
            self._residency.ask(action.storage)

    def _events_until(self, name: str) -> int:
        assert self.schedule is not None
        return self.schedule.events_until(name)

    def _ask_again(self, schedule: Schedule, rise_bytes: int) -> None:
        """What had to leave though the plan kept it, and is used soon, as far as there is room."""
        sent_away = self._pressure.sent_away
        for name in tuple(sent_away):
            if not self._residency.is_away((name,)):
                sent_away.discard(name)
                continue
            needed_bytes = rise_bytes + self._residency.bytes_of(name)
            is_soon = schedule.events_until(name) <= _SOON
            if is_soon and self._pressure.room_bytes(needed_bytes) >= 0:
                self._residency.ask(name)
                sent_away.discard(name)

    def _slot(self, action: Action) -> Slot | None:
        kind, _, number = action.storage.partition(":")
        return self.saved.slots.get(int(number)) if kind == "activation" else None

    # what autograd wants

    def _packed(self, slot: Slot) -> None:
        if self._running:
            self._contents.add(slot.content)
            size_bytes, shown_bytes = slot.content.bytes, slot.shown_bytes
            self.moment(Moment.PACK, slot.number, size_bytes=size_bytes, shown_bytes=shown_bytes)

    def _unpacked(self, slot: Slot) -> None:
        if not self._running:
            return
        self.moment(Moment.UNPACK, slot.number)
        content = slot.content
        if content.is_away():
            # it is fetched or computed now, which no natural rise knows of
            rise = self._rise_bytes + content.bytes
            self._pressure.relieve(rise, self._used())
        if not self.is_followed and self.observation is None:
            self._ask_ahead(slot.number)

    def _ask_ahead(self, number: int) -> None:
        rise = self._pressure.rise_bytes
        for content, _ in zip(self._contents.away_before(number), range(_AHEAD), strict=False):
            if content.incoming is None and self._pressure.room_bytes(rise) > content.bytes:
                self._contents.ask(content)

    def _present(self, content: Content) -> None:
        self._contents.present(content, lambda _: self._pressure.empty(self._used()))

    def _touched(self, storage: torch.UntypedStorage) -> bool:
        name = self._residency.owner_of(storage) if self._running else None
        if name is not None:
            away_bytes = self._residency.away_bytes((name,))
            if away_bytes > 0:  # it left before its time, so no natural rise knows of its return
                rise_bytes = self._rise_bytes + away_bytes
                self._pressure.relieve(rise_bytes, self._used() | {name})
            if self.observation is not None:
                self.observation.touch(name)
        return self._residency.owns(storage)

    # room

    def _used(self) -> frozenset[str]:
        return frozenset().union(*self._in_use)

    def _relieve(self, size_bytes: int) -> bool:
        """An operator finds no memory: let leave what can, so that it tries once more in place."""
        if self._relieving or threading.get_ident() != self._thread:
            return False
        self._relieving = True
        try:
            self._pressure.empty_amid()
        finally:
            self._relieving = False
        self._counters.note(
            "an allocation failed; everything that could leave did, and it was tried once more"
        )
        return True

    def _reserve(self, size_bytes: int) -> None:
        """Fail before the chunk has written anything, not in the middle of it; and only after
        everything that can leave has left.
        """
        try:
            _try_out(size_bytes)
        except OSError:
            self._pressure.empty(self._used())
            torch.empty(size_bytes, dtype=torch.uint8)


def _try_out(size_bytes: int) -> None:
    """Raises OSError where the system has no such room. What waits freed is left as it is."""
    mmap.mmap(-1, max(size_bytes, 1)).close()
