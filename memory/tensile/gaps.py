"""Gaps: when a storage may be away because nothing touches it. A planner chooses among them.

An activation may leave once only autograd holds it, and must be back when autograd asks for it.
What lasts from step to step may leave between any two accesses, the last of one step and the first
of the next included. Temporaries, inputs and buffers never leave: somebody holds them all the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from tensile.floor import MOVABLE_BYTES, MOVABLE_KINDS
from tensile.sequence import Kind
from tensile.spans import Span, spans
from tensile.tape import Tape


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Away at most while the operators `start <= p < stop` run (linear positions, `start < N`).

    `out_event` and `in_event` (linear) are the earliest to leave and the latest to be asked back;
    `need` is the position of the next access. `final` says that it dies away: `need` is its death.
    """

    storage: int
    bytes: int
    slot: int | None
    out_event: int
    in_event: int
    start: int
    stop: int
    need: int
    final: bool = False


def gaps(tape: Tape, smallest_bytes: int = MOVABLE_BYTES) -> list[Gap]:
    """All gaps of storages of at least `smallest_bytes`, in the order of the trace's storages."""
    found: list[Gap] = []
    for name in tape.named:
        for span in spans(tape, name):
            if span.bytes < smallest_bytes:
                continue
            if tape.trace.storages[span.storage].kind in MOVABLE_KINDS:
                found += _gaps_that_last(tape, span)
            else:
                found += _gaps_of_activation(tape, span)
    return found


def _gaps_of_activation(tape: Tape, span: Span) -> list[Gap]:
    storage, accesses = span.storage, span.accesses
    slots = tape.slots_of(storage)
    alone = [slot.alone for slot in slots if slot.alone is not None]
    if len(alone) < len(slots):
        return []  # somebody else holds it all the time
    unpacks = unpack_events(tape, storage)
    unasked = unpacks[0][0] if unpacks else tape.length
    free = max([*alone, *(a + 1 for a in accesses if a < unasked)])
    event = max((tape.pack_events.get(slot.number, 0) for slot in slots), default=0)
    if not unpacks:
        gap = _gap(tape, storage, max(tape.first_event(free), event), span.end or tape.length, True)
        return [] if gap is None else [gap]
    found = []
    for number, (unpack, unpack_event) in enumerate(unpacks):
        out_event = max(tape.first_event(free), event)
        start = tape.event_position(out_event)
        if out_event < unpack_event and start < unpack:
            found.append(
                Gap(
                    storage=storage,
                    bytes=tape.trace.storages[storage].bytes,
                    slot=slots[0].number if len(slots) == 1 else None,
                    out_event=out_event,
                    in_event=unpack_event,
                    start=start,
                    stop=unpack,
                    need=unpack,
                )
            )
        following = unpacks[number + 1][0] if number + 1 < len(unpacks) else tape.length
        # Whoever asked for it holds it while it works, even if its first operator does not read it.
        free = max((a for a in accesses if unpack <= a < following), default=unpack) + 1
        event = unpack_event + 1
    return found


def unpack_events(tape: Tape, storage: int) -> list[tuple[int, int]]:
    """When autograd asks for it: (position, event), in order."""
    events = {e for slot in tape.slots_of(storage) for e in tape.unpack_events.get(slot.number, ())}
    return [(tape.event_position(event), event) for event in sorted(events)]


def _gaps_that_last(tape: Tape, span: Span) -> list[Gap]:
    touched = span.accesses
    pairs = [(a + 1, b, False) for a, b in pairwise(touched)]
    if span.end is None:
        first, last = (touched[0], touched[-1]) if touched else (0, -1)
        pairs.append((last + 1, first + tape.length, False))
    else:
        pairs.append((span.begin, touched[0] if touched else span.end, not touched))
        if touched:
            pairs.append((touched[-1] + 1, span.end, not span.returns))
    complete = _complete_event(tape, span)
    found = []
    for free, need, final in pairs:
        gap = _gap(tape, span.storage, max(tape.first_event(free), complete), need, final)
        if gap is not None:
            found.append(gap)
    return found


def _complete_event(tape: Tape, span: Span) -> int:
    """A gradient made in this step has no other holder than autograd until it is complete."""
    described = tape.trace.storages[span.storage]
    if described.kind is not Kind.GRADIENT or span.begin == 0:
        return 0
    events = tape.gradient_events.get(described.name.removeprefix("gradient:"), ())
    never = 2 * len(tape.trace.events)
    return next((e for e in events if tape.event_position(e) > span.begin), never)


def _gap(tape: Tape, storage: int, out_event: int, need: int, final: bool) -> Gap | None:
    in_event = tape.first_event(need) if final else tape.last_event(need)
    events = len(tape.trace.events)
    if not out_event < in_event < 2 * events:
        return None
    start, stop = tape.event_position(out_event), tape.event_position(in_event)
    if final:
        stop = need
    if stop <= start:
        return None
    if start >= tape.length and out_event >= events:
        out_event, in_event = out_event - events, in_event - events
        start, stop, need = start - tape.length, stop - tape.length, need - tape.length
    if in_event - out_event >= events or stop - start > tape.length:
        # Nothing touches it in the whole step: it comes back only for the moment between two.
        out_event, in_event, start, stop, need = 0, events - 1, 0, tape.length, tape.length
    return Gap(
        storage=storage,
        bytes=tape.trace.storages[storage].bytes,
        slot=None,
        out_event=out_event,
        in_event=in_event,
        start=start,
        stop=stop,
        need=need,
        final=final,
    )
