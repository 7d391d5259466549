"""Figures of attempts and devices for Prometheus, through the exporter of their Ray node, which
calls them `ray_dovetail_…`. docs/metrics.md lists them all.

Ray has no word to remove a series. It drops a gauge that nobody set for two of its export intervals
(20 s): so what is true is set again and again, and who has left is not set any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, Protocol

from ray.util.metrics import Counter, Gauge

from dovetail_workers.launch import Launch
from dovetail_workers.reports import MemoryUsed, Progress, Report
from dovetail_workers.shared_device import DeviceShares, JobShare

REFRESH_S = 5.0

_ABOUT = {
    "step": "optimizer steps done",
    "steps_per_s": "optimizer steps per second, over the last seconds",
    "samples_per_s": "samples per second, over the last seconds",
}


class Settable(Protocol):
    """Ray's Gauge, as far as it is used."""

    def set(self, value: int | float | None, tags: dict[str, str] | None = None) -> None: ...


MakeGauge = Callable[[str, str, tuple[str, ...]], Settable]


def _of_ray(name: str, about: str, labels: tuple[str, ...]) -> Settable:
    gauge: Settable = Gauge(f"dovetail_{name}", description=about, tag_keys=labels)
    return gauge


class AttemptGauges:
    """Of one attempt: labels `job`, `name`, `attempt` and `device`. `take` is called with every
    report of it; most say nothing for a gauge. What was said last holds until `close`.
    """

    def __init__(self, launch: Launch, make: MakeGauge = _of_ray) -> None:
        self._make = make
        self._gauges: dict[str, Settable] = {}
        self._values: dict[str, float] = {}
        self._labels = {
            "job": launch.job_id,
            "name": launch.job_name,
            "attempt": str(launch.attempt),
            "device": launch.device,
        }
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gauges", daemon=True)

    def start(self) -> None:
        self._thread.start()

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

    def refresh(self) -> None:
        for name, value in tuple(self._values.items()):
            self._gauges[name].set(value, self._labels)

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(REFRESH_S):
            self.refresh()

    def _set(self, name: str, about: str, value: float | None) -> None:
        if value is None:
            return
        if name not in self._gauges:
            self._gauges[name] = self._make(name, about, tuple(self._labels))
        self._values[name] = value
        self._gauges[name].set(value, self._labels)


_OF_A_SHARE = {
    "lease_bytes": "what the job may hold of its shared device now",
    "cap_bytes": "what the job plans for on its shared device",
    "minimum_bytes": "the least that a plan of the job keeps",
    "resident_bytes": "what the job's processes hold in memory, libraries included",
    "rung": "the rung of its ladder that the job is on; 0 is all the memory it wants",
    "rungs": "how many rungs the job's ladder has",
    "speed": "the predicted speed of the job's plan over one with all the memory it wants",
    "admitted": "1 for a job that was let in, 0 for one that waits for room",
}
_OF_THE_ADMITTED = ("lease_bytes", "cap_bytes", "rung", "speed")
_OF_A_DEVICE = {
    "bytes": "what the broker of the device divides",
    "leased_bytes": "what is leased of it",
    "free_bytes": "what is leased to nobody",
    "admitted": "how many jobs were let in",
    "waiting": "how many jobs wait for room",
}


class DeviceGauges:
    """`take` is called with how a node's devices are shared, again and again: `share_…` by
    `device`, `job` and `attempt`, and `device_…` by `device`.
    """

    def __init__(self, make: MakeGauge = _of_ray) -> None:
        self._shares = {
            name: make(f"share_{name}", about, ("device", "job", "attempt"))
            for name, about in _OF_A_SHARE.items()
        }
        self._devices = {
            name: make(f"device_{name}", about, ("device",)) for name, about in _OF_A_DEVICE.items()
        }

    def take(self, devices: Iterable[DeviceShares]) -> None:
        for device in devices:
            for share in device.jobs:
                job_id, _, number = share.job.partition(".")
                labels = {"device": device.device, "job": job_id, "attempt": number}
                _set_all(self._shares, _share_values(share), labels)
            _set_all(self._devices, _device_values(device), {"device": device.device})


def _share_values(share: JobShare) -> dict[str, Any]:
    """Nothing of who waits that only those have who were let in."""
    return {
        name: getattr(share, name)
        for name in _OF_A_SHARE
        if share.admitted or name not in _OF_THE_ADMITTED
    }


def _device_values(device: DeviceShares) -> dict[str, Any]:
    leased_bytes = sum(share.lease_bytes for share in device.jobs)
    admitted = sum(share.admitted for share in device.jobs)
    return {
        "bytes": device.bytes,
        "leased_bytes": leased_bytes,
        "free_bytes": max(0, device.bytes - leased_bytes),
        "admitted": admitted,
        "waiting": len(device.jobs) - admitted,
    }


def _set_all(
    gauges: Mapping[str, Settable], values: Mapping[str, Any], labels: dict[str, str]
) -> None:
    for name, value in values.items():
        if value is not None:
            gauges[name].set(float(value), labels)


class MemoryCounters:
    """Of a node, by `device`: attempts that memory ended, and those that came back after it."""

    def __init__(self) -> None:
        self._ends = Counter(
            "dovetail_out_of_memory",
            description="attempts that ended for want of memory, by who ended them",
            tag_keys=("device", "by"),
        )
        self._returns = Counter(
            "dovetail_readmissions",
            description="attempts on other terms, after one that ended for want of memory",
            tag_keys=("device",),
        )

    def ended(self, device: str, by: str) -> None:
        self._ends.inc(1, {"device": device, "by": by})

    def readmitted(self, device: str) -> None:
        self._returns.inc(1, {"device": device})
