"""How commands speak: data on stdout, talk on stderr; tables are plain aligned text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from dovetail_jobs.units import format_seconds

Json = dict[str, Any]


def say(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    for line in table_lines(header, rows):
        print(line)


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as their longest cell; empty cells show as `-`."""
    lines = [list(header), *([cell or "-" for cell in row] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """One `label  text` per line, without the facts that are empty."""
    known = [(label, text) for label, text in facts if text]
    width = max((len(label) for label, _ in known), default=0)
    for label, text in known:
        print(f"{label.ljust(width)}  {text}")


def age(moment: str) -> str:
    """How long ago an RFC 3339 time was: `3m05s`."""
    passed = datetime.now(UTC) - datetime.fromisoformat(moment)
    return format_seconds(max(0.0, passed.total_seconds()))


def words(reason: str | None) -> str:
    """A reason as a person reads it: `waiting for device`."""
    return (reason or "").replace("_", " ").lower()


def number(value: float) -> str:
    """A metric or a speed in a few digits."""
    return f"{value:.5g}"


def duration(seconds: float) -> str:
    """Seconds in a few digits; from a minute on as `3m05s`."""
    return f"{seconds:.3g}s" if seconds < 60 else format_seconds(seconds)
