"""Looks at the processes of an attempt again and again, for those who measure them."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Sequence

import psutil

LOOK_S = 0.5
AGAIN_S = 0.2  # while there is a suspicion

Look = Callable[[Sequence[int]], None]


class AttemptWatch:
    """Every process that this one started, or adopted, is the attempt's. `looks` are called with
    their pids, in a thread of its own, until `close`; more often while one of them `suspects`
    something.
    """

    def __init__(self, *looks: Look, suspects: Callable[[], bool] = lambda: False) -> None:
        self._looks, self._suspects = looks, suspects
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        me = psutil.Process()
        while not self._closed.wait(AGAIN_S if self._suspects() else LOOK_S):
            pids = [child.pid for child in me.children(recursive=True)]
            for look in self._looks:
                try:
                    look(pids)
                except Exception:  # the attempt goes on, whoever fails to measure it
                    traceback.print_exc(file=sys.stderr)
