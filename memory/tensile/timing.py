"""When what is away is asked back, moved from event to event while that makes a plan better.

`returns.py` decides for one gap after the other, and never looks at how they meet on the channels:
what comes back a little too early takes the room that a copy behind it in the queue waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tensile.curve import Curve
from tensile.draft import Rating
from tensile.returns import Return

_STEPS = (1, 2, 4, 8, 16, 32)  # events, in both directions


@dataclass(slots=True)
class Rounds:
    """How many attempts a search has left, each of them simulated."""

    left: int
    is_over: Callable[[], bool]

    def take(self) -> bool:
        """Whether there is one more."""
        if self.left <= 0 or self.is_over():
            return False
        self.left -= 1
        return True


def retimed(rating: Rating, rounds: Rounds) -> Rating:
    """The best of these attempts, each of which moves one return."""
    moves = _moves(rating)
    while rating.stall_s > 0 and rounds.take():
        move = next(moves, None)
        if move is None:
            break
        index, event = move
        here = Return(in_event=event, stop=rating.draft.tape.event_position(event))
        attempt = rating.draft.rated({**rating.back, index: here})
        if attempt.worth < rating.worth:
            rating, moves = attempt, _moves(attempt, index)
    return rating


def _moves(rating: Rating, first: int | None = None) -> Iterator[tuple[int, int]]:
    """Which return to move to which event: `first`, then what is waited for, the longest first,
    then the others in the order in which they come back.
    """
    draft, waited_s = rating.draft, rating.waited_s
    curve = Curve(draft.curve.live_bytes)
    for index, back in rating.back.items():
        curve.add(back.stop, draft.gaps[index].stop, draft.gaps[index].bytes)
    order = sorted(rating.back, key=lambda i: (-waited_s.get(i, 0.0), rating.back[i].in_event, i))
    if first is not None:
        order = [first, *(index for index in order if index != first)]
    for index in order:
        gap = draft.gaps[index]
        if gap.final or index in draft.computed:
            continue
        now = rating.back[index]
        for event in (now.in_event + sign * step for step in _STEPS for sign in (1, -1)):
            if not gap.out_event < event <= gap.in_event:
                continue
            # An executor begins a copy when it is asked for, so there has to be room by then.
            sooner = curve.highest(draft.tape.event_position(event), now.stop) + gap.bytes
            if event > now.in_event or sooner <= draft.budget_bytes:
                yield index, event
