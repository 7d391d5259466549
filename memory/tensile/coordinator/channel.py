"""Who may copy how much between a device and the tier below, where all together want too much.

The channel is counted in shares of its own time, out and in apart, so a share is worth what each
job's own calibration says that the channel does. Priorities come first, then the parts are max-min
fair by weight: nobody gets more while one with less, for its weight, still wants some. Those below
the highest priority have `LEAST` of it all the same, or less where they want less: nobody stands
still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST = 0.05  # of the channel, for all together who are not of the highest priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A job that keeps `share` of the channel busy when it has it alone."""

    share: float
    weight: float = 1.0
    priority: int = 0


def copy_limits(claims: Sequence[Claim]) -> tuple[float | None, ...]:
    """The share that each may use; None for no limit: for everybody where there is enough for all,
    and otherwise for those of the highest priority who have what they want.
    """
    if sum(claim.share for claim in claims) <= 1:
        return (None,) * len(claims)
    top = max(claim.priority for claim in claims if claim.share > 0)
    below = sum(claim.weight for claim in claims if claim.priority < top and claim.share > 0)
    parts = [
        min(claim.share, LEAST * claim.weight / below) if claim.priority < top and below else 0.0
        for claim in claims
    ]
    for priority in sorted({claim.priority for claim in claims}, reverse=True):
        level = [i for i, claim in enumerate(claims) if claim.priority == priority]
        room = max(1 - sum(parts), 0.0) + sum(parts[i] for i in level)
        found = max_min([claims[i] for i in level], room)
        for i, part in zip(level, found, strict=True):
            parts[i] = part
    return tuple(
        None if claim.priority >= top and part >= claim.share else part
        for claim, part in zip(claims, parts, strict=True)
    )


def max_min(claims: Sequence[Claim], room: float) -> list[float]:
    """Parts of `room`, at most what each claims, by weight; priorities do not count."""
    parts = [claim.share for claim in claims]
    left = list(range(len(claims)))
    while left:
        each = room / sum(claims[i].weight for i in left)
        modest = [i for i in left if claims[i].share <= each * claims[i].weight]
        if not modest:
            for i in left:
                parts[i] = each * claims[i].weight
            break
        room -= sum(claims[i].share for i in modest)
        left = [i for i in left if i not in modest]
    return parts
