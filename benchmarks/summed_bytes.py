"""What the processes of several jobs hold together, sampled from outside while a block runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dovetail_workers.process_tree import pids_by_attempt
from tensile import resident

EVERY_S = 0.05
LOOK_EVERY_S = 0.5  # for processes that are new


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Resident bytes of each job at a time of the monotonic clock."""

    at_s: float
    resident_bytes: Mapping[str, int]


class AttemptBytes:
    """What every attempt (`<job>.<n>`) of this machine holds now, by the system's count."""

    def __init__(self) -> None:
        self._pids: dict[str, list[int]] = {}
        self._looked_s = -LOOK_EVERY_S

    def __call__(self) -> dict[str, int]:
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._pids, self._looked_s = pids_by_attempt(), now_s
        return {
            attempt_id: sum(found.total_bytes for pid in mine if (found := resident.measure(pid)))
            for attempt_id, mine in self._pids.items()
        }


class SummedBytes:
    """Samples what `look` answers, by name: every attempt of this machine, if nothing else is
    asked for.
    """

    def __init__(self, look: Callable[[], Mapping[str, int]] | None = None) -> None:
        self.moments: list[Moment] = []
        self._look = look or AttemptBytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="samples")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def peak_bytes(self, base_bytes: Mapping[str, int]) -> int:
        """The highest sum of what the attempts in `base_bytes` held, each over its bare process."""
        sums = (
            sum(
                max(0, held_bytes - base_bytes[attempt_id])
                for attempt_id, held_bytes in moment.resident_bytes.items()
                if attempt_id in base_bytes
            )
            for moment in self.moments
        )
        return max(sums, default=0)

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            now_s = time.monotonic()
            self.moments.append(Moment(at_s=now_s, resident_bytes=self._look()))
