"""Curves of several steps laid over each other in time, so that their peaks do not meet.

Zico (ATC 2021) found that training jobs whose memory rises and falls in turn share a device with
less than the sum of their peaks. Only steps of about the same length stay interlocked; all others
count with their peak.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tensile.coordinator.profile import SAMPLES, Rung

_LONGEST = 5 / 8  # of a step, for which it waits for others before it begins, …
_MARGIN = 0.5  # … of the time in which all fit by then, for which it waits on, …
PATIENCE = 1 / 8  # … and of a step, in which it may wait for what others are late to return
ALIKE = 1.1  # lengths of steps that stay interlocked for long, one over the other


@dataclass(frozen=True, slots=True, kw_only=True)
class Interlock:
    """The peak of the sum, when each step begins so many samples after the first one's."""

    peak_bytes: int
    offsets: tuple[int, ...]


def interlock(rungs: Sequence[Rung]) -> Interlock:
    """Offsets with a low peak of the sum. Greedy: the curve with the largest rise is laid down
    first; each next one where the sum so far leaves the most room.
    """
    together = set(alike(rungs))
    flat_bytes = sum(rung.bytes for i, rung in enumerate(rungs) if i not in together)
    total = [flat_bytes] * SAMPLES
    offsets = [0] * len(rungs)
    for i in sorted(together, key=lambda i: (min(rungs[i].curve) - rungs[i].bytes, i)):
        offset, total = min(
            ((offset, _sum(total, rungs[i].curve, offset)) for offset in range(SAMPLES)),
            key=lambda found: (max(found[1]), found[0]),
        )
        offsets[i] = offset
    return Interlock(peak_bytes=max(total, default=0), offsets=tuple(offsets))


def alike(rungs: Sequence[Rung]) -> tuple[int, ...]:
    """The largest group whose steps take about as long, by bytes; their places in `rungs`."""
    groups = [
        tuple(
            i
            for i, rung in enumerate(rungs)
            if shortest.step_s <= rung.step_s <= ALIKE * shortest.step_s
        )
        for shortest in rungs
    ]
    return max(groups, key=lambda group: sum(rungs[i].bytes for i in group), default=())


def wait_s(mine: Rung, others: Sequence[tuple[Rung, float]], device_bytes: int) -> float:
    """How long a step should wait before it begins, so that all fit: 0 where they do already, or
    will not. `others` are the rungs that run, and for how long their present step has: below 0 for
    one that is still to begin.

    Each of them is taken to go on with its next step at once. Not for much longer than half
    a step: then another one waits for less when its next step begins. No two steps take quite the
    same time, so who has to wait goes on to the middle of the time in which all fit, as far as that
    is not long; who just fits begins at once, since it would be late for the others else.
    """
    longest_s = _LONGEST * mine.step_s
    fits_from_s = 0.0
    for begin_s, end_s in sorted(_clashes(mine, others, longest_s, device_bytes)):
        if begin_s > fits_from_s:
            return _with_margin(fits_from_s, begin_s, mine.step_s, longest_s)
        fits_from_s = max(fits_from_s, end_s)
    return _with_margin(fits_from_s, math.inf, mine.step_s, longest_s)


def _with_margin(first_s: float, last_s: float, step_s: float, longest_s: float) -> float:
    """Between the two all would fit."""
    if first_s <= 0 or first_s > longest_s:
        return 0.0
    return min(first_s + min(_MARGIN * (last_s - first_s), PATIENCE * step_s), longest_s)


def _clashes(
    mine: Rung, others: Sequence[tuple[Rung, float]], longest_s: float, device_bytes: int
) -> Iterator[tuple[float, float]]:
    """Waits, from and to, after which one part of the step would not fit with the others."""
    part_s = mine.step_s / SAMPLES
    together = tuple(_together(others, longest_s + mine.step_s, part_s))
    for number, held_bytes in enumerate(mine.curve):
        for begin_s, end_s, others_bytes in together:
            if held_bytes + others_bytes > device_bytes:
                yield begin_s - (number + 1) * part_s, end_s - number * part_s


def _together(
    others: Sequence[tuple[Rung, float]], until_s: float, shortest_s: float
) -> Iterator[tuple[float, float, int]]:
    """From when to when, from now on, they hold how much together. A step that is shorter than
    anybody could look at counts with its peak.
    """
    total_bytes = 0
    changes: list[tuple[float, int]] = []
    for rung, ran_s in others:
        if rung.step_s < shortest_s:
            total_bytes += max(rung.curve)
            continue
        part_s = rung.step_s / SAMPLES
        first = max(math.floor(ran_s / part_s), -1)  # before a step it holds what one leaves
        total_bytes += rung.curve[first % SAMPLES]
        for number in range(first + 1, math.ceil((ran_s + until_s) / part_s)):
            more_bytes = rung.curve[number % SAMPLES] - rung.curve[(number - 1) % SAMPLES]
            changes.append((number * part_s - ran_s, more_bytes))
    at_s = 0.0
    for change_s, more_bytes in sorted(changes):
        yield at_s, change_s, total_bytes
        at_s, total_bytes = change_s, total_bytes + more_bytes
    yield at_s, until_s, total_bytes


def _sum(total: Sequence[int], curve: Sequence[int], offset: int) -> list[int]:
    return [held + curve[(i - offset) % SAMPLES] for i, held in enumerate(total)]
