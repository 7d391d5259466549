"""Text to numbers and back, in one place: bytes are `int`, seconds are `float`, everywhere else."""

from __future__ import annotations

import re
from decimal import Decimal

_BYTES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(min|[smhd])\s*")


def parse_bytes(value: object) -> int:
    """`"4GiB"`, `"500 MB"`, `"1048576"` or an int, as bytes; ValueError with the rule otherwise."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError("must not be negative")
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    unit = _BYTES.get(match[2].lower()) if match is not None else None
    if match is None or unit is None or (unit == 1 and "." in match[1]):
        raise ValueError("must be a size such as 4GiB, 500MB or plain bytes")
    return int(Decimal(match[1]) * unit)


def parse_seconds(value: object) -> float:
    """`"2h"`, `"1h 30m"`, `"45s"` or a number of seconds; ValueError with the rule otherwise."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < 1e300 else float("inf")
    else:
        text = value.strip() if isinstance(value, str) else ""
        parts = _DURATION.findall(text)
        if not parts or _DURATION.sub("", text):
            raise ValueError("must be a duration such as 2h, 30m, 45s or 1h30m")
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not 0 < seconds < float("inf"):
        raise ValueError("must be longer than 0 s and finite")
    return seconds


def format_bytes(count: int) -> str:
    """Binary units with at most one decimal: `4GiB`, `1.5MiB`, `512B`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.1f}".rstrip("0").rstrip(".") + unit
        size /= 1024
    return f"{size:.1f}".rstrip("0").rstrip(".") + "TiB"


def at_least(count: int) -> str:
    """The same, rounded up: as many bytes as that are enough."""
    unit = 2 ** (10 * min(4, max(0, count.bit_length() - 1) // 10))
    tenths = -(-count * 10 // unit)
    return format_bytes(-(-tenths * unit // 10))


def format_seconds(seconds: float) -> str:
    """`45s`, `3m05s`, `2h07m`: two units at most."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
