"""The log of an attempt: what its program printed, as numbered segments in storage, whole to the
last line.

Bytes are kept as they came, except that the values of the job's secrets are masked. An offset
counts bytes from the start of the attempt's log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dovetail_workers import keys
from dovetail_workers.pace import Pacer
from dovetail_workers.storage.protocol import Storage

MASK = b"[secret]"
_TAIL_BYTES = 2000


class LogWriter:
    """Collects output and writes it as segments; `tee` gets every masked piece, `on_written`
    follows each segment.
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
    ) -> None:
        self._storage = storage
        self._job_id, self._attempt = job_id, attempt
        self._secrets = sorted((s.encode() for s in secrets if s), key=len, reverse=True)
        self._tee, self._on_written = tee, on_written
        self._lock = threading.Lock()
        self._held = b""
        self._pending: list[bytes] = []
        self._tail = b""
        self._segments = 0
        self._pacer = Pacer(self._flush, name="log")

    @property
    def error(self) -> Exception | None:
        return self._pacer.error

    def write(self, data: bytes) -> None:
        """Take output; an unfinished line is held back only while secrets could straddle
        the cut.
        """
        with self._lock:
            data = self._held + data
            cut = len(data)
            if self._secrets:
                cut = data.rfind(b"\n") + 1
            self._held = data[cut:]
            self._take(data[:cut])
        self._pacer.poke()

    def tail(self) -> str:
        """The last lines, for the message of a failure."""
        with self._lock:
            return self._tail.decode(errors="replace")

    def close(self) -> None:
        with self._lock:
            self._take(self._held)
            self._held = b""
        self._pacer.close()

    def _take(self, data: bytes) -> None:
        if not data:
            return
        for secret in self._secrets:
            data = data.replace(secret, MASK)
        self._pending.append(data)
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        self._tee(data)

    def _flush(self) -> None:
        with self._lock:
            data, self._pending = b"".join(self._pending), []
        if not data:
            return
        self._segments += 1
        self._storage.create(keys.log_segment(self._job_id, self._attempt, self._segments), data)
        self._on_written()


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
