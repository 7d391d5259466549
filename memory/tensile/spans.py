"""The span of what lasts from step to step, along the cyclic time line.

A gradient that `zero_grad` frees at the beginning of a step and backward makes again has one span
in two storages: it begins in one step and ends in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def spans(tape: Tape, storages: Sequence[int]) -> list[Span]:
    """The spans of the storages that share one name."""
    found = tape.trace.storages
    lasting = [s for s in storages if found[s].birth == 0 and tape.outlives(found[s])]
    from_before = [s for s in storages if found[s].birth == 0 and not tape.outlives(found[s])]
    to_after = [s for s in storages if found[s].birth > 0 and tape.outlives(found[s])]
    within = [s for s in storages if found[s].birth > 0 and not tape.outlives(found[s])]
    result = [_span(tape, s, 0, None, True) for s in lasting]
    result += [_span(tape, s, found[s].birth, found[s].death, False) for s in within]
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
