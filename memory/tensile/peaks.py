"""Whether steps have to be watched: what they held so far, by the system's own count."""

from __future__ import annotations

from contextlib import suppress

from tensile.gauge import Gauge
from tensile.stats import Counters

_FIRST_PASSES = 3  # later ones load no more libraries
_SELDOM = 16


class Peaks:
    """`exceeded`: a pass held more than its budget, or found no memory, so all that follow are
    watched whatever was forecast.
    """

    def __init__(self, gauge: Gauge, counters: Counters) -> None:
        self.exceeded = False
        self._gauge = gauge
        self._counters = counters
        self._passes = 0
        self._highest_bytes = 0  # under this limit

    def begin_again(self) -> None:
        """Another limit: what was held before says nothing of it."""
        self.note()
        self._gauge.forget_peak()
        self._highest_bytes = 0

    def look_back(self, limit_bytes: int | None, *, watched: bool) -> int:
        """After a pass; by how much it is the first to exceed the budget, 0 where it does not.
        Where nothing was watched, the peak is looked at now and then only: the system keeps it, and
        asking takes time.
        """
        self._passes += 1
        if not watched and self._passes % _SELDOM != 1:
            return 0
        if watched and self._passes <= _FIRST_PASSES:
            with suppress(MemoryError):  # after a pass that found none: the base stays as it was
                self._gauge.note_libraries()
        before_bytes, now_bytes = self._highest_bytes, self._gauge.peak_bytes()
        self._highest_bytes = max(before_bytes, now_bytes)
        self.note()
        if limit_bytes is None or now_bytes <= limit_bytes:
            return 0
        self.exceeded = True
        return now_bytes - limit_bytes if now_bytes > before_bytes else 0

    def note(self) -> None:
        """Into the statistics: the most that was held so far."""
        self._counters.peak_bytes = max(self._counters.peak_bytes, self._gauge.peak_bytes())
