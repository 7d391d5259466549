"""What a coordinator says of a job to people, in sentences."""

from __future__ import annotations

from collections.abc import Iterable

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


def why_waiting(needed_bytes: int, free_bytes: int, here: Iterable[Job], now_s: float) -> str:
    """Of a job that needs so much of the device; the jobs `here` hold all but what is free of it,
    or more than it has.
    """
    needed, free = format_bytes(needed_bytes), format_bytes(max(free_bytes, 0))
    reasons = [f"waits for {needed}, of which {free} are free"]
    if free_bytes < 0:
        reasons.append(f"the jobs here hold {format_bytes(-free_bytes)} too much")
    reasons += [
        f"{job.name} {owes(job, now_s)}"
        for job in here
        if job.is_silent and job.lease_bytes > job.minimum_bytes
    ]
    return "; ".join(reasons)
