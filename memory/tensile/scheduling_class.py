"""A process that computes only where nobody else wants to: Linux's idle scheduling class.

Going there is free to everybody, but coming back is not (`sched(7)`: RLIMIT_NICE or CAP_SYS_NICE),
so a thread that is made for it tries both first. Threads that are made meanwhile, and processes
that are forked, are of the class of whoever makes them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_NO_PRIORITY = os.sched_param(0)  # the only one that these classes have


def can_return() -> bool:
    """Whether a thread of this process that has become idle may leave that class again."""
    found: list[bool] = []

    def there_and_back() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, _NO_PRIORITY)
            os.sched_setscheduler(0, os.SCHED_OTHER, _NO_PRIORITY)
        except OSError:
            found.append(False)
        else:
            found.append(True)

    thread = threading.Thread(target=there_and_back, name="tensile probe")
    thread.start()
    thread.join()
    return found == [True]


class Yielding:
    """This process, among others on its processors."""

    def __init__(self) -> None:
        self.yields = False
        self._can_return: bool | None = None

    def be(self, yields: bool) -> str | None:
        """From now on all threads of this process are idle, or none of those that this made so.
        Where they could not come back they never go, and a sentence says so.
        """
        if yields == self.yields or (yields and os.sched_getscheduler(0) != os.SCHED_OTHER):
            return None  # it is so already, or somebody else has chosen a class for it
        if yields and self._can_return is None:
            self._can_return = can_return()
        if yields and not self._can_return:
            return (
                "a job of a higher priority is on the device and this one computes beside it all "
                "the same: the system would not let it leave the idle class again (RLIMIT_NICE of "
                "20 or CAP_SYS_NICE would)"
            )
        self.yields = yields
        before, after = os.SCHED_OTHER, os.SCHED_IDLE
        if not yields:
            before, after = after, before
        while sum(_moved(thread, before, after) for thread in _threads()):
            continue  # one of them may have made another meanwhile
        return None


def _threads() -> Iterator[int]:
    for entry in Path("/proc/self/task").iterdir():
        yield int(entry.name)


def _moved(thread: int, before: int, after: int) -> bool:
    with suppress(ProcessLookupError):  # it ended
        if os.sched_getscheduler(thread) == before:
            os.sched_setscheduler(thread, after, _NO_PRIORITY)
            return True
    return False
