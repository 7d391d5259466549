"""The reports pipe (`$DOVETAIL_REPORTS`): a named pipe that any program appends JSON lines to, in
any language.

A line is a typed report (`reports.py`) or the short form `{"step": 10, "steps": 100, "metrics":
{"loss": 0.3}}`, with `"checkpoint": "folder"` for a folder that the program has written.
"""

from __future__ import annotations

import json
import math
import os
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dovetail_workers import reports
from dovetail_workers.reports import (
    CheckpointFolder,
    Ended,
    JournalDamaged,
    Metrics,
    Progress,
    Report,
)

MAX_LINE_BYTES = 1 << 20
_NOT_THE_PROGRAMS = (Ended.type, JournalDamaged.type)


class ReportInbox:
    """Reads the pipe in a thread; `accept` gets each report, `complain` a sentence for each line
    that is none.
    """

    def __init__(
        self, path: Path, accept: Callable[[Report], None], complain: Callable[[str], None]
    ) -> None:
        os.mkfifo(path, 0o600)
        # Held for writing too, so that the pipe stays open while no program has it open.
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._stop_read, self._stop_write = os.pipe()
        self._accept, self._complain = accept, complain
        self._buffer = b""
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Read what is still in the pipe, then end. Call it when no writer is left."""
        os.write(self._stop_write, b"x")
        self._thread.join()
        for descriptor in (self._pipe, self._stop_read, self._stop_write):
            os.close(descriptor)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            ready, _, _ = select.select([self._pipe, self._stop_read], [], [])
            stopping = self._stop_read in ready
            self._drain()
        if self._buffer:
            self._line(self._buffer)

    def _drain(self) -> None:
        while True:
            try:
                data = os.read(self._pipe, 1 << 16)
            except BlockingIOError:
                return
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                self._line(line)
            if len(self._buffer) > MAX_LINE_BYTES:
                self._complain(f"a report line of over {MAX_LINE_BYTES} bytes was dropped")
                self._buffer = b""

    def _line(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            for report in parse_line(line):
                self._accept(report)
        except Exception as error:  # whatever a program writes, its next reports are read
            shown = line[:200].decode(errors="replace")
            self._complain(f"this report line was not understood: {shown} ({error})")


def parse_line(line: bytes) -> list[Report]:
    """The reports in one line; ValueError with the rule it breaks."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("a report is a JSON object")
    if "type" in value:
        if value["type"] in _NOT_THE_PROGRAMS:
            raise ValueError(f"{value['type']} is not a program's to say")
        return [reports.from_json(value)]
    unknown = set(value) - {"step", "steps", "phase", "metrics", "samples_per_s", "checkpoint"}
    if unknown:
        raise ValueError(f"unknown key {', '.join(sorted(unknown))}")
    step = value.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError("step must be a whole number from 0 on")
    return list(_short_form(value, step))


def _short_form(value: dict[str, Any], step: int) -> Iterator[Report]:
    phase = value.get("phase", "train")
    progress: dict[str, Any] = {
        key: value[key] for key in ("steps", "samples_per_s") if key in value
    }
    yield reports.from_json({"type": Progress.type, "step": step, "phase": phase, **progress})
    if metrics := value.get("metrics"):
        if not isinstance(metrics, dict):
            raise ValueError("metrics must be names with numbers")
        for name, number in metrics.items():
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise ValueError(f"metrics.{name} must be a finite number")
        values = {name: float(number) for name, number in metrics.items()}
        yield reports.from_json(
            {"type": Metrics.type, "step": step, "values": values, "phase": phase}
        )
    if "checkpoint" in value:
        yield CheckpointFolder(step=step, path=str(value["checkpoint"]))
