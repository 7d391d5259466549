"""How often an attempt writes small news to storage: often while it is young, rarely when it is
old.

An object store has no append, so each flush is an object. From every 0.5 s to every 5 s keeps a
young job lively and a ten-hour job below eight thousand objects. Urgent news (started, checkpoint,
ended) does not wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FIRST_INTERVAL_S = 0.5
LAST_INTERVAL_S = 5.0


def interval_s(age_s: float) -> float:
    return min(LAST_INTERVAL_S, max(FIRST_INTERVAL_S, age_s / 60))


class Pacer:
    """Calls `flush` from a thread of its own: at the pace when there is news, at once when the news
    is urgent.
    """

    def __init__(self, flush: Callable[[], None], name: str) -> None:
        self._flush = flush
        self._condition = threading.Condition()
        self._news = self._urgent = self._closed = False
        self._born_s = time.monotonic()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def error(self) -> Exception | None:
        """What made `flush` fail; nothing is flushed after it."""
        return self._error

    def poke(self, *, urgent: bool = False) -> None:
        with self._condition:
            self._news = True
            self._urgent = self._urgent or urgent
            self._condition.notify()

    def close(self) -> None:
        """Flush what is left and end the thread. Raises what `flush` raised."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while self._wait():
                self._flush()
            self._flush()
        except Exception as error:
            self._error = error

    def _wait(self) -> bool:
        """Until a flush is due; False when this was the last one."""
        with self._condition:
            self._condition.wait_for(lambda: self._news or self._closed)
            pause = interval_s(time.monotonic() - self._born_s)
            self._condition.wait_for(lambda: self._urgent or self._closed, timeout=pause)
            self._news = self._urgent = False
            return not self._closed
