"""The least memory that a certified plan of a step keeps.

While an operator runs, its operands are there, and so is everything that cannot leave then: small
storages, temporaries, inputs, buffers, and what Python itself still holds. Everything else can be
away, at the price of waiting. An executor acts at events only, so what an operator needs is there
from the last event before it until the first one after it.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tensile.sequence import Kind, Moment, Slot, Trace

MOVABLE_BYTES = 64 * 2**10  # smaller storages stay: they cost more moments than they give bytes
MOVABLE_KINDS = frozenset({Kind.PARAMETER, Kind.GRADIENT, Kind.STATE})


def floor_bytes(trace: Trace) -> int:
    """`plan(trace, floor_bytes(trace), costs)` succeeds, and nothing smaller is promised."""
    return int(required_bytes(trace).max(initial=0))


def required_bytes(trace: Trace) -> npt.NDArray[np.int64]:
    """For each operator: what must be there while it runs, its workspace included. Shape (N,)."""
    count = len(trace.operators)
    change = np.zeros(count + 2, dtype=np.int64)
    for index, windows in _windows(trace):
        size_bytes = trace.storages[index].bytes
        for start, stop in windows:
            change[start] += size_bytes
            change[stop] -= size_bytes
    workspace = [operator.workspace_bytes for operator in trace.operators]
    total: npt.NDArray[np.int64] = np.cumsum(change)[:count]
    return total + np.asarray(workspace, dtype=np.int64)


def _windows(trace: Trace) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """For each storage the ranges of operators (stop exclusive) through which it cannot be away."""
    count = len(trace.operators)
    moments = sorted({0, count, *(event.position for event in trace.events)})
    touched: dict[int, list[int]] = defaultdict(list)
    for access in trace.accesses:
        touched[access.storage].append(access.operator)
    slots = defaultdict(list)
    for slot in trace.slots:
        slots[slot.storage].append(slot)
    complete = defaultdict(list)
    for event in trace.events:
        if event.moment is Moment.GRADIENT:
            complete[f"gradient:{event.name}"].append(event.position)

    for index, storage in enumerate(trace.storages):
        birth, death = storage.birth, min(storage.death, count)
        needed = [(operator, operator + 1) for operator in touched[index]]
        if storage.bytes < MOVABLE_BYTES:
            needed = [(birth, death)]
        elif storage.kind in MOVABLE_KINDS:
            if storage.kind is Kind.GRADIENT and birth > 0:
                # before its first completion no executor knows it as a gradient
                known = [moment for moment in complete[storage.name] if moment > birth]
                needed.append((birth, known[0] if known else death))
        elif slots[index] and all(slot.alone is not None for slot in slots[index]):
            # until the last of them is alone Python may hold it, whatever the version
            alone = max(slot.alone for slot in slots[index] if slot.alone is not None)
            needed.append((birth, alone))
            needed += _handed_out(slots[index], touched[index])
        else:
            needed = [(birth, death)]
        yield index, _merged(needed, moments, birth, death)


def _handed_out(slots: Sequence[Slot], touched: Sequence[int]) -> Iterator[tuple[int, int]]:
    """From each unpack to the last access before the next one; from the last one on it stays."""
    unpacks = sorted({unpack for slot in slots for unpack in slot.unpacks})
    for unpack, following in pairwise(unpacks):
        inside = [operator for operator in touched if unpack <= operator < following]
        yield unpack, max(inside, default=unpack) + 1
    if unpacks:
        yield unpacks[-1], sys.maxsize  # the backward node holds it while it works


def _merged(
    needed: Sequence[tuple[int, int]], moments: Sequence[int], birth: int, death: int
) -> list[tuple[int, int]]:
    """The ranges widened to events, clipped to the storage's life, and united where they meet."""
    ranges: list[tuple[int, int]] = []
    for start, stop in sorted(needed):
        first = max(birth, moments[bisect_right(moments, start) - 1])
        after = bisect_left(moments, stop)
        last = min(death, moments[after] if after < len(moments) else death)
        if first >= last:
            continue
        if ranges and first <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], last))
        else:
            ranges.append((first, last))
    return ranges
