"""How much memory a step takes when nobody manages it, and how little it could take.

What fake tensors do not see is added here: the allocator's rounding, and that the user's own
optimizer step is not chunked (`Forecast.peak_bytes` is the peak of eager training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from tensile.allowance import with_allowance
from tensile.floor import floor_bytes
from tensile.sequence import Kind, Moment, Trace

CPU_ALIGNMENT_BYTES = 64  # c10's allocator for the CPU
CPU_PAGE_BYTES = 4096
CPU_MAPPED_BYTES = 128 * 2**10  # larger blocks have pages of their own
CUDA_BLOCK_BYTES = 512  # the caching allocator's rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Bytes that tensors, their allocator and their operators take; not the bare process.

    `floor_bytes` is the least budget that a session accepts: the floor of the trace and, on a CPU,
    what the process takes beside its tensors (`allowance.py`).

    `by_class` is what lives at the peak, by kind, and sums to `peak_bytes`; workspaces count as
    temporaries. The true peak lies within `margin_bytes` of `peak_bytes`, as a rule.
    """

    device: str
    peak_bytes: int
    floor_bytes: int
    by_class: Mapping[Kind, int]
    margin_bytes: int


MARGIN_SHARE = 0.05
MARGIN_FIXED_BYTES = 4 * 2**20
MARGIN_MOST = 0.10


def forecast(trace: Trace, device: str = "cpu") -> Forecast:
    """The natural peak and the floor of the traced step on `device` (`cpu`, `cpu:0`, `cuda:1`).

    Raises ValueError for a trace without operators: such a step has no peak.
    """
    if not trace.operators:
        raise ValueError("the traced step runs no operator, so it has no peak to forecast")
    kinds = list(Kind)
    live = np.zeros((len(kinds), len(trace.operators) + 2), dtype=np.int64)
    for storage in trace.storages:
        row = live[kinds.index(storage.kind)]
        size_bytes = allocated_bytes(storage.bytes, device)
        row[storage.birth] += size_bytes
        row[storage.death] -= size_bytes
    for index, storage in enumerate(trace.storages):
        if storage.late_bytes:
            row = live[kinds.index(storage.kind)]
            row[storage.birth] -= storage.late_bytes
            row[_second_access(trace, index)] += storage.late_bytes
    live = np.cumsum(live, axis=1)[:, : len(trace.operators)]
    temporary = live[kinds.index(Kind.TEMPORARY)]
    temporary += np.asarray([operator.workspace_bytes for operator in trace.operators], np.int64)
    temporary += _undivided(trace, device)
    total = live.sum(axis=0)
    at = int(total.argmax())
    least_bytes = floor_bytes(trace)
    # a floor counts a storage from its birth, though part of it may be touched later
    temporary[at] += max(0, least_bytes - int(total[at]))
    peak_bytes = int(live[:, at].sum())
    if device.startswith("cpu"):
        least_bytes = min(with_allowance(least_bytes), peak_bytes)
    return Forecast(
        device=device,
        peak_bytes=peak_bytes,
        floor_bytes=least_bytes,
        by_class=MappingProxyType({kind: int(live[row, at]) for row, kind in enumerate(kinds)}),
        margin_bytes=int(
            min(MARGIN_MOST * peak_bytes, MARGIN_SHARE * peak_bytes + MARGIN_FIXED_BYTES)
        ),
    )


def _second_access(trace: Trace, storage: int) -> int:
    """The operator that touches all of the storage; its death where there is none."""
    touched = (access.operator for access in trace.accesses if access.storage == storage)
    next(touched, None)
    return next(touched, trace.storages[storage].death)


def allocated_bytes(size_bytes: int, device: str) -> int:
    """What the allocator takes from the device for a block of `size_bytes`."""
    if not device.startswith("cpu"):
        return _rounded(size_bytes, CUDA_BLOCK_BYTES)
    if size_bytes >= CPU_MAPPED_BYTES:
        return _rounded(size_bytes + CPU_ALIGNMENT_BYTES, CPU_PAGE_BYTES)
    return _rounded(size_bytes, CPU_ALIGNMENT_BYTES)


def _undivided(trace: Trace, device: str) -> npt.NDArray[np.int64]:
    """What an undivided optimizer step adds, at each operator: those that work on all parameters at
    once (`foreach`) have every chunk's temporaries at the same time, and a loop over them still has
    the last parameter's when it begins with the next. Shape (N,).
    """
    more = np.zeros(len(trace.operators), dtype=np.int64)
    starts = {e.number: e.position for e in trace.events if e.moment is Moment.CHUNK}
    stops = {e.number: e.position for e in trace.events if e.moment is Moment.CHUNK_END}
    numbers = [number for number in starts if number in stops]
    spans = [(starts[number], stops[number]) for number in numbers]
    foreach = [
        (start, stop)
        for start, stop in spans
        if any("_foreach_" in operator.name for operator in trace.operators[start:stop])
    ]
    for before, (start, stop), number in zip(spans, spans[1:], numbers[1:], strict=False):
        if len(trace.chunks[number]) == 1 and (start, stop) not in foreach:
            more[start:stop] += _left_at(trace, *before, device)
    if len(foreach) < 2:
        return more
    peaks = [_peak_inside(trace, start, stop, device) for start, stop in foreach]
    for (start, stop), peak in zip(foreach, peaks, strict=True):
        more[start:stop] += sum(peaks) - peak
    return more


def _left_at(trace: Trace, start: int, stop: int, device: str) -> int:
    """What was born within these operators and lives until their end."""
    return sum(
        allocated_bytes(storage.bytes, device)
        for storage in trace.storages
        if start <= storage.birth and storage.death == stop
    )


def _peak_inside(trace: Trace, start: int, stop: int, device: str) -> int:
    """The most that storages born and dead within these operators take together."""
    change = np.zeros(stop - start + 1, dtype=np.int64)
    for storage in trace.storages:
        if start <= storage.birth and storage.death <= stop:
            size_bytes = allocated_bytes(storage.bytes, device)
            change[storage.birth - start] += size_bytes
            change[storage.death - start] -= size_bytes
    return int(np.cumsum(change).max())


def _rounded(size_bytes: int, step_bytes: int) -> int:
    return -(-size_bytes // step_bytes) * step_bytes
