"""What a figure was measured on and with, and the statistics it is quoted with."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path


def describe() -> str:
    """Processor, cores, memory, load and versions, in one line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    versions = " ".join(f"{name} {metadata.version(name)}" for name in ("torch", "ray", "dovetail"))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, load {load:.1f}; "
        f"Python {platform.python_version()} {versions}"
    )


def spread(values: Sequence[float], unit: str) -> str:
    """`median (min to max, n)`."""
    return (
        f"{statistics.median(values):.3f} {unit} "
        f"({min(values):.3f} to {max(values):.3f}, n={len(values)})"
    )


def interval(values: Sequence[float], form: str = ".2f") -> str:
    """`median (least–most)`, for a table."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


def median_ci(values: Sequence[float], form: str = ".2f") -> str:
    """Median, and the order statistics that have the true one between them with 95 %."""
    ranked, count = sorted(values), len(values)
    middle, spread = statistics.median(ranked), 0.98 * count**0.5
    low = ranked[max(math.floor(count / 2 - spread), 0)]
    high = ranked[min(math.ceil(count / 2 + spread), count - 1)]
    return f"{middle:{form}} ({low:{form}}–{high:{form}})".replace("( ", "(")
