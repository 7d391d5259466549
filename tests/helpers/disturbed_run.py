"""A small training job that is disturbed in mid-run, and the proof that its numbers are those of
the same job left alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.attempts import wait_for
from helpers.installation import Installation

RUN = (
    "--set", "params.batch_size=32", "--set", "train.steps=40",
    "--set", "train.schedule.warmup_steps=2", "--set", "train.checkpoint.every=10",
    "--set", "train.checkpoint.keep=9", "--set", "train.validate.every=20",
)  # fmt: skip


def at_step(dovetail: Installation, job: Any, step: int) -> Any:
    """The job once it has a checkpoint of that step or a later one."""
    return wait_for(
        f"a checkpoint of step {step}",
        lambda: (
            (found := dovetail.json("show", job["id"]))["checkpoints"]
            and found["checkpoints"][-1]["step"] >= step
            and found
        ),
    )


def assert_as_undisturbed(dovetail: Installation, job: Any, undisturbed: Any) -> None:
    """The same metrics, curves and parameters, to the bit."""
    assert job["state"] == "SUCCEEDED", job["message"]
    assert job["metrics"] == undisturbed["metrics"]
    assert _curve(dovetail, job) == _curve(dovetail, undisturbed)
    here, there = _parts(job), _parts(undisturbed)
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    assert not differing, f"parts of the last checkpoint that differ: {differing}"


def _curve(dovetail: Installation, job: Any) -> dict[tuple[str, str, int], float]:
    return {
        (point["metric"], point["phase"], point["step"]): point["value"]
        for point in dovetail.points(job["id"])
    }


def _parts(job: Any) -> dict[str, str]:
    """The sha256 of every part of the last checkpoint."""
    manifest = json.loads((Path(job["checkpoints"][-1]["uri"]) / "manifest.json").read_text())
    return {name: part["sha256"] for name, part in manifest["parts"].items()}
