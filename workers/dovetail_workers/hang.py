"""Notices that a training process has stopped moving: no progress for a stated time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class HangWatch:
    """Calls `on_hang` once, from a thread of its own, when `moved` was not called for
    `timeout_s`. The first stretch begins with the watch.
    """

    def __init__(self, timeout_s: float, on_hang: Callable[[], None]) -> None:
        self._timeout_s, self._on_hang = timeout_s, on_hang
        self._condition = threading.Condition()
        self._closed = False
        self._deadline_s = time.monotonic() + timeout_s
        self._thread = threading.Thread(target=self._run, name="hang", daemon=True)
        self._thread.start()

    def moved(self) -> None:
        """Progress was made: the time begins anew. The thread looks when its old time is over."""
        with self._condition:
            self._deadline_s = time.monotonic() + self._timeout_s

    def hold(self) -> None:
        """Nothing is expected until the next `moved`: the wait is ours, not the program's."""
        with self._condition:
            self._deadline_s = float("inf")

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._condition:
            while not self._closed:
                left_s = self._deadline_s - time.monotonic()
                if left_s <= 0:
                    break
                self._condition.wait(min(left_s, self._timeout_s))
            if self._closed:
                return
        self._on_hang()
