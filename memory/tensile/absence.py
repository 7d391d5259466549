"""An action on its trace: from when to when the storage is away, and who waits for it.

Here an action is refused that would let an operator run without its operand, or lose content.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from tensile.actions import Action, Recompute
from tensile.gaps import unpack_events
from tensile.spans import Span, is_written, span_of, spans
from tensile.tape import Tape


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """Away from event `out_event` until event `in_event`, which is linear, as `stop` is.

    `first_need` is the linear position that waits for it; None where nobody does. `dies` says that
    it never comes back: at `stop` its life is over. `writes` says that a copy out is made;
    `recompute_s` is None for what is copied in, otherwise how long computing it from the storage
    `source` takes.
    """

    storage: int
    name: str
    bytes: int
    out_event: int
    in_event: int
    start: int
    stop: int
    first_need: int | None
    dies: bool = False
    writes: bool = True
    source: int | None = None
    recompute_s: float | None = None
    workspace_bytes: int = 0


def absences(tape: Tape, actions: Iterable[Action]) -> list[Absence]:
    """In the order of the actions. Raises ValueError for what the trace does not allow."""
    found = [_absence(tape, action) for action in actions]
    of_storage: dict[int, list[int]] = defaultdict(list)
    for index, absence in enumerate(found):
        of_storage[absence.storage].append(index)
    for storage, indices in of_storage.items():
        indices.sort(key=lambda index: found[index].out_event)
        span = span_of(tape, storage)
        _refuse_overlap(tape, [found[index] for index in indices], span)
        _refuse_loss(tape, [found[index] for index in indices], span)
    for absence in tuple(found):
        if absence.source is not None:
            for index in of_storage[absence.source]:
                found[index] = _back_for(tape, found[index], absence)
    return found


def _absence(tape: Tape, action: Action) -> Absence:
    events = len(tape.trace.events)
    found = spans(tape, action.storage)
    if not found:
        raise _refused(action, "no storage of this name may leave")
    computed = isinstance(action, Recompute)
    out_event = action.out_event
    if not 0 <= out_event < events:
        raise _refused(action, f"event {out_event} is not one of the step's {events}")
    in_event = _unpack_after(tape, action) if isinstance(action, Recompute) else action.in_event
    if not 0 <= in_event < events:
        raise _refused(action, f"event {in_event} is not one of the step's {events}")
    if in_event <= out_event:
        in_event += events
    start, stop = tape.event_position(out_event), tape.event_position(in_event)
    span, turn = _alive_at(tape, action, found, start)
    if action.bytes != span.bytes:
        raise _refused(action, f"its size is {span.bytes} bytes, not {action.bytes}")
    if tape.slots_of(span.storage):
        need = _need_of_activation(tape, action, span, out_event, in_event)
    else:
        need = _need(tape, span, start + turn)
        need = None if need is None else need - turn
    end = None if span.end is None or span.returns else span.end - turn
    dies = need is None and end is not None and stop >= end
    if need is not None and need < stop:
        raise _refused(action, f"operator {need % tape.length} would run without it")
    if need is not None:
        wait = stop + (action.needed_position - stop) % tape.length
        if wait > need:
            raise _refused(action, f"its next access is at position {need % tape.length} already")
        need = wait
    absence = Absence(
        storage=span.storage,
        name=action.storage,
        bytes=action.bytes,
        out_event=out_event,
        in_event=in_event,
        start=start,
        stop=stop if not dies or end is None else end,
        first_need=need,
        dies=dies,
        writes=not computed and bool(getattr(action, "dirty", True)),
    )
    return _computed(tape, action, absence) if isinstance(action, Recompute) else absence


def _computed(tape: Tape, action: Recompute, absence: Absence) -> Absence:
    recipe = tape.recipes.get(action.slot)
    if recipe is None or (recipe.source, recipe.module, recipe.call) != (
        action.source,
        action.module,
        action.call,
    ):
        raise _refused(action, "the trace has no such recipe")
    source = tape.slots[action.source]
    if (
        not source.packed <= absence.start
        or tape.trace.storages[source.storage].death <= absence.stop
    ):
        raise _refused(action, f"slot {action.source} is not there to compute it from")
    return replace(
        absence,
        source=source.storage,
        recompute_s=tape.recompute_s(action.slot),
        workspace_bytes=tape.recompute_workspace_bytes(action.slot),
    )


def _unpack_after(tape: Tape, action: Recompute) -> int:
    events = tape.unpack_events.get(action.slot, ())
    if action.slot not in tape.slots or not any(event > action.out_event for event in events):
        raise _refused(
            action, f"slot {action.slot} is not asked for after event {action.out_event}"
        )
    return next(event for event in events if event > action.out_event)


def _alive_at(tape: Tape, action: Action, found: list[Span], start: int) -> tuple[Span, int]:
    """The span that is there at `start`, and the turns (in positions) to add to be inside it."""
    for span in found:
        if span.end is None:
            return span, 0
        for turn in (0, tape.length):
            if span.begin <= start + turn < span.end:
                return span, turn
    raise _refused(action, f"it is not there at position {start}")


def _need(tape: Tape, span: Span, start: int) -> int | None:
    turns = (0,) if span.end is not None else (0, tape.length)
    return min((a + t for a in span.accesses for t in turns if a + t >= start), default=None)


def _need_of_activation(
    tape: Tape, action: Action, span: Span, out_event: int, in_event: int
) -> int | None:
    start = tape.event_position(out_event)
    for slot in tape.slots_of(span.storage):
        if slot.alone is None or start < slot.alone:
            raise _refused(action, f"at position {start} not only autograd holds it")
    unpacks = [found for found in unpack_events(tape, span.storage) if found[1] > out_event]
    if not unpacks:
        return _need(tape, span, start)
    position, event = unpacks[0]
    if in_event > event:
        raise _refused(action, f"it is asked for at event {event}, before it is back")
    touched = _need(tape, span, start)
    return position if touched is None else min(touched, position)


def _refuse_overlap(tape: Tape, found: list[Absence], span: Span) -> None:
    events = len(tape.trace.events)
    following = [*found[1:], replace(found[0], out_event=found[0].out_event + events)]
    for absence, after in zip(found, following, strict=True):
        if after.out_event < absence.in_event and not (absence.dies and span.end is not None):
            raise ValueError(
                f"plan: {absence.name} leaves at event {after.out_event % events} and is still "
                f"away then; an absence must end before the next one begins"
            )


def _refuse_loss(tape: Tape, found: list[Absence], span: Span) -> None:
    """What leaves without being written must be unchanged since it was last written."""
    cyclic = span.end is None
    previous = [replace(found[-1], stop=found[-1].stop - tape.length)] if cyclic else []
    for before, absence in pairwise([*previous, *found]):
        if not absence.writes and absence.recompute_s is None:
            changed = is_written(tape, span, before.stop, absence.start)
            if changed or before.recompute_s is not None:
                raise ValueError(f"plan: {absence.name} leaves unwritten but changed; say dirty")
    first = found[0]
    if not cyclic and not first.writes and first.recompute_s is None:
        raise ValueError(f"plan: {first.name} leaves unwritten for the first time; say dirty")


def _back_for(tape: Tape, absence: Absence, user: Absence) -> Absence:
    """The source of `user`, which reads it at its own return."""
    if absence.out_event < user.in_event < absence.in_event:
        raise ValueError(
            f"plan: {user.name} is computed from {absence.name}, which is away then; "
            f"ask it back before event {user.in_event}"
        )
    if user.in_event < absence.out_event or absence.first_need is None:
        return absence
    return replace(absence, first_need=min(absence.first_need, user.stop))


def _refused(action: Action, reason: str) -> ValueError:
    kind = type(action).__name__.lower()
    return ValueError(f"plan: {kind} of {action.storage} at event {action.out_event}: {reason}")
