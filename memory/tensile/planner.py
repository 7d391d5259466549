"""The quick planner: which storages leave when, so that a step keeps a budget at the least stall.

Several scores choose gaps (`cover.py`), returns are timed (`returns.py`), the cheap to compute is
computed again instead of copied, the simulator judges, and the best wins. Pure and deterministic.

Against TENSILE (arXiv 2105.13336, §4): copies out and in at once, whole rounds of gaps instead of
one tensor a round, triggers at events instead of delays, and computing again as an equal action.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tensile.actions import Plan, PlanError
from tensile.budget import at_least
from tensile.costs import Costs
from tensile.cover import SCORES, Score, cover, gain_s
from tensile.draft import Draft, Rating, drafted, judged
from tensile.floor import MOVABLE_KINDS, required_bytes
from tensile.gaps import gaps
from tensile.sequence import Kind, Phase, Trace
from tensile.tape import Tape

# Covering more than the budget asks gives room to bring things back early.
_HEADROOMS = (0.1, 0.03, 0.2, 0.3)
_SHARES_COMPUTED = (0.25, 0.5)
# What an attempt takes grows with operators and, eight times faster, with actions. Within these
# units a plan takes 0.2 s for 1.4 k operators and 2 s for 10 k.
_UNITS, _UNITS_PER_OPERATOR, _UNITS_PER_ACTION = 48_000, 32, 8
_FEWEST, _MOST = 4, 40


def plan(trace: Trace, budget_bytes: int, costs: Costs) -> Plan:
    """A plan whose peak is at most `budget_bytes`. Raises PlanError below the floor."""
    return quick_plan(Tape(trace, costs), budget_bytes)


def quick_plan(tape: Tape, budget_bytes: int) -> Plan:
    """The same for a trace in arrays."""
    if tape.peak_bytes <= budget_bytes:
        return judged(tape, (), budget_bytes)
    attempts = _Attempts(tape, budget_bytes)
    for number, recipe in enumerate(_recipes(attempts)):
        if not attempts.make(recipe):
            raise PlanError(below_the_floor(tape, budget_bytes))
        if attempts.is_free() or number + 1 >= attempts.affordable():
            break
    return attempts.ratings[attempts.best(1)[0]].plan()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """How an attempt is made; `share` of what is cheaper to compute than to copy is computed."""

    score: Score
    headroom: float = 0.0
    share: float = 0.0


class _Attempts:
    """The plans of one budget that were tried."""

    def __init__(self, tape: Tape, budget_bytes: int) -> None:
        self.tape, self.budget_bytes = tape, budget_bytes
        self.gaps = gaps(tape)
        self.ratings: dict[_Recipe, Rating] = {}
        self._seen: set[tuple[frozenset[int], frozenset[int]]] = set()

    def make(self, recipe: _Recipe) -> bool:
        """Whether the gaps allow the budget at all."""
        wished = int(self.budget_bytes * (1 - recipe.headroom))
        used = cover(self.tape, self.gaps, self.budget_bytes, recipe.score, wished_bytes=wished)
        if used is None:
            return False
        draft = drafted(self.tape, self.gaps, used, self.budget_bytes, wished_bytes=wished)
        if recipe.share:
            cheap = cheaper_computed(draft)
            draft = draft.with_computed(cheap[: round(len(cheap) * recipe.share)])
        tried = (frozenset(draft.used), frozenset(draft.computed))
        if tried not in self._seen:
            self._seen.add(tried)
            self.ratings[recipe] = draft.rated()
        return True

    def best(self, count: int) -> list[_Recipe]:
        # The order of trying decides between equals.
        return sorted(self.ratings, key=lambda recipe: self.ratings[recipe].worth)[:count]

    def is_free(self) -> bool:
        """Whether one of them costs no time."""
        return any(not r.worth[0] and r.worth[1] <= 0 for r in self.ratings.values())

    def affordable(self) -> int:
        """How many attempts the time that a quick plan may take is enough for."""
        operators = self.tape.length
        actions = max(len(rating.draft.used) for rating in self.ratings.values())
        units = max(_UNITS, _UNITS_PER_OPERATOR * operators)
        attempts = units // (operators + _UNITS_PER_ACTION * actions)
        return min(max(attempts, _FEWEST), _MOST)


def _recipes(attempts: _Attempts) -> Iterator[_Recipe]:
    """The most promising first; what was best so far decides what comes next."""
    first, second, third, *others = SCORES
    yield _Recipe(score=first)
    yield _Recipe(score=second, share=1.0)
    yield _Recipe(score=third)
    best = attempts.best(1)[0]
    for headroom in _HEADROOMS:
        yield replace(best, headroom=headroom)
    best = attempts.best(1)[0]
    for score in (first, second, third, *others):
        yield replace(best, score=score)
        yield _Recipe(score=score, headroom=best.headroom, share=1.0 - best.share)
    for best in attempts.best(2):
        for headroom in (*_HEADROOMS, 0.0):
            yield replace(best, headroom=headroom)
    for share in _SHARES_COMPUTED:
        yield replace(attempts.best(1)[0], share=share)


def cheaper_computed(draft: Draft) -> list[int]:
    """Of what a draft swaps, what takes longer to copy than to compute, the most gain first."""
    swapped = [index for index in draft.used if index not in draft.computed]
    gains = sorted((-gain_s(draft.tape, draft.gaps[index]), index) for index in swapped)
    return [index for gain, index in gains if gain < 0]


def below_the_floor(tape: Tape, budget_bytes: int, beside_bytes: int = 0) -> str:
    """Why that budget has no plan, where a process takes `beside_bytes` beside its tensors."""
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
    floor = int(required.max()) + beside_bytes
    beside = f"{beside_bytes} of the process itself, " if beside_bytes else ""
    return (
        f"budget: {budget_bytes} bytes are below the floor of {floor} bytes, which "
        f"operator {worst} ({operator.name}, {operator.phase.value}) needs: {', '.join(needed)}, "
        f"{operator.workspace_bytes} of workspace, {beside}and the rest is what cannot leave then. "
        f"Give at least {at_least(floor)}, or lower the floor with {way_out}."
    )
