"""What a coordinator says of a job to people, in sentences."""

from __future__ import annotations

from tensile.budget import format_bytes
from tensile.coordinator.apportion import Member
from tensile.coordinator.job import Job


def owes(job: Job, now_s: float) -> str:
    owed_s = 0.0 if job.asked_s is None else now_s - job.asked_s
    return f"did not answer for {owed_s:.0f} s, and keeps {format_bytes(job.lease_bytes)}"


def too_large(member: Member, device_bytes: int) -> str:
    return (
        f"the least that {member.job} can do with is "
        f"{format_bytes(member.profile.minimum_bytes)}, "
        f"and the device has {format_bytes(device_bytes)}"
    )


def outgrown(member: Member, others_bytes: int, room_bytes: int) -> str:
    return (
        f"the least that {member.job} can do with turned out to be "
        f"{format_bytes(member.profile.minimum_bytes)}; beside the other jobs' "
        f"{format_bytes(others_bytes)} the device has {format_bytes(max(room_bytes, 0))}"
    )
