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
from tensile.cover import SCORES, cover
from tensile.draft import Draft, drafted, judged, worth
from tensile.floor import required_bytes
from tensile.gaps import Gap, gaps
from tensile.sequence import Kind, Trace
from tensile.tape import Tape

_SHARES_COMPUTED = (1.0, 0.5, 0.25)


def plan(trace: Trace, budget_bytes: int, costs: Costs) -> Plan:
    """A plan whose peak is at most `budget_bytes`. Raises PlanError below the floor."""
    return quick_plan(Tape(trace, costs), budget_bytes)


def quick_plan(tape: Tape, budget_bytes: int) -> Plan:
    """The same for a trace in arrays."""
    if tape.peak_bytes <= budget_bytes:
        return judged(tape, (), budget_bytes)
    found = list(gaps(tape))
    plans = [draft.finished() for draft in _drafts(tape, found, budget_bytes)]
    if not plans:
        raise PlanError(_below_the_floor(tape, budget_bytes))
    return min(plans, key=worth)


def _drafts(tape: Tape, found: Sequence[Gap], budget_bytes: int) -> Iterator[Draft]:
    seen: set[frozenset[int]] = set()
    for score in SCORES:
        used = cover(tape, found, budget_bytes, score)
        if used is None:
            return
        draft = drafted(tape, found, used, budget_bytes)
        if frozenset(draft.used) in seen:
            continue
        seen.add(frozenset(draft.used))
        yield draft
        cheap = cheaper_computed(draft)
        for share in _SHARES_COMPUTED:
            if cheap:
                yield draft.with_computed(cheap[: max(1, round(len(cheap) * share))])


def cheaper_computed(draft: Draft) -> list[int]:
    """Of what a draft swaps, what takes longer to copy than to compute, the most gain first."""
    tape = draft.tape
    gains: list[tuple[float, int]] = []
    for index in draft.used:
        gap = draft.gaps[index]
        if index in draft.computed or gap.slot not in tape.recipes or gap.final:
            continue
        copy_s = max(tape.costs.out_s(gap.bytes), tape.costs.in_s(gap.bytes))
        gain_s = copy_s - tape.recompute_s(gap.slot)
        if gain_s > 0:
            gains.append((-gain_s, index))
    return [index for _, index in sorted(gains)]


def _below_the_floor(tape: Tape, budget_bytes: int) -> str:
    required = required_bytes(tape.trace)
    worst = int(required.argmax())
    operator = tape.trace.operators[worst]
    sizes: dict[Kind, int] = {}
    touched = {a.storage for a in tape.trace.accesses if a.operator == worst}
    for index in sorted(touched):
        storage = tape.trace.storages[index]
        sizes[storage.kind] = sizes.get(storage.kind, 0) + storage.bytes
    operands = ", ".join(f"{kind.value.replace('_', ' ')} {size}" for kind, size in sizes.items())
    return (
        f"budget: {budget_bytes} bytes are below the floor of {int(required.max())} bytes, which "
        f"operator {worst} ({operator.name}, {operator.phase.value}) needs: its operands take "
        f"{operands or 'nothing'}, its workspace {operator.workspace_bytes}, and what cannot leave "
        f"takes the rest. Give at least the floor, or lower it with a smaller batch"
        + ("." if operator.phase != "update" else " or smaller layers.")
    )
