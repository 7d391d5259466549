"""For Python scripts: say where the run is, keep checkpoints, find the newest again.

    from dovetail_workers import reporter

    if folder := reporter.resume_folder():
        model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    reporter.report(step=10, steps=100, metrics={"loss": 0.3})
    folder = reporter.new_folder("step-10")
    torch.save(model.state_dict(), folder / "model.pt")
    reporter.checkpoint(step=10, folder=folder)

It imports nothing but the standard library. Run by hand, without Dovetail, it says nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def report(
    *,
    step: int,
    steps: int | None = None,
    metrics: Mapping[str, float] | None = None,
    samples_per_s: float | None = None,
    phase: str = "train",
) -> None:
    """Progress after `step` optimizer steps, and metrics measured there."""
    line: dict[str, Any] = {"step": step, "phase": phase}
    if steps is not None:
        line["steps"] = steps
    if samples_per_s is not None:
        line["samples_per_s"] = samples_per_s
    if metrics:
        line["metrics"] = {name: float(value) for name, value in metrics.items()}
    _append(line)


def new_folder(name: str) -> Path:
    """An empty folder to write a checkpoint into; a temporary one without Dovetail."""
    root = os.environ.get("DOVETAIL_CHECKPOINTS") or tempfile.mkdtemp(prefix="checkpoint-")
    folder = Path(root) / name
    folder.mkdir(parents=True)
    return folder


def checkpoint(*, step: int, folder: str | Path) -> None:
    """Hand over a folder that is whole; it is stored, and comes back as `resume_folder`."""
    _append({"step": step, "checkpoint": str(Path(folder).absolute())})


def resume_folder() -> Path | None:
    """The newest checkpoint's folder; None for a run from the beginning."""
    folder = os.environ.get("DOVETAIL_RESUME")
    return Path(folder) if folder else None


def _append(line: dict[str, Any]) -> None:
    pipe = os.environ.get("DOVETAIL_REPORTS")
    if pipe is not None:
        with open(pipe, "ab", buffering=0) as reports:
            reports.write(json.dumps(line).encode() + b"\n")
