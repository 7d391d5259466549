"""What a training loop holds beside its step: batches that are loaded ahead, say."""

from __future__ import annotations

from dataclasses import replace

from tensile.sequence import Kind, Storage, Trace


def with_beside(trace: Trace, beside_bytes: int) -> Trace:
    """The trace with so many bytes more, which are there all through the step and cannot leave.

    So forecast, floor and every plan count them. Raises ValueError for less than none.
    """
    if beside_bytes < 0:
        raise ValueError(f"beside_bytes: {beside_bytes}  must be bytes, 0 or more")
    if beside_bytes == 0:
        return trace
    held = Storage(
        name="loader:0",
        kind=Kind.LOADER,
        bytes=beside_bytes,
        birth=0,
        death=len(trace.operators) + 1,
    )
    return replace(trace, storages=(*trace.storages, held))
