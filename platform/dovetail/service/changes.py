"""A number that grows whenever something changed, and a way to wait for it: what long polls hang
on.
"""

from __future__ import annotations

import threading


class Changes:
    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._number = 0
        self._closed = False

    @property
    def number(self) -> int:
        with self._condition:
            return self._number

    def bump(self) -> None:
        with self._condition:
            self._number += 1
            self._condition.notify_all()

    def wait(self, after: int, timeout_s: float) -> int:
        """Until the number is above `after` or the time is over; the number then."""
        with self._condition:
            self._condition.wait_for(
                lambda: self._number > after or self._closed, timeout=timeout_s
            )
            return self._number

    def close(self) -> None:
        """Let everyone go who waits, now and later."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
