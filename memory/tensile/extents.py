"""Which ranges of a file are free: page-rounded extents, best fit, neighbours united."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from mmap import PAGESIZE as PAGE_BYTES


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    offset: int
    bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.bytes


def page_rounded(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


class Extents:
    """The file grows at its end when no free extent is large enough; `end_bytes` is its length."""

    def __init__(self) -> None:
        self.end_bytes = 0
        self._free: list[Extent] = []  # by offset; never two that touch, never one at the end

    def take(self, size_bytes: int) -> Extent:
        """An extent of at least `size_bytes`, page-rounded."""
        needed = page_rounded(size_bytes)
        best = min(
            (free for free in self._free if free.bytes >= needed),
            key=lambda free: (free.bytes, free.offset),
            default=None,
        )
        if best is None:
            taken = Extent(self.end_bytes, needed)
            self.end_bytes = taken.end
            return taken
        self._free.remove(best)
        if best.bytes > needed:
            insort(self._free, Extent(best.offset + needed, best.bytes - needed))
        return Extent(best.offset, needed)

    def give(self, extent: Extent) -> None:
        """It is free again; its neighbours become one with it."""
        index = bisect_left(self._free, extent)
        start, end = extent.offset, extent.end
        if index < len(self._free) and self._free[index].offset == end:
            end = self._free.pop(index).end
        if index > 0 and self._free[index - 1].end == start:
            start = self._free.pop(index - 1).offset
        if end == self.end_bytes:
            self.end_bytes = start
        else:
            insort(self._free, Extent(start, end - start))

    @property
    def free_bytes(self) -> int:
        return sum(free.bytes for free in self._free)
