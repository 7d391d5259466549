"""How the cluster's devices are shared now, and how they were over the last hours: written by the
daemon, read by the use cases. In memory only.

Time is counted by a clock that nobody sets. The wall clock is read once, when the history begins,
and moments are shown from there: one that is set meanwhile neither empties the history nor mixes
it up.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta

from dovetail.cluster.protocol import DevicesSeen
from dovetail_workers.shared_device import DeviceShares

KEPT = timedelta(hours=2)
MOST_SAMPLES = 7200  # of a device: one each second


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What an attempt had leased and held at a moment; pages of files are part of the resident."""

    attempt_id: str
    lease_bytes: int
    resident_bytes: int | None
    file_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """It was so from `at` until the next one."""

    at: datetime
    jobs: tuple[Held, ...]


Place = tuple[str, str]  # node id and device


class SharedDevices:
    """Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began: tuple[datetime, float] | None = None
        self._now: dict[Place, DeviceShares] = {}
        self._samples: dict[Place, deque[Sample]] = {}

    def saw(self, event: DevicesSeen, now: datetime, counted_s: float) -> None:
        """`now` is the wall clock's, `counted_s` the monotonic clock's."""
        with self._lock:
            at = self._at(now, counted_s)
            for shares in event.devices:
                place = (event.node_id, shares.device)
                self._now[place] = shares
                self._note(place, shares, at)

    def lost(self) -> None:
        """Nobody knows how they are shared; what was is kept."""
        with self._lock:
            self._now.clear()

    def now(self, node_id: str, device: str) -> DeviceShares | None:
        """None for a device of which nothing was heard."""
        with self._lock:
            return self._now.get((node_id, device))

    def samples(self, node_id: str, device: str) -> tuple[Sample, ...]:
        """Oldest first."""
        with self._lock:
            return tuple(self._samples.get((node_id, device), ()))

    def at(self, now: datetime, counted_s: float) -> datetime:
        """A moment as the samples have it."""
        with self._lock:
            return self._at(now, counted_s)

    def _at(self, now: datetime, counted_s: float) -> datetime:
        if self._began is None or not any(self._samples.values()):
            self._began = (now, counted_s)
        began_at, began_s = self._began
        return began_at + timedelta(seconds=counted_s - began_s)

    def _note(self, place: Place, shares: DeviceShares, at: datetime) -> None:
        kept = self._samples.setdefault(place, deque(maxlen=MOST_SAMPLES))
        jobs = tuple(
            Held(
                attempt_id=share.job,
                lease_bytes=share.lease_bytes,
                resident_bytes=share.resident_bytes,
                file_bytes=share.file_bytes,
            )
            for share in shares.jobs
        )
        if jobs or (kept and kept[-1].jobs):
            kept.append(Sample(at=at, jobs=jobs))
        while kept and at - kept[0].at > KEPT:
            kept.popleft()
