"""No attempt takes the bytes of its neighbours: one that holds more than it may, look after look,
is ended.

Of a CPU device only, whose memory is what processes hold resident; on CUDA the allocator itself
refuses (`cuda_fence.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from dovetail_jobs.units import format_bytes
from dovetail_workers.held_memory import held_bytes, shared_fairly_bytes
from dovetail_workers.library_memory import BARE_BYTES, library_bytes
from dovetail_workers.memory_limit import Limit, MemoryLimit

LOOKS = 6  # over the limit, one after the other: a peak that is over at the next look harms nobody
_MIB = 2**20


class MemoryFence:
    """`look` is called with the attempt's processes again and again; `on_overrun` hears a sentence,
    once, and `on_base` what the bare process holds, where the limit brings that. With `awaits_base`
    nothing is judged before it is known; otherwise what its libraries take is left out until then.
    """

    def __init__(
        self,
        limit: Limit,
        on_overrun: Callable[[str], None],
        *,
        awaits_base: bool,
        on_base: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.peak_bytes = 0
        self.limit_bytes: int | None = None
        self.over_bytes = 0  # what was held at the look that decided
        self._limit, self._on_overrun, self._on_base = limit, on_overrun, on_base
        self._base_bytes: int | None = None
        self._heard_bytes: int | None = None  # of the base, by the limit
        self._awaits_base = awaits_base
        self._bare_bytes = BARE_BYTES
        self._over = 0

    @property
    def suspects(self) -> bool:
        """It is over its limit, and not for long enough."""
        return 0 < self._over < LOOKS

    @property
    def is_broken(self) -> bool:
        return self._over >= LOOKS

    def know_base(self, base_bytes: int) -> None:
        if self._base_bytes is None:
            self.peak_bytes = 0  # it was counted with what is in the base
        self._base_bytes, self._awaits_base = base_bytes, False
        self._bare_bytes = base_bytes

    def know_total(self, total_bytes: int) -> None:
        """All that its processes held at most, also between two looks."""
        self.peak_bytes = max(self.peak_bytes, total_bytes - self._bare_bytes)

    def look(self, pids: Collection[int]) -> None:
        if self._awaits_base or self._over >= LOOKS:
            return
        limit = self._limit()
        self.limit_bytes = limit.bytes
        if limit.base_bytes not in (None, self._heard_bytes):
            self._heard_bytes = limit.base_bytes
            self.know_base(limit.base_bytes)
            self._on_base(limit.base_bytes)
        held = held_bytes(pids, self._base_bytes)
        if self._base_bytes is None:
            self._bare_bytes = max(self._bare_bytes, sum(map(library_bytes, pids)))
        fenced_bytes = limit.fenced_bytes
        if fenced_bytes is None or held <= fenced_bytes:
            self.peak_bytes, self._over = max(self.peak_bytes, held), 0
            return
        if len(pids) > 1:
            held = shared_fairly_bytes(pids, self._base_bytes)
        self.peak_bytes = max(self.peak_bytes, held)
        self._over = self._over + 1 if held > fenced_bytes else 0
        if self._over >= LOOKS:
            self.over_bytes = held
            self._on_overrun(self.overrun(limit))

    def overrun(self, limit: MemoryLimit) -> str:
        """Says what was held, what might have been, and what to write."""
        held = format_bytes(self.peak_bytes)
        if self._base_bytes is None:
            held += " beside its libraries"
        needed = format_bytes(-(-self.peak_bytes // _MIB) * _MIB)
        return (
            f"out of memory: it held {held}, and might hold {format_bytes(limit.bytes or 0)} of "
            f"the device ({limit.rule}); {limit.way_out.format(needed=needed)}"
        )
