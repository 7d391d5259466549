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
        self.highest_bytes = 0  # of a pass under this limit
        self._passes = 0

    def begin_again(self) -> None:
        """Another limit: what was held before says nothing of it."""
        self.note()
        self._gauge.forget_peak()
        self.highest_bytes = 0

    def look_back(self, limit_bytes: int | None, *, watched: bool) -> int:
        """After a pass; by how much it exceeded the budget, 0 where it did not. Where nothing was
        watched, the peak is looked at now and then only: the system keeps it, and asking takes
        time.
        """
        self._passes += 1
        if not watched and self._passes % _SELDOM != 1:
            return 0
        if watched and self._passes <= _FIRST_PASSES:
            self._note_libraries()
        held_bytes = self._gauge.peak_since()
        if not watched and limit_bytes is not None and held_bytes > limit_bytes:
            before_bytes = self._gauge.base_bytes  # what was loaded since looks like tensors
            self._note_libraries()
            held_bytes -= self._gauge.base_bytes - before_bytes
        self.highest_bytes = max(self.highest_bytes, held_bytes)
        self.note()
        if limit_bytes is None or held_bytes <= limit_bytes:
            return 0
        self.exceeded = True
        return held_bytes - limit_bytes

    def _note_libraries(self) -> None:
        with suppress(MemoryError):  # after a pass that found none: the base stays as it was
            self._gauge.note_libraries()

    def note(self) -> None:
        """Into the statistics: the most that was held so far."""
        self._counters.peak_bytes = max(self._counters.peak_bytes, self._gauge.peak_bytes())
