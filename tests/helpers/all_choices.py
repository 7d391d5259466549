"""The best of all choices: every set of gaps, any of them computed again, judged by `simulate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from tensile.costs import Costs
from tensile.cover import lowered
from tensile.draft import Draft
from tensile.gaps import gaps
from tensile.sequence import Trace
from tensile.tape import Tape


def best_of_all_choices_s(trace: Trace, budget_bytes: int, costs: Costs) -> float:
    """The least stall, with the returns of `returns.py`. For a dozen gaps: it tries 2 ** gaps."""
    tape = Tape(trace, costs)
    found = gaps(tape)
    best_s = float("inf")
    for used in _subsets(range(len(found))):
        curve = lowered(tape, found, used)
        if curve.live_bytes.max() > budget_bytes:
            continue
        swapped = Draft(
            tape=tape,
            gaps=found,
            used=list(used),
            curve=curve,
            budget_bytes=budget_bytes,
            wished_bytes=budget_bytes,
        )
        can = [i for i in used if found[i].slot in tape.recipes and not found[i].final]
        for wanted in _subsets(can):
            draft = swapped.with_computed(wanted)
            if len(draft.computed) == len(wanted):
                rating = draft.rated()
                if rating.peak_bytes <= budget_bytes:
                    best_s = min(best_s, rating.stall_s)
    return best_s


def _subsets(of: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for size in range(len(of) + 1):
        yield from combinations(of, size)
