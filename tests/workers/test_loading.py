"""What is loaded ahead is memory of the job: foreseen, planned for, and measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dovetail_jobs.errors import UserError
from dovetail_workers.rehearsal import rehearse
from helpers.loading_workload import SAMPLE_BYTES
from helpers.training import launch

TESTS = Path(__file__).parents[1]
FAMILY = "helpers.loading_workload"
SAMPLES = 512
BATCH_BYTES = SAMPLES * SAMPLE_BYTES


def asked(*, prefetch: bool, **more: Any) -> dict[str, Any]:
    params = {"batch_size": SAMPLES, "prefetch": prefetch}
    spec = launch(Path("unused"), {"steps": 6}, family=FAMILY, params=params).spec
    return {"spec": spec, **more}


def trained(folder: Path, **given: Any) -> dict[str, Any]:
    """What a process of its own used to train on batches that are loaded ahead."""
    spec = {"params": {"batch_size": SAMPLES, "prefetch": True}, **given}
    done = subprocess.run(
        [sys.executable, "-m", FAMILY, str(folder), json.dumps(spec)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=True,
    )
    used: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return used


@pytest.fixture(scope="module")
def forecast() -> dict[str, Any]:
    found: dict[str, Any] = rehearse(asked(prefetch=True))["forecast"]
    return found


def test_a_batch_ahead_is_a_class_of_the_forecast(forecast: dict[str, Any]) -> None:
    without = rehearse(asked(prefetch=False))["forecast"]
    assert "loader" not in without["by_class"]
    assert abs(forecast["by_class"].pop("loader") - BATCH_BYTES) < 2**13
    assert forecast["by_class"] == without["by_class"]
    for size in ("peak_bytes", "floor_bytes"):
        assert abs(forecast[size] - without[size] - BATCH_BYTES) < 2**23, size
    with pytest.raises(UserError, match="below the floor"):
        rehearse(asked(prefetch=True, budget=without["peak_bytes"]))


@pytest.mark.long
def test_a_job_that_loads_ahead_takes_what_was_foreseen(
    forecast: dict[str, Any], tmp_path: Path
) -> None:
    used = trained(tmp_path)
    assert abs(used["peak_bytes"] - forecast["peak_bytes"]) < 0.1 * forecast["peak_bytes"]


@pytest.mark.long
def test_a_job_that_loads_ahead_keeps_a_budget_at_its_floor(
    forecast: dict[str, Any], tmp_path: Path
) -> None:
    used = trained(tmp_path, policy="tensile", budget=forecast["floor_bytes"])
    assert used["forecast_bytes"] == forecast["peak_bytes"]
    assert BATCH_BYTES * 2 < used["peak_bytes"] <= 1.05 * forecast["floor_bytes"]
