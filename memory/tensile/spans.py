"""The span of what lasts from step to step, along the cyclic time line.

A gradient that `zero_grad` frees at the beginning of a step and backward makes again has one span
in two storages: it begins in one step and ends in the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from tensile.floor import MOVABLE_KINDS
from tensile.tape import Tape


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """From linear position `begin` until `end`; `end` is None for what is always there.

    `accesses` and `writes` are linear positions of operators, in order. `returns` says that its
    content is still wanted at `end`, when the step is over.
    """

    storage: int
    bytes: int
    begin: int
    end: int | None
    returns: bool
    accesses: tuple[int, ...]
    writes: tuple[int, ...]


def spans(tape: Tape, name: str) -> list[Span]:
    """The spans of the storages of this name, which may leave; none if there are none."""
    if name not in tape.spans:
        storages = tape.named.get(name, [])
        kinds = {tape.trace.storages[storage].kind for storage in storages}
        if kinds <= MOVABLE_KINDS:
            tape.spans[name] = _that_last(tape, storages)
        else:
            tape.spans[name] = [_within(tape, storage) for storage in storages]
    return tape.spans[name]


def span_of(tape: Tape, storage: int) -> Span:
    """The span that begins with this storage."""
    found = spans(tape, tape.trace.storages[storage].name)
    return next(span for span in found if span.storage == storage)


def is_written(tape: Tape, span: Span, left: int, right: int) -> bool:
    """Whether its content changes in the operators `left <= p < right` (linear, one turn)."""
    turns = (0,) if span.end is not None else (-tape.length, 0, tape.length)
    return any(left <= write + turn < right for write in span.writes for turn in turns)


def _within(tape: Tape, storage: int) -> Span:
    described = tape.trace.storages[storage]
    return _span(tape, storage, described.birth, min(described.death, tape.length), False)


def _that_last(tape: Tape, storages: list[int]) -> list[Span]:
    found = tape.trace.storages
    lasting = [s for s in storages if found[s].birth == 0 and tape.outlives(found[s])]
    from_before = [s for s in storages if found[s].birth == 0 and not tape.outlives(found[s])]
    to_after = [s for s in storages if found[s].birth > 0 and tape.outlives(found[s])]
    within = [s for s in storages if found[s].birth > 0 and not tape.outlives(found[s])]
    result = [_span(tape, s, 0, None, True) for s in lasting]
    result += [_within(tape, s) for s in within]
    if len(from_before) == len(to_after) == 1:
        old, new = from_before[0], to_after[0]
        if found[old].bytes == found[new].bytes:
            end = found[old].death + tape.length
            return [*result, _span(tape, new, found[new].birth, end, False, old)]
    result += [_span(tape, s, 0, found[s].death, False) for s in from_before]
    result += [_span(tape, s, found[s].birth, tape.length, True) for s in to_after]
    return result


def _span(
    tape: Tape,
    storage: int,
    begin: int,
    end: int | None,
    returns: bool,
    next_step: int | None = None,
) -> Span:
    accesses, writes = tape.accesses(storage), tape.writes(storage)
    if next_step is not None:
        accesses += [p + tape.length for p in tape.accesses(next_step)]
        writes += [p + tape.length for p in tape.writes(next_step)]
    return Span(
        storage=storage,
        bytes=tape.trace.storages[storage].bytes,
        begin=begin,
        end=end,
        returns=returns,
        accesses=tuple(accesses),
        writes=tuple(writes),
    )
