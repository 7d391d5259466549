"""An attempt's figures as Prometheus gauges, through the exporter of the Ray node that it runs on.

They are named `ray_dovetail_…` there, with the labels `job`, `name`, `attempt` and `device`.
"""

from __future__ import annotations

from dataclasses import fields

from ray.util.metrics import Gauge

from dovetail_workers.launch import Launch
from dovetail_workers.reports import MemoryUsed, Progress, Report

_ABOUT = {
    "step": "optimizer steps done",
    "steps_per_s": "optimizer steps per second, over the last seconds",
    "samples_per_s": "samples per second, over the last seconds",
}


class AttemptGauges:
    """`take` is called with every report of one attempt; most say nothing for a gauge."""

    def __init__(self, launch: Launch) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._labels = {
            "job": launch.job_id,
            "name": launch.job_name,
            "attempt": str(launch.attempt),
            "device": launch.device,
        }

    def take(self, report: Report) -> None:
        match report:
            case Progress():
                for name, about in _ABOUT.items():
                    self._set(name, about, getattr(report, name))
            case MemoryUsed():
                for field in fields(report):
                    about = f"{field.name.replace('_', ' ')} of the attempt's device memory"
                    self._set(f"memory_{field.name}", about, getattr(report, field.name))
            case _:
                return

    def _set(self, name: str, about: str, value: float | None) -> None:
        if value is None:
            return
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = Gauge(f"dovetail_{name}", description=about, tag_keys=tuple(self._labels))
            gauge.set_default_tags(self._labels)
            self._gauges[name] = gauge
        gauge.set(value)
