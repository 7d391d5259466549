"""Jobs that share a device, simulated: their profiles, one channel, and the real coordinator.

A step has as many parts as a curve. A part takes its time of the plan and copies its bytes beside
that, evenly; it ends when both are done. All who copy at a moment share the channel max-min fairly,
each at most at what it was told to use. Where leases rise and fall within a step, a part that is
granted less than its curve goes on as a plan for that much would. What jobs take from each other by
computing is not simulated: the figures are of memory and copies alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tensile.coordinator.apportion import Member
from tensile.coordinator.channel import Claim, max_min
from tensile.coordinator.coordinator import Coordinator
from tensile.coordinator.messages import (
    Admitted,
    Begin,
    Beginning,
    Event,
    Granted,
    Joined,
    Refused,
    Returned,
    Target,
    Wanted,
)
from tensile.coordinator.profile import SAMPLES, Rung

_SETTLING = 2  # steps of a job that do not count
_NOTHING_S = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`step_s` is the mean time from one step's begin to the next one's, `slowdown` that over
    a step with all the memory that it wants, and `copy_share` how much of the channel it used.
    """

    job: str
    step_s: float
    slowdown: float
    copy_share: float


@dataclass(slots=True, kw_only=True)
class _Job:
    member: Member
    admitted: bool = False
    lease_bytes: int = 0
    target: Target | None = None
    plan: Rung | None = None  # of the step that runs; None between two
    part: int = 0
    idle_s: float = 0.0  # until the step begins
    work_s: float = 0.0  # of the part that runs, …
    copy_s: float = 0.0  # … and of the channel's whole time
    copied_s: float = 0.0
    begins: list[tuple[float, float]] = field(default_factory=list)  # and what was copied by then

    @property
    def is_copying(self) -> bool:
        return self.idle_s <= 0 and self.copy_s > 0


def simulate_together(
    members: Sequence[Member], device_bytes: int, steps: int = 10
) -> tuple[Outcome, ...]:
    """In the order of `members`, who all come at once and go on until each has made so many steps.

    Raises ValueError where one is not let in.
    """
    device = _Device(members, device_bytes)
    while any(len(job.begins) <= _SETTLING + steps for job in device.jobs.values()):
        device.go_on()
    return tuple(_outcome(device.jobs[member.job]) for member in members)


class _Device:
    def __init__(self, members: Sequence[Member], device_bytes: int) -> None:
        self.jobs = {member.job: _Job(member=member) for member in members}
        self._coordinator = Coordinator(device_bytes)
        self._now_s = 0.0
        for member in members:
            self._tell(Joined(member=member))
        self._begin_steps()

    def go_on(self) -> None:
        """To the next moment at which something ends."""
        running = [job for job in self.jobs.values() if job.plan is not None]
        waiting = [name for name, job in self.jobs.items() if not job.admitted]
        if waiting and all(len(job.begins) > _SETTLING for job in running):
            raise ValueError(f"{', '.join(waiting)}: not let in beside {len(running)} others")
        copying = [job for job in running if job.is_copying]
        rates = dict(
            zip(map(id, copying), max_min([_limit(job) for job in copying], 1.0), strict=True)
        )
        ends_s = [job.idle_s or job.work_s for job in running]
        ends_s += [job.copy_s / rates[id(job)] for job in copying]
        passed_s = min(end_s for end_s in ends_s if end_s > 0)
        self._now_s += passed_s
        for job in running:
            if job.idle_s > 0:
                job.idle_s = _less(job.idle_s, passed_s)
                continue
            job.work_s = _less(job.work_s, passed_s)
            moved_s = passed_s * rates.get(id(job), 0.0)
            job.copied_s += min(moved_s, job.copy_s)
            job.copy_s = _less(job.copy_s, moved_s)
        for job in running:
            if job.idle_s <= 0 and job.work_s <= 0 and job.copy_s <= 0:
                job.part += 1
                self._begin_part(job)
        self._begin_steps()

    def _begin_steps(self) -> None:
        for job in self.jobs.values():
            if job.admitted and job.plan is None and job.target is not None:
                self._begin_step(job, job.target)

    def _begin_step(self, job: _Job, target: Target) -> None:
        """What the lease has over the cap goes back first."""
        if job.lease_bytes > target.cap_bytes:
            self._return(job, target.cap_bytes)
        job.begins.append((self._now_s, job.copied_s))
        job.part = 0
        if target.keeps_bytes is None:
            job.plan = job.member.profile.predicted(min(target.cap_bytes, job.lease_bytes))
        else:
            job.plan = job.member.profile.predicted(target.cap_bytes)
            self._tell(Beginning(job=job.member.job))
        if job.idle_s > 0:
            job.part = -1  # what it waits for comes before the first one
        else:
            self._begin_part(job)

    def _begin_part(self, job: _Job) -> None:
        assert job.plan is not None
        if job.part == SAMPLES:
            job.plan = None
            return
        plan = job.plan
        if job.target is not None and job.target.keeps_bytes is not None:
            needed_bytes = max(plan.curve[job.part], job.member.profile.minimum_bytes)
            if job.lease_bytes < needed_bytes:
                self._tell(Wanted(job=job.member.job, lease_bytes=needed_bytes))
            elif job.lease_bytes > max(needed_bytes, job.target.keeps_bytes):
                self._return(job, max(needed_bytes, job.target.keeps_bytes))
            if job.lease_bytes < needed_bytes:
                plan = job.member.profile.predicted(job.lease_bytes)
        job.work_s = plan.step_s / SAMPLES
        job.copy_s = plan.copy_share * plan.step_s / SAMPLES

    def _return(self, job: _Job, lease_bytes: int) -> None:
        job.lease_bytes = max(lease_bytes, job.member.profile.minimum_bytes)
        self._tell(Returned(job=job.member.job, lease_bytes=job.lease_bytes))

    def _tell(self, event: Event) -> None:
        for command in self._coordinator.handle(event, self._now_s):
            job = self.jobs[command.job]
            match command:
                case Admitted():
                    job.admitted, job.lease_bytes = True, command.minimum_bytes
                case Granted():
                    job.lease_bytes = command.lease_bytes
                case Target():
                    job.target = command
                case Begin():
                    job.idle_s = command.after_s
                case Refused():
                    raise ValueError(command.reason)


def _limit(job: _Job) -> Claim:
    limit = None if job.target is None else job.target.copy_share
    return Claim(share=1.0 if limit is None else limit)


def _less(left_s: float, passed_s: float) -> float:
    """What a rounding leaves is nothing."""
    return 0.0 if left_s - passed_s <= _NOTHING_S else left_s - passed_s


def _outcome(job: _Job) -> Outcome:
    counted = job.begins[_SETTLING:]
    (begin_s, before_s), (end_s, after_s) = counted[0], counted[-1]
    step_s = (end_s - begin_s) / (len(counted) - 1)
    return Outcome(
        job=job.member.job,
        step_s=step_s,
        slowdown=step_s / job.member.profile.rungs[0].step_s,
        copy_share=(after_s - before_s) / (end_s - begin_s),
    )
