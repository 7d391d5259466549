"""What Prometheus hears of attempts and devices, by a gauge that remembers what it was set to."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dovetail_workers.gauges import AttemptGauges, DeviceGauges
from dovetail_workers.reports import Busy, MemoryUsed, Progress
from dovetail_workers.shared_device import DeviceShares, JobShare
from helpers.attempts import script_launch

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


class Scrape:
    """What was set since the last `read`, as Ray keeps it for some seconds."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._set: dict[str, float] = {}

    def make(self, name: str, about: str, labels: tuple[str, ...]) -> Any:
        self.names.add(name)
        scrape = self

        class Remembered:
            def set(self, value: float, tags: dict[str, str]) -> None:
                assert tuple(tags) == labels
                scrape._set[f"{name}{{{','.join(tags.values())}}}"] = value

        return Remembered()

    def read(self) -> dict[str, float]:
        found, self._set = self._set, {}
        return found


HOLDER = JobShare(
    job="abc123.1",
    admitted=True,
    lease_bytes=600,
    cap_bytes=500,
    minimum_bytes=200,
    rung=1,
    rungs=3,
    speed=0.8,
    message="",
    resident_bytes=700,
)
WAITING = replace(
    HOLDER, job="def456.2", admitted=False, lease_bytes=0, cap_bytes=0, rung=2, speed=0.0,
    resident_bytes=None,
)  # fmt: skip


def test_everything_about_a_shared_device_is_told() -> None:
    scrape = Scrape()
    gauges = DeviceGauges(scrape.make)
    gauges.take([DeviceShares(device="cpu:0", bytes=1000, jobs=(HOLDER, WAITING))])
    assert scrape.read() == {
        "device_bytes{cpu:0}": 1000,
        "device_leased_bytes{cpu:0}": 600,
        "device_free_bytes{cpu:0}": 400,
        "device_admitted{cpu:0}": 1,
        "device_waiting{cpu:0}": 1,
        "share_lease_bytes{cpu:0,abc123,1}": 600,
        "share_cap_bytes{cpu:0,abc123,1}": 500,
        "share_minimum_bytes{cpu:0,abc123,1}": 200,
        "share_resident_bytes{cpu:0,abc123,1}": 700,
        "share_rung{cpu:0,abc123,1}": 1,
        "share_rungs{cpu:0,abc123,1}": 3,
        "share_speed{cpu:0,abc123,1}": 0.8,
        "share_admitted{cpu:0,abc123,1}": 1,
        "share_minimum_bytes{cpu:0,def456,2}": 200,
        "share_rungs{cpu:0,def456,2}": 3,
        "share_admitted{cpu:0,def456,2}": 0,
    }


def test_who_has_left_is_not_told_any_more_and_has_no_speed_of_0() -> None:
    scrape = Scrape()
    gauges = DeviceGauges(scrape.make)
    gauges.take([DeviceShares(device="cpu:0", bytes=1000, jobs=(HOLDER,))])
    scrape.read()
    gauges.take([DeviceShares(device="cpu:0", bytes=1000)])
    left = scrape.read()
    assert left["device_free_bytes{cpu:0}"] == 1000
    assert [name for name in left if name.startswith("share_")] == []


def test_what_an_attempt_said_last_is_told_again_as_long_as_it_is_there(tmp_path: Path) -> None:
    scrape = Scrape()
    gauges = AttemptGauges(script_launch(tmp_path, "true"), scrape.make)
    gauges.take(Progress(step=3, steps_per_s=1.5))
    gauges.take(MemoryUsed(peak_bytes=7, swapped_out_bytes=5, fence="watched"))
    gauges.take(MemoryUsed(peak_bytes=8))
    gauges.take(Busy(share=0.5))
    who = "abc123,scripted,1,cpu:0"
    told = {
        f"step{{{who}}}": 3,
        f"steps_per_s{{{who}}}": 1.5,
        f"memory_peak_bytes{{{who}}}": 8,
        f"memory_swapped_out_bytes{{{who}}}": 5,
    }
    assert scrape.read() == told
    gauges.refresh()
    assert scrape.read() == told


def test_every_metric_is_in_the_docs_and_every_one_there_is_a_metric(tmp_path: Path) -> None:
    scrape = Scrape()
    DeviceGauges(scrape.make)
    attempt = AttemptGauges(script_launch(tmp_path, "true"), scrape.make)
    attempt.take(Progress(step=1, steps_per_s=1.0, samples_per_s=1.0))
    numbers = {field.name: 1 for field in fields(MemoryUsed) if field.name != "fence"}
    attempt.take(MemoryUsed(**numbers))  # type: ignore[arg-type]
    documented = set(re.findall(r"`ray_dovetail_(\w+)`", DOCS.read_text()))
    counters = {"out_of_memory_total", "readmissions_total"}
    assert documented == scrape.names | counters
