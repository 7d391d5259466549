"""A `Service` in memory whose jobs do what a script says, for tests of API, client and CLI.

Time passes only when somebody waits: each `wait_change` that finds nothing new plays the next step
of `script`.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dovetail.service.contract import (
    AttemptView,
    CheckpointView,
    ClusterStatus,
    CodeView,
    DeviceHistoryView,
    DeviceStatus,
    DeviceUseView,
    EventView,
    FilesView,
    ForecastView,
    JobView,
    LogChunk,
    MemoryView,
    MetricPointView,
    NodesChanged,
    NodeStatus,
    PlacementView,
    PlanView,
    ProgressView,
    RankView,
    RayStatus,
    ServerOptions,
    ServerStatus,
)
from dovetail_jobs.errors import Conflict, NotFound
from dovetail_jobs.lifecycle import State
from dovetail_jobs.snapshot.archive import verify
from dovetail_jobs.spec import JobSpec

GIB = 2**30
SUBMITTED = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def job_view(**changes: Any) -> JobView:
    """A queued job with everything filled in that a queued job has."""
    spec = JobSpec(name=changes.get("name", "hello"), script="true")
    defaults: dict[str, Any] = {
        "id": "k3f9qz",
        "name": spec.name,
        "project": spec.project,
        "user": "ada",
        "labels": {},
        "parent": None,
        "state": State.QUEUED,
        "reason": "WAITING_FOR_DEVICE",
        "message": "waits for a device",
        "priority": spec.priority,
        "created_at": SUBMITTED,
        "started_at": None,
        "ended_at": None,
        "spec": spec.to_json(),
        "progress": ProgressView(),
        "metrics": {},
        "attempts": (),
        "checkpoints": (),
        "memory": MemoryView(),
    }
    return JobView.model_validate({**defaults, **changes})


def attempt_view(**changes: Any) -> AttemptView:
    """A running first attempt on n1/cpu:0."""
    rank = RankView(rank=0, pid=4242, node="n1", device="cpu:0")
    defaults: dict[str, Any] = {
        "number": 1,
        "state": "RUNNING",
        "reason": "TRAINING",
        "pid": rank.pid,
        "node": rank.node,
        "device": rank.device,
        "started_at": SUBMITTED + timedelta(seconds=2),
        "ranks": (rank,),
    }
    return AttemptView.model_validate({**defaults, **changes})


def running_changes(step: int = 120, steps: int = 500) -> dict[str, Any]:
    """What differs from a queued job once it trains."""
    return {
        "state": State.RUNNING,
        "reason": "TRAINING",
        "message": "trains on n1/cpu:0",
        "started_at": SUBMITTED + timedelta(seconds=2),
        "progress": ProgressView(
            phase="train",
            step=step,
            steps=steps,
            steps_per_s=3.2,
            samples_per_s=409.6,
            eta_s=(steps - step) / 3.2,
        ),
        "metrics": {"loss": 0.3125},
        "attempts": (attempt_view(),),
    }


def succeeded_changes(steps: int = 500) -> dict[str, Any]:
    """What differs from a queued job once it is done."""
    return {
        **running_changes(steps, steps),
        "state": State.SUCCEEDED,
        "reason": "FINISHED",
        "message": f"reached step {steps}",
        "ended_at": SUBMITTED + timedelta(minutes=3),
        "metrics": {"accuracy": 0.9722, "loss": 0.03125},
        "attempts": (
            attempt_view(
                state="SUCCEEDED",
                reason="FINISHED",
                exit_code=0,
                ended_at=SUBMITTED + timedelta(minutes=3),
            ),
        ),
        "checkpoints": (
            CheckpointView(step=steps, uri="/storage/jobs/k3f9qz/checkpoints/1", bytes=12 * 2**20),
        ),
        "memory": MemoryView(peak_bytes=200 * 2**20, base_bytes=300 * 2**20),
        "files": FilesView(
            log="/storage/jobs/k3f9qz/attempts/1/log/", curves="/storage/jobs/k3f9qz/curves/"
        ),
    }


MIB = 2**20
MANAGED = MemoryView(
    forecast_bytes=572 * MIB,
    provenance="traced",
    peak_bytes=340 * MIB,
    budget_bytes=343 * MIB,
    base_bytes=300 * MIB,
    swapped_out_bytes=int(1.5 * GIB),
    swapped_in_bytes=1432 * MIB,
    recomputed_bytes=96 * MIB,
    passive_fetches=12,
    stall_s=3.25,
    replans=1,
)
TRAINING = {
    "name": "swin",
    "family": "image_classification",
    "params": {"backbone": "swin_test", "dataset": "digits", "batch_size": 8},
    "train": {"steps": 500},
}
# Every kind of job that `show` says something else of: its spec, and what is known of its memory.
KINDS_OF_JOBS: dict[str, tuple[dict[str, Any], MemoryView]] = {
    "managed": ({**TRAINING, "memory": {"policy": "tensile", "budget": "60%"}}, MANAGED),
    "shared": (
        {**TRAINING, "memory": {"policy": "tensile"}, "resources": {"share": True}},
        MANAGED.model_copy(update={"provenance": "measured", "fence": "watched"}),
    ),
    "script": (
        {"name": "mine", "script": "python train.py", "resources": {"memory": "400MiB"}},
        MemoryView(
            provenance="declared",
            budget_bytes=400 * MIB,
            peak_bytes=380 * MIB,
            fence="cgroup",
        ),
    ),
    "unmanaged": (
        {**TRAINING, "memory": {"policy": "none"}},
        MemoryView(
            forecast_bytes=572 * MIB,
            provenance="traced",
            peak_bytes=565 * MIB,
            base_bytes=300 * MIB,
        ),
    ),
}


def job_of(kind: str) -> JobView:
    """One of `KINDS_OF_JOBS` that succeeded, with everything that is known of it."""
    given, memory = KINDS_OF_JOBS[kind]
    spec = JobSpec.model_validate(given)
    known = {**succeeded_changes(), "name": spec.name, "spec": spec.to_json(), "memory": memory}
    return job_view(**known)


class FakeService:
    """Implements `Service`; tests put jobs, log texts and scripts into it."""

    def __init__(self, url: str = "http://127.0.0.1:1") -> None:
        self.records: dict[str, JobView] = {}
        self.log_texts: dict[tuple[str, int], bytes] = {}
        self.stories: dict[str, list[EventView]] = {}
        self.points: dict[str, list[MetricPointView]] = {}
        self.script: list[Callable[[], object]] = []
        self.users: list[str] = []
        self.archives: dict[str, bytes] = {}
        self.warnings: tuple[str, ...] = ()
        self.forecast: ForecastView | None = None
        self.uploads: list[str] = []
        self.ray = RayStatus(
            state="up", address="127.0.0.1:6380", dashboard_url="http://127.0.0.1:8265"
        )
        self.options = ServerOptions(cpu_devices=1, device_memory_bytes=4 * GIB)
        self.nodes = ["n1"]
        self.device_uses: list[DeviceUseView] = []
        self.histories: list[DeviceHistoryView] = []
        self.url = url
        self.pid = 4000
        self.ended: list[bool] = []
        self.on_shutdown: Callable[[], None] = lambda: None
        self._keys: dict[str, tuple[str, dict[str, Any], str | None]] = {}
        self._number = 1
        self._closed = False
        self._changed = threading.Condition()

    def put(self, job: JobView) -> JobView:
        """Keep a job as it is now."""
        self.records[job.id] = job
        self._bump()
        return job

    def change(self, job_id: str, **changes: Any) -> JobView:
        """The job goes on."""
        return self.put(self.records[job_id].model_copy(update=changes))

    def print(self, job_id: str, text: str, attempt: int = 1) -> None:
        """The job's program prints."""
        place = (job_id, attempt)
        self.log_texts[place] = self.log_texts.get(place, b"") + text.encode()
        self._bump()

    def submit(
        self, spec: JobSpec, key: str | None, user: str, code: str | None = None
    ) -> tuple[JobView, bool]:
        self.users.append(user)
        resolved = spec.to_json()
        if key is not None and key in self._keys:
            known, *before = self._keys[key]
            if before != [resolved, code]:
                raise Conflict(f"key {key} was used for another spec; use a new one")
            return self.records[known], False
        job = self.put(
            job_view(id=f"job{len(self.records)}", name=spec.name, spec=resolved, code=code)
        )
        if key is not None:
            self._keys[key] = (job.id, resolved, code)
        return job, True

    def plan(self, spec: JobSpec, code: str | None = None) -> PlanView:
        return PlanView(
            spec=spec.to_json(),
            placement=PlacementView(node="n1", device="cpu:0"),
            reason="PLACED",
            message="cpu:0 on n1 is free",
            warnings=self.warnings,
            forecast=self.forecast,
            code=None if code is None else self.code(code),
        )

    def code(self, sha256: str) -> CodeView:
        if sha256 not in self.archives:
            raise NotFound(f"code {sha256}: is not kept here")
        snapshot = verify(io.BytesIO(self.archives[sha256]), sha256)
        return CodeView(sha256=sha256, bytes=snapshot.bytes, files=snapshot.files)

    def keep_code(self, sha256: str, archive: Path) -> CodeView:
        verify(io.BytesIO(archive.read_bytes()), sha256)
        self.archives[sha256] = archive.read_bytes()
        self.uploads.append(sha256)
        return self.code(sha256)

    def job(self, ref: str) -> JobView:
        for job in reversed(self.records.values()):
            if ref in (job.id, job.name):
                return job
        raise NotFound(f"no job {ref}; `dovetail ps --all` lists them")

    def jobs(
        self, states: Sequence[State] | None, project: str | None, limit: int | None
    ) -> list[JobView]:
        found = [
            job
            for job in reversed(self.records.values())
            if (not states or job.state in states) and project in (None, job.project)
        ]
        return found[:limit]

    def cancel(self, ref: str) -> JobView:
        job = self.job(ref)
        if job.state.terminal:
            return job
        return self.change(
            job.id, state=State.STOPPING, reason="CANCELLED_BY_USER", message="is being stopped"
        )

    def retry(self, ref: str, from_scratch: bool) -> JobView:
        old = self.job(ref)
        if old.state not in (State.FAILED, State.CANCELLED):
            raise Conflict(f"{old.id} is {old.state}; only FAILED and CANCELLED jobs are retried")
        origin = None if from_scratch else old.id
        return self.put(job_view(id=f"job{len(self.records)}", name=old.name, origin=origin))

    def events(self, ref: str, after: int) -> list[EventView]:
        return [event for event in self.stories.get(self.job(ref).id, []) if event.id > after]

    def metrics(self, ref: str, metric: str | None) -> list[MetricPointView]:
        points = self.points.get(self.job(ref).id, [])
        return [point for point in points if metric in (None, point.metric)]

    def logs(self, ref: str, attempt: int | None, offset: int, limit_bytes: int) -> LogChunk:
        job = self.job(ref)
        if not job.attempts:
            return LogChunk(attempt=None, offset=0, next_offset=0, data="", complete=False)
        number = attempt or job.attempts[-1].number
        whole = self.log_texts.get((job.id, number), b"")
        data = whole[offset : offset + limit_bytes]
        return LogChunk(
            attempt=number,
            offset=offset,
            next_offset=offset + len(data),
            data=data.decode(),
            complete=job.attempts[number - 1].ended_at is not None
            and offset + len(data) == len(whole),
        )

    def status(self) -> ClusterStatus:
        counts: dict[str, int] = {}
        for job in self.records.values():
            counts[job.state] = counts.get(job.state, 0) + 1
        devices = (DeviceStatus(name="cpu:0", bytes=4 * GIB),)
        nodes = tuple(
            NodeStatus(id=f"f0{index}", name=name, cpus=2, devices=devices)
            for index, name in enumerate(self.nodes)
        )
        return ClusterStatus(
            server=ServerStatus(
                pid=self.pid, url=self.url, version="0.1.0", uptime_s=61.0, options=self.options
            ),
            ray=self.ray,
            nodes=nodes if self.ray.state == "up" else (),
            counts=counts,
        )

    def devices(self) -> list[DeviceUseView]:
        return self.device_uses

    def device_histories(self) -> list[DeviceHistoryView]:
        return self.histories

    def add_nodes(self, count: int) -> NodesChanged:
        """They are there when somebody has waited for them."""
        names = tuple(f"n{len(self.nodes) + 1 + index}" for index in range(count))
        self.script.append(lambda: self.nodes.extend(names))
        return NodesChanged(names=names)

    def remove_node(self, name: str, force: bool) -> NodesChanged:
        """A node of the fake runs what an unfinished job's newest attempt says."""
        if name not in self.nodes[1:]:
            raise NotFound(f"no local node {name}")
        running = [
            job.id
            for job in self.records.values()
            if not job.state.terminal and job.attempts and job.attempts[-1].node == name
        ]
        if running and not force:
            raise Conflict(f"node {name} runs {', '.join(running)}")
        self.script.append(lambda: self.nodes.remove(name))
        return NodesChanged(names=(name,))

    def change_number(self) -> int:
        return self._number

    def wait_change(self, after: int, timeout_s: float) -> int:
        if self._number <= after and self.script:
            self.script.pop(0)()
            self._bump()
        with self._changed:
            self._changed.wait_for(lambda: self._number > after or self._closed, timeout_s)
            return self._number

    def shutdown(self, stop_ray: bool) -> None:
        self.ended.append(stop_ray)
        self.close()
        self.on_shutdown()

    def close(self) -> None:
        """Let everyone go who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _bump(self) -> None:
        with self._changed:
            self._number += 1
            self._changed.notify_all()
