"""The memory of a device over time, stacked by job: what each held, and what each might hold.

Loads matplotlib, so it is imported only where a picture is wanted.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_MIB = 2**20


def draw(history: dict[str, Any], file: Path) -> None:
    """`history` is a DeviceHistoryView as JSON with a sample or more. Axes: seconds since the
    first one, MiB. Raises OSError where `file` cannot be written.
    """
    samples = history["samples"]
    moments = [datetime.fromisoformat(each["at"]) for each in samples]
    moments.append(datetime.fromisoformat(history["until"]))
    seconds = [(moment - moments[0]).total_seconds() for moment in moments]
    names = {job["job"]: job["name"] or job["job"] for each in samples for job in each["jobs"]}
    matplotlib.rcParams["svg.hashsalt"] = "dovetail"  # equal pictures are equal files
    figure = Figure(figsize=(11, 6), layout="constrained")
    held, leased = figure.subplots(2, 1, sharex=True, sharey=True)
    labels = [f"{name} ({job})" for job, name in names.items()]
    for axes, field, title in (
        (held, "resident_bytes", "resident MiB"),
        (leased, "lease_bytes", "leased MiB"),
    ):
        _stack(axes, seconds, [_curve(samples, job, field) for job in names], labels)
        axes.axhline(history["bytes"] / _MIB, color="crimson", ls="--", label="the device")
        axes.set_ylabel(title)
        axes.margins(x=0)
    held.set_title(f"{history['node']}/{history['device']}: each job's share of its memory")
    held.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    leased.set_xlabel(f"seconds since {moments[0]:%Y-%m-%d %H:%M:%S} UTC")
    figure.savefig(file, dpi=110)


def _curve(samples: list[dict[str, Any]], job: str, field: str) -> list[float]:
    """MiB at each sample, and the last once more for its end; 0 where the job is not there."""
    values = [
        next((each[field] or 0 for each in sample["jobs"] if each["job"] == job), 0) / _MIB
        for sample in samples
    ]
    return [*values, values[-1]]


def _stack(axes: Axes, seconds: list[float], curves: list[list[float]], labels: list[str]) -> None:
    if curves:
        axes.stackplot(seconds, curves, labels=labels, step="post", alpha=0.8)
