"""One job as its device's coordinator knows it, and how it stands for everybody else."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from tensile.coordinator.apportion import Member, Portion
from tensile.coordinator.channel import Claim
from tensile.coordinator.messages import Target
from tensile.coordinator.profile import Rung, declared

_SEEN = 3  # steps of a job whose times are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How one job stands. `lease_bytes` is 0 for one that waits, but for what is held for it by who
    stands in. `silent_s` is for how long it has owed an answer. `message` says why it waits, or
    that it is SILENT. `base_bytes` is what its process holds beside its tensors, where it says so.
    """

    job: str
    admitted: bool
    lease_bytes: int
    cap_bytes: int
    minimum_bytes: int
    rung: int
    rungs: int
    speed: float
    silent_s: float
    message: str
    base_bytes: int | None = None


@dataclass(slots=True, kw_only=True)
class Job:
    """`number` is the order in which jobs came; `asked_s` when a question was put to it that it
    has not answered, and `is_silent` whether its lease ran out over that. `told` is what it heard
    last; None for a job that has to be told anew. One that `outgrew` what was foreseen did so since
    the device was divided among all. `wished_bytes` is what it waits for within a step.
    """

    member: Member
    number: int
    heard_s: float
    lease_bytes: int = 0
    wished_bytes: int = 0
    portion: Portion | None = None
    told: Target | None = None
    asked_s: float | None = None
    is_silent: bool = False
    outgrew: bool = False
    began_s: float | None = None
    periods_s: deque[float] = field(default_factory=lambda: deque(maxlen=_SEEN))

    @property
    def name(self) -> str:
        return self.member.job

    @property
    def minimum_bytes(self) -> int:
        return self.member.profile.minimum_bytes

    @property
    def least_bytes(self) -> int:
        """That is its own whatever the others do: its minimum, and all that a silent one holds,
        since nothing brings it down.
        """
        return max(self.lease_bytes if self.is_silent else 0, self.minimum_bytes)

    @property
    def missing_bytes(self) -> int:
        """Of its own minimum."""
        return max(self.minimum_bytes - self.lease_bytes, 0)

    @property
    def cap_bytes(self) -> int:
        """What it may plan for."""
        if self.portion is None or self.is_silent:
            return self.minimum_bytes
        return self.portion.cap_bytes

    @property
    def counted(self) -> Member:
        """As what the device is divided among."""
        if not self.is_silent:
            return self.member
        return replace(self.member, profile=declared(self.least_bytes))

    @property
    def claim(self) -> Claim:
        share = 0.0
        if self.portion is not None and not self.is_silent:
            share = self.member.profile.predicted(self.portion.cap_bytes).copy_share
        return Claim(share=share, weight=self.member.weight, priority=self.member.priority)

    @property
    def rung_number(self) -> int:
        profile = self.member.profile
        if self.is_silent:
            return len(profile.rungs) - 1
        if self.portion is None or self.lease_bytes == 0:
            return profile.rung_for(self.lease_bytes)
        return self.portion.rung

    @property
    def rung(self) -> Rung | None:
        """The one that it is on, as it is leased, with the time that its steps were seen to take:
        predictions are of the work alone. The least of some, since there may be a pause beside any.
        """
        if self.portion is None:
            return None
        rung = self.member.profile.leased(self.rung_number)
        if len(self.periods_s) < _SEEN:
            return rung
        return replace(rung, step_s=min(self.periods_s))

    def heard(self, now_s: float) -> bool:
        """It said something, which renews its lease. Whether that had run out."""
        was_silent, self.is_silent = self.is_silent, False
        self.heard_s, self.asked_s = now_s, None
        return was_silent

    def share(self, admitted: bool, now_s: float, message: str) -> Share:
        profile, rung = self.member.profile, self.rung_number
        speed = profile.speed(rung)
        if admitted and self.portion is not None and not self.is_silent:
            speed = self.portion.speed
        return Share(
            job=self.name,
            admitted=admitted,
            lease_bytes=self.lease_bytes,
            cap_bytes=self.lease_bytes if self.portion is None else self.cap_bytes,
            minimum_bytes=self.minimum_bytes,
            rung=rung,
            rungs=len(profile.rungs),
            speed=speed,
            silent_s=0.0 if self.asked_s is None else now_s - self.asked_s,
            message=message,
        )


def at_minima(jobs: list[Job]) -> tuple[Portion, ...]:
    """Where not even the minima fit, which only those who come back can bring about."""
    return tuple(
        Portion(
            job=job.name,
            rung=len(job.member.profile.rungs) - 1,
            cap_bytes=job.least_bytes,
            speed=job.member.profile.speed(len(job.member.profile.rungs) - 1),
        )
        for job in jobs
    )
