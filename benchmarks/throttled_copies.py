"""A copy channel of a known speed, shared by all processes of a device. Simulated: it stands for a
GPU whose jobs all copy over one link, where copies and not arithmetic decide how long a step takes.

A copy is really made, and ends when the channel has had the time for it: one after the other in
each direction, whoever asks. The queue is a file with the moment at which the channel is free.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PIECE_BYTES = 2**20  # what one job copies before another one's turn
_FREE_AT = struct.Struct("<d")


class SharedChannel:
    """One direction. `path` is the same file for all of its processes; `clock` one clock of the
    machine.
    """

    def __init__(
        self, path: Path, bytes_per_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock = clock
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._guard = threading.Lock()  # a file's lock does not part the threads of a process

    def reserve(self, size_bytes: int) -> float:
        """The moment at which so many bytes are through, behind all that were asked before."""
        with self._guard:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                before = os.pread(self._descriptor, _FREE_AT.size, 0)
                free_at_s = _FREE_AT.unpack(before)[0] if before else 0.0
                end_s = max(free_at_s, self._clock()) + size_bytes / self.bytes_per_s
                os.pwrite(self._descriptor, _FREE_AT.pack(end_s), 0)
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return end_s

    def wait_until(self, moment_s: float) -> None:
        """The copy itself takes no time in a simulated channel, so its end is waited for."""
        time.sleep(max(0.0, moment_s - self._clock()))


def throttle(folder: Path, bytes_per_s: float) -> None:
    """From here on every session of this process copies at most so fast, in each direction,
    together with all processes that name the same `folder`.
    """
    from tensile import cpu_device, session
    from tensile.lasting_file import LastingFile
    from tensile.residency import Residency
    from tensile.swap_file import SwapFile

    out = SharedChannel(folder / "out", bytes_per_s)
    back = SharedChannel(folder / "in", bytes_per_s)

    class ThrottledSwapFile(SwapFile):
        def _put(self, piece: memoryview, offset: int) -> None:
            for start in range(0, piece.nbytes, _PIECE_BYTES):
                part = piece[start : start + _PIECE_BYTES]
                end_s = out.reserve(part.nbytes)
                super()._put(part, offset + start)
                out.wait_until(end_s)

        def _get(self, target: memoryview, offset: int) -> None:
            for start in range(0, target.nbytes, _PIECE_BYTES):
                part = target[start : start + _PIECE_BYTES]
                end_s = back.reserve(part.nbytes)
                super()._get(part, offset + start)
                back.wait_until(end_s)

    class ThrottledLastingFile(LastingFile):
        def fetch(self, storage: Any, *, writes: bool) -> None:  # type: ignore[override]
            for start in range(0, storage.nbytes(), _PIECE_BYTES):
                end_s = back.reserve(min(_PIECE_BYTES, storage.nbytes() - start))
                back.wait_until(end_s)
            super().fetch(storage, writes=writes)

    class ThrottledResidency(Residency):
        def evict(self, name: str, *, dirty: bool = True) -> int:
            """Its pages leave at once; what was written to them takes the channel's time, which
            whoever copies next waits for.
            """
            before_bytes = self._counters.swapped_out_bytes
            size_bytes = super().evict(name, dirty=dirty)
            if self._counters.swapped_out_bytes > before_bytes:
                out.reserve(self._counters.swapped_out_bytes - before_bytes)
            return size_bytes

    cpu_device.SwapFile = ThrottledSwapFile  # type: ignore[misc]
    cpu_device.LastingFile = ThrottledLastingFile  # type: ignore[misc]
    session.Residency = ThrottledResidency  # type: ignore[misc]
