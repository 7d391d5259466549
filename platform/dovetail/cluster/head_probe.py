"""Notice within seconds that Ray's head is gone. Ray itself gives a driver about a minute, and its
calls wait for all of that time, so the probe is a thread of its own that asks the head's port.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from dovetail.cluster.ray_process import answers

EVERY_S = 1.0
FAILURES = 3  # in a row


def watch_head(address: str, lost: Callable[[str], None]) -> None:
    """Call `lost` with a sentence, from another thread and once, when `host:port` has refused or
    ignored three connections in a row.
    """
    threading.Thread(target=_watch, args=(address, lost), name="head probe", daemon=True).start()


def _watch(address: str, lost: Callable[[str], None]) -> None:
    pause, failures = threading.Event(), 0
    while failures < FAILURES:
        pause.wait(EVERY_S)
        failures = 0 if answers(address) else failures + 1
    lost(f"Ray's head at {address} does not answer")
