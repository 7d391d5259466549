"""How often an attempt writes small news to storage: often while it is young, rarely when it is
old; and how it goes on when the storage refuses.

An object store has no append, so each flush is an object. From every 0.5 s to every 5 s keeps a
young job lively and a ten-hour job below eight thousand objects. Urgent news (started, checkpoint,
ended) does not wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from dovetail_workers.storage.protocol import StorageError

FIRST_INTERVAL_S = 0.5
LAST_INTERVAL_S = 5.0
FIRST_PAUSE_S = 1.0  # after a refusal of the storage
LAST_PAUSE_S = 30.0


def interval_s(age_s: float) -> float:
    return min(LAST_INTERVAL_S, max(FIRST_INTERVAL_S, age_s / 60))


def pauses_s() -> Iterator[float]:
    """Between one try and the next at a storage that refuses: 1 s, 2 s, 4 s, … 30 s, 30 s, …"""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LAST_PAUSE_S)


class Pacer:
    """Calls `flush` from a thread of its own: at the pace when there is news, at once when the news
    is urgent, and again after a pause when it raised StorageError. `on_broken` gets anything else
    that it raises; then nothing is flushed any more.
    """

    def __init__(
        self, flush: Callable[[], None], on_broken: Callable[[Exception], None], name: str
    ) -> None:
        self._flush, self._on_broken = flush, on_broken
        self._condition = threading.Condition()
        self._news = self._urgent = self._closed = self._abandoned = False
        self._give_up_at_s = float("inf")
        self._born_s = time.monotonic()
        self._refusal: StorageError | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def refusal(self) -> StorageError | None:
        """Why the storage refused the last try; None when it took it."""
        return self._refusal

    def poke(self, *, urgent: bool = False) -> None:
        with self._condition:
            self._news = True
            self._urgent = self._urgent or urgent
            self._condition.notify()

    def close(self, patience_s: float) -> None:
        """Flush what is left, try for `patience_s` when the storage refuses, and end the thread.

        Raises what `flush` raised last.
        """
        with self._condition:
            self._closed = True
            self._give_up_at_s = time.monotonic() + patience_s
            self._condition.notify()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """End the thread; what was not flushed is dropped."""
        with self._condition:
            self._closed = self._abandoned = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                self._persist()
            if not self._abandoned:
                self._persist()
        except Exception as error:
            self._error = error
            if not isinstance(error, StorageError):
                self._on_broken(error)

    def _wait(self) -> bool:
        """Until a flush is due; False when this was the last one."""
        with self._condition:
            self._condition.wait_for(lambda: self._news or self._closed)
            pause = interval_s(time.monotonic() - self._born_s)
            self._condition.wait_for(lambda: self._urgent or self._closed, timeout=pause)
            self._news = self._urgent = False
            return not self._closed

    def _persist(self) -> None:
        """Flush, however often that takes; raises StorageError when a close has no more time."""
        for pause_s in pauses_s():
            try:
                self._flush()
            except StorageError as error:
                self._refusal = error
                self._pause(pause_s, error)
            else:
                self._refusal = None
                return

    def _pause(self, pause_s: float, refusal: StorageError) -> None:
        """A close ends the pause that it comes into: there is no time to lose any more."""
        with self._condition:
            was_closed = self._closed
            left_s = self._give_up_at_s - time.monotonic()
            if left_s <= 0:
                raise refusal
            self._condition.wait_for(
                lambda: self._closed and not was_closed, timeout=min(pause_s, left_s)
            )
            if self._abandoned:
                raise refusal
