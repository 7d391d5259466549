"""Figures of attempts and devices as Prometheus gauges, through the exporter of their Ray node.

They are named `ray_dovetail_…` there. Those of an attempt have the labels `job`, `name`, `attempt`
and `device`; those of a share of a device `device`, `job` and `attempt`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from ray.util.metrics import Gauge

from dovetail_workers.launch import Launch
from dovetail_workers.reports import MemoryUsed, Progress, Report
from dovetail_workers.shared_device import DeviceShares

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
                    value = getattr(report, field.name)
                    if not isinstance(value, str):
                        self._set(f"memory_{field.name}", about, value)
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


_OF_A_SHARE = {
    "lease_bytes": "what the job may hold of its shared device now",
    "cap_bytes": "what the job plans for on its shared device",
    "resident_bytes": "what the job's processes hold in memory, libraries included",
    "speed": "the predicted speed of the job's plan over one with all the memory it wants",
}


class DeviceGauges:
    """`take` is called with how a node's devices are shared; who has left them holds nothing."""

    def __init__(self) -> None:
        self._gauges = {
            name: Gauge(
                f"dovetail_share_{name}", description=about, tag_keys=("device", "job", "attempt")
            )
            for name, about in _OF_A_SHARE.items()
        }
        self._known: dict[tuple[str, str], dict[str, str]] = {}

    def take(self, devices: Iterable[DeviceShares]) -> None:
        shares = {(each.device, share.job): share for each in devices for share in each.jobs}
        for place in self._known.keys() - shares.keys():
            labels = self._known.pop(place)
            for gauge in self._gauges.values():
                gauge.set(0, labels)
        for (device, attempt_id), share in shares.items():
            job_id, _, number = attempt_id.partition(".")
            labels = {"device": device, "job": job_id, "attempt": number}
            self._known[device, attempt_id] = labels
            for name, gauge in self._gauges.items():
                gauge.set(getattr(share, name) or 0, labels)
