"""Text to numbers and back, in one place: bytes are `int`, seconds are `float`, everywhere else."""

from __future__ import annotations

import re

_BYTES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(min|[smhd])\s*")


def parse_bytes(value: int | str) -> int:
    """`"4GiB"`, `"500 MB"`, `"1048576"` or an int, as bytes; ValueError with the rule otherwise."""
    if isinstance(value, bool):
        raise ValueError("expected a size such as 4GiB")
    if isinstance(value, int):
        if value < 0:
            raise ValueError("a size cannot be negative")
        return value
    match = _QUANTITY.fullmatch(value)
    if match is None or match[2].lower() not in _BYTES:
        raise ValueError("expected a size such as 4GiB, 500MB or plain bytes")
    return int(float(match[1]) * _BYTES[match[2].lower()])


def parse_seconds(value: float | str) -> float:
    """`"2h"`, `"1h 30m"`, `"45s"` or a number of seconds; ValueError with the rule otherwise."""
    if isinstance(value, bool):
        raise ValueError("expected a duration such as 2h")
    if isinstance(value, int | float):
        if value <= 0:
            raise ValueError("a duration must be positive")
        return float(value)
    text = value.strip()
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text):
        raise ValueError("expected a duration such as 2h, 30m, 45s or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def format_bytes(count: int) -> str:
    """Binary units with at most one decimal: `4GiB`, `1.5MiB`, `512B`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.1f}".rstrip("0").rstrip(".") + unit
        size /= 1024
    return f"{size:.1f}".rstrip("0").rstrip(".") + "TiB"


def format_seconds(seconds: float) -> str:
    """`45s`, `3m05s`, `2h07m`: two units at most."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
