"""The slow planner: makes a good plan better while training runs on the quick one.

It starts where the plan waits. A gap that is waited for is replaced by others, helped by one more
that gives it room to come back earlier, or computed again (or no longer); then returns are moved
(`timing.py`). The simulator judges, and only what is better is kept. No clock and no chance decide,
unless `seconds` is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tensile.actions import Plan, Recompute, Swap
from tensile.costs import Costs
from tensile.cover import (
    Score,
    computable_then_needed_last,
    cover,
    gain_s,
    hidden_then_needed_last,
    lowered,
    slack_s,
    slackest,
)
from tensile.draft import Draft, Rating, drafted, judged, worth_of
from tensile.gaps import Gap, gaps
from tensile.returns import Return
from tensile.sequence import Trace
from tensile.tape import Tape
from tensile.timing import Rounds, retimed

_REPLACING: tuple[Score, ...] = (slackest, hidden_then_needed_last, computable_then_needed_last)
_HELPERS = 3


def improve(
    trace: Trace,
    plan: Plan,
    costs: Costs,
    *,
    rounds: int = 200,
    seconds: float | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Plan:
    """A plan of the same budget that is no worse, by its price and then by bytes moved.

    `rounds` counts simulated attempts. For equal rounds the answer is equal; `seconds`, if given,
    may end the search before, and so does `stopped` once it is true. Raises
    ValueError for a plan of another trace.
    """
    tape = Tape(trace, costs)
    before = judged(tape, plan.actions, plan.budget_bytes)
    rating = _started(tape, before)
    if rating is None:
        return before
    end_s = None if seconds is None else time.monotonic() + seconds

    def is_over() -> bool:
        late = end_s is not None and time.monotonic() >= end_s
        return late or (stopped is not None and stopped())

    for_gaps = Rounds(rounds // 2, is_over)
    best = climbed(rating, for_gaps)
    best = retimed(best, Rounds(rounds - rounds // 2 + for_gaps.left, is_over))
    return best.plan() if best.worth < worth_of(tape, before) else before


def climbed(rating: Rating, rounds: Rounds) -> Rating:
    """The best of these attempts, each a small change to the best one before it."""
    attempts = _attempts(rating)
    while rating.stall_s > 0 and rounds.take():
        draft = next(attempts, None)
        if draft is None:
            break
        attempt = draft.rated()
        if attempt.worth < rating.worth:
            rating = attempt
            attempts = _attempts(rating)
    return rating


def _started(tape: Tape, plan: Plan) -> Rating | None:
    """The plan as a draft again; None for one with gaps that the planner would not know."""
    found = gaps(tape)
    names = tape.trace.storages
    indices = {(names[gap.storage].name, gap.out_event): i for i, gap in enumerate(found)}
    used, computed = [], []
    for action in plan.actions:
        index = indices.get((action.storage, action.out_event))
        if index is None:
            return None
        used.append(index)
        if isinstance(action, Recompute):
            computed.append(index)
    if not used:
        return None
    curve = lowered(tape, found, used)
    draft = Draft(
        tape=tape,
        gaps=found,
        used=used,
        curve=curve,
        budget_bytes=plan.budget_bytes,
        wished_bytes=min(plan.budget_bytes, int(curve.live_bytes.max())),
    )
    draft = draft.with_computed(computed)
    return min(draft.rated(), draft.rated(_back(draft, plan)), key=lambda rating: rating.worth)


def _back(draft: Draft, plan: Plan) -> dict[int, Return]:
    """When the plan itself asks for each of its gaps."""
    tape, events = draft.tape, len(draft.tape.trace.events)
    found = {}
    for index, action in zip(draft.used, plan.actions, strict=True):
        gap = draft.gaps[index]
        event, stop = gap.in_event, gap.stop
        if isinstance(action, Swap) and not gap.final:
            asked = action.in_event + (events if action.in_event <= action.out_event else 0)
            event = min(asked, gap.in_event)
            stop = tape.event_position(event)
        found[index] = Return(in_event=event, stop=stop)
    return found


def _attempts(rating: Rating) -> Iterator[Draft]:
    draft, waited_s = rating.draft, rating.waited_s
    original = gaps(draft.tape)
    waits = sorted(((-s, i) for i, s in waited_s.items() if s > 0))
    for _, index in waits:
        for change in _changes(draft, original, waited_s, index):
            if change is not None:
                yield change


def _changes(
    draft: Draft, original: list[Gap], waited_s: dict[int, float], index: int
) -> Iterator[Draft | None]:
    tape, budget_bytes = draft.tape, draft.budget_bytes
    computed = [i for i in draft.used if i in draft.computed]
    others = [i for i in draft.used if i != index]
    if index in draft.computed:
        yield _again(draft, original, draft.used, [i for i in computed if i != index], waited_s)
    elif gain_s(tape, original[index]) > 0:
        yield draft.with_computed([index])
    for score in _REPLACING:
        used = cover(
            tape,
            original,
            budget_bytes,
            score,
            wished_bytes=draft.wished_bytes,
            given=others,
            banned={index},
        )
        if used is not None:
            yield _again(draft, original, used, computed, waited_s)
    for helper in _helpers(draft, original, index):
        yield _again(draft, original, [*draft.used, helper], computed, waited_s)
        cheap = [helper] if gain_s(tape, original[helper]) > 0 else []
        if cheap:
            yield _again(draft, original, [*draft.used, helper], computed + cheap, waited_s)


def _again(
    draft: Draft,
    original: list[Gap],
    used: list[int],
    computed: list[int],
    waited_s: dict[int, float],
) -> Draft:
    changed = drafted(
        draft.tape,
        original,
        used,
        draft.budget_bytes,
        wished_bytes=draft.wished_bytes,
        waited_s=waited_s,
    )
    kept = set(changed.used)
    return changed.with_computed([index for index in computed if index in kept])


def _helpers(draft: Draft, original: list[Gap], index: int) -> list[int]:
    """Unused gaps that are open where this one ends or begins, what hides best first."""
    tape, n = draft.tape, draft.tape.length
    used = set(draft.used)
    found: list[int] = []
    for place in ((original[index].stop - 1) % n, original[index].start % n):
        open_there = [
            (-slack_s(tape, gap), i)
            for i, gap in enumerate(original)
            if i not in used
            and (gap.start <= place < gap.stop or gap.start <= place + n < gap.stop)
        ]
        found += [i for _, i in sorted(open_there)[:_HELPERS]]
    return list(dict.fromkeys(found))
