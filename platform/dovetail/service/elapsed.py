"""How long ago something was, by a clock that nobody sets.

Rows hold times of the wall clock, which may be set back or forward while jobs run. A moment is
compared with the wall clock once, when it is first asked for, and from then on the time is counted
by the monotonic clock. So a clock set back by an hour neither stalls a retry nor lengthens a limit,
and one set forward ends no job early.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta


class Elapsed:
    """Remembers the moments that were asked for, by key."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._began_s: dict[tuple[str, datetime], float] = {}

    def since(self, key: str, moment: datetime, now: datetime) -> timedelta:
        """Time since `moment`, never below zero; `now` is the wall clock's."""
        counted_s = self._monotonic()
        past_s = max(0.0, (now - moment).total_seconds())
        began_s = self._began_s.setdefault((key, moment), counted_s - past_s)
        return timedelta(seconds=max(0.0, counted_s - began_s))

    def forget_all_but(self, keys: Collection[str]) -> None:
        kept = {known: began_s for known, began_s in self._began_s.items() if known[0] in keys}
        self._began_s = kept
