"""Who holds what of each device, and who held it: the answers of `dovetail devices`."""

from __future__ import annotations

from datetime import UTC, datetime

from dovetail.scheduler.view import DeviceView, NodeView
from dovetail.service.cluster_state import ClusterState
from dovetail.service.contract import (
    DeviceHistoryView,
    DeviceSampleView,
    DeviceUseView,
    HeldView,
    JobUseView,
)
from dovetail.service.shared_devices import Held
from dovetail.service.tenure import boot_clock_s
from dovetail.store.records import AttemptRecord, JobRecord
from dovetail.store.store import Store
from dovetail_jobs.errors import NotFound
from dovetail_jobs.lifecycle import State
from dovetail_workers.launch import parse_attempt_id
from dovetail_workers.shared_device import JobShare


class Devices:
    def __init__(self, state: ClusterState, store: Store) -> None:
        self._state, self._store = state, store

    def now(self) -> list[DeviceUseView]:
        """Every device of the cluster, with those who hold or share it."""
        active = self._store.active()
        return [
            self._use(node, device, active)
            for node in self._state.facts.nodes or ()
            for device in node.devices
        ]

    def waits(self, job: JobRecord) -> str | None:
        """Why a job that has a place does not train yet, where its device's broker has not let it
        in.
        """
        attempt = job.newest_attempt
        if job.state is not State.STARTING or attempt is None:
            return None
        shared = self._state.devices.now(attempt.node_id, attempt.device)
        for share in shared.jobs if shared is not None else ():
            if share.job == attempt.attempt_id and not share.admitted and share.message:
                place = f"{attempt.device} of {attempt.node}"
                return f"attempt {attempt.number} on {place} {share.message}"
        return None

    def history(self) -> list[DeviceHistoryView]:
        """Of every device that was shared in the last hours, as far as this server saw it."""
        found = []
        until = self._state.devices.at(datetime.now(UTC), boot_clock_s())
        jobs: dict[str, JobRecord | None] = {}
        for node in self._state.facts.nodes or ():
            for device in node.devices:
                samples = self._state.devices.samples(node.id, device.name)
                if not samples:
                    continue
                for attempt_id in {held.attempt_id for each in samples for held in each.jobs}:
                    if attempt_id not in jobs:
                        jobs[attempt_id] = self._job_of(attempt_id)
                found.append(
                    DeviceHistoryView(
                        node=node.name,
                        device=device.name,
                        bytes=device.bytes,
                        samples=tuple(
                            DeviceSampleView(
                                at=each.at,
                                jobs=tuple(
                                    _held(held, jobs[held.attempt_id]) for held in each.jobs
                                ),
                            )
                            for each in samples
                        ),
                        until=until,
                    )
                )
        return found

    def _use(self, node: NodeView, device: DeviceView, active: list[JobRecord]) -> DeviceUseView:
        shared = self._state.devices.now(node.id, device.name)
        shares = {share.job: share for share in shared.jobs} if shared is not None else {}
        alone = not shares
        uses = []
        for job in active:
            for attempt in job.unreleased:
                if (attempt.node_id, attempt.device) == (node.id, device.name):
                    share = shares.pop(attempt.attempt_id, None)
                    uses.append(_job_use(job, attempt, share))
        uses += [_stranger(share) for share in shares.values()]
        leased_bytes = sum(use.lease_bytes or 0 for use in uses)
        return DeviceUseView(
            node=node.name,
            device=device.name,
            bytes=device.bytes,
            free_bytes=None if uses and alone else max(0, device.bytes - leased_bytes),
            jobs=tuple(uses),
        )

    def _job_of(self, attempt_id: str) -> JobRecord | None:
        try:
            return self._store.job(parse_attempt_id(attempt_id)[0])
        except (NotFound, ValueError):  # somebody joined the broker by hand
            return None


def _job_use(job: JobRecord, attempt: AttemptRecord, share: JobShare | None) -> JobUseView:
    return JobUseView(
        job=job.id,
        name=job.name,
        attempt=attempt.number,
        state=job.state,
        swapped_out_bytes=job.memory.swapped_out_bytes,
        fence=job.memory.fence,
        **_share_fields(share, job),
    )


def _stranger(share: JobShare) -> JobUseView:
    """It joined the broker, and is no attempt that we placed there."""
    return JobUseView(job=share.job, **_share_fields(share, None))


def _share_fields(share: JobShare | None, job: JobRecord | None) -> dict[str, object]:
    if share is None:
        return {}
    return {
        "admitted": share.admitted,
        "lease_bytes": share.lease_bytes,
        "resident_bytes": _over_base(share.resident_bytes, share.file_bytes, job),
        "cap_bytes": share.cap_bytes,
        "minimum_bytes": share.minimum_bytes,
        "rung": share.rung + 1,
        "rungs": share.rungs,
        "speed": share.speed,
        "message": share.message,
    }


def _held(held: Held, job: JobRecord | None) -> HeldView:
    return HeldView(
        job=held.attempt_id.partition(".")[0],
        name=None if job is None else job.name,
        lease_bytes=held.lease_bytes,
        resident_bytes=_over_base(held.resident_bytes, held.file_bytes, job),
    )


def _over_base(
    resident_bytes: int | None, file_bytes: int | None, job: JobRecord | None
) -> int | None:
    """As a budget counts it: what is resident over the bare process. Of a job that did not say how
    much that is, all but pages of files.
    """
    if resident_bytes is None:
        return None
    if job is None or job.memory.base_bytes is None:
        return resident_bytes - (file_bytes or 0)
    return max(0, resident_bytes - job.memory.base_bytes)
