"""Curves of several steps laid over each other in time, so that their peaks do not meet.

Zico (ATC 2021) found that training jobs whose memory rises and falls in turn share a device with
less than the sum of their peaks. Only steps of about the same length stay interlocked; all others
count with their peak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tensile.coordinator.profile import SAMPLES, Rung

_LONGEST = SAMPLES * 5 // 8  # that a step waits for another
_DRIFT = SAMPLES // 8  # by which steps may be out of place without their peaks meeting, if possible
PATIENCE = _DRIFT / SAMPLES  # of a step, in which it may wait for what others are late to return
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
    will not. `others` are the rungs that run, and for how long their present step has.

    Each of them is taken to go on with its next step at once. Not for much longer than half
    a step: then another one waits for less when its next step begins. No two steps take quite the
    same time, so as much drift as may be finds room too: what then does not fit has to leave.
    """
    part_s = mine.step_s / SAMPLES
    for drift in range(_DRIFT, -1, -1):
        for delay in range(_LONGEST + 1):
            if _peak(mine, others, delay * part_s, drift * part_s) <= device_bytes:
                return delay * part_s
    return 0.0


def _peak(mine: Rung, others: Sequence[tuple[Rung, float]], delay_s: float, drift_s: float) -> int:
    part_s = mine.step_s / SAMPLES
    first_s, length_s = delay_s - drift_s, part_s + 2 * drift_s
    return max(
        held + sum(_at(rung, ran_s + first_s + number * part_s, length_s) for rung, ran_s in others)
        for number, held in enumerate(mine.curve)
    )


def _at(rung: Rung, begin_s: float, length_s: float) -> int:
    """The most that it holds between two moments, counted from the begin of a step of its."""
    first = math.floor(begin_s / rung.step_s * SAMPLES)
    last = math.floor((begin_s + length_s) / rung.step_s * SAMPLES - 1e-9)
    if last - first >= SAMPLES:
        return max(rung.curve)
    return max(rung.curve[number % SAMPLES] for number in range(first, max(first, last) + 1))


def _sum(total: Sequence[int], curve: Sequence[int], offset: int) -> list[int]:
    return [held + curve[(i - offset) % SAMPLES] for i, held in enumerate(total)]
