"""When each storage that is away is asked back: early enough to hide the copy, late enough to fit.

A backward scan over the needs. The last copy in must end when its operator begins, the one before
when that one starts, and so on; where memory does not allow so early a start, it is later, and an
operator waits.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from tensile.curve import Curve
from tensile.gaps import Gap
from tensile.tape import Tape


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """Asked back at event `in_event`, at position `stop` (linear both)."""

    in_event: int
    stop: int


def returns(
    tape: Tape,
    gaps: Sequence[Gap],
    used: Sequence[int],
    curve: Curve,
    budget_bytes: int,
    computed: Set[int],
) -> dict[int, Return]:
    """When each of `used` comes back (`computed` ones at their need); `curve` follows."""
    n = tape.length
    found: dict[int, Return] = {}
    front_s = tape.step_s
    order = sorted(used, key=lambda i: (-(gaps[i].need % n), -gaps[i].in_event, i))
    for index in order:
        gap = gaps[index]
        if gap.final or index in computed:
            found[index] = Return(in_event=gap.in_event, stop=gap.stop)
            continue
        turn_s = tape.step_s * (gap.need // n)
        deadline_s = min(tape.time_s(gap.need), front_s + turn_s)
        start_s = deadline_s - tape.costs.in_s(gap.bytes)
        front_s = start_s - turn_s
        left_s = tape.time_s(gap.start) + tape.costs.out_s(gap.bytes)
        wished = tape.last_event_by(max(start_s, left_s))
        event = min(max(wished, gap.out_event + 1), gap.in_event)
        position = tape.event_position(event)
        full = curve.last_above(position, gap.stop, budget_bytes - gap.bytes)
        if full is not None:
            event = min(tape.first_event(full + 1), gap.in_event)
            position = tape.event_position(event)
        curve.add(position, gap.stop, gap.bytes)
        found[index] = Return(in_event=event, stop=position)
    return found
