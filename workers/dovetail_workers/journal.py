"""The journal of an attempt: its reports, numbered, in storage. Nobody needs to listen while it is
written.

Segments are numbered without gaps and created, never replaced: a second writer of the same attempt
meets KeyExists and knows that it is fenced. A reader keeps the number of the next segment as its
cursor.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dovetail_workers import keys, reports
from dovetail_workers.pace import Pacer
from dovetail_workers.reports import Report
from dovetail_workers.storage.protocol import KeyNotFound, Storage

_CAN_WAIT = (reports.Progress, reports.Metrics, reports.MemoryUsed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One report as it stands in the journal: `number` counts from 1 within the attempt, `at` is
    the worker's clock.
    """

    number: int
    at: datetime
    report: Report


class JournalWriter:
    """Collects reports and writes them as segments; `on_written` is called after each."""

    def __init__(
        self, storage: Storage, job_id: str, attempt: int, on_written: Callable[[], None]
    ) -> None:
        self._storage = storage
        self._job_id, self._attempt = job_id, attempt
        self._on_written = on_written
        self._lock = threading.Lock()
        self._pending: list[Entry] = []
        self._count = self._segments = 0
        self._pacer = Pacer(self._flush, name="journal")

    @property
    def error(self) -> Exception | None:
        return self._pacer.error

    def append(self, report: Report) -> None:
        with self._lock:
            self._count += 1
            self._pending.append(Entry(number=self._count, at=datetime.now(UTC), report=report))
        self._pacer.poke(urgent=not isinstance(report, _CAN_WAIT))

    def close(self) -> None:
        """Write what is left; raises StorageError when the storage refused."""
        self._pacer.close()

    def _flush(self) -> None:
        with self._lock:
            entries, self._pending = self._pending, []
        if not entries:
            return
        self._segments += 1
        write_segment(self._storage, self._job_id, self._attempt, self._segments, entries)
        self._on_written()


def write_segment(
    storage: Storage, job_id: str, attempt: int, number: int, entries: Sequence[Entry]
) -> None:
    """Create segment `number` (from 1); raises KeyExists when another writer of this
    attempt did.
    """
    key = keys.journal_segment(job_id, attempt, number)
    storage.create(key, b"".join(_line(entry) for entry in entries))


def read_segments(
    storage: Storage, job_id: str, attempt: int, next_segment: int
) -> Iterator[tuple[int, list[Entry]]]:
    """Segments from number `next_segment` on that exist by now, each with its number."""
    while True:
        try:
            data = storage.get(keys.journal_segment(job_id, attempt, next_segment))
        except KeyNotFound:
            return
        yield next_segment, [_entry(line) for line in data.splitlines()]
        next_segment += 1


def _line(entry: Entry) -> bytes:
    value = {"n": entry.number, "at": entry.at.isoformat(), "report": reports.to_json(entry.report)}
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _entry(line: bytes) -> Entry:
    value = json.loads(line)
    return Entry(
        number=value["n"],
        at=datetime.fromisoformat(value["at"]),
        report=reports.from_json(value["report"]),
    )
