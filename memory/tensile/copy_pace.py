"""How fast a job copies in one direction, where its device's channel is shared (`channel.py`).

A token bucket that may run a debt: a copy begins when the ones before are paid for, less a little
that may come at once, and is then paid for itself. So pieces of any size go through, and what was
waited for is never held meanwhile: who waits has no lock, and has not taken the memory yet that a
copy fills.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

_AT_ONCE_S = 0.02  # of copying that nobody waits for


@dataclass(slots=True, kw_only=True)
class Bucket:
    """Times are of one clock that never goes back, in seconds."""

    bytes_per_s: float
    paid_at_s: float = 0.0

    def wait_s(self, now_s: float) -> float:
        """Until the next copy may begin."""
        return max(self.paid_at_s - _AT_ONCE_S - now_s, 0.0)

    def take(self, size_bytes: int, now_s: float) -> None:
        self.paid_at_s = max(self.paid_at_s, now_s) + size_bytes / self.bytes_per_s


class CopyPace:
    """No limit at first. Any thread may call."""

    def __init__(self) -> None:
        self._bucket: Bucket | None = None
        self._changed = threading.Condition()

    def limit(self, bytes_per_s: float | None) -> None:
        """From now on, also for those who wait; None for no limit."""
        with self._changed:
            if bytes_per_s is None:
                self._bucket = None
            elif self._bucket is None:
                self._bucket = Bucket(bytes_per_s=bytes_per_s)
            else:
                self._bucket.bytes_per_s = bytes_per_s
            self._changed.notify_all()

    def take(self, size_bytes: int) -> None:
        """Wait until so many bytes may begin to be copied."""
        if self._bucket is None:
            return
        with self._changed:
            while self._bucket is not None:
                wait_s = self._bucket.wait_s(time.monotonic())
                if wait_s <= 0:
                    self._bucket.take(size_bytes, time.monotonic())
                    return
                self._changed.wait(wait_s)

    def in_child(self) -> None:
        """A forked child waits for nobody; a thread that is not here may have had the lock."""
        self._bucket, self._changed = None, threading.Condition()
