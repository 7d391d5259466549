"""Which gaps to use, so that no operator has more than the budget.

One sweep over the operators: where too much lives, the gap that a score prefers is used, of those
open there. With the score "needed last" this is Belady's rule, which uses the fewest equal gaps.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence, Set
from types import MappingProxyType

from tensile.curve import Curve
from tensile.floor import MOVABLE_KINDS
from tensile.gaps import Gap
from tensile.tape import Tape

# Smaller is better. Also given: the position until which the gap is open from here on.
Score = Callable[[Tape, Gap, int], float]


def copied_then_needed_last(tape: Tape, gap: Gap, until: int) -> float:
    late = tape.step_s * 4 if is_lasting(tape, gap) else 0.0
    return late - tape.time_s(until)


def needed_last(tape: Tape, gap: Gap, until: int) -> float:
    return -tape.time_s(until)


def longest(tape: Tape, gap: Gap, until: int) -> float:
    return -window_s(tape, gap)


def free_first(tape: Tape, gap: Gap, until: int) -> float:
    return tape.time_s(gap.start) - (tape.step_s if until <= gap.start else 0.0)


def largest(tape: Tape, gap: Gap, until: int) -> float:
    return -gap.bytes * window_s(tape, gap)


def slackest(tape: Tape, gap: Gap, until: int) -> float:
    return -slack_s(tape, gap)


def hidden_then_needed_last(tape: Tape, gap: Gap, until: int) -> float:
    late = 0.0 if slack_s(tape, gap) >= 0 else tape.step_s * 4
    return late - tape.time_s(until)


def computable_then_needed_last(tape: Tape, gap: Gap, until: int) -> float:
    late = 0.0 if gain_s(tape, gap) > 0 else tape.step_s * 4
    return late - tape.time_s(until)


# The most promising and most different first: a large trace has time for a few only.
SCORES: tuple[Score, ...] = (
    needed_last,
    copied_then_needed_last,
    computable_then_needed_last,
    largest,
    free_first,
    slackest,
    longest,
    hidden_then_needed_last,
)


def is_lasting(tape: Tape, gap: Gap) -> bool:
    return tape.trace.storages[gap.storage].kind in MOVABLE_KINDS


def remap_s(tape: Tape, gap: Gap) -> float:
    """What a processor has to do beside the copies, so that it leaves and comes back."""
    return gap.bytes * tape.costs.remap_s_per_byte if is_lasting(tape, gap) else 0.0


def window_s(tape: Tape, gap: Gap) -> float:
    return tape.time_s(gap.stop) - tape.time_s(gap.start)


def slack_s(tape: Tape, gap: Gap) -> float:
    """What is left of the window when the copies out and in are made in it."""
    copies_s = tape.costs.out_s(gap.bytes) + tape.costs.in_s(gap.bytes)
    return window_s(tape, gap) - copies_s


def gain_s(tape: Tape, gap: Gap) -> float:
    """How much longer an unhidden copy takes than computing again; 0 where there is no recipe."""
    if gap.slot not in tape.recipes or gap.final:
        return 0.0
    copy_s = max(tape.costs.out_s(gap.bytes), tape.costs.in_s(gap.bytes))
    return copy_s - tape.recompute_s(gap.slot)


def cover(
    tape: Tape,
    gaps: Sequence[Gap],
    budget_bytes: int,
    score: Score,
    *,
    wished_bytes: int | None = None,
    given: Sequence[int] = (),
    banned: Set[int] = frozenset(),
) -> list[int] | None:
    """Indices into `gaps`, `given` first; None if all of them leave too much at some operator.

    `wished_bytes` is a lower budget, to be kept where gaps allow it.
    """
    wished = budget_bytes if wished_bytes is None else wished_bytes
    n = tape.length
    opening: dict[int, list[tuple[float, int, int]]] = {}
    used = {*given, *banned}
    for index, gap in enumerate(gaps):
        if index in used:
            continue
        if gap.stop > n:  # open at both ends of the step
            until = gap.stop - n
            opening.setdefault(0, []).append((score(tape, gap, until), index, until))
        entry = (score(tape, gap, gap.stop), index, gap.stop)
        opening.setdefault(gap.start, []).append(entry)
    change = [0] * (n + 1)
    found = list(given)
    lives = lowered(tape, gaps, given).live_bytes.tolist()
    open_gaps: list[tuple[float, int, int]] = []
    away = 0
    for position, live in enumerate(lives):
        for entry in opening.get(position, ()):
            heapq.heappush(open_gaps, entry)
        away += change[position]
        while live - away > wished:
            if not open_gaps:
                if live - away > budget_bytes:
                    return None
                break
            _, index, until = heapq.heappop(open_gaps)
            if until <= position or index in used:
                continue
            gap = gaps[index]
            used.add(index)
            found.append(index)
            away += gap.bytes
            if until < n:
                change[until] -= gap.bytes
            if until < gap.stop:  # used in its second part, so in its first part too
                change[gap.start] += gap.bytes
    return found


def lowered(tape: Tape, gaps: Sequence[Gap], used: Sequence[int]) -> Curve:
    """The curve with all of `used` away as long as they can be."""
    curve = Curve(tape.natural_bytes)
    for index in used:
        gap = gaps[index]
        curve.add(gap.start, gap.stop, -gap.bytes)
    return curve


def without_needless(
    tape: Tape,
    gaps: Sequence[Gap],
    used: Sequence[int],
    budget_bytes: int,
    waited_s: Mapping[int, float] = MappingProxyType({}),
) -> tuple[list[int], Curve]:
    """Drops what the budget does not need: what was waited for longest, first, then what has to be
    mapped anew, then what hides worst.
    """
    curve = lowered(tape, gaps, used)
    kept = set(used)
    ranks = [
        (
            -waited_s.get(i, 0.0),
            -(remap_s(tape, gaps[i]) > 0),
            slack_s(tape, gaps[i]),
            i,
        )
        for i in used
    ]
    for *_, index in sorted(ranks):
        gap = gaps[index]
        if curve.highest(gap.start, gap.stop) + gap.bytes <= budget_bytes:
            curve.add(gap.start, gap.stop, gap.bytes)
            kept.discard(index)
    return [index for index in used if index in kept], curve
