"""A trace of a step that was observed: its intervals stand for operators. No torch is needed here
beyond what was observed.

Event `k` is at position `k + 1` and interval `k` is operator `k + 1`; the first event is at 0, with
an empty operator, so that nothing which the step makes seems to have been there before it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

from tensile.observation import Interval, Observation
from tensile.residency import GRADIENT, PARAMETER, STATE
from tensile.sequence import Access, Event, Kind, Moment, Operator, Phase, Slot, Storage, Trace

_KINDS = {PARAMETER: Kind.PARAMETER, GRADIENT: Kind.GRADIENT, STATE: Kind.STATE}


def observed_trace(observation: Observation) -> Trace:
    """The storages and accesses that were seen; the rest of each interval is its workspace."""
    return _Reading(observation).trace()


class _Reading:
    def __init__(self, observation: Observation) -> None:
        self._seen = observation
        self._count = len(observation.intervals)  # operators: one for each but the last, and one
        self._storages: list[Storage] = []
        self._slots: dict[int, Slot] = {}
        self._accesses: dict[tuple[int, int], bool] = {}  # (operator, storage) → writes

    def trace(self) -> Trace:
        self._read_lasting()
        self._read_gradients()
        self._read_saved()
        events = tuple(
            Event(
                moment=interval.moment,
                position=_position(index),
                number=interval.number,
                name=interval.name,
            )
            for index, interval in enumerate(self._seen.intervals)
        )
        return Trace(
            operators=tuple(self._operators()),
            storages=tuple(self._storages),
            accesses=tuple(
                Access(operator=operator, storage=storage, writes=writes)
                for (operator, storage), writes in sorted(self._accesses.items())
            ),
            events=events,
            slots=tuple(self._slots[number] for number in sorted(self._slots)),
            recipes=(),
            chunks=self._chunks(),
            signature=self._signature(),
        )

    def _operators(self) -> list[Operator]:
        found = [Operator(name="begin", phase=Phase.FORWARD, flops=0, moved_bytes=0, measured_s=0)]
        phase = Phase.FORWARD
        for interval in self._seen.intervals[:-1]:
            if interval.moment in (Moment.CHUNK, Moment.CHUNK_END):
                phase = Phase.UPDATE
            elif interval.moment in (Moment.UNPACK, Moment.GRADIENT):
                phase = Phase.BACKWARD
            elif interval.moment is Moment.ENTER:
                phase = Phase.FORWARD
            found.append(
                Operator(
                    name=f"{interval.moment} {interval.name or interval.number}",
                    phase=phase,
                    flops=0,
                    moved_bytes=0,
                    workspace_bytes=interval.rest_bytes,
                    measured_s=interval.duration_s,
                )
            )
        return found

    def _read_lasting(self) -> None:
        """Parameters and states."""
        for name, size_bytes in self._seen.sizes.items():
            if not name.startswith(GRADIENT):
                index = self._store(name, size_bytes, 0, self._count + 1)
                self._touch(name, index, 0, self._count)

    def _read_gradients(self) -> None:
        taken: set[str] = set()
        for gradient in reversed(self._seen.gradients):  # the later one has the name
            made = gradient.made
            birth = 0 if made is None else made
            death = self._count + 1 if gradient.gone is None else _position(gradient.gone)
            name = gradient.name
            for number in range(len(self._seen.gradients)):
                if name not in taken:
                    break
                name = gradient.name + (":previous" if number == 0 else f":{number}")
            taken.add(name)
            index = self._store(name, gradient.bytes, birth, death)
            self._touch(gradient.name, index, birth, death)
            if made is not None:
                self._accesses[made, index] = True

    def _read_saved(self) -> None:
        for saved in self._seen.saved:
            first = min(saved.packed)
            birth = saved.packed[first]  # the interval before that moment
            death = self._count + 1 if saved.gone is None else _position(saved.gone)
            index = self._store(f"activation:{first}", saved.bytes, birth, death)
            self._accesses[birth, index] = True
            for number, packed in saved.packed.items():
                unpacked = saved.unpacked.get(number, [])
                for moment in unpacked:
                    self._accesses.setdefault((moment + 1, index), False)
                self._slots[number] = Slot(
                    number=number,
                    storage=index,
                    packed=_position(packed),
                    alone=None if saved.alone is None else _position(saved.alone),
                    unpacks=tuple(_position(moment) for moment in unpacked),
                    released=min(death, self._count + 1),
                    shown_bytes=saved.shown[number],
                )

    def _store(self, name: str, size_bytes: int, birth: int, death: int) -> int:
        kind = _KINDS.get(name.partition(":")[0] + ":", Kind.ACTIVATION)
        self._storages.append(
            Storage(name=name, kind=kind, bytes=size_bytes, birth=birth, death=death)
        )
        return len(self._storages) - 1

    def _touch(self, name: str, storage: int, birth: int, death: int) -> None:
        for index, interval in enumerate(self._seen.intervals[:-1]):
            operator = index + 1
            if birth <= operator < death and (name in interval.used or name in interval.written):
                self._accesses[operator, storage] = name in interval.written

    def _chunks(self) -> tuple[tuple[str, ...], ...]:
        found: dict[int, tuple[str, ...]] = defaultdict(tuple)
        for interval in self._seen.intervals:
            if interval.moment is Moment.CHUNK:
                found[interval.number] = _parameters(interval)
        return tuple(found[number] for number in range(max(found, default=-1) + 1))

    def _signature(self) -> str:
        sizes = {number: saved.bytes for saved in self._seen.saved for number in saved.packed}
        digest = hashlib.sha256()
        for interval in self._seen.intervals:
            size_bytes = sizes.get(interval.number) if interval.moment is Moment.PACK else None
            digest.update(
                f"{interval.moment} {interval.number} {interval.name} {size_bytes}\n".encode()
            )
        return f"observed {digest.hexdigest()[:16]}"


def _position(index: int) -> int:
    return 0 if index == 0 else index + 1


def _parameters(interval: Interval) -> tuple[str, ...]:
    found = (name for name in interval.used if name.startswith(PARAMETER))
    return tuple(sorted(name.removeprefix(PARAMETER) for name in found))
