"""The quick planner: which storages leave when, so that a step keeps a budget at the least stall.

Several scores choose gaps (`cover.py`), returns are timed (`returns.py`), the cheap to compute is
computed again instead of copied, the simulator judges, and the best wins. Pure and deterministic.

Against TENSILE (arXiv 2105.13336, §4): copies out and in at once, whole rounds of gaps instead of
one tensor a round, triggers at events instead of delays, and computing again as an equal action.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tensile.actions import Plan, PlanError
from tensile.costs import Costs
from tensile.cover import SCORES, Score, cover, gain_s
from tensile.draft import Draft, Rating, drafted, judged
from tensile.floor import MOVABLE_KINDS, required_bytes
from tensile.gaps import Gap, gaps
from tensile.sequence import Kind, Phase, Trace
from tensile.tape import Tape

_SHARES_COMPUTED = (1.0, 0.5, 0.25)
_LARGE = 4000  # operators from which on time allows fewer attempts
_SCORES_OF_LARGE = 3


def plan(trace: Trace, budget_bytes: int, costs: Costs) -> Plan:
    """A plan whose peak is at most `budget_bytes`. Raises PlanError below the floor."""
    return quick_plan(Tape(trace, costs), budget_bytes)


def quick_plan(tape: Tape, budget_bytes: int) -> Plan:
    """The same for a trace in arrays."""
    if tape.peak_bytes <= budget_bytes:
        return judged(tape, (), budget_bytes)
    found = list(gaps(tape))
    scores = SCORES if tape.length <= _LARGE else SCORES[:_SCORES_OF_LARGE]
    drafts = list(_drafts(tape, found, budget_bytes, scores))
    if not drafts:
        raise PlanError(_below_the_floor(tape, budget_bytes))
    ratings = [draft.rated() for draft in drafts]
    for draft in drafts if tape.length <= _LARGE else drafts[:2]:
        ratings += _with_computed(draft)
    return min(ratings, key=_worth).plan()


def _drafts(
    tape: Tape, found: Sequence[Gap], budget_bytes: int, scores: Sequence[Score]
) -> Iterator[Draft]:
    """One for each score, as far as they differ; none if the budget is below the floor."""
    seen: set[frozenset[int]] = set()
    for score in scores:
        used = cover(tape, found, budget_bytes, score)
        if used is None:
            return
        draft = drafted(tape, found, used, budget_bytes)
        if frozenset(draft.used) not in seen:
            seen.add(frozenset(draft.used))
            yield draft


def _with_computed(draft: Draft) -> Iterator[Rating]:
    cheap = cheaper_computed(draft)
    counts = {max(1, round(len(cheap) * share)) for share in _SHARES_COMPUTED}
    if cheap:
        yield from (draft.with_computed(cheap[:count]).rated() for count in sorted(counts))


def _worth(rating: Rating) -> tuple[bool, float, int]:
    return rating.worth


def cheaper_computed(draft: Draft) -> list[int]:
    """Of what a draft swaps, what takes longer to copy than to compute, the most gain first."""
    swapped = [index for index in draft.used if index not in draft.computed]
    gains = sorted((-gain_s(draft.tape, draft.gaps[index]), index) for index in swapped)
    return [index for gain, index in gains if gain < 0]


def _below_the_floor(tape: Tape, budget_bytes: int) -> str:
    required = required_bytes(tape.trace)
    worst = int(required.argmax())
    operator = tape.trace.operators[worst]
    sizes: dict[Kind, int] = {}
    for index in sorted({a.storage for a in tape.trace.accesses if a.operator == worst}):
        storage = tape.trace.storages[index]
        sizes[storage.kind] = sizes.get(storage.kind, 0) + storage.bytes
    needed = [f"{size} of {kind.value.replace('_', ' ')}" for kind, size in sizes.items()]
    of_model = sum(size for kind, size in sizes.items() if kind in MOVABLE_KINDS)
    way_out = "a smaller batch" if of_model <= sum(sizes.values()) / 2 else "smaller layers"
    if operator.phase is Phase.UPDATE:
        way_out = "smaller layers or an optimizer with fewer states"
    return (
        f"budget: {budget_bytes} bytes are below the floor of {int(required.max())} bytes, which "
        f"operator {worst} ({operator.name}, {operator.phase.value}) needs: {', '.join(needed)}, "
        f"{operator.workspace_bytes} of workspace, and the rest is what cannot leave then. "
        f"Give at least the floor, or lower it with {way_out}."
    )
