"""The devices of a fake cluster, shared in this process: the state machine that a node's broker
hosts, and jobs that obey it.

A job returns at once what its lease has over a new cap, as a real one does before its next step.
Where peaks are interlocked it stays at its minimum, for it makes no steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from dovetail.cluster.protocol import DevicesSeen
from dovetail_workers.launch import Launch
from dovetail_workers.shared_device import DeviceShares, JobShare
from tensile.coordinator import Coordinator, Member, Profile, Share, declared
from tensile.coordinator.messages import Event, Granted, Joined, Left, Refused, Returned, Target

ProfileOf = Callable[[Launch], Profile | None]
Place = tuple[str, str]  # node id and device


def declared_profile(launch: Launch) -> Profile | None:
    """Of what the job's spec reserves; None where it reserves nothing."""
    reserved = launch.spec["resources"]["memory"]
    return declared(reserved) if isinstance(reserved, int) and reserved else None


class FakeDevices:
    """`profile_of` says what an attempt asks of its device: what its own trace would tell a real
    one, None if that is not known yet. One that its coordinator refuses is not there.
    """

    def __init__(
        self,
        profile_of: ProfileOf = declared_profile,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._profile_of, self._now_s = profile_of, now_s
        self._coordinators: dict[Place, Coordinator] = {}
        self._places: dict[str, Place] = {}
        self._leases: dict[str, int] = {}

    def join(self, launch: Launch, node_id: str) -> DevicesSeen | None:
        """The attempt comes onto its device; None if it does not share, or is there."""
        job, place = launch.attempt_id, (node_id, launch.device)
        profile = self._profile_of(launch) if launch.share and job not in self._places else None
        if profile is None:
            return None
        if launch.cap_bytes is not None:
            profile = profile.within(launch.cap_bytes)
        if place not in self._coordinators:
            self._coordinators[place] = Coordinator(launch.device_bytes)
        self._places[job] = place
        member = Member(job=job, profile=profile, weight=launch.weight, priority=launch.priority)
        self._handle(place, Joined(member=member))
        return self.seen(node_id)

    def leave(self, attempt_id: str) -> DevicesSeen | None:
        """Its process is gone; None if it shared no device."""
        place = self._places.pop(attempt_id, None)
        if place is None:
            return None
        self._leases.pop(attempt_id, None)
        self._handle(place, Left(job=attempt_id))
        return self.seen(place[0])

    def forget_all(self) -> None:
        """Brokers and jobs are gone at once."""
        self._coordinators.clear()
        self._places.clear()
        self._leases.clear()

    def seen(self, node_id: str) -> DevicesSeen:
        """How those devices of a node stand now that are shared, or were."""
        now_s = self._now_s()
        found = tuple(
            DeviceShares(
                device=device,
                bytes=coordinator.device_bytes,
                jobs=tuple(_job_share(share) for share in coordinator.shares(now_s)),
            )
            for (on, device), coordinator in self._coordinators.items()
            if on == node_id
        )
        return DevicesSeen(node_id=node_id, devices=found)

    def _handle(self, place: Place, event: Event) -> None:
        """Until nobody has anything to say."""
        coming: deque[Event] = deque([event])
        while coming:
            for command in self._coordinators[place].handle(coming.popleft(), self._now_s()):
                match command:
                    case Granted():
                        self._leases[command.job] = command.lease_bytes
                    case Target() if self._leases.get(command.job, 0) > command.cap_bytes:
                        self._leases[command.job] = command.cap_bytes
                        coming.append(Returned(job=command.job, lease_bytes=command.cap_bytes))
                    case Refused():
                        self._places.pop(command.job, None)
                    case _:
                        pass


def _job_share(share: Share) -> JobShare:
    """What no process holds, nobody counts."""
    return JobShare(
        job=share.job,
        admitted=share.admitted,
        lease_bytes=share.lease_bytes,
        cap_bytes=share.cap_bytes,
        minimum_bytes=share.minimum_bytes,
        rung=share.rung,
        rungs=share.rungs,
        speed=share.speed,
        message=share.message,
    )
