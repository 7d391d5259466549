"""One real step, watched at the moments that a plan has too: what a trace would have told.

Between two moments lies one *interval*. What is saved, unpacked, entered and chunked is known by
name; the rest of what the process held in an interval, at most, by the system's count, is taken for
its workspace. So the step keeps nothing on the way and nothing freed, which takes time, once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tensile import freed_memory
from tensile.contents import Content, Contents, Slot
from tensile.gauge import Gauge
from tensile.residency import GRADIENT, PARAMETER, STATE, Residency
from tensile.sequence import Moment
from tensile.stats import Counters


@dataclass(slots=True, kw_only=True)
class Interval:
    """From a moment to the next one. `used` are names of what lasts, `written` of them those that
    were seen to change; `rest_bytes` was held beside all that has a name.
    """

    moment: Moment
    number: int
    name: str
    used: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    rest_bytes: int = 0
    duration_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class SavedContent:
    """Moments by their index: `packed` and `unpacked` for each slot by number, `alone` the first at
    which nobody but autograd had it, `gone` the first without it; None for never.
    """

    content: Content
    bytes: int
    packed: dict[int, int] = field(default_factory=dict)
    unpacked: dict[int, list[int]] = field(default_factory=dict)
    shown: dict[int, int] = field(default_factory=dict)  # bytes of each slot's first tensor
    alone: int | None = None
    gone: int | None = None


@dataclass(slots=True, kw_only=True)
class Gradient:
    """`made` and `gone` are indices of moments; `made` is None for one that the step found."""

    name: str
    bytes: int
    made: int | None
    gone: int | None = None


class Observation:
    """`see` at the beginning of each moment, `go_on` at its end. `slots` are those of the step."""

    def __init__(
        self,
        *,
        contents: Contents,
        residency: Residency,
        gauge: Gauge,
        counters: Counters,
        slots: Mapping[int, Slot],
    ) -> None:
        self.intervals: list[Interval] = []
        self.saved: list[SavedContent] = []
        self.gradients: list[Gradient] = []
        self.sizes: dict[str, int] = residency.sizes()
        self.ended = False
        self._contents = contents
        self._residency = residency
        self._gauge = gauge
        self._counters = counters
        self._slots = slots
        self._living: dict[Content, SavedContent] = {}
        self._waiting: list[SavedContent] = []  # somebody else has them still
        self._versions = residency.versions()
        found = [name for name in self.sizes if name.startswith(GRADIENT)]
        self._graded = {
            name: Gradient(name=name, bytes=self.sizes[name], made=None) for name in found
        }
        self.gradients += self._graded.values()
        self._lasting_bytes = sum(
            size for name, size in self.sizes.items() if not name.startswith(GRADIENT)
        )
        self._known_bytes = 0
        self._began_s = self._stalled_s = 0.0

    def see(self, moment: Moment, number: int, name: str) -> None:
        """The interval before this moment is over."""
        taken_s = time.perf_counter() - self._began_s - (self._counters.stall_s - self._stalled_s)
        peak_bytes = self._gauge.peak_since()
        index = len(self.intervals)
        if moment is Moment.PACK:
            self._note_packed(self._slots[number], index)
        elif moment is Moment.UNPACK:
            self._note_unpacked(number, index)
        elif moment is Moment.GRADIENT:
            self._note_gradient(GRADIENT + name, index)
        if self.intervals:
            last = self.intervals[-1]
            last.duration_s = max(taken_s, 0.0)
            last.rest_bytes = max(0, peak_bytes - max(self._known_bytes, self._here_bytes()))
            if index == 1 or moment in (Moment.CHUNK, Moment.END):
                last.written |= self._written()
        self._note_deaths(index)
        self._note_alone(index)
        self.intervals.append(Interval(moment=moment, number=number, name=name))
        self.ended = moment is Moment.END

    def go_on(self, used: Iterable[str]) -> None:
        """The moment has been answered; `used` is in use until it is said to be no more."""
        while self._contents.wait_for_oldest():
            pass
        freed_memory.let_wait(0)
        interval = self.intervals[-1]
        interval.used.update(used)
        if interval.moment is Moment.CHUNK:
            interval.written |= {n for n in interval.used if not n.startswith(GRADIENT)}
        self._note_alone(len(self.intervals) - 1)
        coming_bytes = self._residency.away_bytes(interval.used)
        slot = self._slots.get(interval.number) if interval.moment is Moment.UNPACK else None
        if slot is not None and slot.content.is_away():
            coming_bytes += slot.content.bytes
        self._known_bytes = self._here_bytes() + coming_bytes
        self._gauge.peak_since()
        self._stalled_s = self._counters.stall_s
        self._began_s = time.perf_counter()

    def touch(self, name: str) -> None:
        """What lasts is used in this interval."""
        self.intervals[-1].used.add(name)

    def is_steady(self) -> bool:
        """Whether it came to its end, and made nothing that the next step would find new."""
        states = {name for name in self.sizes if name.startswith(STATE)}
        return self.ended and states == {
            name for name in self._residency.sizes() if name.startswith(STATE)
        }

    def _note_packed(self, slot: Slot, index: int) -> None:
        saved = self._living.get(slot.content)
        if saved is None:
            saved = SavedContent(content=slot.content, bytes=slot.content.bytes)
            self._living[slot.content] = saved
            self.saved.append(saved)
            self._waiting.append(saved)
        saved.packed[slot.number] = index
        saved.shown[slot.number] = slot.shown_bytes

    def _note_unpacked(self, number: int, index: int) -> None:
        slot = self._slots.get(number)
        saved = None if slot is None else self._living.get(slot.content)
        if saved is not None:  # otherwise of a graph of an earlier step
            saved.unpacked.setdefault(number, []).append(index)

    def _note_gradient(self, name: str, index: int) -> None:
        if name not in self._graded:
            made = Gradient(name=name, bytes=self._residency.bytes_of(name), made=index)
            self._graded[name] = made
            self.gradients.append(made)
            self.sizes.setdefault(name, made.bytes)
        self.intervals[-1].written.add(name)
        version = self._residency.version(name)
        if version is not None:
            self._versions[name] = version

    def _note_deaths(self, index: int) -> None:
        for content in [content for content in self._living if not content.slots]:
            self._living.pop(content).gone = index
        first = next(iter(self._graded), None)
        if first is not None and self._residency.version(first) is None:
            for name in [n for n in self._graded if self._residency.version(n) is None]:
                self._graded.pop(name).gone = index

    def _note_alone(self, index: int) -> None:
        for saved in self._waiting:
            if not saved.content.is_here or saved.content.is_alone():
                saved.alone = index
        self._waiting = [
            saved for saved in self._waiting if saved.alone is None and saved.gone is None
        ]

    def _written(self) -> set[str]:
        """What was written since somebody looked last and by no chunk, such as gradients that were
        clipped. A parameter among it after the chunks has followed others, which were read then.
        """
        before, self._versions = self._versions, self._residency.versions()
        changed = {
            name
            for name, version in self._versions.items()
            if name in before and before[name] != version
        } - self._stepped()
        last = self.intervals[-1]
        if last.moment is Moment.CHUNK_END and any(n.startswith(PARAMETER) for n in changed):
            last.used |= {name for name in self.sizes if name.startswith(PARAMETER)}
        return changed

    def _stepped(self) -> set[str]:
        """Written in a chunk."""
        return {
            name
            for interval in self.intervals
            if interval.moment is Moment.CHUNK
            for name in interval.written
        }

    def _here_bytes(self) -> int:
        """Of all that has a name, what is on the device."""
        away = sum(self.sizes.get(name, 0) for name in self._residency.away())
        graded = sum(gradient.bytes for gradient in self._graded.values())
        return self._contents.here_bytes + self._lasting_bytes + graded - away
