"""The log of an attempt: what its program printed, as numbered segments in storage, whole to the
last line.

Bytes are kept as they came, except that the values of the job's secrets are masked. An offset
counts bytes from the start of the attempt's log.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from dovetail_workers import keys
from dovetail_workers.segments import SegmentWriter
from dovetail_workers.storage.protocol import Storage

MASK = b"[secret]"
OWN_WORDS = "dovetail:"  # begins the lines of a log that we wrote, not the program
HELD_BYTES = 64 * 2**20  # in memory, while the storage refuses
_TAIL_BYTES = 2000


class LogWriter:
    """Collects output and writes it as segments; `tee` gets every masked piece, `on_written`
    follows each segment, `on_broken` comes when no more can be written.

    While the storage refuses, the newest `held_bytes` are kept; the log says how many were lost.
    """

    def __init__(
        self,
        storage: Storage,
        job_id: str,
        attempt: int,
        *,
        secrets: Sequence[str],
        tee: Callable[[bytes], None],
        on_written: Callable[[], None],
        on_broken: Callable[[Exception], None],
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self._secrets = sorted((s.encode() for s in secrets if s), key=len, reverse=True)
        self._tee, self._held_bytes = tee, held_bytes
        self._lock = threading.Lock()
        self._unfinished = b""
        self._pending: deque[bytes] = deque()
        self._pending_bytes = self._lost_bytes = 0
        self._tail = b""
        self._segments = SegmentWriter(
            storage,
            partial(keys.log_segment, job_id, attempt),
            self._take,
            on_written=on_written,
            on_broken=on_broken,
            name="log",
        )

    def write(self, data: bytes) -> None:
        """Take output; an unfinished line is held back only while secrets could straddle
        the cut.
        """
        with self._lock:
            data = self._unfinished + data
            cut = len(data)
            if self._secrets:
                cut = data.rfind(b"\n") + 1
            self._unfinished = data[cut:]
            self._add(data[:cut])
        self._segments.poke()

    def say(self, text: str) -> None:
        """A line of our own words, below the line that the program is in."""
        with self._lock:
            last = (self._tail + self._unfinished)[-1:]
        begin = "" if last in (b"", b"\n") else "\n"
        # A file's name may be no text at all.
        self.write(f"{begin}{OWN_WORDS} {text}\n".encode(errors="backslashreplace"))

    def tail(self) -> str:
        """The last lines, for the message of a failure."""
        with self._lock:
            return self._tail.decode(errors="replace")

    def close(self, patience_s: float) -> None:
        """Write what is left; raises StorageError when that was refused for `patience_s`, Fenced
        when another writer came first.
        """
        with self._lock:
            self._add(self._unfinished)
            self._unfinished = b""
        self._segments.close(patience_s)

    def _add(self, data: bytes) -> None:
        if not data:
            return
        for secret in self._secrets:
            data = data.replace(secret, MASK)
        self._pending.append(data)
        self._pending_bytes += len(data)
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        self._tee(data)
        while self._segments.refused and self._pending_bytes > self._held_bytes:
            self._lost_bytes += self._drop_oldest()

    def _drop_oldest(self) -> int:
        oldest = self._pending.popleft()
        self._pending_bytes -= len(oldest)
        return len(oldest)

    def _take(self) -> bytes:
        with self._lock:
            data, lost_bytes = b"".join(self._pending), self._lost_bytes
            self._pending.clear()
            self._pending_bytes = self._lost_bytes = 0
        if not lost_bytes:
            return data
        note = f"\n{OWN_WORDS} {lost_bytes} bytes lost here: the storage refused them too long\n"
        return note.encode() + data


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Log bytes from `offset` on; `next_offset` continues where this ends."""

    offset: int
    data: bytes

    @property
    def next_offset(self) -> int:
        return self.offset + len(self.data)


def read_log(
    storage: Storage, job_id: str, attempt: int, offset: int, limit_bytes: int
) -> LogPiece:
    """At most `limit_bytes` of an attempt's log from `offset`; a negative offset counts from the
    end.
    """
    segments = list(storage.list(keys.log_prefix(job_id, attempt)))
    if offset < 0:
        offset = max(0, sum(info.bytes for info in segments) + offset)
    pieces: list[bytes] = []
    position, missing = 0, limit_bytes
    for info in segments:
        if missing > 0 and position + info.bytes > offset:
            start = max(0, offset - position)
            piece = storage.get(info.key, start, min(missing, info.bytes - start))
            pieces.append(piece)
            missing -= len(piece)
        position += info.bytes
    return LogPiece(offset, b"".join(pieces))
