"""What a submission and a dry run are told of the memory that the job will take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dovetail.service.forecasts import Forecasts
from dovetail.service.outlooks import Foreseen, Outlooks
from dovetail_jobs.errors import UserError
from dovetail_jobs.load import load_data
from dovetail_jobs.spec import JobSpec
from helpers.bench import Bench
from helpers.bench_api import platform_of
from helpers.build import GIB, MIB, profile
from tensile.coordinator import Profile

FORECAST = {"peak_bytes": 600 * MIB, "floor_bytes": 1, "margin_bytes": 1, "by_class": {}}
SMALL = profile((600 * MIB, 1.0), (300 * MIB, 1.2))
HUGE = profile((3 * GIB, 1.0), (2 * GIB, 1.2))


class Scripted(Forecasts):
    """Every job is foreseen alike."""

    ladder: Profile = SMALL

    def of(self, spec: JobSpec, **_: Any) -> dict[str, Any]:
        return {"forecast": FORECAST, "profile": self.ladder.to_json()}

    def kept(self, spec: JobSpec, code: str | None) -> dict[str, Any]:
        return self.of(spec)


class Desk:
    """The use cases over a bench of one device of 1 GiB with four cpus."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder, cpus=4.0)
        self.forecasts, self.outlooks = Scripted(folder / "forecasts"), Outlooks()
        self.platform = platform_of(self.bench, self.forecasts, self.outlooks)

    def started(self, spec: JobSpec) -> str:
        job, _ = self.platform.submit(spec, None, "u")
        self.bench.turn()
        self.outlooks.put(Foreseen(job_id=job.id, peak_bytes=1, profile=SMALL))
        return job.id


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.bench.store.close()


def swin(**resources: Any) -> JobSpec:
    return load_data(
        {
            "name": "swin",
            "family": "image_classification",
            "params": {"backbone": "swin_test", "dataset": "digits", "batch_size": 8},
            "train": {"steps": 1},
            "memory": {"policy": "tensile"},
            "resources": resources,
        }
    )


def test_a_dry_run_says_beside_whom_the_job_would_run(desk: Desk) -> None:
    first = desk.started(swin())
    plan = desk.platform.plan(swin(share=True))
    assert plan.placement is not None
    assert plan.message == f"cpu:0 on n1 is shared with {first} (swin); priority 50"
    (device,) = desk.platform.status().nodes[0].devices
    assert (device.job, device.jobs) == (first, (first,))


def test_a_dry_run_warns_of_too_little_memory(desk: Desk) -> None:
    plan = desk.platform.plan(swin(memory="400MiB"))
    assert plan.warnings == (
        "resources.memory: 400MiB is below the forecast peak of 600MiB; the job is kept to it and "
        "pays with time",
    )


def test_a_job_that_no_device_can_hold_is_refused_with_the_ways_out(desk: Desk) -> None:
    accepted, _ = desk.platform.submit(swin(), "again", "u")
    desk.forecasts.ladder = HUGE
    said = "does not fit: no plan of its step keeps less than 2GiB"
    with pytest.raises(UserError, match=f"job swin: {said}.*at most 4 instead of 8"):
        desk.platform.submit(swin(), None, "u")
    assert desk.platform.plan(swin()).message.startswith(said)
    repeated, new = desk.platform.submit(swin(), "again", "u")  # that was acknowledged
    assert (repeated.id, new) == (accepted.id, False)
