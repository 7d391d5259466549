"""Values with every default filled, so that a test names only what it is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from dovetail.scheduler.view import ClusterView, DeviceView, Holding, NodeView, QueuedJob, Sharing
from dovetail_jobs.spec import JobSpec, Share
from tensile.coordinator import Profile, Rung

GIB = 2**30
MIB = 2**20


def at(seconds: float = 0.0) -> datetime:
    """A moment of one fixed day, UTC."""
    return datetime(2026, 1, 5, 12, tzinfo=UTC) + timedelta(seconds=seconds)


def spec(**changes: Any) -> JobSpec:
    """A valid job: a script called `job`; keyword arguments are top-level keys of its YAML."""
    return JobSpec.model_validate({"name": "job", "script": "python train.py", **changes})


def spec_json(**changes: Any) -> dict[str, Any]:
    return spec(**changes).to_json()


def node(
    name: str = "n1", devices: int | tuple[DeviceView, ...] = 1, cpus: float = 4.0
) -> NodeView:
    """A node; a number of devices stands for as many CPU devices of 4 GiB."""
    if isinstance(devices, int):
        devices = tuple(DeviceView(name=f"cpu:{i}", bytes=4 * GIB) for i in range(devices))
    return NodeView(id=f"id-{name}", name=name, cpus=cpus, devices=devices)


def holding(
    job_id: str = "k3f9qz", on: str = "n1", device: str = "cpu:0", **changes: Any
) -> Holding:
    given: dict[str, Any] = {"job_name": "swin-digits", "attempt": 1, "cpus": 1.0}
    return Holding(job_id=job_id, node_id=f"id-{on}", device=device, **{**given, **changes})


def queued(job_id: str, seq: int = 1, **changes: Any) -> QueuedJob:
    given: dict[str, Any] = {
        "name": f"name-{job_id}",
        "priority": 50,
        "devices": 1,
        "cpus": 1.0,
        "memory_bytes": None,
    }
    return QueuedJob(id=job_id, seq=seq, **{**given, **changes})


def profile(*rungs: tuple[int, float]) -> Profile:
    """From the natural peak down, each as bytes and seconds of a step; the bytes are held through
    all of it.
    """
    return Profile(rungs=tuple(Rung.flat(size, step_s) for size, step_s in rungs))


def sharing(share: Share = True, *rungs: tuple[int, float], **changes: Any) -> Sharing:
    """Without rungs: 1 GiB at full speed, 512 MiB at 0.8 and 256 MiB at 0.4 of it."""
    given = rungs or ((GIB, 0.8), (512 * MIB, 1.0), (256 * MIB, 2.0))
    return Sharing(share=share, profile=profile(*given), **changes)


def view(
    *jobs: QueuedJob,
    nodes: tuple[NodeView, ...] | None = (node(),),
    holdings: tuple[Holding, ...] = (),
) -> ClusterView:
    return ClusterView(nodes=nodes, holdings=holdings, queued=jobs)
