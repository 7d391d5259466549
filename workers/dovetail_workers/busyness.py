"""How busy an attempt keeps its processors while it trains: what it would with nobody beside it.

A thread computes, waits for a processor that others have, or waits for something else: its disk,
its data, its neighbours' memory. Of the first two, only the first would be there alone, so

    busy = computed / (threads * elapsed - waited for a processor)

The kernel counts both: `utime + stime` of a process, and the second figure of a thread's
`schedstat` (proc(5), Documentation/scheduler/sched-stats). Processes that come and go between two
looks are missed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from pathlib import Path

import psutil

from dovetail_workers.reports import Busy, Report

FIRST_S = 5.0  # of training, before anything is said
EVERY_S = 10.0
NEWS = 0.02  # less of a change is not worth a report
_PROC = Path("/proc")
_NS = 1e-9


class Busyness:
    """`look` is called with the attempt's processes again and again, `begin` when it trains;
    `report` hears how busy it is, on the average so far. `threads` are those that it may use.
    """

    def __init__(
        self,
        threads: int,
        report: Callable[[Report], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threads, self._report, self._clock = threads, report, clock
        self._trains = False
        self._began_s: float | None = None
        self._told_s, self._told = -EVERY_S, -1.0
        self._computed = _Sum()
        self._waited = _Sum()

    def begin(self) -> None:
        self._trains = True

    def look(self, pids: Collection[int]) -> None:
        if not self._trains:
            return
        now_s = self._clock()
        self._computed.take(dict(filter(None, map(_computed_s, pids))))
        self._waited.take({thread: s for pid in pids for thread, s in _waited_s(pid)})
        if self._began_s is None:
            self._began_s = now_s
        elapsed_s = now_s - self._began_s
        if elapsed_s < FIRST_S or now_s - self._told_s < EVERY_S:
            return
        share = busy(self._computed.total, self._waited.total, elapsed_s, self._threads)
        if abs(share - self._told) >= NEWS:
            self._told, self._told_s = share, now_s
            self._report(Busy(share=share))


def busy(computed_s: float, waited_s: float, elapsed_s: float, threads: int) -> float:
    """From 0 to 1."""
    could_s = max(threads * elapsed_s - waited_s, computed_s)
    return min(1.0, round(computed_s / could_s, 3)) if could_s > 0 else 0.0


class _Sum:
    """Of counters that only rise, over all that ever were there, from the first look on."""

    def __init__(self) -> None:
        self.total = 0.0
        self._last: dict[tuple[int, ...], float] | None = None

    def take(self, counters: dict[tuple[int, ...], float]) -> None:
        last = self._last
        if last is not None:
            risen = (value - last.get(name, 0.0) for name, value in counters.items())
            self.total += sum(rise for rise in risen if rise > 0)
        self._last = {**(last or {}), **counters}


def _computed_s(pid: int) -> tuple[tuple[int, ...], float] | None:
    """None for a process that is gone."""
    with contextlib.suppress(psutil.Error):
        spent = psutil.Process(pid).cpu_times()
        return (pid,), spent.user + spent.system
    return None


def _waited_s(pid: int) -> list[tuple[tuple[int, int], float]]:
    """By thread; empty where the kernel does not count it."""
    found = []
    with contextlib.suppress(OSError):
        for thread in (_PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError, IndexError, ValueError):
                waited_ns = int((thread / "schedstat").read_text().split()[1])
                found.append(((pid, int(thread.name)), waited_ns * _NS))
    return found
