"""The journal of an attempt: its reports, numbered, in storage. Nobody needs to listen while it is
written.

Segments are numbered without gaps and created, never replaced: a second writer of the same attempt
is fenced. A reader keeps the number of the next segment as its
cursor.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from dovetail_workers import keys, reports
from dovetail_workers.reports import Report
from dovetail_workers.segments import SegmentWriter
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
    """Collects reports and writes them as segments; `on_written` is called after each, `on_broken`
    when no more can be written.
    """

    def __init__(
        self,
        storage: Storage,
        job_id: str,
        attempt: int,
        *,
        on_written: Callable[[], None],
        on_broken: Callable[[Exception], None],
    ) -> None:
        self._lock = threading.Lock()
        self._pending: list[Entry] = []
        self._count = 0
        self._segments = SegmentWriter(
            storage,
            partial(keys.journal_segment, job_id, attempt),
            self._take,
            on_written=on_written,
            on_broken=on_broken,
            name="journal",
        )

    def append(self, report: Report) -> None:
        with self._lock:
            self._count += 1
            self._pending.append(Entry(number=self._count, at=datetime.now(UTC), report=report))
        self._segments.poke(urgent=not isinstance(report, _CAN_WAIT))

    def close(self, patience_s: float) -> None:
        """Write what is left; raises StorageError when that was refused for `patience_s`, Fenced
        when another writer came first.
        """
        self._segments.close(patience_s)

    def abandon(self) -> None:
        """Write nothing more."""
        self._segments.abandon()

    def _take(self) -> bytes:
        with self._lock:
            entries, self._pending = self._pending, []
        return b"".join(_line(entry) for entry in entries)


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
    """Segments from number `next_segment` on that exist by now, each with its number.

    Where the bytes of a segment are no report, JournalDamaged stands in place of its rest.
    """
    while True:
        try:
            data = storage.get(keys.journal_segment(job_id, attempt, next_segment))
        except KeyNotFound:
            return
        yield next_segment, list(_entries(data, next_segment))
        next_segment += 1


def _entries(data: bytes, segment: int) -> Iterator[Entry]:
    number, whole = 0, 0
    try:
        for line in data.splitlines(keepends=True):
            entry = _entry(line)
            number, whole = entry.number, whole + 1
            yield entry
        if not data:
            raise ValueError("it is empty")
    except ValueError as error:
        damaged = reports.JournalDamaged(segment=segment, whole=whole, cause=str(error))
        yield Entry(number=number + 1, at=datetime.now(UTC), report=damaged)


def _line(entry: Entry) -> bytes:
    value = {"n": entry.number, "at": entry.at.isoformat(), "report": reports.to_json(entry.report)}
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _entry(line: bytes) -> Entry:
    """Raises ValueError for what is no whole entry."""
    if not line.endswith(b"\n"):
        raise ValueError("its last line is cut off")
    value = json.loads(line)
    match value:
        case {"n": int(number), "at": str(at), "report": {} as report}:
            when = datetime.fromisoformat(at)
            return Entry(number=number, at=when, report=reports.from_json(report))
        case _:
            raise ValueError("a line is no numbered report")
